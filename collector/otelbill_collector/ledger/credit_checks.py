"""Credits checked: usage as credits see it against the segments, transfers against grants, and what is posted against
what grants and usage say. Reads the ledger only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from otelbill_collector.domain.grants import Grant
from otelbill_collector.domain.transfers import (
    Key,
    Posted,
    Transfer,
    find_imbalance,
    list_flows,
    name_grant,
    sum_accounts,
    sum_posted,
)
from otelbill_collector.ledger import credit_usage
from otelbill_collector.ledger.credits import list_customers, list_grants, list_posted, load_book
from otelbill_collector.ledger.derived import check_mark, fold_all, format_hour, open_scratch
from otelbill_collector.ledger.findings import FINDINGS_MAX, REPLAY, RESTORE, Finding, Progress, Report, Touched
from otelbill_collector.ledger.journal import find_high_water

CREDITS = "credits"


def compare_credit_usage(path: Path, report: Report, progress: Progress) -> None:
    """The table credit_usage against a fresh fold up to its mark."""
    copies = {"found": "SELECT * FROM ledger.credit_usage"}
    with open_scratch(path, credit_usage.NAME, copies) as (scratch, mark, last):
        if not check_mark(credit_usage.NAME, CREDITS, mark, last, report):
            return
        scratch.execute("CREATE TEMP VIEW price_version AS SELECT * FROM ledger.price_version")
        fold_all(
            scratch,
            lambda: credit_usage.fold_credit_usage(scratch)[0],
            lambda: progress(CREDITS, find_high_water(scratch, credit_usage.NAME), mark),
        )
        for found, other in (("found", "credit_usage"), ("credit_usage", "found")):
            query = f"SELECT * FROM {found} EXCEPT SELECT * FROM {other} LIMIT {FINDINGS_MAX}"
            for row in scratch.execute(query):
                report.add(_describe_row(row, is_stored=found == "found"))


def _describe_row(row: tuple[object, ...], *, is_stored: bool) -> Finding:
    customer, hour = ascii(row[0])[1:-1], format_hour(row[1])
    problem = "is not what the segments add up to" if is_stored else "should be there, with the sums of its segments"
    names = " ".join(ascii(value)[1:-1] for value in row[2:7] if value)
    return Finding(
        CREDITS, "credit_usage", f"{customer} {hour} {names}", problem, REPLAY, Touched((customer,), (hour,))
    )


def has_credits(connection: sqlite3.Connection) -> bool:
    """Whether the ledger's schema knows credits."""
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'credit_grant'").fetchone() is not None


def check_credits(connection: sqlite3.Connection, report: Report) -> None:
    """Every transfer is sound, no grant is below zero, and posted is what grants, voids and usage say."""
    connection.execute("BEGIN")
    try:
        transfers = list_posted(connection)
        _check_ids(connection, report)
        _check_transfers(transfers, report)
        posts = connection.execute("SELECT customer_id, until_nanos, dirty FROM credit_post").fetchall()
        known = set(list_customers(connection))
        for customer_id, until_nanos, dirty in posts:
            if not dirty and customer_id in known:
                _check_posted(connection, customer_id, until_nanos, transfers, report)
        report.counts["credit_transfers"] = len(transfers)
    finally:
        connection.execute("ROLLBACK")


def _check_ids(connection: sqlite3.Connection, report: Report) -> None:
    stored = {row[0] for row in connection.execute("SELECT grant_id FROM credit_grant")}
    for grant in list_grants(connection):
        stored.discard(grant.grant_id)
    for grant_id in sorted(stored):
        problem = "its id is not the digest of what is granted"
        report.add(Finding(CREDITS, "credit_grant", ascii(grant_id)[1:-1], problem, RESTORE))


def _check_transfers(transfers: Iterable[Transfer], report: Report) -> None:
    earlier: dict[int, Key] = {}
    for item in transfers:
        problem = find_imbalance(item)
        if item.corrects is not None and earlier.get(item.corrects) != item.key:
            problem = f"corrects {item.corrects}, which is not an earlier transfer of the same flow"
        earlier[item.transfer_id] = item.key
        if problem is not None:
            touched = Touched((ascii(item.customer_id)[1:-1],), (format_hour(item.key.place.at_nanos),))
            report.add(Finding(CREDITS, "credit_transfer", str(item.transfer_id), problem, RESTORE, touched))
    for (account, asset), balance in sorted(sum_accounts(transfers).items()):
        if account.startswith(name_grant("")) and balance < 0:
            problem = f"{asset} is {balance}: more was taken from it than was granted"
            report.add(Finding(CREDITS, "credit_transfer", ascii(account)[1:-1], problem, RESTORE))


def _check_posted(
    connection: sqlite3.Connection, customer_id: str, until_nanos: int, transfers: Iterable[Transfer], report: Report
) -> None:
    book = load_book(connection, customer_id, until_nanos, tail=False)
    given: list[Grant] = [grant for grant in book.grants if grant.parent_id is None]
    wanted = list_flows(given, book.burned)
    posted = sum_posted(item for item in transfers if item.customer_id == customer_id)
    for key in sorted(wanted.keys() | posted.keys()):
        if wanted.get(key) == _read_flow(posted.get(key)):
            continue
        name = f"{key.kind.value} of {ascii(key.grant_id)[1:-1]}"
        hour = format_hour(key.place.at_nanos)
        problem = "is posted otherwise than grants and usage say; the next posting corrects it by a transfer"
        touched = Touched((ascii(customer_id)[1:-1],), (hour,))
        report.add(Finding(CREDITS, "credit_transfer", f"{name} {hour}", problem, REPLAY, touched))


def _read_flow(posted: Posted | None) -> object:
    return None if posted is None or not posted.flow.amount else posted.flow
