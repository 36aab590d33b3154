"""One Collector with the shipped otel-collector.yaml and one otelbill behind it. Owns their ports and environment."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.processes import Program, find_free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
COLLECTOR_CONFIG = REPOSITORY / "otel-collector.yaml"
COST_NAMES = ["otelbill", "gen_ai", "openinference", "langfuse"]
MARKUP_PERCENT = "50"


def build_python_path() -> str:
    """Where a child finds the checkout, installed or not."""
    return f"{REPOSITORY}:{REPOSITORY / 'collector'}"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """otelbill as a process, its ledger, and what its command line says about that ledger."""

    program: Program
    config: Path
    data_dir: Path
    api: str

    def load_usage(self, by: str = "customer") -> dict[str, dict[str, Any]]:  # Any: JSON of `otelbill usage`
        """`otelbill usage --by ... --json`, by the first key."""
        lines = self.run("usage", "--by", by, "--json").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return {str(row[by.split(",")[0]]): row for row in rows}

    def run(self, *arguments: str) -> str:
        """Standard output of an `otelbill` command on this ledger."""
        command = [sys.executable, "-m", "otelbill_collector.cli", *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(
            command,
            env={"PYTHONPATH": build_python_path(), "PATH": ""},
            capture_output=True,
            text=True,
            cwd=self.data_dir,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def load_metrics(self) -> str:
        """The text of /metrics."""
        return httpx.get(f"{self.api}/metrics", trust_env=False).raise_for_status().text


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where apps send to, and the two processes behind it."""

    otlp_http: str
    otlp_grpc: str
    collector: Program
    sidecar: Sidecar
    queue_dir: Path

    def stop(self) -> None:
        """End both, the Collector first, as an operator would."""
        try:
            self.collector.stop()
        finally:
            self.sidecar.program.stop()


def build_deployment(otelcol: Path, folder: Path, *, backend: str, rated: bool) -> Deployment:
    """Both programs, not started. `rated`: the backend gets the spans that come back from otelbill, with their cost."""
    apps_grpc, apps_http, rated_http, health, telemetry, grpc, http, api = find_free_ports(8)
    queue_dir = folder / "queue"
    env = {
        "OTELCOL_GRPC_LISTEN": f"127.0.0.1:{apps_grpc}",
        "OTELCOL_HTTP_LISTEN": f"127.0.0.1:{apps_http}",
        "OTELCOL_RATED_LISTEN": f"127.0.0.1:{rated_http}",
        "OTELCOL_HEALTH_LISTEN": f"127.0.0.1:{health}",
        "OTELCOL_METRICS_PORT": str(telemetry),
        "OTELCOL_STORAGE_DIR": str(queue_dir),
        "OTELCOL_TRACES_FROM": "otlp/rated" if rated else "otlp",
        "OTELBILL_ENDPOINT": f"127.0.0.1:{grpc}",
        "TRACING_BACKEND_ENDPOINT": backend,
    }
    collector = Program(
        [otelcol, "--config", COLLECTOR_CONFIG],
        folder / "otelcol.log",
        ready_url=f"http://127.0.0.1:{health}/",
        env=env,
    )
    settings: dict[str, Any] = {  # Any: the configuration file's values
        "listen": {"grpc": f"127.0.0.1:{grpc}", "http": f"127.0.0.1:{http}", "api": f"127.0.0.1:{api}"},
        "rate_card": {"currency": "USD", "markup": [{"percent": MARKUP_PERCENT}]},
    }
    if rated:
        settings["forward"] = {"endpoint": f"http://127.0.0.1:{rated_http}/v1/traces", "cost_names": COST_NAMES}
    sidecar = _build_sidecar(folder, settings, api)
    return Deployment(f"http://127.0.0.1:{apps_http}", f"127.0.0.1:{apps_grpc}", collector, sidecar, queue_dir)


def _build_sidecar(folder: Path, settings: dict[str, Any], api: int) -> Sidecar:
    config = folder / "otelbill.yaml"
    config.write_text(yaml.safe_dump(settings))
    data_dir = folder / "ledger"
    data_dir.mkdir()
    arguments: list[str | Path] = [
        sys.executable,
        "-m",
        "otelbill_collector.cli",
        "collector",
        "--config",
        config,
        "--data-dir",
        data_dir,
    ]
    url = f"http://127.0.0.1:{api}"
    env = {"PYTHONPATH": build_python_path()}
    return Sidecar(
        Program(arguments, folder / "otelbill.log", ready_url=f"{url}/readyz", env=env), config, data_dir, url
    )
