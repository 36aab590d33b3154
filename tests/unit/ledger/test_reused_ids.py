"""An id that was used on another day is recognised, whatever happened in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, chat

DAY = 86_400 * SECOND


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("days", [1, 2, 3, 10])
def test_an_id_used_again_on_another_day_is_a_conflict(tmp_path: Path, restart: bool, days: int) -> None:
    """Guarantee: other content under a booked id is never billed under it, after a restart as before."""
    books = TestBooks(tmp_path)
    now = NOW + 20 * DAY
    books.post(chat("a", trace="t", tokens=(100, 20), started=T0, ended=T0 + SECOND), now=now)
    if restart:
        books.reopen()
    later = T0 + days * DAY
    assert books.post(
        chat("a", trace="t", tokens=(100, 20), started=later, ended=later + SECOND), now=now
    ).dead_lettered
    assert books.totals()["events"] == 1
    assert books.post(chat("b", trace="t", tokens=(7, 2), started=later, ended=later + SECOND), now=now).accepted == 1
    assert books.post(chat("b", trace="t", tokens=(7, 2), started=later, ended=later + SECOND), now=now).duplicate == 1
    books.close()
