"""`otelbill demo`: a whole billing day on this machine. Owns options, exit status and the end on a signal."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from pathlib import Path

import click

from otelbill_collector.cli.options import print_json

_NEEDED = ("openai", "opentelemetry.instrumentation.openai", "stripe")


@click.command("demo")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="New or empty folder for the ledger.  [default: ./demo-YYYYmmdd-HHMMSS]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; progress goes to standard error.")
def run_demo(data_dir: Path | None, as_json: bool) -> None:
    """Run an agent for several customers against a local provider, and bill it to a local Stripe.

    Uses free ports, reaches nothing outside this machine, stops by itself, and leaves the ledger in a folder that it
    names. Exit status 0 means: every token the provider answered is in the ledger, and ledger and Stripe are equal.

    \b
    Examples:
      otelbill demo
      otelbill demo --data-dir /tmp/demo --json
    """
    _require_packages()
    from otelbill_collector.cli.demo_progress import open_reporter
    from otelbill_collector.cli.demo_view import open_console, show_findings, show_next
    from otelbill_collector.testing.demo.play import find_example, play
    from otelbill_collector.testing.demo.programs import ProgramFailed

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: everything started is stopped
    console = open_console(sys.stderr if as_json else sys.stdout)
    started = time.monotonic()
    try:
        agent = find_example("research_agent.py")
        folder = _make_folder(data_dir)
        console.print(f"ledger, configuration and logs of this run: {folder}")
        findings = play(folder, agent, open_reporter(console))
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has been stopped")
        raise
    except (ProgramFailed, OSError) as error:
        raise click.ClickException(f"the demo could not be completed: {error}") from error
    seconds = round(time.monotonic() - started)
    if as_json:
        print_json({"data_dir": str(folder), "seconds": seconds, **findings.to_json()})
    else:
        show_findings(console, findings)
        show_next(console, findings, folder, seconds)
    if not all(findings.checks.values()):
        raise click.exceptions.Exit(1)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        raise click.ClickException(
            f"the demo needs {', '.join(missing)}; run `make demo` in the source checkout, which installs them"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _make_folder(data_dir: Path | None) -> Path:
    folder = (data_dir or Path(time.strftime("demo-%Y%m%d-%H%M%S"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.BadParameter(f"{folder} is not empty; name a new folder", param_hint="--data-dir")
    return folder
