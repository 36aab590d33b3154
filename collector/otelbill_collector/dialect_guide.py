"""What is supported, as data and as a page: derived from the dialect table, the reason codes and the advice.

Owns the wording around those tables. `python -m otelbill_collector.dialect_guide` prints docs/dialects.md.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from otelbill_collector.decode import reasons
from otelbill_collector.decode.dialects import Dialect, Fault, list_dialects
from otelbill_collector.decode.vocabulary import load_yaml

Json = dict[str, Any]  # what is printed as JSON
TOPICS = ("content", "usage", "estimates", "twice")
_ADVICE_FILE = Path(__file__).with_name("advice.yaml")
_EFFECTS = {
    "caveat": "priced as reported, named in `caveats`",
    "estimated": "held as estimated, unless accepted",
    "unknown": "held: usage is unknown",
    "drop": "the counts are not used",
}


@cache
def load_advice() -> Mapping[str, Mapping[str, str]]:
    """Advice by dialect, `default` included. Raises ValueError for a dialect or topic that is not known."""
    document = load_yaml(_ADVICE_FILE)
    found: dict[str, Mapping[str, str]] = {"default": document["default"], **document["dialects"]}
    known = {dialect.name for dialect in list_dialects()}
    for name, topics in found.items():
        if name != "default" and name not in known:
            raise ValueError(f"advice.yaml: {name} is no dialect")
        if unknown := set(topics) - set(TOPICS):
            raise ValueError(f"advice.yaml: {name}: unknown topics {sorted(unknown)}")
    return found


def find_advice(dialect: str, topic: str) -> str:
    """What to set about a topic; the general advice where the dialect has none of its own."""
    advice = load_advice()
    return advice.get(dialect, {}).get(topic) or advice["default"][topic]


@cache
def load_content_names() -> tuple[frozenset[str], tuple[str, ...]]:
    """Attribute names that hold prompts, and prefixes of such names."""
    names = load_yaml(_ADVICE_FILE)["content_names"]
    exact = frozenset(name for name in names if not name.endswith("*"))
    return exact, tuple(name[:-1] for name in names if name.endswith("*"))


def describe_dialects() -> list[Json]:
    """One object per dialect, most specific first."""
    return [_describe(dialect) for dialect in list_dialects()]


def _describe(dialect: Dialect) -> Json:
    return {
        "name": dialect.name,
        "seen": dialect.seen,
        "scopes": list(dialect.scopes),
        "versions": dialect.versions,
        "markers": list(dialect.markers),
        "input_includes_cache": dict(dialect.input_includes_cache),
        "treatment": list(_list_treatments(dialect)),
        "known_faults": [
            {"units": list(fault.units), "when": dict(fault.when), "effect": fault.then, "why": fault.why}
            for fault in dialect.faults
        ],
        "advice": dict(load_advice().get(dialect.name, {})),
    }


def _list_treatments(dialect: Dialect) -> Iterator[str]:
    rules = dialect.input_includes_cache
    if set(rules.values()) == {"no"}:
        yield "input excludes cached tokens"
    elif "no" in rules.values():
        excluded = ", ".join(provider for provider, rule in rules.items() if rule == "no")
        yield f"input excludes cached tokens for {excluded}"
    elif set(rules.values()) == {"checked"}:
        yield "input excludes cached tokens where more are cached than read"
    if not dialect.output_includes_reasoning:
        yield "reasoning is added to output"
    if dialect.output_from_total:
        yield "output is completed from the total"
    for item in dialect.usage_objects:
        yield f"reads the usage object in `{item.attribute}`"
    if dialect.stream_usage_in_log_span:
        yield "usage of a stream is taken from its log span"
    if dialect.mirror_prefix is not None:
        yield "spans that mirror the provider's answer count as a second description"
    if dialect.own_response_ids is not None:
        yield "response ids it makes up itself are not used to match calls"
    if dialect.last_call_only:
        yield "a call that ran tools inside is estimated: only the last provider call is on the span"
    if dialect.implies_call:
        yield "a frame without any call beneath it is held as one call of unknown usage"


def list_reasons() -> list[tuple[str, str]]:
    """(code, meaning) of every reason, from the enumeration itself."""
    tree = ast.parse(inspect.getsource(reasons.Reason))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = []
    for line, note in pairwise(body):
        match line, note:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found.append((reasons.Reason[name].value, text))
    return found


def render_page() -> str:
    """The text of docs/dialects.md."""
    parts = [_INTRODUCTION, _render_table(), "## What each emitter gets wrong, and what otelbill does about it\n"]
    parts += [_render_dialect(dialect) for dialect in list_dialects() if dialect.faults or _has_advice(dialect)]
    parts += [_REASONS, *(f"| `{code}` | {meaning} |" for code, meaning in list_reasons()), _LIMITS]
    return "\n".join(parts)


def _has_advice(dialect: Dialect) -> bool:
    return dialect.name in load_advice()


def _render_table() -> str:
    lines = [
        "| dialect | seen | instrumentation scopes | known faults | how its spans are read |",
        "|---|---|---|---|---|",
    ]
    for dialect in list_dialects():
        scopes = ", ".join(f"`{scope}`" for scope in dialect.scopes)
        if dialect.markers:
            scopes += " with " + " or ".join(f"`{marker}`" for marker in dialect.markers)
        faults = ", ".join(dict.fromkeys(fault.then for fault in dialect.faults)) or "none"
        reading = "; ".join(_list_treatments(dialect)) or "as the conventions say"
        lines.append(f"| `{dialect.name}` | {dialect.seen} | {scopes} | {faults} | {reading} |")
    return "\n".join(lines) + "\n"


def _render_dialect(dialect: Dialect) -> str:
    lines = [f"### {dialect.name}\n"]
    lines += [_render_fault(fault) for fault in dialect.faults]
    lines += [f"* To set ({topic}): {text}" for topic, text in load_advice().get(dialect.name, {}).items()]
    return "\n".join(lines) + "\n"


def _render_fault(fault: Fault) -> str:
    when = "; ".join(f"{name} {_render_condition(value)}" for name, value in fault.when.items())
    units = ", ".join(f"`{unit}`" for unit in fault.units)
    return f"* {fault.why} ({units}): {_EFFECTS[fault.then]}. When: {when or 'always'}."


def _render_condition(value: object) -> str:
    if isinstance(value, list):
        return " and ".join(f"`{item}`" for item in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"`{value}`"


_INTRODUCTION = """# Supported instrumentations

This page is made from `decode/dialect_table.yaml`, `decode/reasons.py` and `advice.yaml` by
`python -m otelbill_collector.dialect_guide > docs/dialects.md`; a test fails when it is not current.
`otelbill dialects` prints the same table, `otelbill doctor FILE` says what of it applies to your own spans.

A dialect is chosen by instrumentation scope and version; the first row that fits wins, and the last one takes every
span of the GenAI conventions that no row knows. Where several layers describe one provider call, it is billed once: by
the description that knows most. What an emitter is known to report unreliably is either named in `caveats` and priced
as reported, or held (`otelbill held`), never guessed. A held call gets its numbers from `otelbill resolve`, estimates
of a dialect are billed when `claims.accept_estimates` names it.

"seen" names the versions whose recorded spans are tests of this project; other versions of the same scope are read by
the same row.
"""

_REASONS = """## Reason codes

| code | meaning |
|---|---|"""

_LIMITS = """
## What no rule can find

Spans are all there is to go by. These losses leave no trace on them, so that such usage is billed short without a
caveat; reconcile with the provider's invoice where you use the feature:

* **Context compaction of Anthropic** (`usage.iterations`): the provider bills the compaction request inside a call, but
  `traceloop-anthropic` writes the last iteration's counts only, with both cache counts zero, and `vercel-ai` 7 sums
  uncached input and output but writes zero for the cache counts. No attribute of such a span differs from that of an
  ordinary call: the request's options, the kinds of iterations and their number are not written, and the totals agree
  with the parts. The numbers cannot be derived either: the cache writes of the compaction are no function of what is
  there. `anthropic-sdk` and `openinference-anthropic` do report compaction.

These cases are held, one for each frame, because the spans say that something ran but neither its numbers nor how many
calls it took:

* `autogen`, `traceloop-llamaindex` and `openinference-crewai` frames without an instrumentation of the model's client:
  the spans are of agents, steps and tools; there is no span of a model call and no token attribute on any of them.
* `vercel-ai-legacy` streams that were aborted: the outermost span alone is exported, without usage and response id.
"""


if __name__ == "__main__":
    sys.stdout.write(render_page())
