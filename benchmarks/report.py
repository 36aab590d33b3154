"""Results as tables in docs/benchmarks.md and as a picture beside it. Owns their text; measures nothing.

python -m benchmarks.report        # from benchmarks/results.json

"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.picture import INGEST, draw_picture

_REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, PICTURE = _REPOSITORY / "docs" / "benchmarks.md", _REPOSITORY / "docs" / "images" / "benchmarks.svg"
BEGIN, END = "<!-- begin: written by python -m benchmarks.report -->", "<!-- end -->"

_Row = Sequence[object]


def main() -> None:
    """Render the results that are there."""
    render_files(json.loads(Path(__file__).with_name("results.json").read_text()))


def render_files(results: Mapping[str, Any], page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Write the picture, and the tables between their marks in the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    picture.write_text(draw_picture(results))
    page.write_text(f"{before}{BEGIN}\n\n{render_tables(results)}\n{END}{after}")


def render_tables(results: Mapping[str, Any]) -> str:
    """Everything that was measured; what was not has no row."""
    machine = results["machine"]
    parts = [
        f"{machine['date']}, commit `{machine['commit']}`: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}, CPython {machine['python']}; load on the same cores.",
        "![spans a second, and a ledger that fills](images/benchmarks.svg)",
        _render_ingest(results),
        _render_peers(results),
        _render_growth(results),
        _render_week(results),
        _render_commands(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _find(results: Mapping[str, Any], name: str) -> Any:
    return results.get(name, {}).get("result")


def _render_table(heads: _Row, rows: Sequence[_Row]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_show(cell) for cell in line) + " |" for line in lines)


def _show(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _render_ingest(results: Mapping[str, Any]) -> str:
    rows: list[_Row] = []
    for name, (title, aim) in INGEST.items():
        if found := _find(results, name):
            rows.append(_list_ingest(title, aim, found))
    if found := _find(results, "paced-100000"):
        rows.append(_list_ingest("HTTP, 512 spans, paced", "p99 under 25 ms, under 0.5 cores", found))
    if not rows:
        return ""
    heads = [
        "ingest",
        "spans a second",
        "aim",
        "CPU µs a span",
        "cores",
        "ack p50 ms",
        "ack p99 ms",
        "load, CPU µs a span",
    ]
    return "## Ingest\n\n" + _render_table(heads, rows)


def _list_ingest(title: str, aim: object, found: Mapping[str, Any]) -> _Row:
    names = ("cpu_us_per_span", "cores", "ack_p50_ms", "ack_p99_ms", "load_cpu_us_per_span")
    return [title, found["spans_per_second"], aim or "", *(found[name] for name in names)]


def _render_peers(results: Mapping[str, Any]) -> str:
    found = _find(results, "peers")
    if not found:
        return ""
    names = ("spans_per_second", "cpu_us_per_span", "cores", "ack_p99_ms", "memory_mb", "does")
    rows: list[_Row] = [[name, *(row[key] for key in names)] for name, row in found["peers"].items()]
    rows += [[name, "not measured", "", "", "", "", reason[:80]] for name, reason in found["missing"].items()]
    heads = ["receiver", "spans a second", "CPU µs a span", "cores", "ack p99 ms", "MB", "what it does with a span"]
    return "## Side by side\n\n" + _render_table(heads, rows)


def _render_growth(results: Mapping[str, Any]) -> str:
    found = _find(results, "growth")
    if not found:
        return ""
    rows: list[_Row] = [
        [f"CPU µs a span at {found['early_at']:,} stored", found["cpu_us_per_span_early"], ""],
        [f"CPU µs a span at {found['records']:,} stored", found["cpu_us_per_span_late"], ""],
        ["ratio", found["cpu_ratio"], "at most 1.25"],
        ["resident memory at most, MB", found["memory_peak_mb"], "under 1,500"],
        ["bytes stored per span", found["bytes_per_span"], "stated"],
        ["ready after SIGKILL, s", found["ready_after_kill_seconds"], "under 10"],
        ["month to date of one customer, ms (CPU)", _pair(found, "month_to_date"), "under 50"],
        ["the same of the largest customer, ms (CPU)", _pair(found, "month_to_date_largest"), "under 50"],
        ["`explain` of one record, ms (CPU)", _pair(found, "explain_record"), "under 100"],
    ]
    return f"## A ledger of {found['records']:,} spans\n\n" + _render_table(["", "measured", "aim"], rows)


def _pair(found: Mapping[str, Any], name: str) -> str:
    return f"{found[f'{name}_ms']} ({found[f'{name}_cpu_ms']})"


def _render_week(results: Mapping[str, Any]) -> str:
    found = _find(results, "agent-week")
    if not found:
        return ""
    exact = found["totals_as_published"] and found["ledger_equal"] and found["stripe_equal"] and not found["not_rated"]
    rows: list[_Row] = [
        ["spans", found["spans"], ""],
        ["share of the week", f"1/{found['share']}", "1/1"],
        ["until all is acknowledged, s", found["seconds_to_acknowledge"], ""],
        ["until all is at the local Stripe and compared, s", found["seconds_to_stripe"], "under 300"],
        ["totals exact in ledger and Stripe", "yes" if exact else "**no**", "yes"],
        ["sidecar's memory on the way, MB", ", ".join(str(size) for size in found["memory_mb"]), "flat"],
        ["Stripe events", found["stripe_events"], ""],
    ]
    return "## A week of coding agents\n\n" + _render_table(["", "measured", "aim"], rows)


def _render_commands(results: Mapping[str, Any]) -> str:
    rows = [
        [f"`{row['command']}`", row["seconds"], row["load_average_before"], "failed" if "failed" in row else ""]
        for name, row in results.items()
        if name != "machine"
    ]
    return "## Commands\n\n" + _render_table(["command", "seconds", "load average before", ""], rows)


if __name__ == "__main__":
    main()
