"""`otelbill close`, `invoice`, `invoices`: billing periods, drafts, approval. Owns how they look on a terminal."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from otelbill_collector.billing import BILLING_ERRORS, OPEN, build_billing_rules, list_summaries, load_invoice
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
from otelbill_collector.invoice_page import render_page
from otelbill_collector.ledger.periods import UnknownInvoice, require_invoice

Json = Mapping[str, Any]  # an invoice as JSON values

operator_option = click.option("--operator", help="Who decides.  [default: the login name]")
_COLUMNS = ("period", "kind", "what", "project", "step", "quantity", "unit price", "amount", "line", "how")
_RIGHT = ("quantity", "unit price", "amount")


@click.command("close")
@click.argument("customer", required=False)
@click.option("--all", "everyone", is_flag=True, help="Every customer whose period of that month is still open.")
@click.option("--period", "label", required=True, help="The period, by its first month or day: 2026-11, 2026-11-15.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be closed and what refused.")
@click.option("--reason", default="period closed", show_default=True, help="Why; it stays on the invoice.")
@operator_option
@config_options
@json_option
def close(
    customer: str | None,
    everyone: bool,
    label: str,
    dry_run: bool,
    reason: str,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Close a billing period: freezes its invoice. Exit status 1 when any customer's was refused.

    Refused until the period and billing.grace are over, and while usage in it has no price, no quantities or no
    customer: each such event is listed with the commands that resolve it.

    \b
    Examples:
      otelbill close acme --period 2026-11
      otelbill close --all --period 2026-11 --dry-run
    """
    if (customer is None) is not everyone:
        raise click.UsageError("name one customer, or give --all")
    arguments = {
        "customer_id": customer,
        "label": label,
        "dry_run": dry_run,
        "operator": operator or find_user(),
        "reason": reason,
    }
    answer = operate_ledger(require_config(config_path, data_dir), "close", arguments)
    if as_json:
        print_json(answer)
    else:
        _print_closing(answer)
    if answer["refused"]:
        raise click.exceptions.Exit(1)


def _print_closing(answer: Json) -> None:
    columns = ("customer", "period", "invoice", "state", "total", "currency")
    names = ("customer_id", "period", "invoice_id", "state", "total", "currency")
    title = "would be closed" if answer["dry_run"] else "closed"
    print_table(title, columns, ([row[name] for name in names] for row in answer["closed"]), right=("total",))
    for refusal in answer["refused"]:
        click.echo(f"refused: {refusal['reason']}")
        for blocker in refusal["blockers"]:
            place = " ".join(str(blocker[name]) for name in ("step", "provider", "model") if blocker[name])
            click.echo(
                f"\n  {blocker['event_id']}  {shorten_instant(blocker['ended_at'])}  {blocker['state']}  {place}"
            )
            for number, remedy in enumerate(blocker["remedies"]):
                click.echo(f"    {'or ' if number else '   '}{remedy}")
        click.echo()


@click.command("invoice")
@click.argument("customer")
@click.option("--period", "label", required=True, help="The period, by its first month or day: 2026-11, 2026-11-15.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the lines as CSV.")
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page to print; - is standard output.",
)
@config_options
@json_option
def show_invoice(
    customer: str,
    label: str,
    as_csv: bool,
    page: Path | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """The invoice of a customer's period: as it was frozen, or, while the period is open, as it would be now.

    Each line has an id that `otelbill explain` follows to its events.

    \b
    Examples:
      otelbill invoice acme --period 2026-11
      otelbill invoice acme --period 2026-11 --html acme-2026-11.html
    """
    config = require_config(config_path, data_dir)
    rules = build_billing_rules(config)
    try:
        found = read_ledger(config, lambda connection: load_invoice(connection, rules, customer, label))
    except BILLING_ERRORS as error:
        raise click.ClickException(str(error)) from error
    _print_invoice(found, as_json=as_json, as_csv=as_csv, page=page)


def _print_invoice(found: Json, *, as_json: bool, as_csv: bool, page: Path | None) -> None:
    if page is not None:
        _write_page(page, render_page(found))
    elif as_json:
        print_json(found)
    elif as_csv:
        _print_csv(found)
    else:
        _print_lines(found)


def _write_page(page: Path, text: str) -> None:
    if str(page) == "-":
        click.echo(text, nl=False)
        return
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{page}: {error.strerror}") from error


def _print_csv(found: Json) -> None:
    """Every field of every line, with the invoice's own in front."""
    head = ("invoice_id", "state", "customer_id", "currency")
    lines: Sequence[Json] = found["lines"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*head, *(lines[0] if lines else ("line_id", "amount"))])
    writer.writerows([*(found[name] for name in head), *line.values()] for line in lines)


def _print_lines(found: Json) -> None:
    zone = f"{found['from']} to {found['to']}, {found['time_zone']}"
    title = f"{found['invoice_id'] or 'draft'} ({found['state']}): {found['customer_id']} {found['period']}, {zone}"
    print_table(title, _COLUMNS, (_list_cells(line) for line in found["lines"]), right=_RIGHT)
    click.echo(f"total {found['total']} {found['currency']}")
    if found["state"] == OPEN:
        click.echo("the period is open: this is what the invoice would say now; `otelbill close` freezes it")
    for event in found["history"]:
        click.echo(f"{event['state']} by {event['operator']} at {shorten_instant(event['at'])}: {event['reason']}")


def _list_cells(line: Json) -> list[object]:
    kind = f"{line['kind']} adjustment" if line["adjustment"] else line["kind"]
    names = (line[name] for name in ("provider", "model", "unit") if line[name] and line["kind"] != "charge")
    what = " ".join((*names, line["label"])).strip()
    places = (line[name] for name in ("project", "step", "quantity", "unit_price", "amount", "line_id", "arithmetic"))
    return [line["period"], kind, what, *places]


@click.group("invoices")
def invoices() -> None:
    """Invoices of closed periods: list, look, approve or void.

    \b
    Examples:
      otelbill invoices list
      otelbill invoices approve inv1.73685934d71c51903dad930d --reason "checked against the contract"
    """


@invoices.command("list")
@click.option("--customer", help="Only this customer's.")
@config_options
@json_option
def list_all(customer: str | None, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """List invoices with their state, oldest first.

    \b
    Example:
      otelbill invoices list --customer acme
    """
    config = require_config(config_path, data_dir)
    rows = read_ledger(config, lambda connection: list_summaries(connection, customer_id=customer))
    if as_json:
        print_json_lines(rows)
        return
    columns = ("invoice", "customer", "period", "state", "total", "currency", "made", "lines")
    names = ("invoice_id", "customer_id", "period", "state", "total", "currency")
    cells = ([*(row[name] for name in names), shorten_instant(row["made_at"]), row["lines"]] for row in rows)
    print_table("invoices", columns, cells, right=("total", "made", "lines"))


@invoices.command("show")
@click.argument("invoice_id")
@click.option("--csv", "as_csv", is_flag=True, help="Print the lines as CSV.")
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page to print; - is standard output.",
)
@config_options
@json_option
def show_one(
    invoice_id: str,
    as_csv: bool,
    page: Path | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show one invoice, voided ones included.

    \b
    Example:
      otelbill invoices show inv1.73685934d71c51903dad930d --csv
    """
    config = require_config(config_path, data_dir)
    try:
        found = read_ledger(config, lambda connection: require_invoice(connection, invoice_id).render())
    except UnknownInvoice as error:
        raise click.ClickException(str(error)) from error
    _print_invoice(found, as_json=as_json, as_csv=as_csv, page=page)


@invoices.command("approve")
@click.argument("invoice_ids", nargs=-1, required=True, metavar="INVOICE_ID...")
@click.option("--reason", default="reviewed", show_default=True, help="Why; it stays on the invoice.")
@operator_option
@config_options
@json_option
def approve(
    invoice_ids: tuple[str, ...],
    reason: str,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Approve drafts. An approved invoice is final; what changes later comes with the next one.

    \b
    Example:
      otelbill invoices approve inv1.73685934d71c51903dad930d --reason "checked against the contract"
    """
    arguments = {"invoice_ids": list(invoice_ids), "operator": operator or find_user(), "reason": reason}
    answer = operate_ledger(require_config(config_path, data_dir), "approve-invoices", arguments)
    if as_json:
        print_json(answer)
        return
    for row in answer["approved"]:
        click.echo(
            f"{row['invoice_id']} approved: {row['customer_id']} {row['period']} {row['total']} {row['currency']}"
        )


@invoices.command("void")
@click.argument("invoice_id")
@click.option("--reason", required=True, help="Why; it stays on the invoice.")
@operator_option
@config_options
@json_option
def void(
    invoice_id: str,
    reason: str,
    operator: str | None,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Take a draft back. Its period is open again, and closing it makes a new invoice.

    \b
    Example:
      otelbill invoices void inv1.73685934d71c51903dad930d --reason "the contract's price was missing"
    """
    arguments = {"invoice_id": invoice_id, "operator": operator or find_user(), "reason": reason}
    answer = operate_ledger(require_config(config_path, data_dir), "void-invoice", arguments)
    if as_json:
        print_json(answer)
        return
    for row in answer["voided"]:
        click.echo(f"{row['invoice_id']} voided; {row['customer_id']} {row['period']} is open again")
