"""A full disk: the sender is told to come back, nothing acknowledged is lost, and it goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.otlp_requests import encode, make_chat
from tests.sidecar_process import Sidecar, await_value

_DISK_MIB = 12
_SPANS = 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB; skips where mounting is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def sidecar(new_sidecar: Callable[..., Sidecar], small_disk: Path) -> Iterator[Sidecar]:
    made: Sidecar = new_sidecar(data_dir=small_disk / "ledger").start()
    yield made
    made.close()


def _make_body(number: int) -> bytes:
    return encode(*(make_chat(f"{number}/{span}", f"customer{span % 20}") for span in range(_SPANS)))


def _count_stored(sidecar: Sidecar) -> int:
    return sum(row["events"] for row in sidecar.usage())


@pytest.mark.timeout(300)
def test_a_full_disk_is_told_to_senders_and_heals_by_itself(sidecar: Sidecar, small_disk: Path) -> None:
    """Guarantee: 503 with Retry-After while there is no room; all that was acknowledged stays; it goes on by itself."""
    filler = small_disk / "filler"
    assert sidecar.export(_make_body(0)).status_code == 200
    free = _fill(filler, leave=300_000)
    assert free
    acknowledged, number = 1, 0
    for number in range(1, 400):
        answer = sidecar.export(_make_body(number))
        if answer.status_code != 200:
            break
        acknowledged += 1
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 0
    assert sidecar.export(_make_body(number)).status_code == 503
    assert sidecar.get("/healthz").status_code == 200
    assert _count_stored(sidecar) == acknowledged * _SPANS
    filler.unlink()
    await_value(lambda: sidecar.export(_make_body(number)).status_code == 200, "it takes spans again by itself")
    assert sidecar.export(_make_body(number + 1)).status_code == 200
    assert _count_stored(sidecar) == (acknowledged + 2) * _SPANS
    sidecar.restart()
    assert _count_stored(sidecar) == (acknowledged + 2) * _SPANS


@pytest.mark.timeout(300)
def test_a_kill_on_a_full_disk_loses_nothing(sidecar: Sidecar, small_disk: Path) -> None:
    """Guarantee: kill -9 in the middle of failed commits leaves a ledger that opens with all that was acknowledged."""
    filler = small_disk / "filler"
    _fill(filler, leave=200_000)
    acknowledged = 0
    for number in range(400):
        if sidecar.export(_make_body(number)).status_code != 200:
            break
        acknowledged += 1
    sidecar.kill()
    filler.unlink()
    sidecar.start()
    # The request that was refused may have been stored nevertheless; its sender sends it again.
    assert sidecar.export(_make_body(number)).status_code == 200
    assert _count_stored(sidecar) == (acknowledged + 1) * _SPANS


def _fill(path: Path, *, leave: int) -> int:
    """Write until about `leave` bytes of the file system are free; returns how many were written."""
    import shutil

    size = max(0, shutil.disk_usage(path.parent).free - leave)
    path.write_bytes(b"\0" * size)
    return size
