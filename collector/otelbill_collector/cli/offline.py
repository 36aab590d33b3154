"""`otelbill rate`: files in, rated objects out, no ledger."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from otelbill_collector.cli.options import config_options, json_option, print_json_lines, print_table, require_config


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
    from otelbill_collector.decode.wire import MalformedRequest
    from otelbill_collector.offline import rate_spans, read_spans

    rules = build_rules(require_config(config_path, data_dir))
    spans = []
    for file in files:
        try:
            body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
            spans.extend(read_spans(body))
        except OSError as error:
            raise click.ClickException(f"{file}: {error.strerror}") from error
        except MalformedRequest as error:
            raise click.ClickException(f"{file}: {error}; give OTLP protobuf or OTLP/JSON trace requests") from error
    rows = rate_spans(spans, rules)
    if as_json:
        print_json_lines(rows)
        return
    columns = ("ended_at", "customer_id", "step", "model", "billable", "reason", "rating", "cost", "charge")
    print_table(
        f"{len(rows)} candidate spans",
        columns,
        ([row[name] for name in columns] for row in rows),
        right=("cost", "charge"),
    )
