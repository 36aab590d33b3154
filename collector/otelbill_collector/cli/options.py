"""Options and JSON printing that several commands share. Owns how a configuration is found."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from otelbill_collector.config import Config
from otelbill_collector.config.process import load_process_config
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.ledger.sqlite import LedgerUnavailable, SqliteStore

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_DEFAULT_CONFIG = Path("otelbill.yaml")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def config_options(command: F) -> F:
    """--config and --data-dir, in one meaning for every command."""
    command = click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the ledger. Also OTELBILL_DATA_DIR.  [default: ./otelbill-data]",
    )(command)
    return click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Configuration file.  [default: ./otelbill.yaml where there is one]",
    )(command)


def require_config(config_path: Path | None, data_dir: Path | None) -> Config:
    """The configuration of these options and the environment. Raises ConfigError."""
    if config_path is None and _DEFAULT_CONFIG.is_file():
        config_path = _DEFAULT_CONFIG
    overrides = {} if data_dir is None else {"data_dir": str(data_dir)}
    return load_process_config(config_path, overrides)


def read_ledger(config: Config, work: Callable[[Any], T]) -> T:
    """Run a read model on a snapshot of the ledger. Any: the store's connection, which only read models use."""
    try:
        store = SqliteStore(config.data_dir, read_only=True)
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from error
    try:
        return store.read(work)
    except EvidencePruned as error:
        raise click.ClickException(str(error)) from error
    except sqlite3.Error as error:
        raise click.ClickException(f"cannot read the ledger in {config.data_dir}: {error}") from error
    finally:
        store.close()


def print_json(value: Any) -> None:
    """Any: what the read models give."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """One object per line."""
    for row in rows:
        click.echo(json.dumps(row, ensure_ascii=False))
