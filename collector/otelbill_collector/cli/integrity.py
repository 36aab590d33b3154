"""`otelbill verify`, `replay`, `backup` and `restore`: whether the ledger is whole, and how it comes back."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from otelbill_collector.audit import build_checks
from otelbill_collector.cli.options import config_options, json_option, print_json, require_config
from otelbill_collector.config import Config
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.copies import Copied, CopyRefused, back_up_ledger, restore_ledger
from otelbill_collector.ledger.derived import FILES
from otelbill_collector.ledger.findings import REPLAY, RESTORE, Finding, Progress, Report
from otelbill_collector.ledger.integrity import verify_ledger
from otelbill_collector.ledger.journal import find_last_segment
from otelbill_collector.ledger.replay import Replayed, ReplayRefused, replay_derived
from otelbill_collector.ledger.sqlite import LEDGER_NAME, LedgerLocked, LedgerUnavailable, SqliteStore

_FILE = click.Path(dir_okay=False, path_type=Path)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar on standard error where that is a terminal; elsewhere nothing is written."""
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}  # Any: rich's task id, a NewType it does not export

        def advance(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step)
            bar.update(tasks[step], completed=done, total=total or None)

        yield advance


@click.command("verify")
@click.argument("file", required=False, type=_FILE)
@click.option("--no-stripe", is_flag=True, help="Do not compare Stripe's windows with the segments.")
@click.option("--whole", is_flag=True, help="Check every page of a file over 2 GiB too, in one long snapshot.")
@config_options
@json_option
def verify(
    file: Path | None,
    no_stripe: bool,
    whole: bool,
    config_path: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Check every byte of the ledger that means something, or of a backup FILE. Exit status 1 when something is wrong.

    Segments must be an unbroken chain of digests; claim keys, rollups and Stripe windows must follow from them; rows of
    state must fit their seals. Reads only, in short snapshots, and may run beside the sidecar.

    \b
    Examples:
      otelbill verify --data-dir /var/lib/otelbill
      otelbill verify /backup/ledger-2026-11-21.sqlite --json
    """
    config = require_config(config_path, data_dir)
    path = file or config.data_dir / LEDGER_NAME
    report = _verify(path, config, stripe=not no_stripe, whole=whole)
    if as_json:
        print_json(render_verification(report))
    else:
        _print_report(path, report)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _verify(path: Path, config: Config, *, stripe: bool = True, whole: bool = False) -> Report:
    if not path.is_file():
        raise click.ClickException(
            f"{path}: there is no such ledger; name its folder with --data-dir, or a backup file"
        )
    with show_progress() as progress:
        return verify_ledger(path, build_checks(config, stripe=stripe, whole=whole), progress)


def render_verification(report: Report) -> dict[str, Any]:
    """A report as JSON values."""
    return {
        "ok": report.ok,
        "findings": [_render_finding(finding) for finding in report.findings],
        "counts": report.counts,
        "notes": report.notes,
    }


def _render_finding(finding: Finding) -> dict[str, Any]:
    touched = finding.touched
    return {
        "check": finding.check,
        "table": finding.table,
        "id": finding.row_key,
        "problem": finding.problem,
        "customers": list(touched.customers),
        "hours": list(touched.hours),
        "events": list(touched.events),
        "records": touched.event_count,
        "remedy": finding.remedy,
    }


def _print_report(path: Path, report: Report) -> None:
    for finding in report.findings:
        click.echo(f"{finding.check}: {finding.describe()}\n  -> {finding.remedy}")
    for note in report.notes:
        click.echo(f"note: {note}")
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())
    click.echo(f"{path}: {counts}")
    click.echo("nothing is wrong" if report.ok else f"{len(report.findings)} findings: the ledger is NOT whole")


@click.command("replay")
@config_options
@json_option
def replay(config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Build rollups and claim keys again from the segments, in one transaction, and compare. Needs a stopped sidecar.

    Files for queries (Parquet) are written again. Nothing is lost by it: all follow from the segments alone. Stripe's
    windows are left as they are, because intents that were made of them may be at Stripe already.

    \b
    Example:
      otelbill replay --data-dir /var/lib/otelbill
    """
    config = require_config(config_path, data_dir)
    if not (config.data_dir / LEDGER_NAME).is_file():
        raise click.ClickException(f"no ledger in {config.data_dir}; name its folder with --data-dir")
    keys_of = build_checks(config).keys_of
    try:
        store = SqliteStore(config.data_dir)
    except LedgerLocked as error:
        raise click.ClickException(f"{error}; the tables can only be built again while no sidecar uses them") from error
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from error
    try:
        with show_progress() as progress:
            found = store.transact(lambda connection: replay_derived(connection, keys_of, progress))
            found.append(_rebuild_files(store, progress))
    except ReplayRefused as error:
        raise click.ClickException(f"nothing was changed: {error}") from error
    except sqlite3.Error as error:
        raise click.ClickException(f"nothing was changed: {store.path}: {error}; {RESTORE}") from error
    except OSError as error:
        raise click.ClickException(f"the tables are built, the files are not: {error}; make room and repeat") from error
    finally:
        store.close()
    _print_replayed(found, as_json)


def _rebuild_files(store: SqliteStore, progress: Progress) -> Replayed:
    last = store.read(find_last_segment)
    files, damaged = Compactor(store).rebuild(lambda segment_id: progress(FILES, segment_id, last))
    return Replayed("derived_file", files, removed=damaged, added=damaged)


def _print_replayed(found: list[Replayed], as_json: bool) -> None:
    if as_json:
        print_json({item.table: {"rows": item.rows, "removed": item.removed, "added": item.added} for item in found})
        return
    for item in found:
        verdict = "equal" if item.equal else f"corrected: {item.removed} wrong rows removed, {item.added} added"
        click.echo(f"{item.table}: {item.rows} rows, {verdict}")


@click.command("backup")
@click.argument("file", type=_FILE)
@click.option("--no-verify", is_flag=True, help="Do not check the copy afterwards.")
@config_options
@json_option
def backup(file: Path, no_verify: bool, config_path: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Copy the ledger to FILE while the sidecar goes on: all that was acknowledged before the start, fsynced, verified.

    \b
    Example:
      otelbill backup "/backup/ledger-$(date +%F).sqlite" --data-dir /var/lib/otelbill
    """
    config = require_config(config_path, data_dir)
    ledger = config.data_dir / LEDGER_NAME
    if not ledger.is_file():
        raise click.ClickException(f"no ledger in {config.data_dir}; name its folder with --data-dir")
    try:
        with show_progress() as progress:
            copied = back_up_ledger(ledger, file, time.time_ns(), progress)
    except CopyRefused as error:
        raise click.ClickException(str(error)) from error
    if not no_verify:
        _require_whole(file, config, "the copy is kept for inspection, but do not rely on it")
    _print_copied("backup", copied, as_json)


@click.command("restore")
@click.argument("file", type=_FILE)
@click.option("--replace", is_flag=True, help="Keep the ledger that stands there beside, under a name with the time.")
@click.option("--force", is_flag=True, help="Restore even what verification finds damaged, as the best there is.")
@config_options
@json_option
def restore(
    file: Path, replace: bool, force: bool, config_path: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Verify the backup FILE and make it the ledger of --data-dir. Never overwrites one. Needs a stopped sidecar.

    What was sent to Stripe after the backup is in doubt afterwards and is not sent blindly: read docs/maintenance.md.

    \b
    Example:
      otelbill restore /backup/ledger-2026-11-21.sqlite --data-dir /var/lib/otelbill --replace
    """
    config = require_config(config_path, data_dir)
    if not force:
        _require_whole(file, config, "nothing was restored; take an older backup, or --force")
    try:
        copied = restore_ledger(file, config.data_dir, time.time_ns(), replace=replace)
    except (CopyRefused, LedgerLocked) as error:
        raise click.ClickException(str(error)) from error
    _print_copied("restore", copied, as_json)


def _require_whole(file: Path, config: Config, consequence: str) -> None:
    report = _verify(file, config, stripe=False)  # its windows may be older than the configuration
    # What follows from the segments is no loss: an older version's rules, for one, made other claim keys.
    lost = [finding for finding in report.findings if finding.remedy != REPLAY]
    if lost:
        raise click.ClickException(
            f"{file} is damaged: {lost[0].describe()}, and {len(report.findings) - 1} more findings; {consequence}"
        )
    if report.findings:
        click.echo(f"note: {file}: {report.findings[0].describe()}; `otelbill replay` corrects it", err=True)


def _print_copied(what: str, copied: Copied, as_json: bool) -> None:
    kept = None if copied.kept is None else str(copied.kept)
    if as_json:
        print_json(
            {
                "file": str(copied.path),
                "bytes": copied.size_bytes,
                "last_segment": copied.last_segment,
                "kept": kept,
            }
        )
        return
    click.echo(f"{what}: {copied.path}, {copied.size_bytes} bytes, segments 1 to {copied.last_segment}")
    if kept is not None:
        click.echo(f"the ledger that stood there is now {kept}")
