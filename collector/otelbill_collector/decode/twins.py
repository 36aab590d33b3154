"""Which calls are descriptions of one provider call. Owns the evidence and the grouping of descriptions.

Evidence, strongest first: the provider's response id; one call directly inside another; equal model, tokens and time in
two traces. Two spans of one emitter are two calls unless one directly encloses the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from otelbill_collector.decode.lineage import Lineage
from otelbill_collector.decode.quantities import total_input
from otelbill_collector.domain.ids import derive_twin_key
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.usage import OUTPUT_TOKENS, Candidate, Role, UsageSource

_BUCKET_NANOS = 2 * NANOS
_EDGE_NANOS = NANOS // 4
_SLACK_NANOS = NANOS // 20  # clocks of two layers in one process may be cut to milliseconds
_NEIGHBOURS_MAX = 64  # identical calls compared with at most this many others in time order
_ID_LENGTH_MIN = 10  # shorter ones are timestamps or counters
_GATEWAY_ID = re.compile(r"chatcmpl-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MODEL_TAIL = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{8}|-\d{4}|-\d{3}|-latest|@[\w.\-]+|:[\w.\-]+)$")

_BY_ID, _NESTED_EQUAL, _NESTED_UNKNOWN, _BY_NUMBERS, _BY_GAP, _NESTED_UNEQUAL, _NESTED_FAILED = range(7)


@dataclass(frozen=True, slots=True, order=True)
class _Link:
    strength: int
    gap: int
    one: int
    other: int


def find_claim_id(candidate: Candidate) -> str | None:
    """The response id when it is fit to identify a call at its provider."""
    response_id = candidate.response_id
    if response_id is None or len(response_id) < _ID_LENGTH_MIN or response_id.isdigit():
        return None
    return response_id


def list_twin_keys(candidate: Candidate) -> tuple[bytes, ...]:
    """Keys under which a call can be found from another trace: exact tokens and the seconds it began and ended in.

    A call without usage has no tokens to be found by: frameworks that break traces publish model and second instead.
    """
    if candidate.role is not Role.CALL or candidate.problem is not None:
        return ()
    tokens = _count_tokens(candidate)
    keys: list[bytes] = []
    if tokens is not None and ("twin" in candidate.traits or find_claim_id(candidate) is None):
        buckets = _list_buckets(candidate.started_nanos) | _list_buckets(candidate.ended_nanos)
        keys += [derive_twin_key("claim-twin", *tokens, bucket) for bucket in sorted(buckets)]
    return (*keys, *_list_gap_keys(candidate, has_tokens=tokens is not None))


def _list_gap_keys(candidate: Candidate, *, has_tokens: bool) -> tuple[bytes, ...]:
    family = find_model_family(candidate.request_model) or find_model_family(candidate.model)
    if family is None or "twin" not in candidate.traits or candidate.failed:
        return ()
    if has_tokens and "traces_apart" in candidate.traits:
        buckets = {candidate.started_nanos // _BUCKET_NANOS}
    elif not has_tokens and "traces_apart" not in candidate.traits:
        buckets = _list_buckets(candidate.started_nanos)
    else:
        return ()
    return tuple(derive_twin_key("claim-gap", family, bucket) for bucket in sorted(buckets))


def _list_buckets(at_nanos: int) -> set[int]:
    return {(at_nanos + shift) // _BUCKET_NANOS for shift in (-_EDGE_NANOS, _EDGE_NANOS)}


def _count_tokens(candidate: Candidate) -> tuple[int, int] | None:
    if candidate.usage_source is UsageSource.UNKNOWN:
        return None
    tokens = (int(total_input(candidate.quantities)), int(candidate.quantities.get(OUTPUT_TOKENS, 0)))
    return tokens if any(tokens) else None


def find_model_family(model: str | None) -> str | None:
    """A model's name without path and dated or numbered tail, for comparison only."""
    if not model:
        return None
    return _MODEL_TAIL.sub("", model.lower().rsplit("/", 1)[-1])


def group_descriptions(candidates: Sequence[Candidate], lineage: Lineage) -> list[list[int]]:
    """Sets of calls (as sorted indexes) that describe one provider call each; candidates are in canonical order."""
    calls = [i for i, c in enumerate(candidates) if c.role is Role.CALL and c.problem is None]
    links = sorted({*_link_by_id(candidates, calls, lineage), *_link_nested(candidates, calls, lineage)})
    keys = {i: frozenset(list_twin_keys(candidates[i])) for i in calls}
    links = sorted([*links, *_link_by_numbers(candidates, calls, keys), *_link_gaps(candidates, calls, keys)])
    home = {i: [i] for i in calls}
    for link in links:
        one, other = home[link.one], home[link.other]
        if one is not other and _may_merge(candidates, lineage, one, other):
            one.extend(other)
            for index in other:
                home[index] = one
    return [sorted(group) for index, group in home.items() if min(group) == index]


def _may_merge(candidates: Sequence[Candidate], lineage: Lineage, one: list[int], other: list[int]) -> bool:
    for i in one:
        for j in other:
            a, b = candidates[i], candidates[j]
            if _are_other_calls(a, b):
                return False
            if a.emitter == b.emitter and not lineage.are_nested(i, j):
                return False
    return True


def _are_other_calls(a: Candidate, b: Candidate) -> bool:
    """True when both carry a provider's id and the ids differ. A gateway's made-up id contradicts nothing."""
    first, second = find_claim_id(a), find_claim_id(b)
    if first is None or second is None or first == second:
        return False
    return _GATEWAY_ID.fullmatch(first) is None and _GATEWAY_ID.fullmatch(second) is None


def _gap(a: Candidate, b: Candidate) -> int:
    return abs(a.ended_nanos - b.ended_nanos) + abs(a.started_nanos - b.started_nanos)


def _link_by_id(candidates: Sequence[Candidate], calls: list[int], lineage: Lineage) -> Iterator[_Link]:
    by_id: dict[str, list[int]] = defaultdict(list)
    for index in calls:
        if (claim_id := find_claim_id(candidates[index])) is not None:
            by_id[claim_id].append(index)
    for indexes in by_id.values():
        yield from _link_neighbours(candidates, indexes, _BY_ID, lineage)


def _link_neighbours(
    candidates: Sequence[Candidate], indexes: list[int], strength: int, lineage: Lineage | None
) -> Iterator[_Link]:
    ordered = sorted(indexes, key=lambda i: (candidates[i].started_nanos, i))
    for position, i in enumerate(ordered):
        for j in ordered[position + 1 : position + 1 + _NEIGHBOURS_MAX]:
            a, b = candidates[i], candidates[j]
            if a.emitter != b.emitter or (lineage is not None and lineage.are_nested(i, j)):
                yield _Link(strength, _gap(a, b), min(i, j), max(i, j))


def _link_nested(candidates: Sequence[Candidate], calls: list[int], lineage: Lineage) -> Iterator[_Link]:
    for inner in calls:
        for outer in lineage.list_enclosing_calls(inner):
            a, b = candidates[outer], candidates[inner]
            strength = _weigh_nesting(a, b)
            if strength is not None and not _are_other_calls(a, b):
                yield _Link(strength, _gap(a, b), min(outer, inner), max(outer, inner))


def _weigh_nesting(outer: Candidate, inner: Candidate) -> int | None:
    if inner.failed != outer.failed and inner.failed:
        return _NESTED_FAILED
    first, second = _count_tokens(outer), _count_tokens(inner)
    if first is None or second is None:
        return _NESTED_UNKNOWN
    if first == second:
        return _NESTED_EQUAL
    return None if outer.emitter == inner.emitter else _NESTED_UNEQUAL


def _link_by_numbers(
    candidates: Sequence[Candidate], calls: list[int], keys: Mapping[int, frozenset[bytes]]
) -> Iterator[_Link]:
    by_tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in calls:
        if (tokens := _count_tokens(candidates[index])) is not None:
            by_tokens[tokens].append(index)
    for indexes in by_tokens.values():
        for link in _link_neighbours(candidates, indexes, _BY_NUMBERS, None):
            a, b = candidates[link.one], candidates[link.other]
            known = a.trace_id == b.trace_id or keys[link.one] & keys[link.other]
            if known and _agree(a, b):
                yield link


def _link_gaps(
    candidates: Sequence[Candidate], calls: list[int], keys: Mapping[int, frozenset[bytes]]
) -> Iterator[_Link]:
    """Calls without usage that lie within a framework's description of a call in another trace."""
    outer_by_key: dict[bytes, list[int]] = defaultdict(list)
    inner: list[int] = []
    for index in calls:
        if _count_tokens(candidates[index]) is None:
            inner.append(index)
        elif "traces_apart" in candidates[index].traits:
            for key in keys[index]:
                outer_by_key[key].append(index)
    for index in inner:
        found = {outer for key in keys[index] for outer in outer_by_key.get(key, ())}
        for outer in sorted(found):
            a, b = candidates[outer], candidates[index]
            within = a.started_nanos <= b.started_nanos + _SLACK_NANOS and b.ended_nanos <= a.ended_nanos + _SLACK_NANOS
            if a.emitter != b.emitter and within and _agree(a, b):
                yield _Link(_BY_GAP, _gap(a, b), min(outer, index), max(outer, index))


def _agree(a: Candidate, b: Candidate) -> bool:
    """Equal model where both name one, times that overlap, and nothing that makes them two calls."""
    overlap = a.started_nanos <= b.ended_nanos + _SLACK_NANOS and b.started_nanos <= a.ended_nanos + _SLACK_NANOS
    first, second = _families(a), _families(b)
    return overlap and (not first or not second or bool(first & second)) and not _are_of_others(a, b)


def _are_of_others(a: Candidate, b: Candidate) -> bool:
    """True when ids, customers or, from trace to trace, services differ where both name one."""
    services = (a.service, b.service) if a.trace_id != b.trace_id else (None, None)
    pairs = ((a.customer_id, b.customer_id), services)
    return _are_other_calls(a, b) or any(one and other and one != other for one, other in pairs)


def _families(candidate: Candidate) -> set[str]:
    found = (find_model_family(candidate.model), find_model_family(candidate.request_model))
    return {family for family in found if family}
