"""`python -m tests.e2e.programs`: build or install everything the end-to-end tests use, and say where it is."""

from __future__ import annotations

import sys
import time

from tests.e2e.programs.build import DEBIAN_PACKAGES, RECIPES, ProgramMissing, require_program


def main() -> int:
    """0 when every program is here; 1, with the reasons, when one is not."""
    missing = 0
    for name in (*RECIPES, *DEBIAN_PACKAGES):
        started = time.monotonic()
        try:
            path = require_program(name)
        except ProgramMissing as reason:
            print(f"{name}: {reason}", file=sys.stderr)
            missing = 1
        else:
            print(f"{name}: {path} ({time.monotonic() - started:.0f} s)", flush=True)
    return missing


if __name__ == "__main__":
    sys.exit(main())
