"""Builds the pinned programs once and keeps them. Owns the cache and the build commands.
Does not own starting them (`tests.e2e.processes`) nor what they are asked (`tests.e2e.backends`).

Everything comes from package registries through their own clients: the Go module proxy, PyPI, Debian. Integrity is
pinned beside this file: go.sum for the Collector and for Jaeger (whose own go.sum then pins what it needs), hashes for
Phoenix and litellm.

New versions: write them into otelcol/manifest.yaml and BUILDER, let the builder write go.mod and go.sum
(`--skip-compilation`) and copy them here; jaeger/go.mod with `go get`; phoenix.txt and litellm.txt from their .in with
`uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-strip-extras`. A
changed pin builds anew by itself. A package that is pinned with extras stands there without them as well: what others
require of it is another name to pip, which would look for its newest release, and refuse that for want of a hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILDER = "go.opentelemetry.io/collector/cmd/builder@v0.155.0"
JAEGER = "github.com/jaegertracing/jaeger"
DEBIAN_PACKAGES = {"prometheus": "prometheus", "chromium": "chromium"}


class ProgramMissing(Exception):
    """The program is not here and cannot be had: the text names what is missing and the remedy."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one program is made: the files that pin it, the executable inside its folder, the build itself."""

    name: str
    pins: tuple[Path, ...]
    executable: str
    tool: str
    build: Callable[[Path], None]
    salt: str = "1"  # raised when the commands change and the pins do not

    def digest(self) -> str:
        """Changes whenever a pin does, so that a cached build is never a stale one."""
        found = hashlib.sha256(f"{self.name} {self.salt}".encode())
        for pin in sorted(self.pins):
            found.update(pin.read_bytes())
        return found.hexdigest()[:16]


def find_cache() -> Path:
    """OTELBILL_E2E_CACHE, or otelbill-e2e in the user's cache folder."""
    named = os.environ.get("OTELBILL_E2E_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "otelbill-e2e"


def require_program(name: str) -> Path:
    """The executable, built or installed first where needed; raises ProgramMissing where that cannot be done."""
    if name in DEBIAN_PACKAGES:
        return _require_debian(name)
    return require_recipe(RECIPES[name])


def require_recipe(recipe: Recipe) -> Path:
    """The same for a program of another's pins."""
    folder = find_cache() / f"{recipe.name}-{recipe.digest()}"
    finished = folder / "finished.json"
    if not finished.exists():
        if shutil.which(recipe.tool) is None:
            raise ProgramMissing(
                f"{recipe.name} is built with {recipe.tool}, which is not on PATH: install it or run in CI"
            )
        with _lock(folder):
            if not finished.exists():
                _build(recipe, folder, finished)
    return folder / recipe.executable


def _build(recipe: Recipe, folder: Path, finished: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    recipe.build(folder)
    finished.write_text(json.dumps({"program": recipe.name, "seconds": round(time.monotonic() - started)}))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Two test runs on one machine build once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(arguments: list[str], *, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(arguments, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        raise ProgramMissing(
            f"{' '.join(arguments)} failed with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


# The Go toolchain that is here, nothing it would fetch itself; no cgo, so no C compiler is needed.
GO = {"GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "GOWORK": "off", "CGO_ENABLED": "0"}
LINK = ["-trimpath", "-ldflags=-s -w"]


def build_collector(pins: Path, folder: Path) -> None:
    """The official builder writes the sources from the manifest; go.mod and go.sum beside it fix every module."""
    with tempfile.TemporaryDirectory() as made:
        manifest = Path(made) / "manifest.yaml"
        shutil.copy(pins / "manifest.yaml", manifest)
        generate = ["--config", str(manifest), "--skip-get-modules", "--skip-compilation"]
        _run(["go", "run", BUILDER, *generate], cwd=Path(made), env=GO)
        sources = Path(made) / "out"
        for pin in ("go.mod", "go.sum"):
            shutil.copy(pins / pin, sources / pin)
        _run(["go", "build", "-mod=readonly", *LINK, "-o", str(folder / "otelcol"), "."], cwd=sources, env=GO)


def _build_jaeger(folder: Path) -> None:
    """From Jaeger's own module, with its own go.sum, so that it is the program its authors tested."""
    with tempfile.TemporaryDirectory() as made:
        pins = Path(made) / "pins"
        shutil.copytree(HERE / "jaeger", pins)
        found = json.loads(_run(["go", "mod", "download", "-json", JAEGER], cwd=pins, env=GO))
        sources = Path(made) / "jaeger"
        shutil.copytree(found["Dir"], sources)
        for path in (sources, *sources.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)  # the module cache is read-only, and so would the copy be
        _run(["go", "build", "-mod=readonly", *LINK, "-o", str(folder / "jaeger"), "./cmd/jaeger"], cwd=sources, env=GO)


def build_environment(requirements: Path, folder: Path) -> None:
    """In an environment of its own: its requirements are none of this project's."""
    _run([sys.executable, "-m", "venv", str(folder)], cwd=folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
    _run([*pip, "--disable-pip-version-check", "--require-hashes", "-r", str(requirements)], cwd=folder)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "otelcol", tuple((HERE / "otelcol").iterdir()), "otelcol", "go", partial(build_collector, HERE / "otelcol")
        ),
        Recipe("jaeger", tuple((HERE / "jaeger").iterdir()), "jaeger", "go", _build_jaeger),
        Recipe(
            "phoenix",
            (HERE / "phoenix.txt",),
            "bin/phoenix",
            "python3",
            partial(build_environment, HERE / "phoenix.txt"),
            f"1 {sys.version_info[:2]}",
        ),
        Recipe(
            "litellm",
            (HERE / "litellm.txt",),
            "bin/python",
            "python3",
            partial(build_environment, HERE / "litellm.txt"),
            f"1 {sys.version_info[:2]}",
        ),
    )
}


def _require_debian(name: str) -> Path:
    """A Debian package; installed when this runs as root on Debian."""
    found = shutil.which(name)
    if found is None and shutil.which("apt-get") is not None and os.geteuid() == 0:
        with _lock(find_cache() / "apt"):
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            _run(["apt-get", "update", "-qq"], cwd=HERE, env=quiet)
            _run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", DEBIAN_PACKAGES[name]],
                cwd=HERE,
                env=quiet,
            )
        found = shutil.which(name)
    if found is None:
        raise ProgramMissing(f"{name} is not on PATH: install Debian's package {DEBIAN_PACKAGES[name]}")
    return Path(found)
