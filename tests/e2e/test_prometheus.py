"""A real Prometheus scrapes /metrics, knows every documented metric, and understands every query of the dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment
from tests.e2e.documents import read_dashboard_queries, read_documented_metrics, read_exposed_metrics
from tests.e2e.processes import Program, find_free_ports, wait_for
from tests.e2e.senders import COST_OF_CALL, INPUT_TOKENS, build_calls, post_until_taken

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

CALLS = 40
CUSTOMER = "acme-customer-name"
# Families that have a series only once the thing they count has happened.
SILENT_UNTIL_USED = {"otelbill_reversed_charge_total"}


class Prometheus:
    """A running Prometheus that scrapes one sidecar every second."""

    def __init__(self, program: Program, api: str) -> None:
        self.program = program
        self._api = api

    def ask(self, path: str, **parameters: str) -> Any:  # Any: the API's JSON
        """The `data` of an API answer that says success."""
        answer = httpx.get(f"{self._api}/api/v1/{path}", params=parameters, trust_env=False)
        body = answer.json()
        assert body["status"] == "success", f"{path} {parameters}: {body}"
        return body["data"]

    def query(self, expression: str) -> list[Any]:
        """The series of an instant query."""
        return list(self.ask("query", query=expression)["result"])


@pytest.fixture
def deployment(deploy: Deploy) -> Deployment:
    """A sidecar that has booked calls of one customer."""
    deployment = deploy(backend="http://127.0.0.1:9", rated=False)
    post_until_taken(deployment.otlp_http, build_calls([CUSTOMER], CALLS))
    return deployment


@pytest.fixture
def scraper(prometheus: Path, deployment: Deployment, tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus, after it has seen the calls."""
    (port,) = find_free_ports(1)
    config = tmp_path / "prometheus.yml"
    targets = [{"targets": [deployment.sidecar.api.removeprefix("http://")]}]
    jobs = [{"job_name": "otelbill", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": targets}]
    config.write_text(yaml.safe_dump({"scrape_configs": jobs}))
    url = f"http://127.0.0.1:{port}"
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    program = Program([prometheus, *arguments], tmp_path / "prometheus.log", ready_url=f"{url}/-/ready")
    program.start()
    found = Prometheus(program, url)
    accepted = f'otelbill_spans_total{{result="accepted"}} == {CALLS}'
    wait_for("Prometheus has scraped the calls", 60, lambda: found.query(accepted))
    yield found
    program.stop()


def test_prometheus_knows_every_metric(scraper: Prometheus, deployment: Deployment) -> None:
    """The target is up, every documented metric answers with its documented labels, and no customer is among them."""
    (target,) = scraper.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")

    documented = read_documented_metrics()
    assert set(read_exposed_metrics(deployment.sidecar.load_metrics())) == set(documented)
    for name, (kind, labels) in documented.items():
        series = scraper.query(f"{name}_count" if kind == "histogram" else name)
        assert series or name in SILENT_UNTIL_USED, name
        for found in series:
            assert set(found["metric"]) - {"__name__", "job", "instance"} == labels, name
    assert CUSTOMER not in deployment.sidecar.load_metrics()


def test_prometheus_adds_up_cost_and_usage(scraper: Prometheus) -> None:
    """Cost and tokens by step and model are those of the calls that were sent."""
    ((cost),) = scraper.query('sum by (step, model) (otelbill_cost_total{currency="USD"})')
    assert cost["metric"] == {"step": "draft", "model": "gpt-4o-mini"}
    assert float(cost["value"][1]) == pytest.approx(CALLS * float(COST_OF_CALL))
    ((tokens),) = scraper.query('otelbill_usage_total{unit="input_tokens"}')
    assert float(tokens["value"][1]) == CALLS * INPUT_TOKENS


def test_prometheus_understands_every_query_of_the_dashboard(scraper: Prometheus) -> None:
    """A panel with a query that does not parse is a panel nobody can read."""
    queries = read_dashboard_queries()
    assert len(queries) > 15
    for query in queries:
        scraper.ask("query", query=query)
