"""A filled ledger for every test of retention, pruned in several steps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbill_collector.ledger import pruning
from tests.retention_world import Desk


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled ledger, closed; tests copy it."""
    made = Desk(tmp_path_factory.mktemp("filled") / "ledger")
    made.fill()
    made.books.close()
    return made.books.folder


@pytest.fixture
def desk(filled: Path, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(Path(shutil.copytree(filled, tmp_path / "ledger")))
    yield made
    made.books.close()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps, so that what crosses them is seen."""
    monkeypatch.setattr(pruning, "_STEP_SEGMENTS", 7)
