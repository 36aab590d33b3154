"""Owns the `otelbill` command where only the app's half is installed. Does not own the commands; the sidecar does."""

from __future__ import annotations

import importlib
import sys


def main() -> int | None:
    """Run the sidecar's command line; where it or what it needs is missing, say how to install it and return 2."""
    try:
        # Imported here, because the package in the app must work where the sidecar's dependencies are not installed.
        commands = importlib.import_module("otelbill_collector.cli")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"otelbill: {error.name} is not installed; run: pip install 'otelbill[collector]'\n")
        return 2
    status: int | None = commands.main()
    return status
