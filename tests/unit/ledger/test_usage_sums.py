"""Sums by columns are those of the records one by one, to the last digit, also past 64 bits."""

from __future__ import annotations

import random
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import QUANTITY_MAX, Candidate, Decision, RatingState, Role, UsageSource
from otelbill_collector.ledger.journal import Placed, append_segment, save_price_versions
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.usage_sums import has_records, list_customers, load_usage_sums

VERSIONS = {
    name: f'{{"currency":"USD","prices":{{"{unit}":{{"charge":"1"}}}}}}'
    for name, unit in (("v1", "input_tokens"), ("v2", "output_tokens"), ("v3", "pages"))
}
BILLION_DOLLARS = 10**9 * 10**18


def make_record(chance: random.Random, number: int) -> UsageRecord:
    """Any rated record, or its reversal; amounts and counts up to the largest there can be."""
    quantities: dict[str, Any] = {
        "input_tokens": chance.choice((1, QUANTITY_MAX, QUANTITY_MAX - 1)),
        "output_tokens": chance.randrange(100),
    }
    if chance.random() < 0.3:
        quantities["pages"] = chance.choice((7, Decimal("0.000001"), Decimal("12345678901234567890.5")))
    key = digest_parts("test", number)
    customer = chance.choice(("acme", "bolt", None))
    candidate = Candidate(
        trace_id=key[:16],
        span_id=key[16:24],
        parent_span_id=b"",
        started_nanos=0,
        ended_nanos=chance.randrange(100),
        dialect="d",
        role=Role.CALL,
        detail=1,
        provider=chance.choice(("p", None)),
        model=chance.choice(("m", "n", None)),
    )
    decision = Decision(True, "provider_call", UsageSource.REPORTED, quantities, customer_id=customer, step="s")
    state = chance.choice((RatingState.RATED, RatingState.RATED, RatingState.UNPRICED))
    charge = chance.randrange(BILLION_DOLLARS) if state is RatingState.RATED else None
    amounts = Amounts(state, chance.choice((*VERSIONS, None)), None, charge, "USD")
    sign = chance.choice((1, 1, 1, -1))
    return UsageRecord(key.hex()[:32], 0, sign, key[:16], 0, candidate, decision, amounts)


def sum_slowly(records: list[UsageRecord], start: int, end: int) -> dict[Any, Any]:
    """(customer, project, step, provider, model, version) -> [events, charge, quantities], record by record."""
    sums: dict[Any, Any] = defaultdict(lambda: [0, 0, defaultdict(Decimal)])
    for record in records:
        customer, candidate = record.decision.customer_id, record.candidate
        inside = start <= candidate.ended_nanos < end
        if customer is None or not inside or record.amounts.charge_attos is None:
            continue
        version = record.amounts.price_version
        group = sums[customer, None, "s", candidate.provider, candidate.model, version]
        group[0] += record.sign
        group[1] += record.sign * record.amounts.charge_attos
        for unit, count in record.decision.quantities.items():
            group[2][unit] += record.sign * Decimal(count)
    return sums


def test_sums_are_exact(tmp_path: Path) -> None:
    """Thousands of counts of 2^53 overflow 64 bits, amounts of billions 10^18 each: the sums are exact."""
    chance = random.Random(5)
    records = [make_record(chance, number) for number in range(6_000)]
    store = SqliteStore(tmp_path)
    for first in range(0, len(records), 1_500):
        placed = [Placed(record, 0, ()) for record in records[first : first + 1_500]]
        store.transact(lambda connection, placed=placed: append_segment(connection, placed, 1))
    store.transact(lambda connection: save_price_versions(connection, VERSIONS))
    found = store.read(lambda connection: load_usage_sums(connection, from_nanos=10, to_nanos=90))
    wanted = sum_slowly(records, 10, 90)
    assert sum(len(items) for items in found.values()) == len(wanted)
    for customer, items in found.items():
        for item in items:
            names = (item.project, item.step, item.provider, item.model, item.version)
            events, charge, quantities = wanted[(customer, *names)]
            assert (item.events, item.charge_attos) == (events, charge)
            assert item.currency == ("USD" if item.version else None)
            assert item.quantities == {unit: count for unit, count in quantities.items() if count}
    acme = store.read(lambda connection: load_usage_sums(connection, from_nanos=10, to_nanos=90, customer_id="acme"))
    assert sorted(map(repr, acme["acme"])) == sorted(map(repr, found["acme"]))
    assert list(acme) == ["acme"]
    store.close()


def test_who_has_records_when(tmp_path: Path) -> None:
    """Customers of an interval, and whether anything came past a mark."""
    record = make_record(random.Random(1), 1)
    customer, at = "acme", record.candidate.ended_nanos
    decision = Decision(True, "r", UsageSource.REPORTED, {}, customer_id=customer)
    own = UsageRecord("e" * 32, 0, 1, b"c" * 16, 0, record.candidate, decision, record.amounts)
    store = SqliteStore(tmp_path)
    store.transact(lambda connection: append_segment(connection, [Placed(own, 0, ())], 1))
    for start, end, inside in ((at, at + 1, True), (at + 1, at + 9, False), (at - 9, at, False)):
        listed = store.read(lambda connection, s=start, e=end: list_customers(connection, from_nanos=s, to_nanos=e))
        assert listed == ([customer] if inside else [])
    for after, found in ((0, True), (1, False)):
        late = store.read(
            lambda connection, a=after: has_records(connection, customer, after=a, from_nanos=at, to_nanos=at + 1)
        )
        assert late is found
    store.close()


def test_without_records_there_are_no_sums(tmp_path: Path) -> None:
    """An empty ledger is not an error."""
    store = SqliteStore(tmp_path)
    assert store.read(lambda connection: load_usage_sums(connection, from_nanos=0, to_nanos=9)) == {}
    store.close()
