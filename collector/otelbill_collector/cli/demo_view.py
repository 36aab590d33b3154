"""How the demo's findings read: one request as a tree, then the tables, then where to look next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from otelbill_collector.testing.demo.findings import (
    MICROS,
    CustomerTotals,
    Findings,
    Json,
    ModelBooks,
    StripeEvent,
    StripeLane,
)

_PLAIN_WIDTH = 112
_UNIT_NAMES = {
    "input_tokens": "in",
    "cache_read_tokens": "cached",
    "cache_write_tokens": "cache write",
    "output_tokens": "out",
}


def open_console(stream: TextIO) -> Console:
    """A console on `stream`: as wide as the terminal, or a width that fits a page."""
    return Console(file=stream, width=None if stream.isatty() else _PLAIN_WIDTH, highlight=False)


def show_findings(console: Console, findings: Findings) -> None:
    """Everything; the last table is the comparison with Stripe."""
    console.print()
    console.print(_draw_run(findings.shown_run, findings.records))
    narrow = console.width < _PLAIN_WIDTH
    for title, table in (
        (
            "What each customer used and pays (millionths of a USD; cost is what the provider charges)",
            _draw_customers(findings.customers, narrow=narrow),
        ),
        ("What was not billed", _draw_not_billed(findings)),
        ("Tokens: what the provider answered, and what the ledger billed", _draw_models(findings.models)),
        ("Meter events at Stripe (value in millionths of a USD)", _draw_events(findings.events, narrow=narrow)),
        ("Charges: the ledger and Stripe (millionths of a USD)", _draw_lanes(findings.lanes)),
    ):
        if narrow:
            table.padding = 0
        console.print(f"\n[bold]{title}[/bold]\n")
        console.print(table)
    console.print()
    for difference in findings.differences:
        console.print(f"[red]difference[/red] {escape(difference)}", soft_wrap=True)
    for name, holds in findings.checks.items():
        colour = "bold green" if holds else "bold red"
        console.print(f"[{colour}]{_word_check(name, holds)}[/{colour}]")


def show_next(console: Console, findings: Findings, folder: Path, seconds: int) -> None:
    """Commands that go on from here, ready to be pasted."""
    program = find_own_command()
    place = _shorten(folder)
    identifier = next((event.identifier for event in findings.events), "IDENTIFIER")
    console.print(f"\nDone in {seconds} s; everything that was started has stopped. Where to look next:\n")
    for command, purpose in (
        (f"export OTELBILL_DATA_DIR={shlex.quote(place)}", ""),
        (f"{program} usage --by customer,step", "what each step of each customer came to"),
        (f"{program} explain {identifier}", "from a Stripe meter event back to every token"),
        (f"{program} explain {findings.shown_run}", "one request, with all its spans"),
        (f"{program} held", "what is held, and why"),
        (f"{place}/otelbill.yaml", "the rate card and the customers"),
        (f"{place}/stripe.jsonl", "what the local Stripe took, line by line"),
        ("examples/research_agent.py", "what an application has to say to be billed"),
    ):
        note = f"  # {purpose}\n" if purpose else ""
        console.print(f"{note}  {command}", markup=False, soft_wrap=True)


def find_own_command() -> str:
    """This program as it can be typed in the same folder."""
    called = Path(sys.argv[0])
    if called.name != "otelbill":
        return f"{shlex.quote(_shorten(Path(sys.executable)))} -m otelbill_collector.cli"
    on_path = shutil.which("otelbill")
    return "otelbill" if on_path and Path(on_path).samefile(called) else shlex.quote(_shorten(called.absolute()))


def _shorten(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _word_check(name: str, holds: bool) -> str:
    left, _, right = name.removesuffix("_equal").partition("_and_")
    names = {"provider": "provider", "ledger": "ledger", "stripe": "Stripe"}
    exactly = " to the last token" if left == "provider" else ""
    return f"{names[left]} and {names[right]} " + (f"are equal{exactly}" if holds else "DIFFER")


def _draw_run(run: str, records: Sequence[Json]) -> Tree:
    """The records of one run as they hang together in its trace."""
    tree = Tree(f"[bold]One request as the ledger has it: {escape(run)}[/bold] (charges in millionths of a USD)")
    known = {record["span_id"] for record in records}
    children: dict[str | None, list[Json]] = {}
    for record in sorted(records, key=lambda item: (item["started_at"], item["span_id"])):
        parent = record["parent_span_id"]
        children.setdefault(parent if parent in known else None, []).append(record)

    def hang(branch: Tree, span_id: str | None) -> None:
        for record in children.get(span_id, []):
            hang(branch.add(_describe_record(record)), record["span_id"])

    hang(tree, None)
    return tree


def _describe_record(record: Json) -> str:
    quantities = record["quantities"]
    used = ", ".join(
        f"{quantity} {_UNIT_NAMES.get(unit, unit)}"
        for unit, quantity in quantities.items()
        if unit not in ("reasoning_tokens", "requests") and quantity
    )
    if record["rating"] == "rated":
        name = record["model"] or "usage"
        return f"{escape(name)}: {escape(used)}  [green]charge {_align([Decimal(record['charge'])])[0]}[/green]"
    if record["reason"] == "structure":
        return f"[cyan]{escape(record['step'] or '-')}[/cyan]"
    return (
        f"{escape(record['model'] or '-')}: [yellow]{record['rating'].replace('_', ' ')}, {record['reason']}[/yellow]"
    )


def _draw_customers(customers: Sequence[CustomerTotals], *, narrow: bool) -> Table:
    total = _sum_customers(customers)
    kinds = ("input", "cache read", "output") if narrow else ("input", "cache read", "output", "reasoning")
    units = tuple(total.other)
    names = (unit.replace("_", " ") for unit in units)
    table = _open_table(("customer", "calls", *kinds, *names, "cost", "charge", "margin"), left=(0,))
    rows = (*customers, total)
    costs, charges = _align([item.cost for item in rows]), _align([item.charge for item in rows])
    money = zip(costs, charges, _align([item.margin for item in rows]), strict=True)
    for item, amounts in zip(rows, money, strict=True):
        tokens = [item.tokens.get(f"{kind.replace(' ', '_')}_tokens", 0) for kind in kinds]
        other = [item.other.get(unit, "0") for unit in units]
        if item is total:
            table.add_section()
        table.add_row(escape(item.customer), str(item.calls), *map(str, tokens), *other, *amounts)
    return table


def _sum_customers(customers: Sequence[CustomerTotals]) -> CustomerTotals:
    tokens: dict[str, int] = {}
    other: dict[str, Decimal] = {}
    for item in customers:
        for unit, count in item.tokens.items():
            tokens[unit] = tokens.get(unit, 0) + count
        for unit, quantity in item.other.items():
            other[unit] = other.get(unit, Decimal(0)) + Decimal(quantity)
    return CustomerTotals(
        "all",
        sum(item.calls for item in customers),
        tokens,
        {unit: f"{quantity:f}" for unit, quantity in other.items()},
        sum((item.cost for item in customers), Decimal(0)),
        sum((item.charge for item in customers), Decimal(0)),
    )


def _draw_not_billed(findings: Findings) -> Table:
    table = _open_table(("what", "count", "why"), left=(0, 2))
    for item in findings.not_billed:
        table.add_row(escape(item.what), str(item.count), escape(item.why))
    return table


def _draw_models(models: Sequence[ModelBooks]) -> Table:
    columns = ("model", "book", "calls", "input", "cache read", "output", "verdict")
    table = _open_table(columns, left=(0, 1, 6))
    for item in (*models, _sum_models(models)):
        for cells in _list_book_cells(item):
            table.add_row(*cells)
        table.add_section()
    return table


def _sum_models(models: Sequence[ModelBooks]) -> ModelBooks:
    provider, ledger = Counter[str](), Counter[str]()
    for item in models:
        provider.update(item.provider_tokens)
        ledger.update(item.ledger_tokens)
    calls = sum(item.provider_calls for item in models), sum(item.ledger_calls for item in models)
    return ModelBooks("all", calls[0], provider, calls[1], ledger)


def _list_book_cells(item: ModelBooks) -> list[list[str]]:
    books = (("provider", item.provider_calls, item.provider_tokens), ("ledger", item.ledger_calls, item.ledger_tokens))
    units = ("input_tokens", "cache_read_tokens", "output_tokens")
    numbers = [[name, str(calls), *(str(tokens.get(unit, 0)) for unit in units)] for name, calls, tokens in books]
    return [[escape(item.model), *numbers[0], ""], ["", *numbers[1], _draw_verdict(item.equal)]]


def _draw_events(events: Sequence[StripeEvent], *, narrow: bool) -> Table:
    columns = ("identifier", "customer", "window (UTC)", "value", "state")
    shown = len(columns) - narrow  # the identifier must stay in one piece
    table = _open_table(columns[:shown], left=(0, 1, 2, 4))
    for event in events:
        window = f"{event.window_start[11:16]}–{event.window_end[11:16]}"
        cells = (event.identifier, escape(event.customer), window, str(event.value), event.state)
        table.add_row(*cells[:shown])
    return table


def _draw_lanes(lanes: Sequence[StripeLane]) -> Table:
    columns = ("customer", "Stripe customer", "ledger", "sent", "carried over", "at Stripe", "verdict")
    table = _open_table(columns, left=(0, 1, 6))
    for item in lanes:
        numbers = (item.charge, Decimal(item.intended), item.carry, item.stripe)
        shown = (f"{number.normalize():f}" for number in numbers)
        table.add_row(escape(item.customer), item.stripe_customer, *shown, _draw_verdict(item.equal))
    return table


def _draw_verdict(equal: bool) -> str:
    return "[green]equal[/green]" if equal else "[red]DIFFERENT[/red]"


def _open_table(columns: Sequence[str], *, left: Iterable[int]) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in left else "right", overflow="fold")
    return table


def _align(amounts: Sequence[Decimal]) -> list[str]:
    """Amounts in millionths, with as many decimals as the longest one needs: none is rounded."""
    micros = [(amount * MICROS).normalize() for amount in amounts]
    exponents = [amount.as_tuple().exponent for amount in micros]
    digits = max([0, *(-item for item in exponents if isinstance(item, int))])
    return [f"{amount:.{digits}f}" for amount in micros]
