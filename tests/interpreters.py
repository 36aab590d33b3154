"""Run the tests on every CPython from 3.11 up on this machine: `python -m tests.interpreters [pytest arguments]`.

Each interpreter gets a virtual environment of its own beside .venv, filled from the same pinned requirement file.
Properties get fewer examples there: what differs between interpreters shows in any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MINORS = range(11, 30)
_EXAMPLES = "25"
_PROBE = "import sys, venv, ensurepip; print(sys.implementation.name, *sys.version_info[:2])"


def find_interpreters() -> Iterator[tuple[str, str]]:
    """(version, executable) of each usable CPython, oldest first; the one that runs this is left out."""
    for minor in MINORS:
        if minor == sys.version_info.minor:
            continue
        for command in (f"python3.{minor}", *sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))):
            if _is_usable(str(command), minor):
                yield f"3.{minor}", str(command)
                break


def _is_usable(command: str, minor: int) -> bool:
    if shutil.which(command) is None:
        return False
    probe = subprocess.run([command, "-c", _PROBE], capture_output=True, text=True, check=False)
    return probe.stdout.split() == ["cpython", "3", str(minor)]


def run_tests(version: str, command: str, arguments: list[str]) -> int:
    """Set the environment up and run pytest in it; its exit status."""
    folder = REPOSITORY / f".venv-{version}"
    python = folder / "bin" / "python"
    requirements = REPOSITORY / "requirements" / "dev.txt"
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < requirements.stat().st_mtime:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([command, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, "--require-hashes", "-r", str(requirements)], check=True)
        subprocess.run([*pip, "--no-build-isolation", "--no-deps", "-e", str(REPOSITORY)], check=True)
        stamp.touch()
    environment = {"OTELBILL_EXAMPLES": _EXAMPLES, **os.environ}
    command_line = [str(python), "-m", "pytest", *arguments]
    return subprocess.run(command_line, cwd=REPOSITORY, env=environment, check=False).returncode


def main() -> int:
    """Exit status 0 when every interpreter passes."""
    arguments = sys.argv[1:] or ["-q", "-m", "not e2e and not slow", "-n", "2"]
    failed = []
    found = list(find_interpreters())
    for version, command in found:
        print(f"== CPython {version} ({command})", flush=True)
        if run_tests(version, command, arguments):
            failed.append(version)
    others = ", ".join(version for version, _ in found) or "none"
    print(f"this interpreter: 3.{sys.version_info.minor}; others on this machine: {others}; failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
