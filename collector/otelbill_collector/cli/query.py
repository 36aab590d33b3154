"""`otelbill query`: SQL over the ledger. Owns how answers are printed."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from otelbill_collector.cli.options import config_options, json_option, require_config
from otelbill_collector.cli.tables import print_table
from otelbill_collector.ledger.sqlite import LedgerUnavailable, SqliteStore

if TYPE_CHECKING:
    from otelbill_collector.ledger.queries import Answer

_ROWS = 1_000
_SECONDS = 60
_TABLE_ROWS_MAX = 100_000  # a table's columns are as wide as their widest cell, so all rows are held
Cell = Any  # a value of a query's answer, or its JSON form


@click.command("query")
@click.argument("sql")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header instead of a table.")
@click.option("--rows", type=click.IntRange(0), default=_ROWS, show_default=True, help="Most rows to print; 0: all.")
@click.option(
    "--timeout",
    type=click.IntRange(0),
    default=_SECONDS,
    show_default=True,
    help="Seconds to run at most; 0: no limit.",
)
@config_options
@json_option
def query(
    sql: str, as_csv: bool, rows: int, timeout: int, config_path: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Answer one SELECT from the ledger, in DuckDB's dialect. Reads only, and while the sidecar runs.

    The views are records, events, usage, rollups, dead_letters, prices and segments; docs/queries.md has their columns.
    SQL may be a file's name after @, or - for standard input.

    \b
    Examples:
      otelbill query "SELECT customer_id, sum(charge) FROM usage GROUP BY ALL ORDER BY 2 DESC"
      otelbill query "DESCRIBE usage"
      otelbill query @margins.sql --csv --rows 0
    """
    from otelbill_collector.ledger.queries import QueryFailed, QueryLimits, open_query  # DuckDB takes a moment to load

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    config = require_config(config_path, data_dir)
    try:
        store = SqliteStore(config.data_dir, read_only=True)
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from error
    try:
        with open_query(store, _read_sql(sql), QueryLimits(rows or None, timeout or None)) as answer:
            _print_answer(answer, as_csv=as_csv, as_json=as_json)
            if answer.pruned:
                sys.stdout.flush()
                click.echo(f"note: {answer.pruned}: the answer has none of those records", err=True)
            if answer.cut:
                sys.stdout.flush()
                click.echo(f"cut after {rows} rows, there are more: --rows 0 prints all", err=True)
    except QueryFailed as error:
        raise click.ClickException(str(error)) from error
    except sqlite3.Error as error:
        raise click.ClickException(f"cannot read the ledger in {config.data_dir}: {error}") from error
    finally:
        store.close()


def _read_sql(text: str) -> str:
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{text[1:]}: cannot be read as SQL: {error}") from error


def _print_answer(answer: Answer, *, as_csv: bool, as_json: bool) -> None:
    if as_json:
        for row in answer.rows:
            values = dict(zip(answer.columns, map(render_cell, row), strict=True))
            click.echo(json.dumps(values, ensure_ascii=False))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows([_write_cell(cell) for cell in row] for row in answer.rows)
    else:
        _print_table(answer)


def _print_table(answer: Answer) -> None:
    rows = list(islice(answer.rows, _TABLE_ROWS_MAX))
    right = {
        name
        for name, column in zip(answer.columns, zip(*rows, strict=True), strict=False)
        if all(isinstance(cell, int | Decimal | float | datetime | None) for cell in column)
    }
    cells: Iterable[list[Cell]] = ([None if cell is None else _write_cell(cell) for cell in row] for row in rows)
    print_table(f"{len(rows)} rows", answer.columns, cells, right=right)
    if len(rows) == _TABLE_ROWS_MAX:
        click.echo(f"a table shows {_TABLE_ROWS_MAX} rows at most; --csv or --json print all", err=True)


def render_cell(value: Cell) -> Cell:
    """The JSON form of a value: amounts as decimal text, times as RFC 3339 in UTC, bytes in hex."""
    match value:
        case Decimal():
            text = format(value, "f")
            return text.rstrip("0").rstrip(".") if "." in text else text
        case datetime():
            return _write_instant(value)
        case bytes():
            return value.hex()
        case date() | time() | timedelta():
            return str(value)
        case dict():
            return {str(key): render_cell(item) for key, item in value.items()}
        case list() | tuple():
            return [render_cell(item) for item in value]
        case float() if value - value != 0:  # JSON has no infinity
            return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _write_cell(value: Cell) -> str:
    rendered = render_cell(value)
    if rendered is None:
        return ""
    if isinstance(rendered, bool | dict | list):
        return json.dumps(rendered, ensure_ascii=False)
    return str(rendered)


def _write_instant(value: datetime) -> str:
    text = value.replace(tzinfo=None).isoformat()
    head, dot, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{head}{dot + fraction if fraction else ''}Z"
