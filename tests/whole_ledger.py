"""A small ledger with a row in every table, and ways to damage it. Owns no assertions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from otelbill_collector.audit import build_checks
from otelbill_collector.billing import build_billing_rules
from otelbill_collector.config import Config
from otelbill_collector.crediting import CreditDesk, CreditTerms
from otelbill_collector.domain.credits import Demand, Place
from otelbill_collector.domain.intents import Stop
from otelbill_collector.domain.terms import Term
from otelbill_collector.invoicing import Drafting, close_period, find_billing_period
from otelbill_collector.ledger import deliveries
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.credits import find_charge_time, save_period_charges
from otelbill_collector.ledger.findings import Report
from otelbill_collector.ledger.integrity import Checks, verify_ledger
from otelbill_collector.ledger.journal import Due, save_due
from otelbill_collector.ledger.lineage import list_suspense, list_unsettled
from otelbill_collector.ledger.meters import Metering, fold_meters
from otelbill_collector.ledger.openings import fold_openings
from otelbill_collector.ledger.periods import InvoiceEvent, InvoiceState
from otelbill_collector.ledger.resolutions import Resolution
from otelbill_collector.ledger.restated_terms import Restated, save_restated
from otelbill_collector.ledger.sqlite import LEDGER_NAME
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat
from tests.stripe_world import METER, MINUTE, MemoryStripe, World

METERING = Metering(5 * MINUTE, METER)
CHECKS = Checks(build_checks(Config()).keys_of, METERING)


def spans(batch: int) -> list[TestSpan]:
    """Two calls of one customer and one of another, in the batch's own minute."""
    names = (("acme", "a"), ("acme", "b"), ("globex", "c"))
    return [
        chat(f"{name}{batch}", customer=customer, tokens=(100 + batch, 20), ended=T0 + batch * 60 * SECOND)
        for customer, name in names
    ]


def fold_stripe(books: TestBooks) -> None:
    """Bring Stripe's windows up to date."""
    while books.store.transact(lambda connection: fold_meters(connection, METERING)):
        pass


def make_ledger(folder: Path, batches: int = 3) -> Path:
    """Write a ledger with something in every table and close it; returns its file."""
    books = TestBooks(folder)
    for batch in range(batches):
        books.post(*spans(batch))
    silent = {name: value for name, value in chat("silent").attributes.items() if ".usage." not in name}
    books.post(chat("nobody", customer=None), TestSpan("silent", silent, trace="silent"))
    books.post(chat("broken", tokens=(-1, 2)), chat("strange", model="model-nobody-knows"))
    (suspense,) = books.store.read(list_suspense)
    books.books.correct(Wish((suspense.event_id,), "ann", "her word", NOW, customer_id="initech"))
    held = next(item for item in books.store.read(list_unsettled) if item.amounts.state.value == "held")
    books.books.resolve_usage(Resolution(held.event_id, {"input_tokens": 7}, "ann", "console", NOW))
    books.store.transact(
        lambda connection: save_due(connection, [Due(NOW + SECOND, T0 // 86_400 // SECOND, b"k" * 16)])
    )
    _close_period(books)
    books.usage(fold=True)
    _grant(books)
    fold_stripe(books)
    books.store.transact(fold_openings)
    Compactor(books.store).compact_all()
    books.close()
    _send(folder)
    books.reopen()
    books.post(*spans(batches))  # not folded: marks stay behind the end
    books.close()
    return folder / LEDGER_NAME


def _close_period(books: TestBooks) -> None:
    """Close acme's January, whatever waits in it, and correct its terms."""
    rules = build_billing_rules(Config())

    def freeze(connection: sqlite3.Connection) -> None:
        period = find_billing_period(connection, rules, "acme", "2026-01")
        draft = Drafting(connection, rules, "acme").draft(period)
        event = InvoiceEvent(InvoiceState.DRAFT, "ann", "month end", NOW)
        close_period(connection, draft, rules, event)
        terms = (Term("fee", "Platform", "0123456789abcdef", 10**18),)
        bounds = (period.start_nanos, period.end_nanos)
        save_restated(connection, [Restated("acme", *bounds, terms, "ann", "forgotten", NOW)])

    books.store.transact(freeze)


def _grant(books: TestBooks) -> None:
    """A grant that burns, one that is void, and a charge of the period, posted up to now."""
    desk = CreditDesk(books.store, CreditTerms(), lambda: NOW)
    given = {"customer_id": "acme", "operator": "ann", "start": "2026-01-01"}
    desk.give({**given, "units": "150", "unit": "output_tokens", "expires": "2026-01-02", "reason": "pilot"})
    other = desk.give({**given, "amount": "5.00", "reason": "welcome"})
    desk.void(grant_id=other["grant_id"], reason="mistake", operator="ann")
    place = Place(find_charge_time(NOW), "", "", "", "")
    books.store.transact(
        lambda connection: save_period_charges(
            connection, "acme", [Demand(place, "USD", charge_attos=7)], origin="invoice 1", booked_nanos=NOW
        )
    )
    desk.post_due()


def _send(folder: Path) -> None:
    """Deliver some intents, leave others waiting, and stop a lane."""
    stripe = MemoryStripe(now_nanos=NOW, faults=["ok", "5xx-after", "ok", "reset-before"])
    world = World(folder, stripe)
    world.now = NOW
    world.exporter.run_once(NOW)
    stop = Stop("lane", "9", "code", "message", NOW, NOW + SECOND)
    world.store.transact(lambda connection: deliveries.put_stop(connection, stop))
    world.close()


def verify(ledger: Path, checks: Checks = CHECKS) -> Report:
    """Verify with the metering of this module."""
    return verify_ledger(ledger, checks)


def tamper(ledger: Path, *statements: str) -> None:
    """Change rows as a program would that knows nothing of triggers: they are gone while the statements run."""
    connection = sqlite3.connect(ledger, isolation_level=None)
    try:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def flip_byte(ledger: Path, offset: int, mask: int) -> None:
    """Change bits of one byte of the file."""
    with ledger.open("r+b") as file:
        file.seek(offset)
        (before,) = file.read(1)
        file.seek(offset)
        file.write(bytes((before ^ mask,)))


def dump_rows(ledger: Path) -> dict[str, object] | str:
    """Everything a reader can see of the file, in a form that compares; the reason where it cannot be read."""
    connection = sqlite3.connect(f"{ledger.as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = bytes
    try:
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2").fetchall()
        tables = [name.decode() for kind, name, _, _ in schema if kind == b"table"]
        rows = {name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}"))) for name in tables}
        check = connection.execute("PRAGMA integrity_check").fetchall()
        version = connection.execute("PRAGMA user_version").fetchone()
    except (sqlite3.Error, UnicodeError) as error:
        return f"cannot be read: {error}"
    finally:
        connection.close()
    return {"schema": schema, "rows": rows, "check": check, "version": version}
