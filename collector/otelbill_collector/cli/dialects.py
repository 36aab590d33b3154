"""`otelbill dialects` and `otelbill doctor`: what is supported, and what captured spans need."""

from __future__ import annotations

from pathlib import Path

import click

from otelbill_collector.cli.files import load_spans
from otelbill_collector.cli.options import json_option, print_json, print_json_lines
from otelbill_collector.cli.tables import print_table


@click.command("dialects")
@json_option
def show_dialects(as_json: bool) -> None:
    """The instrumentations whose spans are understood, most specific first, and what each gets wrong.

    \b
    Examples:
      otelbill dialects
      otelbill dialects --json
    """
    from otelbill_collector.dialect_guide import describe_dialects

    rows = describe_dialects()
    if as_json:
        print_json_lines(rows)
        return
    cells = (
        [
            row["name"],
            row["seen"],
            ", ".join(row["scopes"]),
            "; ".join(dict.fromkeys(f"{fault['effect']}: {fault['why']}" for fault in row["known_faults"])) or None,
        ]
        for row in rows
    )
    print_table(f"{len(rows)} dialects", ("dialect", "seen", "scopes", "known faults"), cells)


@click.command("doctor")
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True, path_type=Path))
@json_option
def examine_files(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what stands in the way of billing captured spans (.pb or OTLP/JSON, - for standard input), and what mends it.

    Names emitters, calls that two layers describe, calls without usage or customer, emitters that no rule knows, and
    attributes that hold prompts: their names, never their values. Exit status 1 when something was found.

    \b
    Examples:
      otelbill doctor spans.pb
      cat trace.json | otelbill doctor - --json
    """
    from otelbill_collector.doctor import examine_spans

    report = examine_spans(load_spans(files))
    if as_json:
        print_json(report)
    else:
        columns = ("scope", "version", "dialect", "spans", "calls")
        print_table(
            f"{report['spans']} spans, {report['calls']} provider calls",
            columns,
            ([row[name] for name in columns] for row in report["emitters"]),
            right=("spans", "calls"),
        )
        for finding in report["findings"]:
            click.echo(f"{finding['code']}: {finding['message']}\n  remedy: {finding['remedy']}")
        click.echo("nothing stands in the way of billing" if report["healthy"] else "")
    if not report["healthy"]:
        raise click.exceptions.Exit(1)
