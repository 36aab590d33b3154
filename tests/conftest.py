"""Fixtures every kind of test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: how long an example takes says more of what else the machine does than of the code. A long run asks for
# more examples.
settings.register_profile("otelbill", deadline=None, max_examples=int(os.environ.get("OTELBILL_EXAMPLES", "100")))
settings.load_profile("otelbill")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with recorded spans, provider responses and request traces; tests skip, and say so, without it."""
    shared = Path(os.environ.get("OTELBILL_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not shared.is_dir():
        pytest.skip(f"no test data at {shared}; set OTELBILL_SHARED to the folder that holds data/")
    return shared
