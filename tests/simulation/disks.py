"""Disks that a test can fill and empty under a running sidecar. Owns no assertions.

Two ways, because not everybody may mount: a small file system, and a limit on the size of the process's files.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

from tests.sidecar_process import Sidecar


class Disk(Protocol):
    """Full means: no more than `leave` bytes can be added."""

    def fill(self, sidecar: Sidecar, *, leave: int) -> None: ...

    def empty(self, sidecar: Sidecar) -> None: ...


class MountedDisk:
    """A file system in memory, whose size is changed: at once, however large it is."""

    def __init__(self, folder: Path, *, mebibytes: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._size = mebibytes << 20
        mounted = self._mount(f"size={self._size}", "-t", "tmpfs", "tmpfs")
        if mounted.returncode != 0:
            pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")

    def _mount(self, options: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["mount", "-o", options, *command, str(self._folder)], capture_output=True, text=True, check=False
        )

    def fill(self, sidecar: Sidecar, *, leave: int) -> None:
        """Make it as small as what is in it and about `leave` bytes."""
        size = shutil.disk_usage(self._folder).used + leave
        while self._mount(f"remount,size={size}").returncode != 0:  # the sidecar writes at the same time
            size = shutil.disk_usage(self._folder).used + leave

    def empty(self, sidecar: Sidecar) -> None:
        """Give it the size it had."""
        assert self._mount(f"remount,size={self._size}").returncode == 0

    def unmount(self) -> None:
        """Give the file system back."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


class LimitedFiles:
    """RLIMIT_FSIZE of the running process: needs no rights, and a write past it fails as on a full disk."""

    def __init__(self) -> None:
        if not hasattr(resource, "prlimit"):
            pytest.skip("this system cannot limit the files of a running process")

    def fill(self, sidecar: Sidecar, *, leave: int) -> None:
        """Let the write-ahead log, where every commit goes first, grow by `leave` bytes at most."""
        log = sidecar.data_dir / "ledger.sqlite-wal"
        self._limit(sidecar, (log.stat().st_size if log.exists() else 0) + leave)

    def empty(self, sidecar: Sidecar) -> None:
        """Take the limit back."""
        self._limit(sidecar, resource.RLIM_INFINITY)

    def _limit(self, sidecar: Sidecar, size: int) -> None:
        _, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_FSIZE, (size, hard))
