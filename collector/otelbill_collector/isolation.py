"""A request that trips a fault of ours, carried in ever smaller parts. Owns the search for the spans that are at fault.

What can be booked is booked, part by part; a span that cannot is kept whole as a dead letter with the fault's name, so
that its sender is answered, its neighbours are billed, and it can be replayed after an upgrade.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from otelbill_collector.decode.cut import CutRequest, cut_request
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.records import Answer, DeadLetter, Receipt, Rejection
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.domain.usage import Problem
from otelbill_collector.pipeline import PRUNED, Carried, Request, bury_span

_log = logging.getLogger("otelbill.isolation")

# What a smaller part would meet as well: the store or the machine, not a span. The sender keeps its request.
STORE_FAULTS = (sqlite3.Error, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class Part:
    """One committed part of a request, and what became of it."""

    request: Request
    carried: Carried


@dataclass(frozen=True, slots=True)
class Isolated:
    """The sender's one answer, and the parts in the order of their commits."""

    answer: Answer
    parts: tuple[Part, ...]


class Isolator:
    """Carries one request around its faulty spans. `carry` is the pipeline, `keep` saves dead letters durably."""

    def __init__(
        self,
        carry: Callable[[Sequence[Request]], Carried],
        keep: Callable[[Sequence[DeadLetter]], Sequence[bool]],
    ) -> None:
        self._carry = carry
        self._keep = keep

    def isolate(self, request: Request, fault: Exception) -> Isolated:
        """Book what can be booked of a request that raised `fault`. Raises it again where no span is at fault.

        Every part is a transaction of its own. A kill between two of them leaves a request that was not acknowledged:
        when it comes again, what is booked is a duplicate.
        """
        cut = cut_request(request.body)
        if cut is None or not cut.places or isinstance(fault, STORE_FAULTS):
            raise fault
        parts: list[Part] = []
        letters: list[DeadLetter] = []
        self._search(request, cut, (0, len(cut.places)), parts, letters)
        kept = self._keep(letters)
        for letter in letters:
            _log.error("a span could not be booked (%s) and is kept as dead letter %s", letter.value, letter.letter_id)
        dead = Receipt(len(letters), 0, accepted=0, duplicate=len(kept) - sum(kept), dead_lettered=sum(kept))
        return Isolated(_sum_answers([dead, *(part.carried.answers[0] for part in parts)]), tuple(parts))

    def _search(
        self, request: Request, cut: CutRequest, bounds: tuple[int, int], parts: list[Part], letters: list[DeadLetter]
    ) -> None:
        """Carry the spans within `bounds`, or each half of them, or bury the one that is left."""
        start, stop = bounds
        part = Request(cut.build_part(start, stop), request.received_nanos)
        try:
            parts.append(Part(part, self._carry([part])))
        except STORE_FAULTS:
            raise
        except Exception as error:  # noqa: BLE001 kept with the span that it comes down to
            if stop - start == 1:
                letters.append(_bury(part, error))
                return
            middle = (start + stop) // 2
            self._search(request, cut, (start, middle), parts, letters)
            self._search(request, cut, (middle, stop), parts, letters)


def _bury(request: Request, fault: Exception) -> DeadLetter:
    (span,) = decode_request(request.body)
    if isinstance(fault, EvidencePruned):  # its group cannot be decided as a whole any more
        return bury_span(span, PRUNED, request.received_nanos)
    hint = "upgrade otelbill, then replay the dead letter"
    return bury_span(span, Problem("internal_error", "span", type(fault).__name__, hint), request.received_nanos)


def _sum_answers(answers: Sequence[Answer]) -> Answer:
    receipts: list[Receipt] = []
    for answer in answers:
        if isinstance(answer, Rejection):  # not while the whole was read within its limits
            return answer
        receipts.append(answer)
    return Receipt(
        spans=sum(item.spans for item in receipts),
        ignored=sum(item.ignored for item in receipts),
        accepted=sum(item.accepted for item in receipts),
        duplicate=sum(item.duplicate for item in receipts),
        dead_lettered=sum(item.dead_lettered for item in receipts),
    )
