"""Tables lose nothing on a terminal of any width."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from rich.console import Console

from otelbill_collector.cli import tables
from otelbill_collector.cli.tables import describe_quantities, print_table, shorten_instant

COLUMNS = ("customer", "step", "model", "events", "quantities", "cost", "charge", "held")
ROWS: list[Sequence[object]] = [
    (
        "acme",
        None,
        "gpt-4o-mini-2024-07-18",
        12,
        "1200 input, 30 output tokens, 38 vector_queries",
        "0.00082",
        "0.07",
        1,
    ),
    ("[bold]globex[/bold]", None, None, 3, "2 pages_printed", None, "0.0000159", None),
]


def _print_at(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(tables, "Console", lambda **named: Console(**{**named, "width": width}))
    print_table("usage", COLUMNS, ROWS, right=("events", "cost", "charge", "held"))
    return capsys.readouterr().out


@pytest.mark.parametrize("width", range(40, 161))
def test_every_word_of_every_cell_is_on_the_page_and_no_number_is_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At no width is a part of a cell cut off, broken inside a word, or wider than the terminal."""
    page = _print_at(width, monkeypatch, capsys)

    for row in ROWS:
        for cell in row:
            assert all(word in page.split() for word in str("" if cell is None else cell).split())
    if "\u2500" in page:
        assert max(map(len, page.splitlines())) <= width


def test_a_column_without_content_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column in which every row says nothing takes no room."""
    assert "step" not in _print_at(160, monkeypatch, capsys)


def test_no_rows_are_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty answer is a sentence, not a frame around nothing."""
    print_table("held", COLUMNS, [])

    assert capsys.readouterr().out == "held: none\n"


def test_a_pipe_gets_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """What is piped can be searched by line, however long a row is."""
    assert not sys.stdout.isatty()
    print_table("usage", ("customer", "quantities"), [("acme", "word " * 100)])

    assert len([line for line in capsys.readouterr().out.splitlines() if "word" in line]) == 1


@pytest.mark.parametrize(
    ("quantities", "said"),
    [
        ({"input_tokens": 5, "output_tokens": 7, "requests": 1}, "5 input, 7 output tokens"),
        ({"requests": 2}, "2 requests"),
        ({"input_tokens": 0, "vector_queries": "1.5", "requests": 1}, "1.5 vector_queries"),
        ({}, ""),
    ],
)
def test_quantities_in_words(quantities: dict[str, object], said: str) -> None:
    """Units of one's own are shown like tokens; a request is worth a word only when there is nothing else."""
    assert describe_quantities(quantities) == said


def test_instants_lose_their_fraction_only() -> None:
    """A table shows seconds in UTC."""
    assert shorten_instant("2026-11-21T02:07:36.67193323Z") == "2026-11-21 02:07:36Z"
