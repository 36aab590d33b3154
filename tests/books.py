"""A ledger in a folder with the real rules, driven without a network. Owns no assertions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from otelbill_collector.app import build_rules
from otelbill_collector.column_rules import build_column_rules
from otelbill_collector.config import Config
from otelbill_collector.decode.scanner import Scanner
from otelbill_collector.decode.select import select_span
from otelbill_collector.domain.records import Answer, Receipt
from otelbill_collector.ledger.booking import Alone
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.rollups import UsageQuery, fold_rollups, load_usage
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.pipeline import Limits, Request, Stages, carry_batch
from otelbill_collector.rules import claim_keys
from tests.spans import SECOND, T0, TestSpan, build_request

LIMITS = Limits(spans_max=10_000, attributes_max=256, future_nanos=300 * SECOND)
NOW = T0 + 3_600 * SECOND


class TestBooks:
    """Open books; `post` carries spans through the real pipeline."""

    __test__ = False

    def __init__(
        self, folder: Path, config: Config | None = None, limits: Limits = LIMITS, *, columns: bool = True
    ) -> None:
        """Without `columns` every span is read and booked one by one."""
        self.folder = folder
        self._columns = columns
        self._config = config or Config()
        self._limits = limits
        self.reopen()

    def reopen(self) -> None:
        """Close and open again, as after a restart: nothing is remembered but what is on disk."""
        if hasattr(self, "store"):
            self.store.close()
        self.store = SqliteStore(self.folder)
        rules = build_rules(self._config)
        alone = Alone(rules.stands_alone, rules.rate_alone)
        columns = build_column_rules(rules) if self._columns else None
        self.books = Books(
            self.store, claim_keys=claim_keys, decide=rules.decide, rate=rules.rate, alone=alone, columns=columns
        )
        self.stages = Stages(select_span, self.books, self._limits, Scanner() if self._columns else None)

    def carry(self, bodies: Sequence[bytes], now: int = NOW) -> tuple[Answer, ...]:
        """Carry request bodies in one batch."""
        return carry_batch([Request(body, now) for body in bodies], self.stages, now).answers

    def post(self, *spans: TestSpan, now: int = NOW) -> Receipt:
        """Carry one request of these spans; it must not be rejected."""
        (answer,) = self.carry([build_request(spans)], now)
        assert isinstance(answer, Receipt)
        return answer

    def usage(self, *by: str, fold: bool = False, **query: Any) -> list[dict[str, Any]]:
        """The usage read model."""
        if fold:
            while self.store.transact(fold_rollups):
                pass
        return self.store.read(lambda connection: load_usage(connection, UsageQuery(by or ("customer",), **query)))

    def totals(self, rows: Iterable[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Events, tokens and charge of the only group there is."""
        found = list(rows if rows is not None else self.usage())
        assert len(found) == 1, found
        return found[0]

    def close(self) -> None:
        """Close the store."""
        self.store.close()
