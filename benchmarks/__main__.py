"""All benchmarks one after the other, each as its own process. Prints; judges nothing, so it never fails on a time.

python -m benchmarks                                       # everything into results.json, then into docs/
python -m benchmarks --quick --to /tmp/results.json        # small, to see that all of them run
python -m benchmarks --only peers                          # one again; the results of the others stay

"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report import render_files

RESULTS = Path(__file__).with_name("results.json")
_HERE = Path(__file__).resolve().parent
_QUICK_INGEST = ["--runs", "1", "--seconds", "2"]

# name: (module and options, what makes it small)
ALL: dict[str, tuple[list[str], list[str]]] = {
    "http-512": (["ingest"], _QUICK_INGEST),
    "http-50": (["ingest", "--spans", "50"], _QUICK_INGEST),
    "http-512-gzip": (["ingest", "--gzip"], _QUICK_INGEST),
    "grpc-512": (["ingest", "--protocol", "grpc"], _QUICK_INGEST),
    "grpc-50": (["ingest", "--protocol", "grpc", "--spans", "50"], _QUICK_INGEST),
    "http-512-mixed": (["ingest", "--http-third"], _QUICK_INGEST),
    "paced-100000": (["ingest", "--rate", "100000"], [*_QUICK_INGEST, "--rate", "2000"]),
    "peers": (["peers"], _QUICK_INGEST),
    "growth": (["growth", "--records", "50000000"], ["--records", "100000"]),
    "agent-week": (["agent_week", "--share", "1"], ["--share", "2000"]),
    "folds": (["folds", "--records", "1000000"], ["--records", "20000"]),
    "queries": (["queries", "--records", "1000000"], ["--records", "20000", "--repeats", "3"]),
    "repricing": (["repricing", "--records", "1000000"], ["--records", "20000"]),
    "invoices": (["invoices"], []),
    "in-process": (["in_process"], []),
    "selection": (["selection"], ["--spans", "2000"]),
}


def main() -> None:
    """Run what is asked for, keep the results after each, and render them."""
    options = _parse_options()
    path = Path(options.to).resolve()
    results: dict[str, Any] = json.loads(path.read_text()) if options.only and path.is_file() else {}
    results["machine"] = describe_machine()
    for name in options.only or ALL:
        arguments, quick = ALL[name]
        module, *rest = [*arguments, *(quick if options.quick else [])]
        results[name] = run_benchmark(module, rest)
        path.write_text(json.dumps(results, indent=1) + "\n")
    if path == RESULTS:
        render_files(results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default=str(RESULTS), help="file of the results; docs are rendered from its default")
    parser.add_argument("--only", choices=tuple(ALL), action="append", help="these alone")
    parser.add_argument("--quick", action="store_true", help="small sizes; the figures mean nothing")
    return parser.parse_args()


def run_benchmark(module: str, arguments: list[str]) -> dict[str, Any]:
    """What it printed as JSON, with its command and how busy the machine was before; or how it failed."""
    command = f"python -m benchmarks.{' '.join([module, *arguments])} --json"
    print(f"== {command}", flush=True)
    load, started = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json"],
        cwd=_HERE.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found: dict[str, Any] = {
        "command": command,
        "load_average_before": round(load, 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    try:
        found["result"] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found["failed"] = f"exit status {done.returncode}: {done.stdout[-500:]}"
    print(json.dumps(found)[:1_000], flush=True)
    return found


def describe_machine() -> dict[str, Any]:
    """What the figures belong to."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_HERE, capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e6),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
