"""`otelbill prices`: check, list and compare rate cards. Prints; what applies is the domain's to say."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from otelbill_collector.cli.options import json_option, print_json
from otelbill_collector.cli.tables import print_table
from otelbill_collector.config import ConfigError, ConfigProblem, render_problems
from otelbill_collector.config.price_file import PriceFile
from otelbill_collector.config.process import load_process_prices
from otelbill_collector.domain.instants import NANOS, floor_slice, format_instant, parse_instant
from otelbill_collector.domain.price_list import ListedEntry, ListedRate, list_entries, list_rates
from otelbill_collector.domain.provider_prices import PriceBook
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.selectors import EventNames

_FILE = click.Path(dir_okay=False, path_type=Path)
_DEFAULT_FILE = Path("otelbill.yaml")


@click.group("prices")
def prices() -> None:
    """Check, list and compare what customers are charged. Each command takes an otelbill.yaml or a rate card by itself.

    \b
    Examples:
      otelbill prices check rates.yaml
      otelbill prices list --customer acme --provider openai --model gpt-4o
      otelbill prices diff rates.yaml rates-2027.yaml
    """


@prices.command("check")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@json_option
def check_prices(files: tuple[Path, ...], strict: bool, as_json: bool) -> None:
    """Name all problems of rate cards at once, with file and line. Exit status 1 when there is one.

    Warnings are allowed, and look like mistakes: times for which no entry prices a unit that had a price before.

    \b
    Examples:
      otelbill prices check rates.yaml
      otelbill prices check otelbill.yaml rates.yaml --strict --json
    """
    reports = [_check_file(file) for file in files]
    failed = any(report["problems"] or (strict and report["warnings"]) for report in reports)
    if as_json:
        print_json([{**report, **_render_findings(report)} for report in reports])
    else:
        for report in reports:
            _print_report(report)
    if failed:
        raise click.exceptions.Exit(1)


def _check_file(path: Path) -> dict[str, Any]:
    """Any: counts by list, and what was found."""
    try:
        found = load_process_prices(path)
    except ConfigError as error:
        return {"file": str(path), "ok": False, "entries": None, "problems": error.problems, "warnings": ()}
    entries = _count_entries(found)
    return {"file": str(path), "ok": True, "entries": entries, "problems": (), "warnings": found.warnings}


def _count_entries(found: PriceFile) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in list_entries(found.card, found.provider_prices):
        counts[entry.section] = counts.get(entry.section, 0) + 1
    return counts


def _render_findings(report: Mapping[str, Any]) -> dict[str, object]:
    return {name: [_render_problem(problem) for problem in report[name]] for name in ("problems", "warnings")}


def _render_problem(problem: ConfigProblem) -> dict[str, object]:
    place = {"file": problem.file, "line": problem.line, "path": problem.path}
    return {**place, "message": problem.message, "remedy": problem.remedy}


def _print_report(report: Mapping[str, Any]) -> None:
    if report["problems"]:
        click.echo(render_problems(report["problems"]))
    if report["warnings"]:
        click.echo(render_problems(report["warnings"]).replace(" problem", " warning"))
    if report["ok"]:
        counts = ", ".join(f"{count} {section}" for section, count in report["entries"].items())
        click.echo(f"{report['file']}: ok ({counts or 'no entries: all usage stays unpriced'})")


@prices.command("list")
@click.argument("file", required=False, type=_FILE)
@click.option("--at", "at_text", help="Only what is in force at this time.  [default: all; with names: now]")
@click.option("--customer", help="What applies to this customer, with its group and contract.")
@click.option("--provider", help="What applies to calls of this provider.")
@click.option("--model", help="What applies to this model.")
@click.option("--service-tier", help="What applies to this service tier, such as batch.")
@click.option("--step", help="What applies to this step.")
@json_option
def list_prices(file: Path | None, at_text: str | None, as_json: bool, **options: str | None) -> None:
    """List the entries of a rate card; with names, what applies to such an event, and its cost.

    FILE is an otelbill.yaml or a rate card; without it ./otelbill.yaml where there is one. Prices in lists of what
    applies are for one unit.

    \b
    Examples:
      otelbill prices list
      otelbill prices list rates.yaml --at 2027-01-01
      otelbill prices list --customer acme --provider openai --model gpt-4o --json
    """
    found = _load_prices(file)
    book = PriceBook(overrides=found.provider_prices)
    at_nanos = _parse_time(at_text)
    source = f"genai-prices {version('genai-prices')}"
    head = {"price_book": book.book_id, "price_data": source, "currency": found.card.currency}
    if not any(options.values()):
        entries = [
            entry
            for entry in list_entries(found.card, found.provider_prices, found.members)
            if at_nanos is None or entry.selector.covers(at_nanos)
        ]
        _print_entries(head, entries, as_json)
        return
    at_nanos = floor_slice(_read_clock(), NANOS) if at_nanos is None else at_nanos
    names = EventNames(
        options["provider"], options["model"], None, options["service_tier"], options["customer"], options["step"]
    )
    rates = list(list_rates(Rater(found.card, book, found.members), names, at_nanos))
    _print_rates({**head, "at": format_instant(at_nanos)}, rates, as_json)


def _read_clock() -> int:
    from otelbill_collector.app import read_clock

    return read_clock()


def _load_prices(file: Path | None) -> PriceFile:
    if file is None and not _DEFAULT_FILE.is_file():
        return PriceFile()
    return load_process_prices(file or _DEFAULT_FILE)


def _parse_time(text: str | None) -> int | None:
    try:
        return None if text is None else parse_instant(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from error


def _show_instant(nanos: int | None) -> str | None:
    return None if nanos is None else format_instant(nanos)


def _show_names(names: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in names.items()) or "all"


def _print_entries(head: Mapping[str, str], entries: list[ListedEntry], as_json: bool) -> None:
    rows = [
        {
            "list": entry.section,
            "name": entry.name,
            "for": entry.selector.list_names(),
            "from": _show_instant(entry.selector.from_nanos),
            "to": _show_instant(entry.selector.to_nanos),
            "says": entry.says,
            "version": entry.version_id,
        }
        for entry in entries
    ]
    if as_json:
        print_json({**head, "entries": rows})
        return
    columns = ("list", "name", "for", "from", "to", "says", "version")
    cells = ([_show_names(row["for"]) if key == "for" else row[key] or None for key in columns] for row in rows)  # type: ignore[arg-type]
    print_table(f"{len(rows)} entries in {head['currency']}", columns, cells)
    click.echo(f"price book {head['price_book']} ({head['price_data']})")


def _print_rates(head: Mapping[str, str], rates: list[ListedRate], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "unit": rate.unit,
                "above_input_tokens": rate.above_input_tokens,
                "charge": rate.charge,
                "cost": rate.cost,
                "says": rate.says,
                "entry": rate.entry,
                "version": rate.version_id,
            }
            for rate in rates
        ]
        print_json({**head, "rates": rows})
        return
    columns = ("unit", "above input tokens", f"charge {head['currency']}", "cost USD", "entry", "version")
    cells = (
        [
            rate.unit,
            rate.above_input_tokens,
            rate.charge,
            rate.cost,
            rate.says,
            rate.version_id,
        ]
        for rate in rates
    )
    print_table(f"prices at {head['at']}", columns, cells, right=columns[1:4])
    click.echo(f"price book {head['price_book']} ({head['price_data']})")


@prices.command("diff")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@json_option
def compare_prices(old: Path, new: Path, as_json: bool) -> None:
    """Show what changes from one rate card to another: what, for whom, from when until when.

    Between two otelbill.yaml also provider prices and the groups and contracts of customers are compared.

    \b
    Examples:
      otelbill prices diff rates.yaml rates-2027.yaml
      otelbill prices diff otelbill.yaml rates-2027.yaml --json
    """
    from otelbill_collector.domain.card_changes import list_changes, list_currency_change

    before, after = load_process_prices(old), load_process_prices(new)
    changes = list_currency_change(before.card.currency, after.card.currency)
    if before.is_card or after.is_card:
        changes += list_changes(list_entries(before.card), list_entries(after.card))
    else:
        sides = (list_entries(side.card, side.provider_prices, side.members) for side in (before, after))
        changes += list_changes(*sides)
    rows = [
        {
            "list": change.section,
            "name": change.name,
            "for": change.names,
            "from": _show_instant(change.from_nanos),
            "to": _show_instant(change.to_nanos),
            "before": change.before,
            "after": change.after,
        }
        for change in changes
    ]
    if as_json:
        print_json({"old": str(old), "new": str(new), "changes": rows})
        return
    columns = ("list", "name", "for", "from", "to", "before", "after")
    cells = ([_show_names(row["for"]) if key == "for" else row[key] or None for key in columns] for row in rows)  # type: ignore[arg-type]
    print_table(f"{len(rows)} changes from {old} to {new}", columns, cells)
