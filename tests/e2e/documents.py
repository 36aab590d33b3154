"""What docs/observability.md and the dashboard say about metrics, as values. Owns how to read the two documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"^\| `(otelbill_\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE)
_FAMILY = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)
_HISTOGRAM_PARTS = re.compile(r"_(bucket|sum|count)$")
_NAME = re.compile(r"\botelbill_\w+")


def read_documented_metrics() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every metric in the documentation's table, by name."""
    text = (REPOSITORY / "docs" / "observability.md").read_text()
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in _ROW.findall(text)}


def read_exposed_metrics(exposition: str) -> dict[str, str]:
    """Type of every family in the text of /metrics, by name."""
    return dict(_FAMILY.findall(exposition))


def read_dashboard_queries() -> list[str]:
    """Every PromQL expression of the dashboard, its variables filled in as Grafana would."""
    dashboard = json.loads((REPOSITORY / "docs" / "grafana" / "otelbill.json").read_text())
    filled = []
    for query in _find_queries(dashboard):
        for variable, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$step", ".*"), ("$model", ".*")):
            query = query.replace(variable, value)
        filled.append(query)
    return filled


def _find_queries(node: Any) -> Iterator[str]:  # Any: parsed JSON
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for child in node.values():
            yield from _find_queries(child)
    elif isinstance(node, list):
        for child in node:
            yield from _find_queries(child)


def list_metric_names(text: str) -> set[str]:
    """The metrics that a query or a text names; the parts of a histogram count as the histogram."""
    return {_HISTOGRAM_PARTS.sub("", name) for name in _NAME.findall(text)}
