"""Where the running sidecar of a ledger is, in a file beside it. Owns that file; who asks there is `cli.remote`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ADDRESS_FILE = "sidecar.json"


@dataclass(frozen=True, slots=True)
class Announced:
    """host:port of an API, and which start of a sidecar announced it (None: a version that did not say)."""

    api: str
    instance: str | None


def announce(data_dir: Path, api: str, instance: str) -> None:
    """Tell the command line where the API of this ledger's sidecar is."""
    address = {"api": api, "pid": os.getpid(), "instance": instance}
    (data_dir / ADDRESS_FILE).write_text(json.dumps(address))


def withdraw(data_dir: Path) -> None:
    """The sidecar has ended, or another was killed and left this."""
    with suppress(OSError):
        (data_dir / ADDRESS_FILE).unlink()


def find_sidecar(data_dir: Path) -> Announced | None:
    """Where the sidecar that holds this ledger said that its API is."""
    try:
        found = json.loads((data_dir / ADDRESS_FILE).read_text())
        return Announced(str(found["api"]), found.get("instance"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
