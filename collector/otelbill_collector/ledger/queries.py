"""SQL over the ledger, read-only: DuckDB over the Parquet files and what is not in them yet. Owns the session's locks.

A query runs in this process's memory on one snapshot of the ledger. It reaches the views and nothing else: no file, no
network, no setting, no write.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from otelbill_collector.ledger.compaction import RECORDS, find_folder, list_files
from otelbill_collector.ledger.parquet import RECORDS as RECORD_SCHEMA
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.tombstones import describe_absence
from otelbill_collector.ledger.views import DERIVED_VIEWS, STATE_VIEWS, VIEWS, load_tail, load_view

_BATCH_ROWS = 1_024
_MEMORY = "2GB"
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)
_OVER_RECORDS = ("records", *DERIVED_VIEWS)

Row = tuple[Any, ...]  # Any: a query's columns may have every type that Arrow has


class QueryFailed(ValueError):
    """The query cannot be answered. The message says what is wrong with it and what there is to ask."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """When a query is cut: rows given out (None: all), and seconds of running (None: as long as it takes)."""

    rows_max: int | None
    seconds_max: int | None


@dataclass(slots=True)
class Answer:
    """Columns, and rows to be read once, in order. `cut` is known after the last: there were more than the limit."""

    columns: tuple[str, ...]
    rows: Iterator[Row]
    cut: bool = False
    pruned: str | None = None  # which records the answer cannot have, where it asks for records


@contextmanager
def open_query(store: SqliteStore, sql: str, limits: QueryLimits) -> Iterator[Answer]:
    """Run one SELECT on a snapshot of the ledger. Raises QueryFailed, also while rows are read."""
    with tempfile.TemporaryDirectory(prefix="otelbill-query-") as scratch:
        connection = duckdb.connect(config={"python_enable_replacements": False, "threads": 2})
        timer = threading.Timer(limits.seconds_max or 0, connection.interrupt)
        try:
            with _explain_errors(limits):
                pruned = _prepare_session(connection, store, sql, Path(scratch))
                _check_statement(connection, sql)
                if limits.seconds_max is not None:
                    timer.start()
                reader = connection.sql(sql).to_arrow_reader(_BATCH_ROWS)
            answer = Answer(tuple(reader.schema.names), iter(()), pruned=pruned)
            answer.rows = _read_rows(reader, limits, answer)
            yield answer
        finally:
            timer.cancel()
            connection.close()


def _read_rows(reader: pa.RecordBatchReader, limits: QueryLimits, answer: Answer) -> Iterator[Row]:
    given = 0
    with _explain_errors(limits):
        for batch in reader:
            for row in zip(*(_read_values(column) for column in batch.columns), strict=True):
                if limits.rows_max is not None and given >= limits.rows_max:
                    answer.cut = True
                    return
                given += 1
                yield row


def _read_values(column: pa.Array) -> list[Any]:
    """Any: see Row. Sums of integers come as decimals without decimals."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    values: list[Any] = column.to_pylist()
    if pa.types.is_decimal(column.type) and column.type.scale == 0:
        return [None if value is None else int(value) for value in values]
    return values


def _prepare_session(connection: duckdb.DuckDBPyConnection, store: SqliteStore, sql: str, scratch: Path) -> str | None:
    """Views on a snapshot, and then the locks: what is not reachable now never is. Returns what was pruned of them."""
    folder = find_folder(store.path)

    def load(ledger: sqlite3.Connection) -> tuple[list[Path], pa.Table, str | None]:
        wanted = any(_mentions(sql, name) for name in _OVER_RECORDS)
        for name, view in STATE_VIEWS.items():
            table = load_view(ledger, view) if _mentions(sql, name) else view.schema.empty_table()
            connection.register(f"{name}_now", table)
        tail = load_tail(ledger) if wanted else RECORD_SCHEMA.empty_table()
        files = [folder.joinpath(row.name) for row in list_files(ledger, RECORDS)] if wanted else []
        return files, tail, describe_absence(ledger) if wanted else None

    files, tail, pruned = store.read(load)
    lost = next((path for path in files if not path.is_file()), None)
    if lost is not None:
        raise QueryFailed(f"{lost} is gone; a start of the collector or `otelbill replay` writes it again")
    connection.register("records_now", tail)
    names = ", ".join(_quote(path) for path in files)
    stored = f"SELECT * FROM read_parquet([{names}]) UNION ALL " if files else ""
    connection.execute(f"CREATE VIEW records AS {stored}SELECT * FROM records_now")
    for name, query in DERIVED_VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {query}")
    for name in STATE_VIEWS:
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {name}_now")
    for setting in (
        "TimeZone = 'UTC'",
        f"memory_limit = '{_MEMORY}'",
        f"temp_directory = {_quote(scratch)}",
        f"allowed_paths = [{names}]",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return pruned


def _mentions(sql: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", sql, re.IGNORECASE) is not None


def _quote(path: Path) -> str:
    text = str(path.absolute()).replace("'", "''")
    return f"'{text}'"


def _check_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """One statement that reads. What writes would write into memory that is thrown away: better to say so."""
    statements = connection.extract_statements(_EXPLAIN.sub("", sql, count=1))
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        said = ", ".join(kind.name for kind in kinds) or "nothing"
        raise QueryFailed(f"a query is one SELECT, this is {said}; {describe_views()}")


def describe_views() -> str:
    """What there is to ask, for messages."""
    return f"there are the views {', '.join(VIEWS)}; `DESCRIBE records` lists the columns of one"


@contextmanager
def _explain_errors(limits: QueryLimits) -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException as error:
        raise QueryFailed(
            f"stopped after {limits.seconds_max} seconds, what was shown is not all; narrow the time with ended_at, "
            "or give --timeout 0"
        ) from error
    except duckdb.PermissionException as error:
        raise QueryFailed(f"{_shorten(error)}; a query reaches the ledger only: {describe_views()}") from error
    except duckdb.OutOfMemoryException as error:
        raise QueryFailed(f"it needs more than {_MEMORY} of memory: {_shorten(error)}; narrow the time") from error
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException) as error:
        raise QueryFailed(f"{_drop_guess(error)}\n{describe_views()}") from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise QueryFailed(str(error)) from error


def _shorten(error: Exception) -> str:
    return str(error).splitlines()[0]


def _drop_guess(error: Exception) -> str:
    """DuckDB's message without its guess among tables that are not ours, which says more wrong than right."""
    lines: Sequence[str] = str(error).splitlines()
    return "\n".join(line for line in lines if line and not line.startswith("Did you mean"))
