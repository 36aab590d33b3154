"""All benchmarks one after the other, each as its own process. Prints; judges nothing, so it never fails on a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ALL = (
    ("ingest, GenAI spans over HTTP", ["ingest"]),
    ("ingest, a third plain HTTP spans", ["ingest", "--http-third"]),
    ("ingest, over gRPC", ["ingest", "--protocol", "grpc"]),
    ("questions to a ledger of 200,000 records", ["queries", "--records", "200000"]),
    ("draft invoice of a million events", ["invoices"]),
    ("a week of coding agents, divided by 1,000", ["agent_week", "--share", "1000"]),
    ("what metering costs in the app", ["in_process"]),
    ("selection of recorded spans", ["selection"]),
)


def main() -> None:
    """Run what is there."""
    for title, (name, *options) in _ALL:
        if not Path(__file__).with_name(f"{name}.py").is_file():
            continue
        print(f"\n== {title}: python -m benchmarks.{' '.join([name, *options])}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False)


if __name__ == "__main__":
    main()
