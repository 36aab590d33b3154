"""However blocks and steps nest, each level sees its own customer, and leaves the level around it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otelbill
from otelbill.errors import OtelbillError
from otelbill.frame import Frame, find_frame
from otelbill.propagation import parse_header, render_header
from otelbill.testing import capture_spans
from otelbill.usage import render_quantity

NAMES = st.sampled_from(["acme", "globex", "initech"])
LEVELS = st.lists(st.tuples(st.sampled_from(["block", "step", "stream", "attempt", "fail"]), NAMES), max_size=12)
IDENTIFIERS = st.text(min_size=1, max_size=128).filter(lambda text: text.isprintable() and text == text.strip())


@given(LEVELS)
def test_any_nesting_restores_the_outer_frame(levels: list[tuple[str, str]]) -> None:
    """The frame after a level is the very object that was in force before it, also when the level fails."""
    assert find_frame() is None
    _descend(levels, customer=None)
    assert find_frame() is None


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30))
def test_streams_in_any_order_never_mix(moves: list[tuple[int, bool]]) -> None:
    """Streams of three customers, advanced and closed in any order, yield their own customer only."""
    streams = []
    for name in ("acme", "globex", "initech"):
        with otelbill.customer(name):
            streams.append((name, _stream()))
    for number, is_close in moves:
        name, stream = streams[number]
        if is_close:
            stream.close()  # type: ignore[attr-defined]
        else:
            assert next(stream, name) == name
        assert find_frame() is None


@given(
    st.builds(
        Frame,
        customer=st.none() | IDENTIFIERS,
        project=st.none() | IDENTIFIERS,
        run=st.none() | IDENTIFIERS,
        step=st.none() | IDENTIFIERS,
        attempt=st.none() | st.integers(1, 1_000_000),
    )
)
def test_a_signed_frame_comes_back_as_it_was(frame: Frame) -> None:
    """Whatever a frame holds survives the header, and only for those who have the key."""
    header = render_header(frame, "k" * 16)
    assert parse_header(header, "k" * 16) == frame
    assert parse_header(header, "j" * 16) is None


@given(st.text() | st.from_regex(r"1\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,60}", fullmatch=True))
def test_no_header_breaks_the_parser(header: str) -> None:
    """A header made up by somebody else is ignored, whatever it holds."""
    assert parse_header(header, "k" * 16) is None


@given(st.integers(-(10**40), 10**40) | st.decimals() | st.floats() | st.booleans() | st.text())
def test_a_quantity_is_exact_or_refused(quantity: object) -> None:
    """A quantity is rendered to the same number, not negative, or refused with an error that names the remedy."""
    try:
        rendered = render_quantity(quantity)
    except OtelbillError:
        return
    assert not isinstance(quantity, float | bool | str)
    assert type(quantity)(rendered) == quantity
    assert isinstance(rendered, str) or 0 <= rendered < 2**63


@otelbill.metered
def _stream() -> Iterator[str | None]:
    for _ in range(3):
        frame = find_frame()
        yield None if frame is None else frame.customer


def _descend(levels: list[tuple[str, str]], *, customer: str | None) -> None:
    before = find_frame()
    assert (None if before is None else before.customer) == customer
    if levels:
        (kind, name), rest = levels[0], levels[1:]
        _LEVELS[kind](name, rest, customer)
    assert find_frame() is before


def _run_block(name: str, rest: list[tuple[str, str]], customer: str | None) -> None:
    with otelbill.customer(name):
        _descend(rest, customer=name)


def _run_step(name: str, rest: list[tuple[str, str]], customer: str | None) -> None:
    otelbill.metered(step=name)(_descend)(rest, customer=customer)


def _run_stream(name: str, rest: list[tuple[str, str]], customer: str | None) -> None:
    @otelbill.metered(step=name)
    def stream() -> Iterator[None]:
        with otelbill.customer(name):
            yield
            _descend(rest, customer=name)

    list(stream())


def _run_attempt(name: str, rest: list[tuple[str, str]], customer: str | None) -> None:
    with otelbill.attempt(2):
        _descend(rest, customer=customer)


def _run_failure(name: str, rest: list[tuple[str, str]], customer: str | None) -> None:
    @otelbill.metered(step=name)
    def fail() -> None:
        with otelbill.customer(name):
            _descend(rest, customer=name)
            raise ZeroDivisionError

    with capture_spans() as spans, pytest.raises(ZeroDivisionError):
        fail()
    assert spans


_LEVELS = {
    "block": _run_block,
    "step": _run_step,
    "stream": _run_stream,
    "attempt": _run_attempt,
    "fail": _run_failure,
}
