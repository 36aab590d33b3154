"""The doctor names what keeps spans from being billed, and never a value of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from otelbill_collector.cli import cli
from otelbill_collector.doctor import examine_spans
from otelbill_collector.offline import read_spans
from tests.corpus import load_cases
from tests.spans import TestSpan, build_request, chat

SECRET = "the quick brown fox of ACME jumps"


def examine(*spans: TestSpan) -> dict[str, Any]:
    return examine_spans(read_spans(build_request(spans)))


def codes(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding["code"], finding["subject"]) for finding in report["findings"]]


def scoped(scope: str, **changes: Any) -> TestSpan:
    span = chat("a", **changes)
    return TestSpan(span.name, span.attributes, trace=span.trace, scope=scope)


def test_spans_that_bill_well_are_healthy() -> None:
    """A known emitter with usage, a customer and no content: nothing to mend."""
    report = examine(scoped("opentelemetry.instrumentation.genai.openai"))
    assert report["healthy"] is True
    assert (report["findings"], report["calls"], report["content"]) == ([], 1, [])
    assert report["emitters"] == [
        {
            "scope": "opentelemetry.instrumentation.genai.openai",
            "version": None,
            "dialect": "otel-genai",
            "spans": 1,
            "calls": 1,
        }
    ]


def test_usage_without_customer_is_found() -> None:
    """It would go to suspense; the remedy names the call and the attribute."""
    report = examine(scoped("opentelemetry.instrumentation.genai.openai", customer=None))
    assert codes(report) == [("no_customer", "")]
    assert "otelbill.customer" in report["findings"][0]["remedy"]


def test_a_call_without_usage_is_found_with_the_setting_that_mends_it() -> None:
    """The remedy is the emitter's own."""
    span = chat("a")
    attributes = {key: value for key, value in span.attributes.items() if "usage" not in key}
    report = examine(TestSpan("a", attributes, scope="openlit.instrumentation.openai"))
    assert codes(report) == [("no_usage", "openlit")]
    assert "include_usage" in report["findings"][0]["remedy"]


def test_estimates_are_found() -> None:
    """OpenLIT's own counts would be held."""
    report = examine(scoped("openlit.instrumentation.openai", attributes={"gen_ai.request.is_stream": True}))
    assert codes(report) == [("estimated_usage", "openlit")]


def test_a_call_described_twice_is_a_note_not_a_problem() -> None:
    """It is billed once whatever the user does."""
    outer = scoped("openinference.instrumentation.langchain", response="resp-0123456789")
    inner = TestSpan("b", outer.attributes, trace=outer.trace, scope="opentelemetry.instrumentation.openai.v1")
    report = examine(outer, inner)
    assert report["calls"] == 1
    assert [(f["code"], f["severity"]) for f in report["findings"]] == [("described_twice", "note")]
    assert report["healthy"] is True


def test_an_emitter_no_rule_knows_is_found() -> None:
    """Its counts are read by the general conventions, which should be compared once."""
    assert codes(examine(scoped("acme.llm"))) == [("unknown_emitter", "acme.llm")]


def test_genai_attributes_on_spans_that_are_no_calls_are_found_too() -> None:
    """A span with names of its own making must not be silently ignored."""
    report = examine(TestSpan("x", {"gen_ai.vendor.tokens_used": 5}, scope="acme.llm"))
    assert codes(report) == [("unknown_emitter", "acme.llm")]


def test_a_broken_count_is_found() -> None:
    """It would become a dead letter."""
    report = examine(scoped("opentelemetry.instrumentation.genai.openai", tokens=(-1, 2)))
    assert codes(report) == [("dead_letter", "gen_ai.usage.input_tokens")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gen_ai.input.messages", "gen_ai.input.messages"),
        ("gen_ai.prompt.0.content", "gen_ai.prompt.*"),
        ("acme.note", "acme.note"),
        (f"note {SECRET}", "(a name that is no plain word)"),
    ],
)
def test_attributes_with_prompts_are_named_and_their_values_are_not(name: str, shown: str) -> None:
    """Known names, indexed names, and any other attribute that holds prose."""
    report = examine(scoped("opentelemetry.instrumentation.genai.openai", attributes={name: SECRET}))
    assert report["content"] == [shown]
    assert codes(report) == [("content", "otel-genai")]
    assert SECRET not in json.dumps(report)


def test_prompts_in_events_are_found() -> None:
    """Some emitters write messages as span events."""
    span = scoped("strands.telemetry.tracer")
    event = ("gen_ai.user.message", {"content": SECRET})
    report = examine(TestSpan("a", span.attributes, scope=span.scope, events=(event,)))
    assert report["content"] == ["event gen_ai.user.message: content"]


def test_all_content_of_the_corpus_is_found_and_none_is_shown(shared_data: Path) -> None:
    """Every case with content on a span has a finding for it; no canary of a prompt stands in any report."""
    missed = []
    for case in load_cases(shared_data):
        expected = json.loads((shared_data / "spans" / case.name / "expected.json").read_text())
        report = examine_spans(read_spans(case.body))
        text = json.dumps(report)
        assert not [canary for canary in expected["canaries"] if canary in text], case.name
        if _holds_canary(case.body, expected["canaries"]) and not report["content"]:
            missed.append(case.name)
    assert missed == []


def _holds_canary(body: bytes, canaries: list[str]) -> bool:
    """Whether a prompt stands in an attribute of a span or event."""
    return any(
        canary in str(attributes.get(key))
        for span in read_spans(body)
        for attributes in (span.attributes, *(event.attributes for event in span.events))
        for key in attributes
        for canary in canaries
    )


def test_the_command_reads_files_and_its_status_tells(tmp_path: Path) -> None:
    """0 when nothing stands in the way, 1 when something does; a file that is no trace is an error with its name."""
    good, bad, broken = (tmp_path / name for name in ("good.pb", "bad.pb", "broken.pb"))
    good.write_bytes(build_request([scoped("opentelemetry.instrumentation.genai.openai")]))
    bad.write_bytes(build_request([scoped("acme.llm", customer=None)]))
    broken.write_bytes(b"\xff\xff\xff")
    run = CliRunner().invoke
    assert run(cli, ["doctor", str(good)]).exit_code == 0
    done = run(cli, ["doctor", str(bad), "--json"])
    assert done.exit_code == 1
    assert [finding["code"] for finding in json.loads(done.stdout)["findings"]] == ["no_customer", "unknown_emitter"]
    assert "remedy:" in run(cli, ["doctor", str(bad)]).stdout
    done = run(cli, ["doctor", str(broken)])
    assert done.exit_code == 1
    assert "broken.pb" in done.output
