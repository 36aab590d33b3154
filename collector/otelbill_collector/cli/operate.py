"""`otelbill resolve`, `dead-letters` and `reconcile`: what an operator does to a ledger."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from otelbill_collector.cli.options import (
    config_options,
    json_option,
    print_json,
    print_json_lines,
    read_ledger,
    require_config,
)
from otelbill_collector.cli.remote import operate_ledger
from otelbill_collector.cli.tables import print_table, shorten_instant, sign_amount
from otelbill_collector.explanation import render_letter
from otelbill_collector.ledger.deadletters import list_dead_letters


@click.command("resolve")
@click.argument("event_id")
@click.option("--input-tokens", type=click.IntRange(0), required=True, help="Input tokens that were not cached.")
@click.option("--output-tokens", type=click.IntRange(0), required=True, help="Output tokens, reasoning included.")
@click.option("--cache-read-tokens", type=click.IntRange(0), help="Input tokens read from the provider's cache.")
@click.option("--cache-write-tokens", type=click.IntRange(0), help="Input tokens written to the provider's cache.")
@click.option("--cache-write-1h-tokens", type=click.IntRange(0), help="The part of them that is kept for an hour.")
@click.option("--reason", required=True, help="Why, and where the numbers are from; it stays on the records.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def resolve(
    event_id: str,
    reason: str,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
    **quantities: int | None,
) -> None:
    """Give held usage its numbers by hand: books a reversal and a new revision that carry the reason.

    `otelbill held` lists the events. The same numbers again book nothing, other numbers correct the first, and what
    spans report later takes the place of both. The usage source becomes `reported`: the operator reported it.

    \b
    Example:
      otelbill resolve 3f2a... --input-tokens 1200 --output-tokens 340 --reason "provider console, request req_011"
    """
    arguments = {
        "event_id": event_id,
        "quantities": {unit: amount for unit, amount in quantities.items() if amount is not None},
        "operator": operator or find_user(),
        "reason": reason,
    }
    answer = operate_ledger(require_config(config_path, data_dir), "resolve-usage", arguments)
    if as_json:
        print_json(answer)
        return
    print_booked(answer)


def print_booked(answer: dict[str, Any]) -> None:
    """The records that a correction booked. Any: JSON values."""
    columns = ("kind", "revision", "record_id", "customer", "charge", "note")
    names = ("kind", "revision", "record_id", "customer_id")
    rows = ([*(row[name] for name in names), sign_amount(row, "charge"), row["note"]] for row in answer["booked"])
    print_table("booked", columns, rows, right=("charge",))


@click.group("dead-letters")
def dead_letters() -> None:
    """Spans that no rule could process: kept whole, with the reason, replayable.

    \b
    Examples:
      otelbill dead-letters list
      otelbill dead-letters replay
    """


@dead_letters.command("list")
@config_options
@json_option
def list_letters(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """List the dead letters that wait, with field, value and remedy.

    \b
    Example:
      otelbill dead-letters list --json
    """
    letters = read_ledger(require_config(config_path, data_dir), list_dead_letters)
    rows = [render_letter(letter) for letter in letters]
    if as_json:
        print_json_lines(rows)
        return
    columns = ("letter_id", "received", "code", "field", "value", "hint")
    cells = (
        [row["letter_id"], shorten_instant(row["received_at"]), *(row[name] for name in columns[2:])] for row in rows
    )
    print_table("dead letters", columns, cells, right=("received", "code"))


@dead_letters.command("replay")
@click.argument("letter_ids", nargs=-1)
@config_options
@json_option
def replay_letters(letter_ids: tuple[str, ...], config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Take dead letters (all, or those named) through the pipeline again; what is still wrong stays a dead letter.

    \b
    Example:
      otelbill dead-letters replay
    """
    arguments = {"letter_ids": list(letter_ids)}
    answer = operate_ledger(require_config(config_path, data_dir), "replay-dead-letters", arguments)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['replayed']} replayed, {answer['still_dead']} still dead letters")


def describe_comparison(answer: Mapping[str, Any]) -> str:
    """The result in one line. Any: a JSON value."""
    if answer["equal"]:
        return "ledger and Stripe are equal"
    skipped = answer["not_compared"]
    left_out = f"{len(skipped)} customer{'s' if len(skipped) > 1 else ''} not compared"
    if skipped and answer["equal_where_compared"]:
        return f"ledger and Stripe are equal where compared; {left_out}"
    if skipped and not answer["rows"]:
        return f"ledger and Stripe were not compared: {left_out}"
    return "ledger and Stripe DIFFER" + (f"; {left_out}" if skipped else "")


@click.command("reconcile")
@config_options
@json_option
def reconcile(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Compare the ledger with Stripe, hour by hour. Exit status 1 unless all of it is equal.

    \b
    Example:
      otelbill reconcile --config otelbill.yaml
    """
    answer = operate_ledger(require_config(config_path, data_dir), "reconcile", {})
    if as_json:
        print_json(answer)
    else:
        columns = ("meter", "stripe_customer_id", "ledger", "delivered", "stripe", "verdict", "remedy")
        rows = ([row[name] for name in columns] for row in answer["rows"])
        print_table("ledger and Stripe, in the meter's units", columns, rows, right=("ledger", "delivered", "stripe"))
        for difference in answer["differences"]:
            click.echo(difference)
        click.echo(describe_comparison(answer))
    if not answer["equal"]:
        raise click.exceptions.Exit(1)


def find_user() -> str:
    """The login name; containers often have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise click.ClickException("this system has no name for its user; say who decides with --operator") from error
