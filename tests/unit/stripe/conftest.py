"""A world per test: ledger in a temporary folder, Stripe in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stripe_world import MemoryStripe, World


@pytest.fixture
def stripe() -> MemoryStripe:
    return MemoryStripe()


@pytest.fixture
def world(tmp_path: Path, stripe: MemoryStripe) -> Iterator[World]:
    world = World(tmp_path, stripe)
    yield world
    world.close()
