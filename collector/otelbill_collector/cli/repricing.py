"""`otelbill simulate`, `rerate` and `forecast`: other prices over what is booked, and what a period will come to."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from otelbill_collector.billing import build_billing_rules
from otelbill_collector.cli.integrity import show_progress
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
from otelbill_collector.cli.report import InstantType
from otelbill_collector.cli.tables import print_table
from otelbill_collector.config import Config
from otelbill_collector.config.process import load_process_config, load_process_prices
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.statements import UnknownVersion
from otelbill_collector.forecast import list_forecasts
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.simulation import Agreements, identify_prices, render_simulation, simulate

Json = dict[str, Any]

_AMOUNTS = ("charge_booked", "charge", "difference", "by_period_booked", "by_period", "cost", "margin_booked", "margin")
_COUNTS = ("events", "changed", "unpriced")


def _scope_options(command: Any) -> Any:  # Any: click's own types
    for name in ("step", "provider", "model", "customer"):
        command = click.option(f"--{name}", help=f"Only this {name}.")(command)
    command = click.option("--to", "to_nanos", type=InstantType(), help="End of event time, excluded.")(command)
    return click.option("--from", "from_nanos", type=InstantType(), help="Start of event time, included.")(command)


def _build_scope(options: dict[str, Any]) -> Scope:
    where = {"customer_id": options.pop("customer")} | {
        name: options.pop(name) for name in ("provider", "model", "step")
    }
    given = {name: value for name, value in where.items() if value is not None}
    return Scope(options.pop("from_nanos"), options.pop("to_nanos"), given)


@click.command("simulate")
@click.option(
    "--rate-card",
    "card_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The other rate card: a file of its own, or a configuration.",
)
@_scope_options
@config_options
@json_option
def run_simulation(
    card_path: Path, config_path: Path | None, data_dir: Path | None, as_json: bool, **options: Any
) -> None:
    """What booked usage would have been charged under another rate card. Writes nothing; may run beside the sidecar.

    Revenue, cost and margin by customer, as booked and under the other card, and for light, median and heavy users: the
    quarter of customers that cost least, the half between, the quarter that cost most. What is held is left out. Period
    charges, fees, discounts, minimums and commitments count for each billing period that lies in the scope as a whole.

    \b
    Examples:
      otelbill simulate --rate-card next-year.yaml --from 2026-10-01 --to 2026-11-01
      otelbill simulate --rate-card next-year.yaml --customer acme --json
    """
    config = require_config(config_path, data_dir)
    answer = _simulate(config, _build_other(config, card_path), _build_scope(options), keep_closed=False)
    if as_json:
        print_json(answer)
        return
    _print_simulation(answer)


def _build_other(config: Config, card_path: Path) -> Config:
    """Another file's prices. A rate card by itself leaves provider prices and groups as they are configured."""
    found = load_process_prices(card_path)
    return replace(config, rate_card=found.card) if found.is_card else load_process_config(card_path, {})


def _build_rater(config: Config) -> Rater:
    from otelbill_collector.app import build_rater

    return build_rater(config)


def _simulate(config: Config, other: Config, scope: Scope, *, keep_closed: bool) -> Json:
    """Raises ClickException where a period charge is not known any more."""
    rater = _build_rater(other)
    sides = build_billing_rules(config), build_billing_rules(other)
    agreements = Agreements(*sides, customers=tuple(config.customers), keep_closed=keep_closed)
    with show_progress() as advance:

        def work(connection: sqlite3.Connection) -> Json:
            progress = partial(advance, "rate again")
            return render_simulation(simulate(connection, rater, scope, progress, agreements), rater.card.currency)

        try:
            return read_ledger(config, work)
        except UnknownVersion as error:
            raise click.ClickException(str(error)) from error


def _print_simulation(answer: Json) -> None:
    currency, right = answer["currency"], (*_COUNTS, *_AMOUNTS, "customers")
    columns = ("events", *_AMOUNTS, "unpriced", "changed")
    rows = [[row["customer"], *(row[name] for name in columns)] for row in answer["customers"]]
    rows.append(["total", *(answer["total"][name] for name in columns)])
    print_table(f"by customer, {currency}", ("customer", *columns), rows, right=right)
    groups = [[row["group"], row["customers"], *(row[name] for name in columns)] for row in answer["groups"]]
    print_table(f"by use, {currency}", ("group", "customers", *columns), groups, right=right)


@click.command("rerate")
@_scope_options
@click.option("--dry-run", is_flag=True, help="Show the difference by customer and write nothing.")
@click.option("--terms", is_flag=True, help="Correct fees, discounts, minimums and commitments of closed periods, too.")
@click.option("--reason", help="Why; it stays on the records.")
@click.option("--operator", help="Who decides.  [default: the login name]")
@config_options
@json_option
def rerate(
    dry_run: bool,
    terms: bool,
    reason: str | None,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Rate booked usage again by the rate card of the configuration, after a price in it was corrected.

    Each event keeps the price of its own time. Where the amount changes, or the period charge that counts the event, a
    reversal and a revision are booked, which carry the reason. Charges given by hand stay. Use --dry-run first; the
    sidecar reads a corrected card at its start. With --terms give whole billing periods.

    \b
    Examples:
      otelbill rerate --from 2026-11-01 --to 2026-11-08 --dry-run
      otelbill rerate --from 2026-11-01 --to 2026-11-08 --reason "gpt-4o was entered with the price of gpt-4o-mini"
    """
    config = require_config(config_path, data_dir)
    rater, scope = _build_rater(config), _build_scope(options)
    if terms and set(scope.where) - {"customer_id"}:
        raise click.UsageError("--terms hold for all usage of a period; give no --model, --provider or --step")
    if dry_run:
        answer = _simulate(config, config, scope, keep_closed=not terms)
        if as_json:
            print_json(answer)
        else:
            _print_simulation(answer)
        return
    if not reason:
        raise click.UsageError("give --reason, which stays on the records, or --dry-run")
    arguments = {
        "from_nanos": scope.from_nanos,
        "to_nanos": scope.to_nanos,
        "where": scope.where,
        "prices": identify_prices(rater),
        "terms": terms,
        "operator": operator or find_user(),
        "reason": reason,
    }
    with show_progress() as advance:
        answer = operate_ledger(config, "rerate", arguments, partial(advance, "rate again"))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['changed']} events were rated anew")
        if terms:
            click.echo(f"{answer['restated']} closed periods have other terms")


@click.command("forecast")
@click.argument("customer", required=False)
@click.option("--at", "at_nanos", type=InstantType(), help="Forecast as of this instant.  [default: now]")
@config_options
@json_option
def forecast(
    customer: str | None, at_nanos: int | None, config_path: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """What each customer's billing period will come to, from the run rate of the last 28 whole days, with its range.

    With period charges, fees, discounts, minimums and commitments, before credits. `so_far` is exact. The rest is an
    estimate: in four periods of five the charge lies from `low` to `high`, if days are alike.

    \b
    Examples:
      otelbill forecast
      otelbill forecast acme --json
    """
    from otelbill_collector.app import read_clock

    config = require_config(config_path, data_dir)
    now = read_clock() if at_nanos is None else at_nanos
    rules = build_billing_rules(config)
    try:
        rows = read_ledger(config, lambda connection: list_forecasts(connection, rules, now, customer))
    except UnknownVersion as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json_lines(rows)
        return
    columns = ("customer", "period", "currency", "so_far", "expected", "low", "high", "days")
    cells = ([row[name] for name in columns] for row in rows)
    print_table("the billing period under way", columns, cells, right=columns[3:])
