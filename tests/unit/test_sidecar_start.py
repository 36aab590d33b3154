"""A start that fails says why, ends, and leaves neither lock nor ports nor threads behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.announcement import ADDRESS_FILE
from otelbill_collector.app import Sidecar
from otelbill_collector.config import Address, Config, Listen
from otelbill_collector.export.stripe.client import StripePackageMissing
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.listeners import CannotStart
from tests.sidecar_process import find_free_port


@pytest.fixture
def config(tmp_path: Path) -> Config:
    ports = [Address("127.0.0.1", find_free_port()) for _ in range(3)]
    return Config(data_dir=tmp_path / "data", listen=Listen(grpc=ports[0], http=ports[1], api=ports[2]))


def _raise(error: Exception) -> Any:
    raise error


def _list_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [
        name for name in names if name in ("otelbill-reader", "otelbill-writer", "otelbill-jobs", "otelbill-forward")
    ]


def test_a_missing_package_leaves_ledger_and_ports_free(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is installed, the next start in the same process works."""
    with monkeypatch.context() as patch:
        patch.setattr("otelbill_collector.app.build_desk", lambda *_: _raise(StripePackageMissing()))
        with pytest.raises(CannotStart):
            Sidecar(config)
    SqliteStore(config.data_dir).close()
    asyncio.run(asyncio.wait_for(_serve_once(Sidecar(config)), 30))


async def _serve_once(sidecar: Sidecar) -> None:
    await sidecar.serve(lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_a_start_that_fails_half_way_ends(config: Config) -> None:
    """A full or odd disk at the last step must not leave a process that holds the lock and answers nobody."""
    sidecar = Sidecar(config)
    (config.data_dir / ADDRESS_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        asyncio.run(asyncio.wait_for(sidecar.serve(), 30))
    assert _list_threads() == []
    SqliteStore(config.data_dir).close()
    (config.data_dir / ADDRESS_FILE).rmdir()
    asyncio.run(asyncio.wait_for(_serve_once(Sidecar(config)), 30))


def test_a_port_that_is_taken_after_the_check_ends_the_start(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC binds by itself, later than the other two."""
    sidecar = Sidecar(config)
    with monkeypatch.context() as patch:
        patch.setattr("otelbill_collector.app.bind_grpc", lambda *_: _raise(CannotStart(["taken"])))
        with pytest.raises(CannotStart):
            asyncio.run(asyncio.wait_for(sidecar.serve(), 30))
    assert _list_threads() == []
    asyncio.run(asyncio.wait_for(_serve_once(Sidecar(config)), 30))


def test_a_damaged_ledger_is_given_back(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever repairs it must not have to end this process first."""
    with monkeypatch.context() as patch:
        patch.setattr("otelbill_collector.app.find_damage", lambda _: ["segment 3 is damaged"])
        with pytest.raises(CannotStart, match="damaged"):
            Sidecar(config)
    SqliteStore(config.data_dir).close()
