"""Whether operators can say what they say of a booked event. Owns these refusals and their texts; writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.corrections import (
    Aspect,
    Correction,
    CorrectionBook,
    InvalidCorrection,
    apply_to_decision,
)
from otelbill_collector.ledger.resolutions import find_oversized_part


def check_correction(book: CorrectionBook, record: UsageRecord, corrections: Sequence[Correction]) -> None:
    """Raises InvalidCorrection for what is so already, or cannot be."""
    event_id, decision = record.event_id, record.decision
    before = book.find(event_id)
    after = apply_to_decision(decision, {**before, **{given.aspect: given for given in corrections}})
    charged = any(given.aspect is Aspect.CHARGE and before.get(Aspect.CHARGE) != given for given in corrections)
    if all(_says_the_same(before.get(given.aspect), given) for given in corrections):
        raise InvalidCorrection(f"event {event_id} was corrected like that already; nothing is written")
    if after == decision and not charged:
        raise InvalidCorrection(f"event {event_id} is like that already; nothing is written")
    if not decision.billable and any(given.aspect is not Aspect.CUSTOMER for given in corrections):
        raise InvalidCorrection(
            f"event {event_id} is not billable ({decision.reason}); only its customer can be corrected"
        )
    problem = find_oversized_part(after.quantities)
    if problem is not None:
        raise InvalidCorrection(f"event {event_id}: {problem}")
    currency = record.amounts.currency
    for correction in corrections:
        if correction.aspect is Aspect.CHARGE and correction.currency != currency:
            raise InvalidCorrection(
                f"event {event_id} is charged in {currency}, not in {correction.currency}; "
                f"give the charge in {currency}"
            )


def _says_the_same(one: Correction | None, other: Correction) -> bool:
    return one is not None and one.value == other.value
