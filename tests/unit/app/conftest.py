"""Each test of the app's half starts with default settings, no faults, and no frame left behind by another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otelbill import config, guard
from otelbill.config import Settings
from otelbill.frame import find_frame


@pytest.fixture(autouse=True)
def _fresh_metering() -> Iterator[None]:
    config.use(Settings())
    guard.forget()
    assert find_frame() is None
    yield
    config.use(None)
    assert find_frame() is None, "a block left its frame behind"
