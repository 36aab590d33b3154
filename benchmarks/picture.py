"""The results as one SVG: bars of spans a second, and lines of a ledger that fills. Plain text, no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT = 860, 250, 110
_BAR, _GAP = 18, 8
_LINES_HEIGHT = 150
_STYLE = """
text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}.small{font-size:11px;fill:#666}
.ours{fill:#3366a8}.theirs{fill:#9aa5b1}.aim{stroke:#c0392b;stroke-width:2}.axis{stroke:#bbb;stroke-width:1}
.line{fill:none;stroke:#3366a8;stroke-width:2}.back{fill:#fff}
"""
# Title and the aim the project set itself, in spans a second.
INGEST: dict[str, tuple[str, int | None]] = {
    "http-512": ("HTTP, 512 spans a request", 300_000),
    "http-50": ("HTTP, 50 spans", 250_000),
    "http-512-gzip": ("HTTP, 512 spans, gzip", 200_000),
    "grpc-512": ("gRPC, 512 spans", 200_000),
    "grpc-50": ("gRPC, 50 spans", 100_000),
    "http-512-mixed": ("HTTP, 512 spans, a third not calls", None),
}


def draw_picture(results: Mapping[str, Any]) -> str:
    """An SVG of what was measured."""
    parts: list[str] = []
    top = 30
    for draw in (_draw_ingest, _draw_peers, _draw_growth):
        drawn, height = draw(results, top)
        parts += drawn
        top += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" role="img">'
    title = "<title>Spans a second and a ledger that fills, as docs/benchmarks.md has them in tables</title>"
    back = f'<rect class="back" width="{_WIDTH}" height="{top}"/>'
    return "\n".join([head, title, f"<style>{_STYLE}</style>", back, *parts, "</svg>", ""])


def _draw_ingest(results: Mapping[str, Any], top: int) -> tuple[list[str], int]:
    rows = [
        (title, found["result"]["spans_per_second"], aim, "ours")
        for name, (title, aim) in INGEST.items()
        if "result" in (found := results.get(name, {}))
    ]
    return _draw_bars("Spans a second, acknowledged after fsync (line: aim)", rows, top)


def _draw_peers(results: Mapping[str, Any], top: int) -> tuple[list[str], int]:
    found = results.get("peers", {}).get("result", {}).get("peers", {})
    rows = [
        (name, row["spans_per_second"], None, "ours" if name == "otelbill" else "theirs") for name, row in found.items()
    ]
    return _draw_bars("Side by side in one run, spans a second", rows, top)


_Bar = tuple[str, float, float | None, str]


def _draw_bars(title: str, rows: Sequence[_Bar], top: int) -> tuple[list[str], int]:
    if not rows:
        return [], 0
    scale = (_WIDTH - _LEFT - _RIGHT) / max(max(value, aim or 0) for _, value, aim, _ in rows)
    parts = [f'<text class="title" x="16" y="{top}">{escape(title)}</text>']
    for place, (name, value, aim, kind) in enumerate(rows):
        y = top + 14 + place * (_BAR + _GAP)
        width = value * scale
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}"/>')
        if aim:
            x = _LEFT + aim * scale
            parts.append(f'<line class="aim" x1="{x:.1f}" y1="{y - 2}" x2="{x:.1f}" y2="{y + _BAR + 2}"/>')
        end = _LEFT + max(width, (aim or 0) * scale)
        parts.append(f'<text x="{end + 8:.1f}" y="{y + 14}">{value:,.0f}</text>')
    return parts, 14 + len(rows) * (_BAR + _GAP) + 34


def _draw_growth(results: Mapping[str, Any], top: int) -> tuple[list[str], int]:
    points = results.get("growth", {}).get("result", {}).get("points", [])
    if len(points) < 2:
        return [], 0
    stored = [point["stored"] for point in points]
    parts: list[str] = []
    lines = {"CPU µs a span, by spans stored": "cpu_us_per_span", "Resident memory in MB": "memory_mb"}
    for place, (title, name) in enumerate(lines.items()):
        left = 60 + place * (_WIDTH // 2)
        parts += _draw_line(title, stored, [point[name] for point in points], left=left, top=top)
    return parts, _LINES_HEIGHT + 66


def _draw_line(title: str, xs: Sequence[float], ys: Sequence[float], *, left: int, top: int) -> list[str]:
    width, base = _WIDTH // 2 - 100, top + 20 + _LINES_HEIGHT
    to_x, to_y = _scale(max(xs), width), _scale(max(ys) * 1.1, _LINES_HEIGHT)
    path = " ".join(f"{left + to_x(x):.1f},{base - to_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    marks = [0.0, max(ys)]
    return [
        f'<text class="title" x="{left - 44}" y="{top}">{escape(title)}</text>',
        f'<line class="axis" x1="{left}" y1="{base}" x2="{left + width}" y2="{base}"/>',
        *(
            f'<text class="small" x="{left - 6}" y="{base - to_y(mark) + 4:.1f}" text-anchor="end">{mark:,.3g}</text>'
            for mark in marks
        ),
        f'<text class="small" x="{left + width}" y="{base + 16}" text-anchor="end">{max(xs):,.0f} spans</text>',
        f'<polyline class="line" points="{path}"/>',
    ]


def _scale(most: float, length: float) -> Callable[[float], float]:
    return lambda value: value * length / most if most else 0.0
