"""Tables on a terminal of any width. Owns columns, cells and their layout; commands own what is shown."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from otelbill_collector.domain.instants import parse_instant

_GAP = 2  # between two columns; rich counts one more for the edges, and crops what it cannot place
_WORD_MAX = 34  # longer words may be broken; identifiers of Stripe objects are shorter
_PIPED_WIDTH_MAX = 10_000  # nobody looks at a pipe: one line a row, for grep and awk
_NOTHING = "-"
_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")

Json = Mapping[str, Any]  # records as the read models render them


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()
) -> None:
    """A table; None shows as a dash. Columns that say nothing are left out.

    Numbers, times and ids are never broken. Where they do not fit side by side, each row is a block of lines.
    """
    cells = [[_NOTHING if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(f"{title}: none")
        return
    shown = [index for index in range(len(columns)) if any(row[index] != _NOTHING for row in cells)]
    names = [columns[index] for index in shown]
    cells = [[row[index] for index in shown] for row in cells]
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPED_WIDTH_MAX, highlight=False)
    click.echo(f"{title}\n")
    widths = _fit_columns(names, cells, right, console.width)
    if widths is not None:
        console.print(_draw_table(names, cells, right, widths))
    else:
        click.echo("\n\n".join(_render_block(names, row) for row in cells))
    click.echo()


def shorten_instant(text: str) -> str:
    """2026-11-21T02:07:36.67193323Z as 2026-11-21 02:07:36Z. Full digits are in the JSON output."""
    parse_instant(text)
    return f"{text[:10]} {text[11:19]}Z"


def describe_quantities(quantities: Json) -> str:
    """`1200 input, 300 output tokens` or `3 vector_queries`; requests are left out beside other units."""
    tokens = [
        f"{quantities[name]} {name.removesuffix('_tokens').replace('_', ' ')}"
        for name in _TOKENS
        if quantities.get(name)
    ]
    parts = [", ".join(tokens) + " tokens"] if tokens else []
    parts += [f"{value} {name}" for name, value in quantities.items() if is_own_unit(name)]
    return ", ".join(parts) or ", ".join(f"{value} {name}" for name, value in quantities.items())


def sign_amount(row: Json, name: str) -> str | None:
    """An amount of a record; a reversal takes it back."""
    amount: str | None = row[name]
    return f"-{amount}" if amount is not None and row["kind"] == "reversal" else amount


def is_own_unit(name: str) -> bool:
    """Whether a unit is neither tokens nor requests."""
    return name != "requests" and not name.endswith("_tokens")


def _find_least(name: str, values: Iterable[str], right: Collection[str]) -> int:
    """The fewest characters a column can have: a number needs all of its own, a text those of its longest word."""
    if name in right:
        return max(len(name), *map(len, values))
    return max(len(name), min(_WORD_MAX, max(len(word) for value in values for word in value.split() or [value])))


def _fit_columns(
    names: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str], width: int
) -> list[int] | None:
    """Widths of the columns on a terminal of `width`; None where even the least do not fit."""
    values_of = zip(names, zip(*rows, strict=True), strict=True)
    columns = [(name, values, _find_least(name, values, right)) for name, values in values_of]
    spare = width - _GAP * len(columns) - sum(least for _, _, least in columns)
    if spare < 0:
        return None
    needs = [max(len(name), *map(len, values)) - least for name, values, least in columns]
    # Each gets its share of what is spare, so that a long text does not starve another.
    shares = [min(need, spare * need // max(1, sum(needs))) for need in needs]
    return [least + share for (_, _, least), share in zip(columns, shares, strict=True)]


def _draw_table(
    names: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str], widths: Sequence[int]
) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name, width in zip(names, widths, strict=True):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(_escape, row))
    return table


def _render_block(names: Sequence[str], row: Sequence[str]) -> str:
    longest = max(map(len, names))
    return "\n".join(f"{name:<{longest}}  {value}" for name, value in zip(names, row, strict=True) if value != _NOTHING)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
