"""A frame crosses to another process of ours only with our signature."""

from __future__ import annotations

import pytest

import otelbill
from otelbill import config, guard
from otelbill.config import Settings
from otelbill.frame import find_frame
from otelbill.testing import frame

KEY = "a secret of sixteen"


@pytest.fixture
def headers() -> dict[str, str]:
    """Headers of a request made for acme."""
    config.use(Settings(propagation_key=KEY))
    made: dict[str, str] = {}
    with otelbill.customer("acme", project="p", run="r"), otelbill.attempt(2):
        otelbill.inject(made)
    return made


def test_a_signed_frame_is_in_force_on_the_other_side(headers: dict[str, str]) -> None:
    """Customer, project, run and attempt arrive, whatever the case of the header's name."""
    for received in (headers, {name.upper(): value for name, value in headers.items()}):
        with otelbill.extract(received):
            assert (frame().customer, frame().project, frame().run, frame().attempt) == ("acme", "p", "r", 2)
        assert frame().customer is None


def test_a_frame_is_readable_by_nobody_but_signed_for_us(headers: dict[str, str]) -> None:
    """Changed, unsigned, wrongly signed and malformed headers are ignored and counted, never raised."""
    version, payload, signature = headers["otelbill-frame"].split(".")
    forged = [
        f"{version}.{payload[:-1]}A.{signature}",
        f"{version}.{payload}.",
        f"{version}.{payload}",
        f"2.{payload}.{signature}",
        "acme",
        "ü.ü.ü",
        "",
        "1." + "A" * 5_000 + f".{signature}",
    ]
    for header in forged:
        with otelbill.customer("globex"), otelbill.extract({"otelbill-frame": header}):
            assert frame().customer == "globex"
    config.use(Settings(propagation_key="another secret, 16+"))
    with otelbill.extract(headers):
        assert frame().customer is None
    assert guard.list_faults() == {"frame_header_ignored": len(forged) + 1}


def test_without_a_key_nothing_is_sent_and_nothing_is_believed(headers: dict[str, str]) -> None:
    """No key means no header, one report, and no trust in what arrives."""
    config.use(Settings())
    made: dict[str, str] = {}
    with otelbill.customer("acme"):
        otelbill.inject(made)
    assert made == {}
    with otelbill.extract(headers):
        assert frame().customer is None
    assert guard.list_faults() == {"propagation_key_missing": 1, "frame_header_ignored": 1}


def test_outside_every_block_there_is_nothing_to_send() -> None:
    """No frame, no header, no fault."""
    made: dict[str, str] = {}
    otelbill.inject(made)
    with otelbill.extract({"other": "header"}):
        assert find_frame() is None
    assert (made, guard.list_faults()) == ({}, {})
