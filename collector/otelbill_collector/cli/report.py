"""`otelbill usage`, `explain`, `held` and `suspense`: what the ledger holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
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
from otelbill_collector.cli.tables import describe_quantities, print_table, shorten_instant, sign_amount
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.explanation import NothingFound, explain_identifier, render_record
from otelbill_collector.ledger.lineage import list_suspense, list_unsettled
from otelbill_collector.ledger.rollups import DIMENSIONS, UnknownDimension, UsageQuery, load_usage

_NUMERIC = ("events", "cost", "charge", "unpriced", "held")


class InstantType(click.ParamType[int]):
    """A time or a date, as nanoseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Any: click's own signature."""
        try:
            return parse_instant(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("usage")
@click.option("--by", default="customer", show_default=True, help=f"Comma-separated: {', '.join(DIMENSIONS)}.")
@click.option("--from", "from_nanos", type=InstantType(), help="Start of event time, included.")
@click.option("--to", "to_nanos", type=InstantType(), help="End of event time, excluded.")
@click.option("--where", multiple=True, metavar="DIMENSION=VALUE", help="Only this value; may be given several times.")
@config_options
@json_option
def show_usage(
    by: str,
    from_nanos: int | None,
    to_nanos: int | None,
    where: tuple[str, ...],
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Sums of usage, cost and charge. Reads while the sidecar runs, and sees all that was acknowledged before.

    \b
    Examples:
      otelbill usage --by customer,model --from 2026-11-01 --to 2026-12-01
      otelbill usage --by step,day --where customer=acme --json
    """
    dimensions = tuple(part.strip() for part in by.split(",") if part.strip())
    query = UsageQuery(dimensions, from_nanos, to_nanos, _parse_filters(where))
    config = require_config(config_path, data_dir)
    try:
        rows = read_ledger(config, lambda connection: load_usage(connection, query))
    except UnknownDimension as error:
        raise click.BadParameter(str(error), param_hint="--by") from error
    if as_json:
        print_json_lines(rows)
        return
    currencies = {row["currency"] for row in rows}
    title, shown = (f"usage, {currencies.pop()}", ()) if len(currencies) == 1 else ("usage", ("currency",))
    columns = (*dimensions, "events", "quantities", "cost", "charge", *shown, "unpriced", "held")
    print_table(title, columns, (_list_cells(row, dimensions, shown) for row in rows), right=_NUMERIC)


def _parse_filters(where: tuple[str, ...]) -> dict[str, str]:
    filters = {}
    for item in where:
        name, separator, value = item.partition("=")
        if not separator:
            raise click.BadParameter(f"{item!r} is not DIMENSION=VALUE", param_hint="--where")
        if name.strip() not in DIMENSIONS:
            known = ", ".join(DIMENSIONS)
            raise click.BadParameter(f"cannot filter by {name.strip()!r}; choose from {known}", param_hint="--where")
        filters[name.strip()] = value
    return filters


def _list_cells(row: Mapping[str, Any], dimensions: tuple[str, ...], shown: tuple[str, ...]) -> list[object]:
    """Any: a group as the read model gives it."""
    keys = [row[name] if row[name] is not None or name != "customer" else "(suspense)" for name in dimensions]
    waiting = (row[name] or None for name in ("unpriced", "held"))
    quantities = describe_quantities(row["quantities"])
    return [*keys, row["events"], quantities, row["cost"], row["charge"], *(row[name] for name in shown), *waiting]


@click.command("explain")
@click.argument("identifier")
@config_options
@json_option
def explain(identifier: str, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """From any id to everything it is connected with: records, trace, price version, Stripe identifiers.

    The id may be an invoice (inv1....) or a line of one (line1....), a Stripe identifier (ob1....), a record or event
    id, a trace or span id, a run id, the provider's response id, or a dead letter's id.

    \b
    Examples:
      otelbill explain 4bf92f3577b34da6a3ce929d0e0e4736
      otelbill explain line1.98758545b5bacf2eadc4ae98
    """
    config = require_config(config_path, data_dir)
    try:
        found = read_ledger(config, lambda connection: explain_identifier(connection, identifier))
    except NothingFound as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(found)
        return
    for invoice in found.get("invoices", ()):
        print_table("invoice", ("name", "value"), [(name, invoice[name]) for name in _INVOICE_FIELDS])
    if found["invoice_lines"]:
        rows = ([row.get(name) for name in _LINE_FIELDS] for row in found["invoice_lines"])
        print_table("invoice lines", _LINE_FIELDS, rows, right=_LINE_NUMBERS)
    for letter in found["dead_letters"]:
        print_table("dead letter", ("name", "value"), letter.items())
    for title in ("records", "related"):
        # Spans that only give a trace its shape bill nothing and would hide what does.
        telling = [row for row in found[title] if row["reason"] != "structure"]
        if telling:
            print_table(title, _RECORD_COLUMNS, map(_list_record, telling), right=("cost", "charge"))
        if len(telling) < len(found[title]):
            click.echo(f"{title} that only give structure: {len(found[title]) - len(telling)}; --json lists them\n")
    for version in found["price_versions"]:
        _print_version(version)
    columns = ("identifier", "meter", "customer", "window", "revision", "value", "state")
    names = ("identifier", "meter", "customer_id", "window_start", "revision", "value", "state")
    if found["stripe"]:
        rows = ([row[name] for name in names] for row in found["stripe"])
        print_table("Stripe intents (one is the sum of a window)", columns, rows, right=("window", "value"))
    if found["pruned"]:
        click.echo(f"note: {found['pruned']}; records of it are not shown", err=True)


_INVOICE_FIELDS = ("invoice_id", "state", "customer_id", "period", "from", "to", "total", "currency")
_LINE_FIELDS = (
    *("invoice_id", "line_id", "state", "period", "kind", "label", "step", "model", "unit", "quantity", "unit_price"),
    *("exact", "amount", "arithmetic", "price_version", "events", "records"),
)
_LINE_NUMBERS = ("quantity", "unit_price", "exact", "amount", "events", "records")
_RECORD_COLUMNS = (
    *("kind", "revision", "record_id", "span_id", "customer", "step", "model", "quantities", "reason", "rating"),
    *("cost", "charge", "note"),
)


def _list_record(row: Mapping[str, Any]) -> list[object]:
    """Any: a record as JSON values."""
    names = ("kind", "revision", "record_id", "span_id", "customer_id", "step", "model")
    quantities = describe_quantities(row["quantities"]) or None
    amounts = (row["reason"], row["rating"], sign_amount(row, "cost"), sign_amount(row, "charge"), row["note"] or None)
    return [*(row[name] for name in names), quantities, *amounts]


def _print_version(version: Mapping[str, Any]) -> None:
    """Any: the content of a price version."""
    content = version["content"] or {}
    for kind in ("charge", "fee", "discount", "minimum", "commitment"):
        if isinstance(content.get(kind), dict):
            stated = [(name, value) for name, value in content[kind].items() if not isinstance(value, list)]
            tiers = [("tier", f"up to {tier['up_to']}: {tier['price']} each, {tier['flat']} flat") for tier in
                     content[kind].get("tiers", ())]  # fmt: skip
            title = f"price version {version['price_version']}, {kind} in {content.get('currency')}"
            print_table(title, ("name", "value"), [*stated, *tiers])
            return
    what = " ".join(content[name] for name in ("provider", "model") if content.get(name))
    columns = ("unit", "cost", "charge", "from the entry")
    rows = (
        [unit, price.get("cost"), price.get("charge"), _render_entry(price.get("entry"), price.get("credits"))]
        for unit, price in content.get("prices", {}).items()
    )
    title = f"price version {version['price_version']}" + (f" for {what}" if what else "")
    print_table(f"{title}, {content.get('currency', '')} for one unit", columns, rows, right=("cost", "charge"))


def _render_entry(entry: Mapping[str, Any] | None, credits: Mapping[str, Any] | None) -> str | None:
    """Any: JSON values of a price version."""
    says = ", ".join(f"{name} {value}" for name, value in entry.items()) if entry else None
    return f"{says}; a credit is worth {credits['worth']['price']}" if credits else says


@click.command("held")
@config_options
@json_option
def show_held(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Usage that is billable but not settled: unknown or estimated quantities (held), or no price (unpriced).

    \b
    Example:
      otelbill held --json
    """
    _print_records("held", partial(list_unsettled), config_path, data_dir, as_json)


@click.command("suspense")
@config_options
@json_option
def show_suspense(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Billable usage that belongs to no customer yet; `otelbill adjust EVENT --customer` assigns it.

    \b
    Example:
      otelbill suspense
    """
    _print_records("suspense", partial(list_suspense), config_path, data_dir, as_json)


def _print_records(title: str, load: Any, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Any: a read model that takes the connection."""
    config = require_config(config_path, data_dir)
    rows = [render_record(record) for record in read_ledger(config, load)]
    if as_json:
        print_json_lines(rows)
        return
    columns = ("event_id", "ended", "customer", "step", "model", "quantities", "state")
    print_table(title, columns, (_list_waiting(row) for row in rows), right=("ended",))


def _list_waiting(row: Mapping[str, Any]) -> list[object]:
    """Any: a record as JSON values."""
    keys = [row[name] for name in ("customer_id", "step", "model")]
    state = f"held: {row['reason']}" if row["rating"] == "held" else row["rating"]
    quantities = describe_quantities(row["quantities"]) or None
    return [row["event_id"], shorten_instant(row["ended_at"]), *keys, quantities, state]
