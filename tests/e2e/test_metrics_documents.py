"""The metrics table, the dashboard and /metrics name the same metrics. Needs no other program."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from otelbill_collector.export.metrics import Levels, SidecarMetrics
from tests.e2e.documents import (
    REPOSITORY,
    list_metric_names,
    read_dashboard_queries,
    read_documented_metrics,
    read_exposed_metrics,
)


def build_levels() -> Levels:
    """Levels of an empty sidecar, whatever fields they have."""
    empty: dict[str, Any] = {field.name: {} if "Mapping" in str(field.type) else 0 for field in fields(Levels)}
    return Levels(**empty)


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    """Whoever reads the table knows all there is, with the type that Prometheus is told."""
    exposed = read_exposed_metrics(SidecarMetrics(build_levels).render().decode())
    assert {name: kind for name, (kind, _) in read_documented_metrics().items()} == exposed


def test_no_metric_has_a_customer_label() -> None:
    """Customers are many; a label per customer is what fills a Prometheus."""
    labels = {label for _, names in read_documented_metrics().values() for label in names}
    usage = {"step", "provider", "model", "currency", "unit"}
    assert labels == usage | {"result", "protocol", "code", "bound", "state", "version"}


def test_the_dashboard_uses_documented_metrics_only_and_all_that_matter() -> None:
    """A panel on a metric that does not exist stays empty and looks like good news."""
    used = list_metric_names(" ".join(read_dashboard_queries()))
    assert used == set(read_documented_metrics())


def test_the_alerts_in_the_documentation_use_documented_metrics_only() -> None:
    """An alert on a metric that does not exist never fires."""
    text = (REPOSITORY / "docs" / "observability.md").read_text()
    assert list_metric_names(text) == set(read_documented_metrics())


def test_the_dashboard_can_be_imported() -> None:
    """Every panel has a place of its own, an id of its own and the data source that the importer chooses."""
    dashboard = json.loads((REPOSITORY / "docs" / "grafana" / "otelbill.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not covered & cells
        cells |= covered
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
