"""What makes two calls look like one provider call. Owns the evidence between two spans; grouping is `descriptions`.

Evidence, strongest first: the provider's response id; one call directly inside another; equal model, tokens and time in
two traces. Two spans of one emitter are two calls unless one directly encloses the other.
"""

from __future__ import annotations

import re
from functools import lru_cache

from otelbill_collector.domain.ids import derive_gap_key, derive_number_keys
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.usage import (
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    Candidate,
    Role,
    UsageSource,
)

SLACK_NANOS = NANOS // 20  # clocks of two layers in one process may be cut to milliseconds
_BUCKET_NANOS = 2 * NANOS
_EDGE_NANOS = NANOS // 4
_ID_LENGTH_MIN = 10  # shorter ones are timestamps or counters
_GATEWAY_ID = re.compile(r"chatcmpl-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MODEL_TAIL = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{8}|-\d{4}|-\d{3}|-latest|@[\w.\-]+|:[\w.\-]+)$")

NumbersSeen = tuple[int, int, int]
"""Input tokens, output tokens and a bucket of seconds in which a call began or ended."""
GapSeen = tuple[str, int]
"""Model family and a bucket of seconds in which a call began."""
_NOTHING: tuple[()] = ()


def find_claim_id(candidate: Candidate) -> str | None:
    """The response id when it is fit to identify a call at its provider."""
    response_id = candidate.response_id
    if response_id is None or len(response_id) < _ID_LENGTH_MIN or response_id.isdigit():
        return None
    return response_id


def list_twin_keys(candidate: Candidate) -> list[bytes]:
    """Keys under which a call can be found from another trace: exact tokens and the seconds it began and ended in.

    A call without usage has no tokens to be found by: frameworks that break traces publish model and second instead.
    """
    if candidate.role is not Role.CALL or candidate.problem is not None:
        return []
    tokens, by_numbers, by_gap = _list_sightings(candidate)
    keys: list[bytes] = []
    if by_numbers and tokens is not None:
        keys = derive_number_keys(*tokens, by_numbers)
    if by_gap and (family := find_own_family(candidate.request_model, candidate.model)) is not None:
        keys += [derive_gap_key(family, bucket) for bucket in by_gap]
    return keys


def list_twin_evidence(candidate: Candidate) -> frozenset[NumbersSeen | GapSeen]:
    """What the twin keys of a call are made of: two calls share a key exactly when they share one of these."""
    tokens, by_numbers, by_gap = _list_sightings(candidate)
    found: set[NumbersSeen | GapSeen] = set()
    if tokens is not None:
        found.update((*tokens, bucket) for bucket in by_numbers)
    if by_gap and (family := find_own_family(candidate.request_model, candidate.model)) is not None:
        found.update((family, bucket) for bucket in by_gap)
    return frozenset(found)


Buckets = tuple[int, ...] | list[int]


def _list_sightings(candidate: Candidate) -> tuple[tuple[int, int] | None, Buckets, Buckets]:
    """Tokens of a call, the buckets it is found in by them, and those it is found in by its model."""
    tokens = count_tokens(candidate)
    has_twins = "twin" in candidate.traits
    by_numbers: Buckets = _NOTHING
    if tokens is not None and (has_twins or find_claim_id(candidate) is None):
        by_numbers = _list_buckets(candidate.started_nanos, candidate.ended_nanos)
    if not has_twins or candidate.failed or (tokens is not None) is not ("traces_apart" in candidate.traits):
        return tokens, by_numbers, _NOTHING
    if tokens is not None:
        return tokens, by_numbers, (candidate.started_nanos // _BUCKET_NANOS,)
    return tokens, by_numbers, _list_buckets(candidate.started_nanos, candidate.started_nanos)


def _list_buckets(started_nanos: int, ended_nanos: int) -> Buckets:
    """Buckets around two instants, in order."""
    first, last = (started_nanos - _EDGE_NANOS) // _BUCKET_NANOS, (ended_nanos + _EDGE_NANOS) // _BUCKET_NANOS
    if first == last and started_nanos <= ended_nanos:
        return (first,)
    middle, other = (started_nanos + _EDGE_NANOS) // _BUCKET_NANOS, (ended_nanos - _EDGE_NANOS) // _BUCKET_NANOS
    return sorted({first, middle, other, last})


def count_tokens(candidate: Candidate) -> tuple[int, int] | None:
    """All input and all output of a call; None where they are unknown or nothing."""
    if candidate.usage_source is UsageSource.UNKNOWN:
        return None
    get = candidate.quantities.get
    asked = int(get(INPUT_TOKENS, 0) + get(CACHE_READ_TOKENS, 0) + get(CACHE_WRITE_TOKENS, 0))
    answered = int(get(OUTPUT_TOKENS, 0))
    return (asked, answered) if asked or answered else None


def find_model_family(model: str | None) -> str | None:
    """A model's name without path and dated or numbered tail, for comparison only."""
    return _cut_model(model) if model else None


@lru_cache(maxsize=4_096)
def _cut_model(model: str) -> str:
    return _MODEL_TAIL.sub("", model.lower().rsplit("/", 1)[-1])


def find_own_family(request_model: str | None, model: str | None) -> str | None:
    """The family by which a call without other evidence is found: that of the requested model where known."""
    return find_model_family(request_model) or find_model_family(model)


def are_other_calls(first: str | None, second: str | None) -> bool:
    """True when two claim ids are a provider's and differ. A gateway's made-up id contradicts nothing."""
    if first is None or second is None or first == second:
        return False
    return _GATEWAY_ID.fullmatch(first) is None and _GATEWAY_ID.fullmatch(second) is None


def measure_gap(a: Candidate, b: Candidate) -> int:
    """How far two spans begin and end from each other, nanoseconds."""
    return abs(a.ended_nanos - b.ended_nanos) + abs(a.started_nanos - b.started_nanos)


def do_agree(a: Candidate, b: Candidate) -> bool:
    """Equal model where both name one, times that overlap, and nothing that makes them two calls."""
    if a.started_nanos > b.ended_nanos + SLACK_NANOS or b.started_nanos > a.ended_nanos + SLACK_NANOS:
        return False
    first, second = _families(a), _families(b)
    return (not first or not second or not first.isdisjoint(second)) and not _are_of_others(a, b)


def _are_of_others(a: Candidate, b: Candidate) -> bool:
    """True when ids, customers or, from trace to trace, services differ where both name one."""
    if a.customer_id and b.customer_id and a.customer_id != b.customer_id:
        return True
    if a.trace_id != b.trace_id and a.service and b.service and a.service != b.service:
        return True
    return are_other_calls(find_claim_id(a), find_claim_id(b))


def _families(candidate: Candidate) -> set[str]:
    found = (find_model_family(candidate.model), find_model_family(candidate.request_model))
    return {family for family in found if family}
