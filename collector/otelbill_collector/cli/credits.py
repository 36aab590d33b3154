"""`otelbill credits`: what customers were granted in advance, what is left of it, and every change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from otelbill_collector.cli.operate import find_user
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
from otelbill_collector.crediting import render_balance, render_credits, render_history, render_statement
from otelbill_collector.domain.grants import InvalidGrant
from otelbill_collector.domain.instants import parse_instant

Json = dict[str, Any]  # answers of operations and read models


@click.group("credits")
def credits_group() -> None:
    """Prepaid and promotional credits: grant, void, balance, history. Nothing is ever edited.

    \b
    Examples:
      otelbill credits grant acme --amount 100.00 --expires 2027-01-01 --reason "welcome"
      otelbill credits balance acme
    """


@credits_group.command("grant")
@click.argument("customer")
@click.option("--amount", help="Money to grant, as a decimal amount.")
@click.option("--currency", help="Currency of the amount.  [default: the rate card's]")
@click.option("--units", help="How many units to grant, instead of money.")
@click.option("--unit", help="Which units; with --amount, the only unit that it pays for.")
@click.option("--paid/--promotional", "paid", default=False, help="Whether the customer paid for it.")
@click.option("--priority", type=int, default=0, show_default=True, help="The lowest burns first.")
@click.option("--from", "start", metavar="TIME", help="First instant in force.  [default: this quarter of an hour]")
@click.option("--expires", metavar="TIME", help="First instant out of force.  [default: never]")
@click.option("--project", help="Pays for usage of this project only.")
@click.option("--step", help="Pays for usage of this step only.")
@click.option("--model", help="Pays for usage of this model only; `*` stands for any characters.")
@click.option("--rollover-until", metavar="TIME", help="What is left at expiry goes on, once, until then.")
@click.option("--rollover-percent", metavar="PERCENT", help="How much of what is left goes on.  [default: 100]")
@click.option("--rollover-max", metavar="AMOUNT", help="At most so much goes on.")
@click.option("--reason", required=True, help="Why; it stays on the grant.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def grant(
    customer: str,
    paid: bool,
    priority: int,
    project: str | None,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
    **texts: str | None,
) -> None:
    """Grant a customer money, or units of usage. Times are UTC and on quarters of an hour, or dates.

    Refused, with nothing written: an expiry that is not after the start, an amount that is not above zero, a unit or
    currency that the rate card does not know, the same grant a second time.

    \b
    Examples:
      otelbill credits grant acme --amount 100.00 --currency USD --paid --expires 2027-01-01 --reason "order 4711"
      otelbill credits grant acme --units 1000000 --unit output_tokens --model "gpt-4o*" --reason "pilot"
      otelbill credits grant acme --amount 50 --expires 2026-12-01 --rollover-until 2027-01-01 --rollover-percent 50 --reason "plan B"
    """  # noqa: E501 an example is one line
    arguments = {
        "customer_id": customer,
        "project_id": project,
        "origin": "paid" if paid else "promotional",
        "priority": priority,
        "operator": operator or find_user(),
        **texts,
    }
    answer = operate_ledger(require_config(config_path, data_dir), "credits-grant", arguments)
    if as_json:
        print_json(answer)
        return
    ends = "for good" if answer["expires"] is None else f"until {answer['expires']}"
    click.echo(f"granted {answer['amount']} {answer['asset']} to {customer}, from {answer['from']} {ends}")
    click.echo(f"grant {answer['grant_id']}")


@credits_group.command("void")
@click.argument("grant_id", metavar="GRANT")
@click.option("--reason", required=True, help="Why; it stays on the books.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def void(
    grant_id: str, reason: str, operator: str | None, config_path: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Make a grant worth nothing from this quarter of an hour on. What it paid for before stays paid.

    \b
    Example:
      otelbill credits void 9d41c0ffee12ab34 --reason "order 4711 was cancelled"
    """
    arguments = {"grant_id": grant_id, "reason": reason, "operator": operator or find_user()}
    answer = operate_ledger(require_config(config_path, data_dir), "credits-void", arguments)
    if as_json:
        print_json(answer)
        return
    click.echo(f"voided {answer['voided']} of {answer['amount']} {answer['asset']}; {answer['consumed']} were consumed")


@credits_group.command("list")
@click.argument("customer", required=False)
@config_options
@json_option
def list_credits(customer: str | None, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """List grants in the order in which they burn, with what has become of each.

    \b
    Examples:
      otelbill credits list
      otelbill credits list acme --json
    """
    config = require_config(config_path, data_dir)
    rows = read_ledger(config, lambda connection: render_credits(connection, customer, time.time_ns()))
    if as_json:
        print_json_lines(rows)
        return
    _print_grants("credits", rows)


@credits_group.command("balance")
@click.argument("customer")
@click.option("--at", "at_text", metavar="TIME", help="The instant to look at.  [default: now]")
@config_options
@json_option
def show_balance(
    customer: str, at_text: str | None, config_path: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """What a customer has left at an instant, with all usage that is known by now. A quarter of an hour begun counts.

    \b
    Examples:
      otelbill credits balance acme
      otelbill credits balance acme --at 2026-12-01 --json
    """
    at_nanos = time.time_ns() if at_text is None else _parse_time(at_text, "--at")
    config = require_config(config_path, data_dir)
    answer = read_ledger(config, lambda connection: render_balance(connection, customer, at_nanos))
    if as_json:
        print_json(answer)
        return
    _print_grants(f"credits of {customer} at {shorten_instant(answer['at'])}", answer["grants"])
    for item in answer["balances"]:
        click.echo(f"{item['left']} {item['asset']}")


@credits_group.command("statement")
@click.argument("customer")
@click.option("--from", "from_text", required=True, metavar="TIME", help="First instant of the usage.")
@click.option("--to", "to_text", required=True, metavar="TIME", help="First instant after it.")
@config_options
@json_option
def show_statement(
    customer: str, from_text: str, to_text: str, config_path: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Consumption by grant, and overage: the usage of an interval that credits paid for, and that they did not.

    \b
    Example:
      otelbill credits statement acme --from 2026-11-01 --to 2026-12-01
    """
    bounds = _parse_time(from_text, "--from"), _parse_time(to_text, "--to")
    config = require_config(config_path, data_dir)
    try:
        answer = read_ledger(config, lambda connection: render_statement(connection, customer, *bounds))
    except InvalidGrant as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(answer)
        return
    names = ("grant_id", "reason", "amount", "asset", "charge", "currency")
    rows = ([row[name] for name in names] for row in answer["consumption"])
    print_table("consumption", names, rows, right=("amount", "charge"))
    cells = ([row[name] for name in ("unit", "quantity", "charge", "currency")] for row in answer["overage"])
    print_table("overage", ("unit", "quantity", "charge", "currency"), cells, right=("quantity", "charge"))


@credits_group.command("history")
@click.argument("customer")
@config_options
@json_option
def show_history(customer: str, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Every posted change, oldest first: accounts, amount, the usage that it paid for, and why. --json shows all of it.

    \b
    Example:
      otelbill credits history acme --json
    """
    config = require_config(config_path, data_dir)
    rows = read_ledger(config, lambda connection: render_history(connection, customer, time.time_ns()))
    if as_json:
        print_json_lines(rows)
        return
    columns = ("id", "at", "kind", "from", "to", "amount", "asset", "usage", "corrects", "reason", "operator")
    cells = (
        [row["transfer_id"], shorten_instant(row["at"]), row["kind"], row["from_account"], row["to_account"],
         row["amount"], row["asset"], " ".join(row["usage"].values()) or None, row["corrects"], row["reason"],
         row["operator"]]
        for row in rows
    )  # fmt: skip
    print_table(f"credits of {customer}", columns, cells, right=("id", "at", "amount", "corrects"))


def _parse_time(text: str, option: str) -> int:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _print_grants(title: str, rows: list[Json]) -> None:
    numbers = ("left", "amount", "priority", "from", "expires")
    columns = ("grant", "customer", "state", *numbers[:2], "asset", "origin", *numbers[2:], "scope", "reason")
    cells = (
        [row["grant_id"], row["customer_id"], row["state"], row["left"], row["amount"], row["asset"], row["origin"],
         row["priority"], shorten_instant(row["from"]), row["expires"] and shorten_instant(row["expires"]),
         ", ".join(f"{name} {value}" for name, value in row["scope"].items()) or None, row["reason"]]
        for row in rows
    )  # fmt: skip
    print_table(title, columns, cells, right=numbers)
