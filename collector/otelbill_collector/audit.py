"""What checks of the ledger take from the configuration, and the check at the sidecar's start. Owns no checking."""

from __future__ import annotations

import sqlite3

from otelbill_collector.config import Config
from otelbill_collector.ledger.booking import collect_keys
from otelbill_collector.ledger.evidence import find_recent_damage
from otelbill_collector.ledger.findings import RESTORE
from otelbill_collector.ledger.integrity import Checks
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.rules import claim_keys


def build_metering(config: Config) -> Metering | None:
    """What Stripe is told under a configuration; None where it is told nothing."""
    stripe = config.stripe
    if stripe is None:
        return None
    money = stripe.mode == "money"
    return Metering(
        stripe.window_nanos, stripe.event_name if money else None, {} if money else stripe.meters, stripe.since_nanos
    )


def build_checks(config: Config, *, stripe: bool = True, whole: bool = False) -> Checks:
    """What a verification of this configuration's ledger needs to know."""
    metering = build_metering(config) if stripe else None
    return Checks(lambda candidate: collect_keys(candidate, claim_keys), metering, whole=whole)


def find_damage(store: SqliteStore) -> list[str]:
    """What is wrong with the newest segments, in a fraction of a second; a damaged ledger's store is closed then.

    Older segments are `otelbill verify`'s to check.
    """
    try:
        finding = store.read(find_recent_damage)
        problem = None if finding is None else f"{finding.describe()}; {finding.remedy}"
    except sqlite3.DatabaseError as error:
        problem = f"{store.path} cannot be read: {error}; {RESTORE}"
    if problem is None:
        return []
    store.close()
    return [f"the ledger is damaged: {problem}; `otelbill verify --data-dir {store.path.parent}` lists everything"]
