"""Programs for the end-to-end tests: built once, started on free ports, ended cleanly.

A program that cannot be had here skips its tests with the reason; in CI (CI=true) it fails them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.backends import Jaeger, Phoenix, start_jaeger, start_phoenix
from tests.e2e.deployment import Deployment, build_deployment
from tests.e2e.programs.build import ProgramMissing, require_program

Deploy = Callable[..., Deployment]


def _require(name: str) -> Path:
    try:
        return require_program(name)
    except ProgramMissing as reason:
        if os.environ.get("CI", "") not in ("", "0", "false"):
            pytest.fail(f"CI runs these tests, but: {reason}", pytrace=False)
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def otelcol() -> Path:
    """The OpenTelemetry Collector, built by its own builder."""
    return _require("otelcol")


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """Debian's Prometheus."""
    return _require("prometheus")


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Debian's Chromium."""
    return _require("chromium")


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A running Jaeger."""
    backend = start_jaeger(_require("jaeger"), tmp_path_factory.mktemp("jaeger"))
    yield backend
    backend.program.stop()


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    """A running Phoenix."""
    backend = start_phoenix(_require("phoenix"), tmp_path_factory.mktemp("phoenix"))
    yield backend
    backend.program.stop()


@pytest.fixture(scope="session")
def litellm() -> Path:
    """The interpreter of an environment with litellm."""
    return _require("litellm")


@pytest.fixture
def deploy(otelcol: Path, tmp_path: Path) -> Iterator[Deploy]:
    """Starts otelbill and a Collector in front of it; `deploy(backend=URL, rated=True)`."""
    running: list[Deployment] = []

    def start(*, backend: str, rated: bool) -> Deployment:
        deployment = build_deployment(otelcol, tmp_path, backend=backend, rated=rated)
        running.append(deployment)
        deployment.sidecar.program.start()
        deployment.collector.start()
        return deployment

    yield start
    for deployment in running:
        deployment.stop()
