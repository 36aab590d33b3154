"""`otelbill retention`: what a policy would remove, removing it, and giving the room back. Owns how that is printed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from otelbill_collector.cli.operate import find_user
from otelbill_collector.cli.options import config_options, json_option, print_json, read_ledger, require_config
from otelbill_collector.cli.remote import operate_ledger
from otelbill_collector.cli.tables import print_table, shorten_instant
from otelbill_collector.domain.retention import InvalidPolicy
from otelbill_collector.ledger.sqlite import LEDGER_NAME, LedgerLocked, LedgerUnavailable, SqliteStore
from otelbill_collector.retention import NoPolicy, find_plan, render_prunings

Json = Mapping[str, Any]  # a plan as JSON values


@click.group("retention")
def retention() -> None:
    """Evidence that is older than a policy and settled: what would go, and removing it.

    \b
    Examples:
      otelbill retention plan --evidence 13mo
      otelbill retention apply
    """


@retention.command("plan")
@click.option("--evidence", "policy", help="Another policy than retention.evidence, such as 400d or 13mo.")
@config_options
@json_option
def plan(policy: str | None, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Show what would be removed now, what holds more back, and what was removed before. Changes nothing.

    \b
    Example:
      otelbill retention plan --evidence 13mo
    """
    config = require_config(config_path, data_dir)

    def load(connection: sqlite3.Connection) -> dict[str, Any]:
        found = find_plan(connection, config, time.time_ns(), policy).render()
        return {**found, "pruned": render_prunings(connection)}

    try:
        answer = read_ledger(config, load)
    except (NoPolicy, InvalidPolicy) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(answer)
        return
    _print_pruned(answer["pruned"])
    _print_plan(answer, "would go")


@retention.command("apply")
@click.option("--partly", is_flag=True, help="Remove what is settled, even if the policy asks for more.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def apply(partly: bool, operator: str | None, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Remove records by retention.evidence. Refused, with a list, while something that is not settled needs them.

    Rows, digests and sums stay, records and claim keys go. There is no way back but a backup. The collector does the
    same once an hour, with --partly, where retention.evidence is set.

    \b
    Example:
      otelbill retention apply --partly
    """
    arguments = {"partly": partly, "operator": operator or find_user()}
    answer = operate_ledger(require_config(config_path, data_dir), "retention-apply", arguments)
    if as_json:
        print_json(answer)
    else:
        _print_plan(answer, "gone")


@retention.command("shrink")
@config_options
@json_option
def shrink(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Give free room inside the ledger's file back to the disk. Needs a stopped collector, and room for a copy.

    Without it the room is used for what comes next, and the file stops growing.

    \b
    Example:
      otelbill retention shrink --data-dir /var/lib/otelbill
    """
    config = require_config(config_path, data_dir)
    if not (config.data_dir / LEDGER_NAME).is_file():
        raise click.ClickException(f"no ledger in {config.data_dir}; name its folder with --data-dir")
    try:
        store = SqliteStore(config.data_dir)
    except LedgerLocked as error:
        raise click.ClickException(f"{error}; the file can only be written anew while no collector uses it") from error
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from error
    before = store.size_bytes()
    try:
        store.shrink()
        after = store.size_bytes()
    except (sqlite3.Error, OSError) as error:
        raise click.ClickException(f"nothing was changed: {store.path}: {error}; make room and repeat") from error
    finally:
        store.close()
    if as_json:
        print_json({"bytes_before": before, "bytes_after": after})
        return
    click.echo(f"{store.path}: {before} bytes before, {after} bytes now")


def _print_pruned(rows: list[Json]) -> None:
    if rows:
        columns = ("pruned", "segments", "records", "from", "to", "policy", "operator", "state")
        print_table("gone already", columns, (_list_pruned(row) for row in rows), right=("records",))


def _list_pruned(row: Json) -> list[object]:
    segments = f"{row['segments']['first']}-{row['segments']['last']}"
    state = "done" if row["finished"] else "under way"
    times = (row["from"][:10], row["to"][:10])
    return [shorten_instant(row["at"]), segments, row["records"], *times, row["policy"], row["operator"], state]


def _print_plan(answer: Json, title: str) -> None:
    segments = answer["segments"]
    rows = [("policy", answer["policy"]), ("asks for events before", answer["wanted_floor"][:10])]
    rows.append(("final is what ended before", shorten_instant(answer["floor"])))
    if segments is None:
        rows.append(("records", "none"))
    else:
        rows.append(("segments", f"{segments['first']} to {segments['last']}"))
        rows.append(("events of", f"{answer['from'][:10]} to {answer['to'][:10]}"))
        rows += [("records", answer["records"]), ("bytes", answer["bytes"])]
    print_table(title, ("what", "value"), rows)
    if answer["held_by"]:
        held = (
            [item["kind"], shorten_instant(item["from"]), item["detail"], item["remedy"]] for item in answer["held_by"]
        )
        print_table("held back by", ("kind", "from", "what", "remedy"), held)
