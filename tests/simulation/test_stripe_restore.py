"""A ledger restored from a backup bills nothing twice: what it does not know to be at Stripe is in doubt, not new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import IntentState
from otelbill_collector.export.stripe.catalog import apply_catalog
from otelbill_collector.export.stripe.client import open_account
from otelbill_collector.export.stripe.reconcile import Reconciliation
from otelbill_collector.export.stripe.settings import StripeSettings
from otelbill_collector.ledger.copies import back_up_ledger, restore_ledger
from otelbill_collector.testing.stripe_server import SettableClock, StripeServer
from tests.books import NOW, TestBooks
from tests.spans import TestSpan
from tests.stripe_world import CUSTOMERS, MINUTE, World, make_settings
from tests.whole_ledger import fold_stripe, spans


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StripeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StripeServer(clock=SettableClock(NOW // NANOS)) as server:
        for customer in CUSTOMERS.values():
            server.add_customer(customer)
        apply_catalog(open_account(point_at(server)), point_at(server))
        yield server


def point_at(server: StripeServer) -> StripeSettings:
    return make_settings(api_base=server.base_url, meter_api_base=server.base_url)


def post(folder: Path, batches: Iterable[int]) -> None:
    """Book batches of spans, one minute of event time each, and fold them into windows."""
    books = TestBooks(folder)
    posted: list[TestSpan] = [span for batch in batches for span in spans(batch)]
    books.post(*posted)
    fold_stripe(books)
    books.close()


def open_world(folder: Path, server: StripeServer, now: int) -> World:
    account = open_account(point_at(server))
    world = World(folder, account, point_at(server), books=account, server=server)
    world.now = now
    server.clock.set(now // NANOS)
    return world


def flush(folder: Path, server: StripeServer, now: int = NOW) -> set[IntentState]:
    """Close every window, send what may be sent, and return the states that intents are in."""
    world = open_world(folder, server, now)
    world.exporter.flush(now)
    states = {intent.state for intent in world.intents()}
    world.close()
    return states


def reconcile(folder: Path, server: StripeServer, now: int) -> Reconciliation:
    world = open_world(folder, server, now)
    result = world.reconciler().reconcile(now, since_nanos=NOW - 2 * HOUR_NANOS)
    world.close()
    return result


def sum_values(server: StripeServer) -> dict[tuple[str, int], int]:
    return {(hour.customer, hour.hour): int(hour.value) for hour in server.sum_hours()}


def restore(folder: Path, tmp_path: Path, now: int = NOW) -> Path:
    restore_ledger(folder / "backup.sqlite", tmp_path / "restored", now)
    return tmp_path / "restored"


@pytest.fixture
def billed(tmp_path: Path, server: StripeServer) -> Path:
    """A folder whose backup was followed by more usage, all of it sent; its last window was open at the backup."""
    folder = tmp_path / "first"
    post(folder, range(4))
    flush(folder, server)
    post(folder, (6,))  # booked, but not sent when the backup is made
    back_up_ledger(folder / "ledger.sqlite", folder / "backup.sqlite", NOW)
    post(folder, range(10, 14))
    flush(folder, server, NOW + MINUTE)
    return folder


def test_usage_sent_after_the_backup_and_ingested_again_is_billed_once(
    tmp_path: Path, server: StripeServer, billed: Path
) -> None:
    """Same spans, same windows, same identifiers: Stripe recognises every one, and the books agree."""
    before = sum_values(server)
    restored = restore(billed, tmp_path, NOW + 2 * MINUTE)
    post(restored, (*range(4), 6, *range(10, 14)))
    states = flush(restored, server, NOW + 3 * MINUTE)
    assert states <= {IntentState.ACCEPTED, IntentState.DUPLICATE}
    assert sum_values(server) == before
    result = reconcile(restored, server, NOW + HOUR_NANOS)
    assert result.equal, result.differences


def test_after_a_day_nothing_is_sent_blindly_and_the_sums_decide(
    tmp_path: Path, server: StripeServer, billed: Path
) -> None:
    """Stripe forgets identifiers after 24 hours: what may be there waits until the hourly sums confirm it."""
    before = sum_values(server)
    late = NOW + 30 * HOUR_NANOS
    restored = restore(billed, tmp_path, late)
    post(restored, (*range(4), 6, *range(10, 14)))
    assert flush(restored, server, late) == {IntentState.ACCEPTED, IntentState.UNKNOWN}
    assert sum_values(server) == before, "an amount was sent twice"
    result = reconcile(restored, server, late + HOUR_NANOS)
    assert result.equal, result.differences
    assert flush(restored, server, late + 2 * HOUR_NANOS) == {IntentState.CONFIRMED}
    assert sum_values(server) == before


def test_after_a_day_what_never_reached_stripe_is_sent(tmp_path: Path, server: StripeServer, billed: Path) -> None:
    """The sums also say what is missing: usage that the lost ledger had not sent goes out as a new revision."""
    before = sum_values(server)
    late = NOW + 30 * HOUR_NANOS
    restored = restore(billed, tmp_path, late)
    post(restored, (*range(4), 6, *range(10, 14), 30))  # the last one was never seen by the lost ledger
    flush(restored, server, late)
    assert sum_values(server) == before
    assert reconcile(restored, server, late + HOUR_NANOS).replaced > 0
    flush(restored, server, late + 2 * HOUR_NANOS)
    result = reconcile(restored, server, late + 3 * HOUR_NANOS)
    assert result.equal, result.differences
    assert sum(sum_values(server).values()) > sum(before.values())


def test_a_window_with_another_total_is_refused_and_shows(tmp_path: Path, server: StripeServer, billed: Path) -> None:
    """Without all of its spans a window has another value under the same identifier: loud, and never added."""
    before = sum_values(server)
    restored = restore(billed, tmp_path, NOW + 2 * MINUTE)
    post(restored, (10, 11))  # and not 12 and 13, which the lost ledger had sent with them
    assert IntentState.REJECTED in flush(restored, server, NOW + 3 * MINUTE)
    assert sum_values(server) == before
    result = reconcile(restored, server, NOW + 2 * HOUR_NANOS)
    assert not result.equal
    assert any("2026-01-01T00" in difference for difference in result.differences), result.differences


def test_windows_that_begin_after_the_restore_are_sent_as_ever(
    tmp_path: Path, server: StripeServer, billed: Path
) -> None:
    """Doubt ends with the restore: later usage is not held up."""
    restored = restore(billed, tmp_path, NOW - 30 * MINUTE)
    post(restored, (50,))
    world = open_world(restored, server, NOW)
    world.exporter.flush(NOW)
    newest = world.intents()[-1]
    world.close()
    assert (newest.state, newest.doubt_nanos) == (IntentState.ACCEPTED, None)
