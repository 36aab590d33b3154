"""The `otelbill` command. Owns the group and its error text; each subject has a module of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from importlib import import_module

import click

_COMMANDS = {  # name -> module of this package, and the command in it: only the module of the one that runs is loaded
    "demo": "demo.run_demo",
    "collector": "collect.run_collector",
    "check-config": "collect.check_config",
    "rate": "offline.rate_files",
    "prices": "prices.prices",
    "dialects": "dialects.show_dialects",
    "doctor": "dialects.examine_files",
    "usage": "report.show_usage",
    "explain": "report.explain",
    "held": "report.show_held",
    "suspense": "report.show_suspense",
    "query": "query.query",
    "adjust": "corrections.adjust",
    "resolve": "operate.resolve",
    "take-back": "corrections.take_back",
    "corrections": "corrections.corrections",
    "rerate": "repricing.rerate",
    "simulate": "repricing.run_simulation",
    "forecast": "repricing.forecast",
    "dead-letters": "operate.dead_letters",
    "reconcile": "operate.reconcile",
    "close": "invoices.close",
    "invoice": "invoices.show_invoice",
    "invoices": "invoices.invoices",
    "export": "invoices.export",
    "credits": "credits.credits_group",
    "stripe": "stripe.stripe",
    "verify": "integrity.verify",
    "replay": "integrity.replay",
    "backup": "integrity.backup",
    "restore": "integrity.restore",
    "retention": "retention.retention",
}


class _Commands(click.Group):
    """A group whose commands are loaded when they are asked for."""

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """All of them."""
        return {name: _load_command(name) for name in _COMMANDS}

    @commands.setter
    def commands(self, given: MutableMapping[str, click.Command]) -> None:
        """Click gives what it was made with, which is nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 as click has it
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return _load_command(cmd_name) if cmd_name in _COMMANDS else None


def _load_command(name: str) -> click.Command:
    module, command = _COMMANDS[name].split(".")
    found: click.Command = getattr(import_module(f"{__name__}.{module}"), command)
    return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="otelbill")
def cli() -> None:
    """Usage billing for AI products: from OpenTelemetry spans to rated records and Stripe meter events.

    \b
    Start here:
      otelbill demo                              a whole billing day on this machine, in a minute
      otelbill collector                         receive OTLP on 4327 (gRPC) and 4328 (HTTP)
      otelbill usage --by customer,model         what the ledger holds
    """


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
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the interpreter must not complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        from otelbill_collector.config import ConfigError, render_problems  # whatever can raise it has loaded it

        if not isinstance(error, ConfigError):
            raise
        click.echo(f"otelbill: the configuration cannot be used\n{render_problems(error.problems)}", err=True)
        sys.exit(2)
