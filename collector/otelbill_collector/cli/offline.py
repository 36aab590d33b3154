"""`otelbill rate`: files in, rated objects out, no ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from otelbill_collector.cli.files import load_spans
from otelbill_collector.cli.options import config_options, json_option, print_json_lines, require_config
from otelbill_collector.cli.tables import describe_quantities, print_table, shorten_instant


@click.command("rate")
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True, path_type=Path))
@config_options
@json_option
def rate_files(files: tuple[Path, ...], config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Rate the spans of OTLP files (.pb or OTLP/JSON, - for standard input), touching no ledger.

    Prints one object per candidate span, billable or not, in event-time order. The files are rated together.

    \b
    Examples:
      otelbill rate spans.pb --json
      cat trace.json | otelbill rate - --config otelbill.yaml
    """
    from otelbill_collector.app import build_rules
    from otelbill_collector.offline import rate_spans

    rules = build_rules(require_config(config_path, data_dir))
    rows = rate_spans(load_spans(files), rules)
    if as_json:
        print_json_lines(rows)
        return
    columns = ("ended", "customer", "step", "model", "quantities", "reason", "rating", "cost", "charge")
    right = ("ended", "cost", "charge")
    print_table("candidate spans", columns, (_list_cells(row) for row in rows), right=right)


def _list_cells(row: Mapping[str, Any]) -> list[object]:
    """Any: the values of a rated span."""
    names = ("customer_id", "step", "model")
    amounts = (row["reason"], row["rating"], row["cost"], row["charge"])
    return [
        shorten_instant(row["ended_at"]),
        *(row[name] for name in names),
        describe_quantities(row["quantities"]) or None,
        *amounts,
    ]
