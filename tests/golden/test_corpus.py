"""What recorded spans of real emitters must come to. The truth is the provider's own usage, recorded with each case."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.decode.dialects import list_dialects
from otelbill_collector.decode.select import select_span
from tests.golden.otlp_views import read_views
from tests.golden.score import rate_views

CLASSES = {
    "input_tokens": "input_tokens_uncached",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "output_tokens": "output_tokens_total",
}
# Spans on which nothing at all shows that the provider counted more (compaction inside one call).
KNOWN_SILENT = {"traceloop-anthropic/compaction", "vercel-ai-7-anthropic/compaction"}
# Rows for emitters that were read but not recorded.
NOT_RECORDED = {"azure-ai", "otelbill", "traceloop-js", "openinference-conventions", "traceloop-conventions"}


@dataclass(frozen=True)
class Case:
    """One recorded case with what came out and what is true."""

    name: str
    rows: list[dict[str, Any]]
    truth: dict[str, Any]

    def counted(self) -> list[dict[str, Any]]:
        return [r for r in self.rows if r["billable"] and r["usage_source"] in ("reported", "residual")]

    def held(self) -> list[dict[str, Any]]:
        return [r for r in self.rows if r["billable"] and r["usage_source"] in ("unknown", "estimated")]

    def caveats(self) -> set[str]:
        return {unit for r in self.rows if r["billable"] for unit in r["caveats"]}

    def differences(self) -> dict[str, int]:
        """Ours minus truth per class and for the number of calls; only what differs."""
        totals = self.truth["billed_totals"]
        ours = {unit: sum(int(r["quantities"].get(unit, 0)) for r in self.counted()) for unit in CLASSES}
        calls = sum(int(r["quantities"].get("requests", 0)) for r in self.counted()) + len(self.held())
        found = {unit: ours[unit] - int(totals.get(true) or 0) for unit, true in CLASSES.items()}
        found["calls"] = calls - self.truth["billable_provider_calls"]
        return {unit: amount for unit, amount in found.items() if amount}


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[Case]:
    """Every recorded case, rated on its own: recorded responses recur across cases."""
    found = []
    for file in sorted((shared_data / "spans").glob("*/*/expected.json")):
        rows = rate_views(read_views(file.with_name("spans.pb")))
        found.append(Case(f"{file.parent.parent.name}/{file.parent.name}", rows, json.loads(file.read_text())))
    assert len(found) > 200
    return found


def test_most_cases_are_exact_and_the_rest_says_so(cases: list[Case]) -> None:
    """At least 188 cases equal the provider's count in every class; what differs is held or named by a caveat."""
    exact = [c for c in cases if not c.differences() and not c.held()]
    hedged = [c.name for c in exact if c.caveats()]
    assert len(exact) >= 188
    assert len(hedged) <= 10, hedged


def test_nothing_is_over_counted_without_a_word(cases: list[Case]) -> None:
    """Whatever is counted beyond the truth is named in a caveat of the billable object that carries it."""
    loud = {c.name for c in cases for unit, amount in c.differences().items() if amount > 0 and unit not in c.caveats()}
    assert loud == set()


def test_nothing_is_lost_without_a_word(cases: list[Case]) -> None:
    """Usage that did not reach us is held, or the class that falls short is named; the exceptions cannot be seen."""
    silent = set()
    for case in cases:
        missing = {unit for unit, amount in case.differences().items() if amount < 0}
        if missing and not case.held() and not missing <= case.caveats():
            silent.add(case.name)
    assert silent <= KNOWN_SILENT


def test_no_prompt_text_comes_out(cases: list[Case], shared_data: Path) -> None:
    """Canary words of every prompt, system text and tool result are in no candidate and in no printed object."""
    for case in cases:
        views = read_views(shared_data / "spans" / case.name / "spans.pb")
        text = json.dumps(case.rows) + repr([select_span(view) for view in views])
        assert not any(canary in text for canary in case.truth["canaries"]), case.name


def test_every_billable_object_names_its_provider(cases: list[Case]) -> None:
    """A counted call of a real provider carries a canonical provider name and a model, otherwise it has no price."""
    nameless = {c.name for c in cases for r in c.counted() if not r["provider"] or not r["model"]}
    assert nameless == set()


def test_every_recorded_dialect_has_a_case(cases: list[Case]) -> None:
    """A row of the table without a recorded case is listed here, so that adding one means adding a case."""
    seen = Counter(row["dialect"] for case in cases for row in case.rows)
    assert {row.name for row in list_dialects()} - set(seen) <= NOT_RECORDED | {"gen-ai-conventions"}


def test_a_whole_corpus_in_one_group_keeps_its_traces_apart(cases: list[Case], shared_data: Path) -> None:
    """Deciding several unrelated cases together gives what each gives alone."""
    names = [
        "otel-genai-openai/chat",
        "pydantic-ai/agent_tool_loop",
        "traceloop-cohere/chat_v2",
        "strands/agent_tool_loop",
    ]
    alone = {c.name: c.rows for c in cases if c.name in names}
    views = [view for name in names for view in read_views(shared_data / "spans" / name / "spans.pb")]
    together = {(r["trace_id"], r["span_id"]): r for r in rate_views(views)}
    for rows in alone.values():
        for row in rows:
            assert together[row["trace_id"], row["span_id"]] == row
