"""The two tracing backends, started and asked through their own APIs. Owns their settings and their answers' shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.processes import Program, find_free_ports

PHOENIX_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class FoundTrace:
    """One trace as a backend tells it: attributes per span name, and the whole answer as text."""

    spans: dict[str, dict[str, Any]]  # Any: whatever JSON value an attribute has there
    text: str


@dataclass(frozen=True, slots=True)
class Jaeger:
    """Jaeger with its memory storage."""

    program: Program
    otlp_endpoint: str
    api: str

    def find_trace(self, trace_id: str) -> FoundTrace | None:
        """GET /api/traces/{id}; None while Jaeger does not know it."""
        answer = httpx.get(f"{self.api}/api/traces/{trace_id}", trust_env=False)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        spans = [span for trace in answer.json()["data"] for span in trace["spans"]]
        found = {span["operationName"]: {tag["key"]: tag["value"] for tag in span["tags"]} for span in spans}
        return FoundTrace(found, answer.text) if found else None


@dataclass(frozen=True, slots=True)
class Phoenix:
    """Arize Phoenix with SQLite."""

    program: Program
    otlp_endpoint: str
    api: str

    def find_trace(self, trace_id: str) -> FoundTrace | None:
        """GET /v1/projects/{project}/spans, reduced to the trace; None while Phoenix does not know it."""
        found = [span for span in self._load_spans() if span["context"]["trace_id"] == trace_id]
        if not found:
            return None
        return FoundTrace({span["name"]: span["attributes"] for span in found}, json.dumps(found))

    def find_page(self, trace_id: str, span_name: str) -> str:
        """Address of the page that shows one span of a trace."""
        project = httpx.get(f"{self.api}/v1/projects/{PHOENIX_PROJECT}", trust_env=False).raise_for_status().json()
        (span,) = [s for s in self._load_spans() if (s["context"]["trace_id"], s["name"]) == (trace_id, span_name)]
        return f"{self.api}/projects/{project['data']['id']}/spans/{trace_id}?selectedSpanNodeId={span['id']}"

    def _load_spans(self) -> list[dict[str, Any]]:  # Any: Phoenix' own JSON
        spans: list[dict[str, Any]] = []
        query: dict[str, str] = {"limit": "1000"}
        while True:
            answer = httpx.get(f"{self.api}/v1/projects/{PHOENIX_PROJECT}/spans", params=query, trust_env=False)
            if answer.status_code == 404:
                return spans
            page = answer.raise_for_status().json()
            spans += page["data"]
            if not page.get("next_cursor"):
                return spans
            query["cursor"] = page["next_cursor"]


def start_jaeger(executable: Path, folder: Path) -> Jaeger:
    """Jaeger on free ports: OTLP in, API out, everything else off."""
    otlp, api, grpc = find_free_ports(3)
    settings = {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"127.0.0.1:{api}"},
                "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
            },
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
        },
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
    path = folder / "jaeger.yaml"
    path.write_text(yaml.safe_dump(settings))
    url = f"http://127.0.0.1:{api}"
    program = Program([executable, "--config", path], folder / "jaeger.log", ready_url=f"{url}/api/services")
    program.start()
    return Jaeger(program, f"http://127.0.0.1:{otlp}", url)


def start_phoenix(executable: Path, folder: Path) -> Phoenix:
    """Phoenix on free ports; it takes OTLP/HTTP on the port of its pages, and calls nobody."""
    api, grpc = find_free_ports(2)
    env = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(api),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "OTEL_SDK_DISABLED": "true",
    }
    url = f"http://127.0.0.1:{api}"
    program = Program([executable, "serve"], folder / "phoenix.log", ready_url=f"{url}/healthz", env=env)
    program.start(300.0)  # the first start migrates its database, on a busy machine slowly
    return Phoenix(program, url, url)
