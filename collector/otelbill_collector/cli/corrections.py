"""`otelbill adjust`, `corrections` and `take-back`: what an operator says of booked events, and unsays."""

from __future__ import annotations

from pathlib import Path

import click

from otelbill_collector.cli.operate import find_user, print_booked
from otelbill_collector.cli.options import (
    config_options,
    json_option,
    print_json,
    print_json_lines,
    read_ledger,
    require_config,
)
from otelbill_collector.cli.remote import operate_ledger
from otelbill_collector.cli.tables import print_table, shorten_instant
from otelbill_collector.operations import render_corrections


@click.command("adjust")
@click.argument("event_ids", nargs=-1, required=True, metavar="EVENT_ID...")
@click.option("--customer", "customer_id", help="The customer the usage belongs to.")
@click.option("--quantity", "quantities", multiple=True, metavar="UNIT=N", help="What was used; other units stay.")
@click.option("--charge", help="What is charged, as a decimal amount; the cost stays.")
@click.option("--currency", help="Currency of the charge; must be the one of the event.  [default: USD]")
@click.option("--void", is_flag=True, help="Bill nothing for it.")
@click.option("--reason", required=True, help="Why; it stays on the records.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def adjust(
    event_ids: tuple[str, ...],
    customer_id: str | None,
    quantities: tuple[str, ...],
    charge: str | None,
    currency: str | None,
    void: bool,
    reason: str,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Correct booked events: books a reversal and a new revision of each, which carry the reason. Nothing is edited.

    Everything given in one command is a batch, and `otelbill take-back BATCH` takes all of it back. An event that does
    not exist, is like that already, or is charged in another currency: the command is refused, nothing is written.

    \b
    Examples:
      otelbill adjust 3f2a... --customer acme --reason "missing customer() in the nightly job"
      otelbill adjust 3f2a... --quantity output_tokens=1200 --reason "provider console, request req_011"
      otelbill adjust 3f2a... 77b0... --void --reason "load test with the live key"
      otelbill adjust 3f2a... --charge 0.10 --reason "agreed with the customer on 4 May"
    """
    arguments = {
        "event_ids": list(event_ids),
        "customer_id": customer_id,
        "quantities": dict(_parse_quantity(text) for text in quantities) or None,
        "charge": charge,
        "currency": currency or "USD",
        "void": void,
        "operator": operator or find_user(),
        "reason": reason,
    }
    answer = operate_ledger(require_config(config_path, data_dir), "adjust", arguments)
    if as_json:
        print_json(answer)
        return
    print_booked(answer)
    click.echo(f"batch {answer['batch']}")


def _parse_quantity(text: str) -> tuple[str, int]:
    unit, _, amount = text.partition("=")
    if not unit or not amount.isascii() or not amount.isdigit():
        raise click.BadParameter(f"{text!r} is not UNIT=N; write output_tokens=1200", param_hint="--quantity")
    return unit, int(amount)


@click.command("take-back")
@click.argument("batch")
@click.option("--reason", required=True, help="Why; it stays on the records.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def take_back(
    batch: str,
    reason: str,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Take back a batch of corrections as one: what stood before stands again. Refused if one was corrected since.

    \b
    Example:
      otelbill take-back 9d41c0ffee12ab34 --reason "wrong customer"
    """
    arguments = {"batch": batch, "operator": operator or find_user(), "reason": reason}
    answer = operate_ledger(require_config(config_path, data_dir), "take-back", arguments)
    if as_json:
        print_json(answer)
        return
    print_booked(answer)


@click.command("corrections")
@config_options
@json_option
def corrections(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """List what operators corrected, oldest first: batch, event, what was said of it, by whom and why.

    \b
    Example:
      otelbill corrections --json
    """
    rows = read_ledger(require_config(config_path, data_dir), render_corrections)
    if as_json:
        print_json_lines(rows)
        return
    columns = ("batch", "event_id", "aspect", "value", "given_at", "operator", "reason", "reverses")
    cells = ([*(row[n] for n in columns[:3]), _show(row["value"]), shorten_instant(row["given_at"]),
              *(row[n] for n in columns[5:])] for row in rows)  # fmt: skip
    print_table("corrections", columns, cells)


def _show(value: object) -> str:
    """A value for the table. None is what nothing is said of any more."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return {"True": "yes", "None": "as the spans say"}.get(str(value), str(value))
