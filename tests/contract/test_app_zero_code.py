"""`opentelemetry-instrument` switches metering on for a program that says nothing but who pays."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.contract.app_sink import REPOSITORY, open_sink, run_app

START = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"

APP = """
import os, openai, otelbill
with otelbill.customer("acme"), openai.OpenAI(api_key="k", base_url="{provider}") as client:
    client.chat.completions.create(model="gpt-4o", messages=[{{"role": "user", "content": "acme CANARY"}}])
otelbill.configure()
print(otelbill.status().is_configured, os.environ["TRACELOOP_TRACE_CONTENT"])
"""


def test_zero_code_bills_an_instrumented_call(tmp_path: Path) -> None:
    """With the package's entry points installed, no configuration in code is needed."""
    _install_entry_points(tmp_path)
    with open_sink() as sink:
        script = APP.format(provider=f"http://127.0.0.1:{sink.port}/v1")
        run = run_app(
            f"import sys; sys.argv = ['x', sys.executable, '-c', {script!r}]; {START}",
            path=(str(tmp_path),),
            OTELBILL_ENDPOINT=sink.endpoint,
            OTEL_TRACES_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
        )
    assert run.status == 0, run.errors
    assert (run.output, "otelbill" in run.errors) == ("True false", False)
    [call] = [span for span in sink.spans() if "gen_ai.response.id" in span]
    assert call["otelbill.customer.id"] == "acme"
    assert call["gen_ai.usage.input_tokens"] == 12
    assert b"CANARY" not in b"".join(sink.bodies)


def _install_entry_points(folder: Path) -> None:
    """The metadata that an installation would write, from the project's own table."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    metadata = folder / "otelbill-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: otelbill\nVersion: 0.1.0\n")
    groups = project["entry-points"]
    lines = [line for group in groups for line in [f"[{group}]", *(f"{k} = {v}" for k, v in groups[group].items())]]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
