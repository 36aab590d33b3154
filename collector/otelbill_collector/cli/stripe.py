"""`otelbill stripe plan | apply | status | flush | reissue`."""

from __future__ import annotations

from pathlib import Path

import click

from otelbill_collector.cli.options import (
    config_options,
    json_option,
    print_json,
    read_ledger,
    require_config,
)
from otelbill_collector.cli.remote import operate_ledger
from otelbill_collector.cli.tables import print_table
from otelbill_collector.domain.ratecard import RateCard
from otelbill_collector.operations import render_status

# What starts a stopped scope again, by the code of the stop; the message of any other says it itself.
_REMEDIES = {
    "unknown_customer": (
        "create the customer at Stripe, then `otelbill stripe flush`; or correct customers.*.stripe and restart"
    ),
    "no_stripe_customer": "restart the collector after that",
    "no_meter": "run `otelbill stripe apply`; sending starts again within a minute, or by `otelbill stripe flush`",
    "credentials": "put a valid key into stripe.api_key, then restart the collector",
}


@click.group("stripe")
def stripe() -> None:
    """The Stripe side: meters and prices, what waits, sending now.

    \b
    Examples:
      otelbill stripe plan
      otelbill stripe status --json
    """


def _print_plan(name: str, config_path: Path | None, data_dir: Path | None, as_json: bool) -> bool:
    config = require_config(config_path, data_dir)
    answer = operate_ledger(config, name, {})
    if as_json:
        print_json(answer)
    else:
        columns = ("kind", "key", "change", "detail")
        rows = ([row[column] for column in columns] for row in answer["items"])
        print_table("the Stripe account and what otelbill needs", columns, rows)
        if untold := _list_untold(config.rate_card):
            click.echo(
                f"Stripe is not told of the rate card's {', '.join(untold)}: meters have usage priced by event only.\n"
                "Collect approved invoices in another way, or price by event; see Stripe in docs/billing.md"
            )
    return bool(answer["pending"])


def _list_untold(card: RateCard) -> list[str]:
    """Sections that make lines of invoices and no meter events."""
    return [name for name in ("charges", "fees", "minimums", "commitments", "discounts") if getattr(card, name)]


@stripe.command("plan")
@config_options
@json_option
def plan(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Show which meters and prices are missing. Changes nothing; exit status 2 when something is pending.

    \b
    Example:
      otelbill stripe plan --config otelbill.yaml
    """
    if _print_plan("stripe-plan", config_path, data_dir, as_json):
        raise click.exceptions.Exit(2)


@stripe.command("apply")
@config_options
@json_option
def apply(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Create the meters and the price that are missing. May be repeated; deletes nothing.

    \b
    Example:
      otelbill stripe apply --config otelbill.yaml
    """
    _print_plan("stripe-apply", config_path, data_dir, as_json)


@stripe.command("flush")
@config_options
@json_option
def flush(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Close every window now, open ones too, and send what can be sent. Later usage makes further revisions.

    What is stopped (the account, a meter, a customer) is tried again.

    \b
    Example:
      otelbill stripe flush
    """
    answer = operate_ledger(require_config(config_path, data_dir), "stripe-flush", {})
    if as_json:
        print_json(answer)
        return
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in answer["outcomes"].items()) or "nothing was sent"
    click.echo(f"{answer['intents_made']} intents made, {answer['sent']} sent: {outcomes}")
    click.echo("nothing waits" if answer["drained"] else "some intents wait; see `otelbill stripe status`")


@stripe.command("reissue")
@click.argument("identifier")
@config_options
@json_option
def reissue(identifier: str, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Send a rejected or mismatched intent again as a new revision. Refused while it may be at Stripe.

    \b
    Example:
      otelbill stripe reissue ob1.4wq2e6cs3lkx7m5obvhzna2tduy8fgirpj0x1b9e
    """
    answer = operate_ledger(require_config(config_path, data_dir), "stripe-reissue", {"identifier": identifier})
    if as_json:
        print_json(answer)
        return
    click.echo(f"{identifier} is given up; its value goes out as {answer['identifier']}")


@stripe.command("status")
@config_options
@json_option
def show_status(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Intents by state, what is stopped and why, and the books of each lane.

    \b
    Example:
      otelbill stripe status
    """
    found = read_ledger(require_config(config_path, data_dir), render_status)
    if as_json:
        print_json(found)
        return
    counts = [(state, count) for state, count in found["counts"].items() if count]
    print_table("intents by state", ("state", "count"), counts, right=("count",))
    for meter in sorted({lane["meter"] for lane in found["lanes"]}):
        columns = ("customer", "booked", "delivered", "waiting", "refused", "carry")
        lanes = [lane for lane in found["lanes"] if lane["meter"] == meter]
        rows = ([lane["customer_id"], *(lane[name] for name in columns[1:])] for lane in lanes)
        print_table(f"lanes of {meter}, in its units (in mode money: millionths)", columns, rows, right=columns[1:])
    for stop in found["stops"]:
        remedy = _REMEDIES.get(stop["code"])
        click.echo(f"stopped: {stop['code']}: {stop['message']}" + (f"\n    -> {remedy}" if remedy else ""))
