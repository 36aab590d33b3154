"""Operator commands where the ledger is: in the sidecar that holds it, or in this process when none does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import click
import httpx

from otelbill_collector.config import Config
from otelbill_collector.ledger.sqlite import LEDGER_NAME, LedgerLocked, LedgerUnavailable

if TYPE_CHECKING:
    from otelbill_collector.announcement import Announced

_TIMEOUT_SECONDS = 120.0
_LONG_SECONDS = 3_600.0
_WATCH_SECONDS = 0.5
_LONG = frozenset({"rerate", "retention-apply"})
_WITHOUT_LEDGER = frozenset({"stripe-plan", "stripe-apply"})  # an account may be set up before the first usage


def operate_ledger(
    config: Config, name: str, arguments: dict[str, Any], watch: Callable[[int, int], None] | None = None
) -> Any:
    """Run an operation by name; the answer is its JSON value. Raises ClickException with the reason.

    `watch` is told how far a long one has come: what is done, and all there is to do.
    """
    from otelbill_collector.announcement import find_sidecar
    from otelbill_collector.app import open_operations
    from otelbill_collector.commands import build_operate
    from otelbill_collector.domain.retention import EvidencePruned
    from otelbill_collector.export.stripe.client import StripePackageMissing
    from otelbill_collector.export.stripe.ports import StripeProblem
    from otelbill_collector.ledger.books import UnknownEvent
    from otelbill_collector.ledger.credits import UnknownGrant
    from otelbill_collector.ledger.resolutions import NotHeld
    from otelbill_collector.operations import NoStripe, OtherPrices
    from otelbill_collector.retention import RETENTION_ERRORS
    from otelbill_collector.web.api import BadQuery

    if name not in _WITHOUT_LEDGER and not (config.data_dir / LEDGER_NAME).is_file():
        raise click.ClickException(
            f"no ledger in {config.data_dir}; name its folder with --data-dir or OTELBILL_DATA_DIR"
        )
    try:
        with open_operations(config) as operations:
            operations.watch = watch or operations.watch
            return build_operate(operations)[name](arguments)
    except LedgerLocked as error:
        found = find_sidecar(config.data_dir)
        if found is None:
            raise click.ClickException(f"{error}; its API address is not known yet, try again") from error
        _check_instance(found, error)
        address = found.api
        timeout = _LONG_SECONDS if name in _LONG else _TIMEOUT_SECONDS
        post = partial(_post, f"http://{address}/v1/operations/{name}", arguments, config, timeout)
        return post() if watch is None else _follow(post, f"http://{address}/v1/progress", name, config, watch)
    except (
        UnknownEvent,
        UnknownGrant,
        NotHeld,
        NoStripe,
        OtherPrices,
        StripeProblem,
        StripePackageMissing,
        BadQuery,
        EvidencePruned,
        *RETENTION_ERRORS,
        LedgerUnavailable,
    ) as error:
        raise click.ClickException(str(error)) from error


def _check_instance(found: Announced, locked: LedgerLocked) -> None:
    """A killed sidecar leaves its address behind, and by now somebody else may listen there, on another ledger."""
    from otelbill_collector.web.api import INSTANCE_HEADER

    if found.instance is None:
        return
    try:
        answer = httpx.get(f"http://{found.api}/healthz", timeout=_TIMEOUT_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise click.ClickException(f"the sidecar at http://{found.api} does not answer: {error}") from error
    if answer.headers.get(INSTANCE_HEADER) != found.instance:
        raise click.ClickException(
            f"{locked}; the address {found.api} in its folder is of one that was killed; another listens there now. "
            "What holds the ledger is starting, or is another command: try again in a moment"
        )


def _follow(post: Callable[[], Any], url: str, name: str, config: Config, watch: Callable[[int, int], None]) -> Any:
    """Ask the sidecar how far it has come for as long as the answer takes. Not being told is no reason to give up."""
    ended = Event()

    def ask() -> None:
        while not ended.wait(_WATCH_SECONDS):
            with suppress(httpx.HTTPError, ValueError):
                shown = httpx.get(url, headers=_authorise(config), timeout=_TIMEOUT_SECONDS, trust_env=False).json()
                if shown.get(name):
                    watch(*shown[name])

    asking = Thread(target=ask, name="otelbill-watch", daemon=True)
    asking.start()
    try:
        answer = post()  # in this thread, where Ctrl-C arrives
    finally:
        ended.set()
    asking.join(_WATCH_SECONDS)  # so that hardly anything is told after the end
    return answer


def _authorise(config: Config) -> dict[str, str]:
    return {"authorization": f"Bearer {config.tokens[0]}"} if config.tokens else {}


def _post(url: str, arguments: dict[str, Any], config: Config, timeout: float) -> Any:
    try:
        answer = httpx.post(url, json=arguments, headers=_authorise(config), timeout=timeout, trust_env=False)
    except httpx.HTTPError as error:
        raise click.ClickException(f"the sidecar at {url} does not answer: {error}") from error
    try:
        value = answer.json()
    except ValueError as error:
        raise click.ClickException(f"{url} answered {answer.status_code}; see the collector's log") from error
    if answer.status_code != 200:
        reason = value.get("error", value)
        raise click.ClickException(f"{reason} (says the running collector at {httpx.URL(url).netloc.decode()})")
    return value
