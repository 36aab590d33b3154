"""`otelbill rate`: the same decoding, claims and rating as the sidecar's, over files, touching no ledger.

Owns the grouping in memory and the shape of the contract's output; the rules are those of the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from otelbill_collector.decode.claims import claim_keys
from otelbill_collector.decode.otlp_json import convert_json
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.ids import is_twin_key
from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.rating import Line
from otelbill_collector.domain.records import identify_candidate
from otelbill_collector.domain.usage import Candidate, Decision, Problem, RatingState, Role
from otelbill_collector.explanation import render_quantity_map
from otelbill_collector.ledger.booking import collect_keys
from otelbill_collector.rules import RuleSet

Json = dict[str, Any]  # what is printed as JSON
FINAL_NANOS = 2**62  # every grace is over: a file holds all that will come


def read_spans(body: bytes) -> list[SpanView]:
    """Spans of one file, protobuf or OTLP/JSON by its first character. Raises MalformedRequest."""
    return decode_request(convert_json(body) if body.lstrip()[:1] == b"{" else body)


def rate_spans(spans: Iterable[SpanView], rules: RuleSet) -> list[Json]:
    """One object per candidate span, billable or not, in event-time order. A repeated span is rated once."""
    members: dict[str, Candidate] = {}
    broken: list[tuple[Candidate, Problem]] = []
    for span in spans:
        candidate = select_span(span)
        if candidate is None:
            continue
        if candidate.problem is not None:
            broken.append((candidate, candidate.problem))
        else:
            members.setdefault(identify_candidate(candidate), candidate)
    rows = [_render_problem(candidate, problem) for candidate, problem in broken]
    for group in list_groups(list(members.values())):
        for candidate, decision in zip(group, rules.decide(group, FINAL_NANOS), strict=True):
            if candidate.role is not Role.LINK or decision.billable:  # a frame may imply a call nobody described
                rows.append(_render(candidate, decision, rules))
    rows.sort(key=lambda row: (row["ended_at"], row["event_id"]))
    return rows


def list_groups(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Connected components over claim keys, each in a stable order."""
    by_key: dict[bytes, list[int]] = {}
    for index, candidate in enumerate(candidates):
        for key in collect_keys(candidate, claim_keys):
            by_key.setdefault(key, []).append(index)
    home: list[list[int] | None] = [None] * len(candidates)
    for key, members in by_key.items():
        if len(members) > 1 and not (is_twin_key(key) and _are_of_one_emitter(candidates, members)):
            _join(home, members)
    shown: set[int] = set()
    for index, group in enumerate(home):
        if group is None:
            yield [candidates[index]]
        elif id(group) not in shown:
            shown.add(id(group))
            yield [candidates[member] for member in sorted(group)]


def _are_of_one_emitter(candidates: Sequence[Candidate], members: Sequence[int]) -> bool:
    return len({candidates[member].emitter for member in members}) == 1


def _join(home: list[list[int] | None], members: Sequence[int]) -> None:
    """Put candidates, and all that are already with them, into one group: the largest takes the others in."""
    groups = {id(group): group for member in members if (group := home[member]) is not None}
    largest = max(groups.values(), key=len, default=[])
    joined = [member for group in groups.values() if group is not largest for member in group]
    joined += [member for member in members if home[member] is None]
    largest += joined
    for member in joined:
        home[member] = largest


def _render(candidate: Candidate, decision: Decision, rules: RuleSet) -> Json:
    amounts, _ = rules.rate(candidate, decision)
    lines = rules.rate_lines(candidate, decision).lines if amounts.state in _PRICED else ()
    row = _render_names(candidate)
    row.update(
        customer_id=decision.customer_id,
        project_id=decision.project_id,
        run_id=decision.run_id,
        step=decision.step,
        billable=decision.billable,
        reason=decision.reason,
        usage_source=decision.usage_source.value,
        caveats=list(decision.caveats),
        quantities=render_quantity_map(decision.quantities),
        rating=amounts.state.value,
        price_version=amounts.price_version,
        cost=_render_amount(amounts.cost_attos),
        charge=_render_amount(amounts.charge_attos),
        currency=amounts.currency,
        lines=[_render_line(line) for line in lines],
    )
    return row


_PRICED = (RatingState.RATED, RatingState.UNPRICED)


def _render_problem(candidate: Candidate, problem: Problem) -> Json:
    """A span that the sidecar would dead-letter: shown, never counted."""
    row = _render_names(candidate)
    row.update(
        customer_id=candidate.customer_id,
        project_id=candidate.project_id,
        run_id=candidate.run_id,
        step=candidate.step,
        billable=True,
        reason=f"dead_letter:{problem.code}",
        usage_source="unknown",
        caveats=[],
        quantities={},
        rating=RatingState.HELD.value,
        price_version=None,
        cost=None,
        charge=None,
        currency=None,
        lines=[],
    )
    return row


def _render_names(candidate: Candidate) -> Json:
    return {
        "event_id": identify_candidate(candidate),
        "trace_id": candidate.trace_id.hex(),
        "span_id": candidate.span_id.hex(),
        "customer_id": None,
        "project_id": None,
        "run_id": None,
        "step": None,
        "provider": candidate.provider,
        "model": candidate.model,
        "operation": candidate.operation,
        "response_id": candidate.response_id,
        "started_at": format_instant(candidate.started_nanos),
        "ended_at": format_instant(candidate.ended_nanos),
    }


def _render_line(line: Line) -> Json:
    quantity = line.quantity if isinstance(line.quantity, int) else format(line.quantity, "f")
    return {
        "unit": line.unit,
        "quantity": quantity,
        "charge_price": _render_amount(line.charge_price_attos),
        "charge": _render_amount(line.charge_attos),
        "cost_price": _render_amount(line.cost_price_attos),
        "cost": _render_amount(line.cost_attos),
    }


def _render_amount(attos: int | None) -> str | None:
    return None if attos is None else format_attos(attos)
