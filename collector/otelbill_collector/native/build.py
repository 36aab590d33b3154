"""Builds the native library beside its sources: `python -m otelbill_collector.native.build`.

Imports nothing of the project, because the packaging hook runs this file by its path. Owns the compiler's flags.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / "libotelbill.so"
# No -march: the library runs on every machine of its architecture; what needs more asks the processor at run time.
FLAGS = "-std=c11 -O3 -fPIC -shared -fvisibility=hidden -fno-strict-aliasing -Wall -Wextra".split()


class CannotBuild(RuntimeError):
    """There is no C compiler, or it refused. The sidecar works without the library, at a tenth of the speed."""


def digest_sources() -> str:
    """What the library is made of: a library of other sources is not loaded."""
    digest = hashlib.sha256()
    for path in list_sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def list_sources() -> list[Path]:
    """Every C file and header, by name."""
    return sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")])


def find_compiler() -> list[str] | None:
    """The command of the C compiler: $CC, or what is on PATH."""
    given = os.environ.get("CC")
    if given:
        return shlex.split(given)
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def build_library(target: Path = LIBRARY, more_flags: tuple[str, ...] = ()) -> Path:
    """Compile into `target`, which is replaced in one step. Raises CannotBuild."""
    compiler = find_compiler()
    if compiler is None:
        raise CannotBuild("no C compiler on PATH; install one (cc, gcc or clang) or set CC")
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, *more_flags, f'-DOB_SOURCES="{digest_sources()}"', "-o", str(partial)]
    command += [str(path) for path in list_sources() if path.suffix == ".c"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise CannotBuild(f"{compiler[0]} refused: {result.stderr.strip()[:2000]}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def main() -> int:
    """Build; exit status 1 with the reason where that is not possible."""
    try:
        print(build_library())  # noqa: T201 the command's answer
    except CannotBuild as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
