"""The `otelbill` command. Owns the group and its error text; each subject has a module of its own."""

from __future__ import annotations

import os
import sys

import click

from otelbill_collector.cli import (
    collect,
    corrections,
    credits,
    demo,
    dialects,
    integrity,
    invoices,
    offline,
    operate,
    prices,
    query,
    report,
    repricing,
    retention,
    stripe,
)
from otelbill_collector.config import ConfigError, render_problems

_COMMANDS = (
    demo.run_demo,
    collect.run_collector,
    collect.check_config,
    offline.rate_files,
    prices.prices,
    dialects.show_dialects,
    dialects.examine_files,
    report.show_usage,
    report.explain,
    report.show_held,
    report.show_suspense,
    query.query,
    corrections.adjust,
    operate.resolve,
    corrections.take_back,
    corrections.corrections,
    repricing.rerate,
    repricing.run_simulation,
    repricing.forecast,
    operate.dead_letters,
    operate.reconcile,
    invoices.close,
    invoices.show_invoice,
    invoices.invoices,
    invoices.export,
    credits.credits_group,
    stripe.stripe,
    integrity.verify,
    integrity.replay,
    integrity.backup,
    integrity.restore,
    retention.retention,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="otelbill")
def cli() -> None:
    """Usage billing for AI products: from OpenTelemetry spans to rated records and Stripe meter events.

    \b
    Start here:
      otelbill demo                              a whole billing day on this machine, in a minute
      otelbill collector                         receive OTLP on 4327 (gRPC) and 4328 (HTTP)
      otelbill usage --by customer,model         what the ledger holds
    """


for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line; every failure has one message and a non-zero exit status."""
    try:
        # Without standalone mode click returns the status of `Exit` instead of ending the process with it.
        status = cli(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        click.echo(f"otelbill: the configuration cannot be used\n{render_problems(error.problems)}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the interpreter must not complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
