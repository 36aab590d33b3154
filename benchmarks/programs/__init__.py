"""Other people's receivers, built or installed once from pinned sources and kept outside the tree. Starts nothing."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

from tests.e2e.programs.build import Recipe, build_collector, build_environment

_HERE = Path(__file__).resolve().parent
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def read_version(file: str, pattern: str) -> str:
    """A version as a pin beside this file says it."""
    found = re.search(pattern, (_HERE / file).read_text())
    if found is None:
        raise ValueError(f"{file} pins no {pattern}")
    return found[1]


OTELCOL_VERSION = read_version("otelcol/manifest.yaml", r"otlpreceiver v(\S+)")
ROTEL_VERSION = read_version("rotel.txt", r"rotel==(\S+)")

# The official OpenTelemetry Collector (Go) with the OTLP receiver and the file exporter.
OTELCOL = Recipe(
    "otelcol-benchmark",
    tuple((_HERE / "otelcol").iterdir()),
    "otelcol",
    "go",
    partial(build_collector, _HERE / "otelcol"),
)
# rotel (Rust): the wheel carries the program.
ROTEL = Recipe(
    "rotel",
    (_HERE / "rotel.txt",),
    f"lib/{_PYTHON}/site-packages/rotel/rotel-agent",
    "python3",
    partial(build_environment, _HERE / "rotel.txt"),
    f"1 {_PYTHON}",
)
