"""`otelbill collector` and `otelbill check-config`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from otelbill_collector.cli.options import config_options, print_json, require_config
from otelbill_collector.config import Config


@click.command("collector")
@config_options
@click.option(
    "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
def run_collector(config_path: Path | None, data_dir: Path | None, log_level: str) -> None:
    """Receive OTLP, keep the ledger, send to Stripe. Needs no configuration to start.

    \b
    Examples:
      otelbill collector
      otelbill collector --config otelbill.yaml --data-dir /var/lib/otelbill
    """
    from otelbill_collector.app import Sidecar
    from otelbill_collector.listeners import CannotStart, find_loop_factory

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "uvicorn", "stripe"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = require_config(config_path, data_dir)
    try:
        with asyncio.Runner(loop_factory=find_loop_factory()) as runner:
            runner.run(Sidecar(config).serve(lambda: _announce(config)))
    except CannotStart as error:
        problems = "\n".join(f"  - {problem}" for problem in error.problems)
        raise click.ClickException(f"the collector cannot start:\n{problems}") from error


def _announce(config: Config) -> None:
    listen = config.listen
    click.echo(
        f"otelbill collector: OTLP/gRPC {listen.grpc}, OTLP/HTTP {listen.http}, API http://{listen.api}/, "
        f"ledger {config.data_dir}",
        err=True,
    )


@click.command("check-config")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print the effective configuration as JSON; secrets stay out.")
def check_config(file: Path | None, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Check otelbill.yaml and say everything that is wrong with it, each with its place and remedy.

    \b
    Examples:
      otelbill check-config
      otelbill check-config otelbill.yaml --json
    """
    config = require_config(file or config_path, data_dir)
    summary = {
        "file": None if config.source is None else str(config.source),
        "data_dir": str(config.data_dir),
        "grpc": str(config.listen.grpc),
        "http": str(config.listen.http),
        "api": str(config.listen.api),
        "forward": None if config.forward is None else config.forward.endpoint,
        "stripe": None if config.stripe is None else config.stripe.mode,
        "customers": len(config.customers),
        "rate_card_prices": len(config.rate_card.prices),
        "rate_card_markups": len(config.rate_card.markups),
        "currency": config.rate_card.currency,
    }
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        click.echo(f"{name:18} {'-' if value is None else value}")
    click.echo("ok")
