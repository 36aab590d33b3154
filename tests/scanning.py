"""The two ways of a batch, to be compared: through the scanner and the rules it leaves spans to, or by the rules alone.

Owns that comparison. `read_batch` is what the sidecar does with a scan, as plainly as it can be said.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from otelbill_collector import pipeline
from otelbill_collector.decode.scanner import Scanner
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import MalformedRequest, decode_request
from otelbill_collector.domain.usage import Candidate, Problem
from otelbill_collector.native import loading
from otelbill_collector.pipeline import EARLIEST_NANOS, Limits, Request, Stages
from tests.corpus import load_cases
from tests.fuzzing import list_mutation_keys, mutate
from tests.spans import T0

RECEIVED_NANOS = 2 * T0  # later than any span of a test
LIMITS = Limits(spans_max=20_000, attributes_max=256, future_nanos=600 * 10**9)


@dataclass(slots=True)
class Batch:
    """What was made of each request: per span in order a candidate, a problem or None; or that it was refused."""

    results: list[list[Candidate | Problem | None] | str] = field(default_factory=list)
    recognised: int = 0  # spans that came from the scanner, those that are ignored among them
    spans: int = 0
    whole: int = 0


def read_batch(
    scanner: Scanner, bodies: Sequence[bytes], limits: Limits = LIMITS, received: int = RECEIVED_NANOS
) -> Batch:
    """Requests through the scanner; the rules read what it leaves, and it learns from that."""
    scanned = scanner.scan(
        bodies,
        [received] * len(bodies),
        spans_max=limits.spans_max,
        attributes_max=limits.attributes_max,
        earliest_nanos=EARLIEST_NANOS,
        future_nanos=limits.future_nanos,
    )
    batch = Batch(whole=len(scanned.whole))
    rows: dict[int, list[tuple[int, Candidate]]] = {}
    columns = scanned.columns
    candidates = columns.build_candidates(np.arange(len(columns)))
    for number, place, candidate in zip(columns.request.tolist(), scanned.numbers.tolist(), candidates, strict=True):
        rows.setdefault(number, []).append((place, candidate))
    assert columns.received_nanos.tolist() == [received] * len(columns)
    views = {number: decode_request(body) for number, body in scanned.rest.items()}
    for number, body in enumerate(bodies):
        if number in scanned.whole:
            batch.results.append(read_plainly(body, limits, received))
            continue
        found: list[Candidate | Problem | None] = [None] * int(scanned.spans[number])
        for place, candidate in rows.get(number, ()):
            found[place] = candidate
        rest = views.get(number, [])
        for place, view in zip(scanned.rest_numbers.get(number, ()), rest, strict=True):
            found[place] = _select(view, limits, received)
        recognised = len(rows.get(number, ())) + int(scanned.ignored[number])
        assert recognised + len(rest) == len(found)
        batch.recognised += recognised
        batch.spans += len(found)
        batch.results.append(found)
    scanner.learn(scanned, views)
    return batch


def read_plainly(
    body: bytes, limits: Limits = LIMITS, received: int = RECEIVED_NANOS
) -> list[Candidate | Problem | None] | str:
    """One request by the parser, the rules and the checks of the pipeline alone."""
    try:
        views = decode_request(body, limits.spans_max)
    except MalformedRequest as error:
        return str(error)
    return [_select(view, limits, received) for view in views]


def _select(view: SpanView, limits: Limits, received: int) -> Candidate | Problem | None:
    stages = Stages(select_span, books=None, limits=limits)  # type: ignore[arg-type]  # nothing is posted
    return pipeline._select_span(view, Request(b"", received), stages)


def check_batch(
    scanner: Scanner, bodies: Sequence[bytes], limits: Limits = LIMITS, received: int = RECEIVED_NANOS
) -> Batch:
    """Both ways; AssertionError where they differ in any span. Equal values of other types are not equal."""
    batch = read_batch(scanner, bodies, limits, received)
    for found, body in zip(batch.results, bodies, strict=True):
        expected = read_plainly(body, limits, received)
        if found != expected or repr(found) != repr(expected):
            _explain(found, expected)
    return batch


def _explain(found: object, expected: object) -> None:
    assert type(found) is type(expected), (found, expected)
    if isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected)
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert repr(one) == repr(other), number
            assert one == other, number
    raise AssertionError((found, expected))


def check_mutants(scanner: Scanner, bodies: Sequence[bytes], count: int, seed: str) -> int:
    """Broken copies of requests in batches of up to five, among whole ones; returns how many spans were recognised."""
    keys, recognised = list_mutation_keys(), 0
    for number in range(count):
        chance = random.Random(f"{seed}-{number}")
        chosen = [chance.choice(bodies) for _ in range(chance.randint(1, 5))]
        batch = [mutate(body, chance, keys) if chance.random() < 0.8 else body for body in chosen]
        recognised += check_batch(scanner, batch).recognised
    return recognised


def main() -> None:
    """Under sanitizers: mutants and every cut of a request through a library built for it. Prints what was seen."""
    library, shared, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    loading.LIBRARY = library
    bodies = [case.body for case in load_cases(shared)]
    scanner = Scanner(entries_max=5_000, bytes_max=500_000)  # small: it forgets on the way
    check_batch(scanner, bodies)
    recognised = check_batch(scanner, bodies).recognised
    recognised += check_mutants(scanner, bodies, count, "sanitized")
    body = min(bodies, key=len)
    for end in range(len(body)):
        check_batch(scanner, [body[:end]])
    print(f"{library.name} {recognised}")


if __name__ == "__main__":
    main()
