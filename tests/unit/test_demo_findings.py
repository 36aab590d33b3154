"""The demo's verdicts: each book that is off by one is noticed, shown and ends in exit status 1."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from otelbill_collector.cli import cli
from otelbill_collector.cli.demo_view import show_findings, show_next
from otelbill_collector.testing.demo import play as demo_play
from otelbill_collector.testing.demo.audit import compare_models, list_not_billed, sum_customers
from otelbill_collector.testing.demo.findings import CustomerTotals, Findings, ModelBooks, StripeLane
from otelbill_collector.testing.usage import TalliedCall

BOOKS = ModelBooks("gpt-4o", 2, {"input_tokens": 10, "output_tokens": 4}, 2, {"input_tokens": 10, "output_tokens": 4})
LANE = StripeLane("acme", "cus_1", Decimal("12.5"), Decimal("12.5"), 12, Decimal("0.5"), Decimal(12))
TOTALS = CustomerTotals("acme", 2, {"input_tokens": 10}, {"pages": "3"}, Decimal("0.00001"), Decimal("0.0000125"))
GOOD = Findings((TOTALS,), (BOOKS,), (), (), (LANE,), (), "r1", ())

OFF_BY_ONE = {
    "a token more in the ledger": (replace(GOOD, models=(replace(BOOKS, ledger_tokens={"input_tokens": 11}),)), 0),
    "a call less in the ledger": (replace(GOOD, models=(replace(BOOKS, ledger_calls=1),)), 0),
    "a model nobody billed": (replace(GOOD, models=()), 0),
    "a millionth less at Stripe": (replace(GOOD, lanes=(replace(LANE, stripe=Decimal(11)),)), 1),
    "a charge that was not booked": (replace(GOOD, lanes=(replace(LANE, charge=Decimal("12.6")),)), 1),
    "a carry that is lost": (replace(GOOD, lanes=(replace(LANE, carry=Decimal("0.4")),)), 1),
    "no lane at all": (replace(GOOD, lanes=()), 1),
    "a named difference": (replace(GOOD, differences=("dead letter 1",)), 1),
}


def render(findings: Findings) -> str:
    stream = io.StringIO()
    show_findings(Console(file=stream, width=120), findings)
    return stream.getvalue()


def test_equal_books_are_called_equal() -> None:
    """The baseline of the table below."""
    assert all(GOOD.checks.values())
    assert render(GOOD).rstrip().endswith("ledger and Stripe are equal")


@pytest.mark.parametrize("name", OFF_BY_ONE)
def test_books_that_are_off_by_one_differ(name: str) -> None:
    """Exactly the check of that pair of books fails, and the last lines say so."""
    findings, place = OFF_BY_ONE[name]
    assert [not holds for holds in findings.checks.values()] == [place == 0, place == 1]
    assert "DIFFER" in render(findings).splitlines()[-2 + place]


@pytest.mark.parametrize("name", [None, "a token more in the ledger"])
def test_exit_status_follows_the_checks(name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 only when every check holds; scripts and CI read nothing else."""
    findings = GOOD if name is None else OFF_BY_ONE[name][0]
    monkeypatch.setattr(demo_play, "play", lambda *_: findings)
    result = CliRunner().invoke(cli, ["demo", "--data-dir", str(tmp_path / "ledger")])
    assert result.exit_code == (0 if name is None else 1), result.output


def test_next_steps_can_be_pasted(tmp_path: Path) -> None:
    """A folder with a space in its name is quoted, and is the one that the commands read."""
    stream = io.StringIO()
    show_next(Console(file=stream, width=60), GOOD, tmp_path / "my demo", 7)
    assert f"  export OTELBILL_DATA_DIR='{tmp_path}/my demo'\n" in stream.getvalue()
    assert "explain r1\n" in stream.getvalue()


def make_call(status: int = 200, *, reported: bool = True, tokens: int = 5) -> TalliedCall:
    return TalliedCall("openai", "chat", "gpt-4o", "id", status, {"input_tokens": tokens}, reported=reported)


def make_row(source: str, events: int, tokens: int, model: str | None = "gpt-4o") -> dict[str, object]:
    return {"model": model, "usage_source": source, "events": events, "quantities": {"input_tokens": tokens}}


@pytest.mark.parametrize(
    ("tally", "rows", "equal"),
    [
        ([make_call(), make_call()], [make_row("reported", 2, 10)], True),
        ([make_call(), make_call(429), make_call(404)], [make_row("reported", 1, 5)], True),
        ([make_call(), make_call(reported=False)], [make_row("reported", 1, 5), make_row("unknown", 1, 0)], True),
        ([make_call()], [make_row("reported", 1, 5), make_row("reported", 3, 0, model=None)], True),
        ([make_call(), make_call()], [make_row("reported", 1, 5)], False),
        ([make_call()], [make_row("reported", 1, 5), make_row("reported", 1, 5, model="gpt-5")], False),
    ],
)
def test_models_are_compared_call_by_call(
    tally: Sequence[TalliedCall], rows: Sequence[dict[str, object]], equal: bool
) -> None:
    """Refused calls and calls whose usage never arrived are not expected; a call of either side alone is noticed."""
    assert all(books.equal for books in compare_models(tally, rows)) is equal


def test_what_is_not_billed_is_counted_with_its_reason() -> None:
    """A held stream shows what the provider counted, so that its size is known before it is settled."""
    records = [
        {"reason": "no_usage_reported", "rating": "held"},
        {"reason": "structure", "rating": "not_billable"},
        {"reason": "provider_call", "rating": "rated"},
    ]
    found = list_not_billed([make_call(429), make_call(reported=False, tokens=77)], records)
    assert [(item.count, item.held) for item in found] == [(1, False), (1, False), (1, True)]
    assert "77 tokens" in found[-1].why


def test_totals_add_models_and_own_units_of_a_customer() -> None:
    """Own units stay decimals, amounts that are unknown count as nothing and are named elsewhere."""
    rows = [
        {"customer": "acme", "model": "a", "events": 2, "quantities": {"input_tokens": 3}, "cost": "1", "charge": "2"},
        {
            "customer": "acme",
            "model": "b",
            "events": 1,
            "quantities": {"input_tokens": 4},
            "cost": None,
            "charge": None,
        },
        {"customer": "acme", "model": None, "events": 5, "quantities": {"gb": "0.5"}, "cost": None, "charge": "0.1"},
        {"customer": None, "model": "a", "events": 1, "quantities": {"input_tokens": 1}, "cost": "1", "charge": "1"},
    ]
    suspense, acme = sum_customers(rows)
    assert (suspense.customer, suspense.calls) == ("(suspense)", 1)
    assert acme == CustomerTotals("acme", 3, {"input_tokens": 7}, {"gb": "0.5"}, Decimal(1), Decimal("2.1"))
    assert acme.margin == Decimal("1.1")
