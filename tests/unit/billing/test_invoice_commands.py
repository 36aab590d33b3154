"""From events to an approved invoice through the commands: drafts, refusals, late usage, voiding."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otelbill_collector import app
from otelbill_collector.cli import cli
from otelbill_collector.config import load_config
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.ledger.sqlite import LEDGER_NAME
from tests.books import TestBooks
from tests.spans import TestSpan, chat, trace_id
from tests.whole_ledger import verify

NOVEMBER, DECEMBER = parse_instant("2026-11-10"), parse_instant("2026-12-10")
CARD = """
customers:
  acme: {time_zone: Europe/Berlin}
billing: {grace: 2d}
rate_card:
  currency: EUR
  prices:
    - {unit: input_tokens, price: "2.00", per: 1000000}
    - {unit: output_tokens, price: "10.00", per: 1000000}
  charges:
    - name: Searches
      unit: searches
      pricing: graduated
      included: 100
      tiers:
        - {up_to: 1000, price: "0.01"}
        - {price: "0.005"}
  fees:
    - {name: Platform, amount: "20"}
"""


class Desk:
    """The commands on one ledger, at a time of the test's choosing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, card: str = CARD) -> None:
        self.file, self.data = folder / "otelbill.yaml", folder / "ledger"
        self.file.write_text(card)
        self.config = load_config(self.file, {}, {"data_dir": str(self.data)})
        self.now = parse_instant("2026-12-05")
        monkeypatch.setattr(app, "read_clock", lambda: self.now)
        self.post()

    def post(self, *spans: TestSpan) -> None:
        """Book spans."""
        books = TestBooks(self.data, self.config)
        books.post(*spans, now=max([self.now, *(span.ended for span in spans)]))
        books.close()

    def run(self, *words: str, fails: bool = False) -> Result:
        """Run a command on the ledger."""
        options = ["--config", str(self.file), "--data-dir", str(self.data)]
        result = CliRunner().invoke(cli, [*words, *options], catch_exceptions=False)
        assert (result.exit_code != 0) is fails, result.output
        return result

    def read(self, *words: str, fails: bool = False) -> Any:
        """Run it with --json."""
        return json.loads(self.run(*words, "--json", fails=fails).stdout)

    def close(self, label: str = "2026-11", customer: str = "acme") -> Any:
        """Close a period that can be closed."""
        (invoice,) = self.read("close", customer, "--period", label, "--operator", "ann")["closed"]
        return invoice


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A card in EUR with prices by event, a graduated charge and a fee; the clock stands at 2026-12-05."""
    return Desk(tmp_path, monkeypatch)


def searches(name: str, count: int, ended: int = NOVEMBER, customer: str = "acme", unit: str = "searches") -> TestSpan:
    """An event of the customer's own unit; only searches have a price."""
    attributes = {"otelbill.meter": unit, "otelbill.quantity": count, "otelbill.unit": unit}
    return TestSpan(name, {**attributes, "otelbill.customer.id": customer}, trace=name, ended=ended)


def show(invoice: Any) -> list[str]:
    """Lines as an accountant reads them."""
    names = ("period", "kind", "label", "unit", "quantity", "unit_price", "amount")
    return [
        ("adjustment " if line["adjustment"] else "") + " | ".join(str(line[name] or "-") for name in names)
        for line in invoice["lines"]
    ]


def test_an_invoice_is_what_the_table_says(desk: Desk) -> None:
    """Usage by event, tiers over the period with what is included, a fee, and one rounding.

    900,000 x 0.000002 = 1.80 and 90,000 x 0.00001 = 0.90; of 1,300 searches 100 are included, the next 1,000 cost
    0.01, the last 200 cost 0.005: 10.00 + 1.00; the fee is 20.00. Together 33.70.
    """
    desk.post(*[chat(f"c{n}", tokens=(300_000, 30_000), ended=NOVEMBER + n) for n in range(3)])
    desk.post(searches("s1", 650), searches("s2", 650, NOVEMBER + DAY_NANOS))
    draft = desk.read("invoice", "acme", "--period", "2026-11")
    assert show(draft) == [
        "2026-11 | usage | - | input_tokens | 900000 | 0.000002 | 1.80",
        "2026-11 | usage | - | output_tokens | 90000 | 0.00001 | 0.90",
        "2026-11 | charge | Searches: included: first 100 | searches | 100 | 0 | 0.00",
        "2026-11 | charge | Searches: tier 1: 0 to 1,000 | searches | 1000 | 0.01 | 10.00",
        "2026-11 | charge | Searches: tier 2: above 1,000 | searches | 200 | 0.005 | 1.00",
        "2026-11 | fee | Platform | - | - | - | 20.00",
    ]
    assert (draft["state"], draft["total"], draft["currency"]) == ("open", "33.70", "EUR")
    assert (draft["from"], draft["to"]) == ("2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z")
    invoice = desk.close()
    assert invoice["lines"] == draft["lines"]
    assert desk.read("invoice", "acme", "--period", "2026-11-01") == invoice


def test_an_event_belongs_to_the_period_of_its_own_time(desk: Desk) -> None:
    """In Berlin, the last instant of November is 22:59:59.999999999Z; a nanosecond later it is December."""
    end = parse_instant("2026-11-30T23:00:00Z")
    desk.post(searches("in", 7, end - 1), searches("out", 5, end))
    november, december = (desk.read("invoice", "acme", "--period", label) for label in ("2026-11", "2026-12"))
    assert [line["quantity"] for line in november["lines"]] == ["7", None]
    assert [line["quantity"] for line in december["lines"]] == ["5", None]


def test_late_usage_becomes_a_labelled_adjustment(desk: Desk) -> None:
    """What arrives after the closing is on the next invoice, under its own period, tiers counted on from there."""
    desk.post(searches("s1", 1_050))
    first = desk.close()
    assert first["total"] == "29.50"
    desk.post(searches("late", 100), searches("december", 10, DECEMBER))
    desk.now = parse_instant("2027-01-05")
    second = desk.close("2026-12")
    assert show(second) == [
        "2026-12 | charge | Searches: included: first 100 | searches | 10 | 0 | 0.00",
        "2026-12 | fee | Platform | - | - | - | 20.00",
        "adjustment 2026-11 | charge | Searches: tier 1: 0 to 1,000 | searches | 50 | 0.01 | 0.50",
        "adjustment 2026-11 | charge | Searches: tier 2: above 1,000 | searches | 50 | 0.005 | 0.25",
    ]
    assert second["total"] == "20.75"
    assert desk.read("invoice", "acme", "--period", "2026-11") == first, "what is frozen stays as it was"
    desk.now = parse_instant("2027-02-05")
    assert show(desk.close("2027-01")) == ["2027-01 | fee | Platform | - | - | - | 20.00"], "adjusted once"


def test_a_voided_event_comes_back_as_a_negative_adjustment(desk: Desk) -> None:
    """A correction after the closing is a difference like any other."""
    desk.post(searches("s1", 1_050), searches("s2", 50, NOVEMBER + 1))
    desk.close()
    (record,) = [row for row in desk.read("explain", trace_id("s2").hex())["records"] if row["quantities"]]
    desk.run("adjust", record["event_id"], "--void", "--reason", "test traffic", "--operator", "ann")
    adjusted = [line for line in desk.read("invoice", "acme", "--period", "2026-12")["lines"] if line["adjustment"]]
    assert [(line["quantity"], line["amount"]) for line in adjusted] == [("-50", "-0.50")]


WAITING = {
    "unpriced": (searches("w", 1, unit="surprises").attributes, "adjust", "--charge"),
    "held": ({k: v for k, v in chat("w").attributes.items() if ".usage." not in k}, "resolve", "--input-tokens"),
    "suspense": (chat("w", customer=None).attributes, "adjust", "--customer"),
}


@pytest.mark.parametrize("state", WAITING)
def test_closing_is_refused_while_usage_waits(desk: Desk, state: str) -> None:
    """Unpriced, held and suspense usage keep a period open; the refusal names each event and what resolves it."""
    attributes, command, option = WAITING[state]
    desk.post(TestSpan("w", attributes, trace="w", ended=NOVEMBER), searches("s", 3))
    answer = desk.read("close", "acme", "--period", "2026-11", "--operator", "ann", fails=True)
    assert answer["closed"] == []
    (refused,) = answer["refused"]
    assert "1 event waits" in refused["reason"]
    (blocker,) = refused["blockers"]
    assert blocker["state"] == state
    assert any(
        remedy.startswith(f"otelbill {command} {blocker['event_id']} {option}") for remedy in blocker["remedies"]
    )
    shown = desk.run("close", "acme", "--period", "2026-11", "--operator", "ann", fails=True).output
    assert all(remedy in shown for remedy in blocker["remedies"])
    assert desk.read("invoice", "acme", "--period", "2026-11")["state"] == "open", "nothing was written"
    desk.run("adjust", blocker["event_id"], "--void", "--reason", "not ours", "--operator", "ann")
    assert desk.close()["state"] == "draft"


def test_late_usage_that_waits_keeps_the_next_period_open(desk: Desk) -> None:
    """An unpriced event of a closed period is decided before the next one is closed, not forgotten."""
    desk.post(searches("s", 3))
    desk.close()
    desk.post(searches("w", 1, unit="surprises"))
    desk.now = parse_instant("2027-01-05")
    (refused,) = desk.read("close", "acme", "--period", "2026-12", "--operator", "ann", fails=True)["refused"]
    assert [blocker["state"] for blocker in refused["blockers"]] == ["unpriced"]


@pytest.mark.parametrize(
    ("now", "label", "says"),
    [
        ("2026-11-20", "2026-11", "can be closed from 2026-12-02T23:00:00Z on"),
        ("2026-12-02T22:59:59Z", "2026-11", "can be closed from"),
        ("2027-02-05", "2027-01", "a period that is still open"),
        ("2026-12-05", "2026-10", "is closed"),
    ],
)
def test_a_closing_at_the_wrong_time_is_refused(desk: Desk, now: str, label: str, says: str) -> None:
    """Not before the grace is over, not out of order, not twice."""
    desk.post(searches("s", 3, parse_instant("2026-10-10")))
    desk.close("2026-10")
    desk.now = parse_instant(now)
    (refused,) = desk.read("close", "acme", "--period", label, "--operator", "ann", fails=True)["refused"]
    assert says in refused["reason"]


def test_a_dry_run_says_the_same_and_writes_nothing(desk: Desk) -> None:
    """What would be closed has the lines that the invoice then has."""
    desk.post(searches("s", 300))
    (would,) = desk.read("close", "acme", "--period", "2026-11", "--operator", "ann", "--dry-run")["closed"]
    assert desk.run("invoices", "list").output == "invoices: none\n"
    assert desk.close()["lines"] == would["lines"]


def test_an_invoice_is_reviewed_and_approved_or_voided(desk: Desk) -> None:
    """A draft can be voided, which opens its period again; an approved one is final. Who and why stays on it."""
    desk.post(searches("s", 300))
    first = desk.close()
    desk.run("invoices", "void", first["invoice_id"], "--reason", "price was wrong", "--operator", "bob")
    desk.post(searches("late", 10))
    second = desk.close()
    assert second["invoice_id"] != first["invoice_id"]
    assert [line["adjustment"] for line in second["lines"]] == [False, False, False]
    desk.run("invoices", "approve", second["invoice_id"], "--operator", "bob")
    for command in (("approve",), ("void", "--reason", "x")):
        refused = desk.run("invoices", command[0], second["invoice_id"], *command[1:], "--operator", "eve", fails=True)
        assert "was approved by bob" in refused.output
    history = desk.read("invoices", "show", second["invoice_id"])["history"]
    assert [(event["state"], event["operator"], event["reason"]) for event in history] == [
        ("draft", "ann", "period closed"),
        ("approved", "bob", "reviewed"),
    ]
    rows = [json.loads(line) for line in desk.run("invoices", "list", "--json").stdout.splitlines()]
    assert [row["state"] for row in rows] == ["voided", "approved"]


def test_without_review_an_invoice_is_approved_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`billing.approve: false` says so in the invoice's history."""
    desk = Desk(tmp_path, monkeypatch, CARD.replace("grace: 2d", "grace: 2d, approve: false"))
    desk.post(searches("s", 300))
    invoice = desk.close()
    assert [event["reason"] for event in invoice["history"]] == ["period closed", "billing.approve is off"]
    assert invoice["state"] == "approved"


def test_all_customers_are_closed_at_once(desk: Desk) -> None:
    """`--all` closes those that can be, and says who was refused; again, it closes the rest only."""
    desk.post(searches("a", 5), searches("b", 6, customer="bolt"))
    desk.post(searches("w", 1, customer="bolt", unit="surprises"))
    answer = desk.read("close", "--all", "--period", "2026-11", "--operator", "ann", fails=True)
    assert [row["customer_id"] for row in answer["closed"]] == ["acme"]
    (refused,) = answer["refused"]
    assert refused["customer_id"] == "bolt"
    desk.run("adjust", refused["blockers"][0]["event_id"], "--void", "--reason", "x", "--operator", "ann")
    again = desk.read("close", "--all", "--period", "2026-11", "--operator", "ann")
    assert [row["customer_id"] for row in again["closed"]] == ["bolt"]


def test_an_anniversary_goes_by_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A period from the 5th to the 5th is found by its first day and by its month, open and closed."""
    desk = Desk(tmp_path, monkeypatch, CARD.replace("Europe/Berlin}", "UTC, anchor_day: 5}"))
    desk.now = parse_instant("2026-12-08")
    desk.post(
        searches("in", 300, parse_instant("2026-12-04T23:59:59Z")), searches("out", 9, parse_instant("2026-12-05"))
    )
    draft = desk.read("invoice", "acme", "--period", "2026-11")
    assert draft["period"] == "2026-11-05"
    invoice = desk.close("2026-11-05")
    assert invoice["total"] == "22.00"
    assert all(desk.read("invoice", "acme", "--period", name) == invoice for name in ("2026-11", "2026-11-05"))


def test_a_changed_calendar_leaves_no_gap_and_no_overlap(desk: Desk) -> None:
    """Closed months stay; the first period under the new calendar begins where the last closed one ended."""
    desk.post(searches("a", 300), searches("b", 200, DECEMBER))
    desk.close()
    desk.file.write_text(CARD.replace("Europe/Berlin}", "Europe/Berlin, anchor_day: 15}"))
    assert desk.read("invoice", "acme", "--period", "2026-11")["state"] == "draft"
    refused = desk.run("invoice", "acme", "--period", "2026-10", fails=True)
    assert "overlaps 2026-11 of acme, which is closed" in refused.output
    short = desk.read("invoice", "acme", "--period", "2026-11-15")
    assert (short["period"], short["from"], short["to"]) == (
        "2026-12-01",
        "2026-11-30T23:00:00Z",
        "2026-12-14T23:00:00Z",
    )
    assert [line["quantity"] for line in short["lines"] if line["kind"] == "charge"] == ["100", "100"]
    desk.now = parse_instant("2026-12-20")
    assert desk.close("2026-11-15")["lines"] == short["lines"]
    assert desk.read("invoice", "acme", "--period", "2026-12")["period"] == "2026-12-15"


class _Cells(HTMLParser):
    """Text and tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag."""
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        """Called for each text."""
        self.text.append(data)


def test_the_page_shows_everything_and_runs_nothing(desk: Desk) -> None:
    """Names come from telemetry: whatever they contain is text. The page loads nothing from anywhere."""
    evil = "<script>alert(1)</script>\"'&"
    desk.post(searches("s", 300), chat("c", ended=NOVEMBER, attributes={"otelbill.step": evil}))
    page = desk.run("invoice", "acme", "--period", "2026-11", "--html", "-").stdout
    cells = _Cells()
    cells.feed(page)
    assert not {"script", "img", "link", "iframe"} & set(cells.tags)
    assert not {"src", "href", "onclick"} & set(cells.attributes)
    assert any(evil in text for text in cells.text)
    assert {"22.00", "Total"} <= set(cells.text)


def test_csv_has_every_field_of_every_line(desk: Desk) -> None:
    """A spreadsheet gets what the JSON has."""
    desk.post(searches("s", 300))
    rows = list(csv.DictReader(StringIO(desk.run("invoice", "acme", "--period", "2026-11", "--csv").stdout)))
    lines = desk.read("invoice", "acme", "--period", "2026-11")["lines"]
    assert [row["line_id"] for row in rows] == [line["line_id"] for line in lines]
    assert set(lines[0]) < set(rows[0])
    assert {row["customer_id"] for row in rows} == {"acme"}


def test_a_charge_outlives_its_entry_in_the_file(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed periods keep their prices and fees when the card changes: nothing is billed again at today's rate."""
    desk.run("invoices", "list")
    desk.post(searches("s", 300))
    desk.close()
    desk.file.write_text(CARD.replace('"0.01"', '"0.99"').replace('"20"', '"70"'))
    desk.post(searches("late", 10))
    december = desk.read("invoice", "acme", "--period", "2026-12")
    assert [(line["quantity"], line["unit_price"]) for line in december["lines"] if line["adjustment"]] == [
        ("10", "0.01")
    ]
    assert [line["amount"] for line in december["lines"] if line["kind"] == "fee"] == ["70.00"]


def test_verification_knows_invoices(desk: Desk) -> None:
    """A ledger with invoices of every state is whole."""
    desk.post(searches("s", 300))
    first = desk.close()
    desk.run("invoices", "void", first["invoice_id"], "--reason", "x", "--operator", "bob")
    second = desk.close()
    desk.run("invoices", "approve", second["invoice_id"], "--operator", "bob")
    report = verify(desk.data / LEDGER_NAME)
    assert [item for item in report.findings if item.check != "stripe windows"] == []
    assert report.counts["invoices"] == 2


def test_a_corrected_price_is_an_adjustment(desk: Desk) -> None:
    """Rated again after the closing: the old price is taken back and the new one charged, for its own period."""
    desk.post(chat("c", tokens=(1_000_000, 0), ended=NOVEMBER))
    desk.close()
    desk.file.write_text(CARD.replace('"2.00"', '"2.50"'))
    span = ("--from", "2026-11-01", "--to", "2026-12-01", "--reason", "typing error", "--operator", "ann")
    desk.run("rerate", *span)
    adjusted = [line for line in desk.read("invoice", "acme", "--period", "2026-12")["lines"] if line["adjustment"]]
    assert [(line["quantity"], line["unit_price"], line["amount"]) for line in adjusted] == [
        ("1000000", "0.0000025", "2.50"),
        ("-1000000", "0.000002", "-2.00"),
    ]


WHOLE_NOVEMBER = ("--from", "2026-10-31T23:00:00Z", "--to", "2026-11-30T23:00:00Z")


def rerate(desk: Desk, *words: str) -> int:
    """How many events `otelbill rerate` booked again."""
    found: int = desk.read("rerate", *words, "--reason", "typing error", "--operator", "ann")["changed"]
    return found


def test_a_corrected_period_charge_counts_an_open_period_once_it_is_rated_again(desk: Desk) -> None:
    """300 searches, of which 100 are included: 200 x 0.01 = 2.00 as they were booked, 200 x 0.02 = 4.00 rated again.

    Without `rerate` they keep the version that they were booked with; the fee, which no record names, follows the file.
    """
    desk.post(searches("s", 300))
    desk.run("close", "acme", "--period", "2026-11", "--dry-run")  # keeps what charges say, as a start of the collector
    desk.file.write_text(CARD.replace('"0.01"', '"0.02"').replace('"20"', '"25"'))
    before = desk.read("invoice", "acme", "--period", "2026-11")
    assert [line["amount"] for line in before["lines"]] == ["0.00", "2.00", "25.00"]
    assert rerate(desk, *WHOLE_NOVEMBER) == 1
    assert show(desk.read("invoice", "acme", "--period", "2026-11")) == [
        "2026-11 | charge | Searches: included: first 100 | searches | 100 | 0 | 0.00",
        "2026-11 | charge | Searches: tier 1: 0 to 1,000 | searches | 200 | 0.02 | 4.00",
        "2026-11 | fee | Platform | - | - | - | 25.00",
    ]
    assert rerate(desk, *WHOLE_NOVEMBER) == 0


def test_a_corrected_period_charge_adjusts_a_closed_period(desk: Desk) -> None:
    """For November 200 x 0.01 = 2.00 was invoiced; 200 x 0.02 = 4.00 is right. December takes 2.00 back, adds 4.00."""
    desk.post(searches("s", 300))
    desk.close()
    desk.file.write_text(CARD.replace('"0.01"', '"0.02"'))
    assert rerate(desk, *WHOLE_NOVEMBER) == 1
    december = desk.read("invoice", "acme", "--period", "2026-12")
    adjusted = [line for line in december["lines"] if line["adjustment"] and line["amount"] != "0.00"]
    assert [(line["period"], line["label"], line["quantity"], line["amount"]) for line in adjusted] == [
        ("2026-11", "Searches: tier 1: 0 to 1,000", "200", "4.00"),
        ("2026-11", "Searches: tier 1: 0 to 1,000", "-200", "-2.00"),
    ]
    assert december["total"] == "22.00"
    report = verify(desk.data / LEDGER_NAME)
    assert [item for item in report.findings if item.check != "stripe windows"] == []


def test_a_price_by_event_may_take_the_place_of_a_period_charge(desk: Desk) -> None:
    """The charge should not have covered acme: 300 searches are 300 x 0.03 = 9.00 by event, and nothing by period."""
    desk.post(searches("s", 300))
    price = '    - {unit: searches, price: "0.03", customer: acme}\n  charges:\n'
    desk.file.write_text(CARD.replace("  charges:\n", price))
    assert rerate(desk, *WHOLE_NOVEMBER) == 1
    assert show(desk.read("invoice", "acme", "--period", "2026-11"))[0] == (
        "2026-11 | usage | - | searches | 300 | 0.03 | 9.00"
    )
    desk.file.write_text(CARD)
    assert rerate(desk, *WHOLE_NOVEMBER) == 1
    assert [line["amount"] for line in desk.read("invoice", "acme", "--period", "2026-11")["lines"]] == [
        "0.00", "2.00", "20.00"
    ]  # fmt: skip


def test_corrected_terms_of_a_closed_period_are_adjusted_when_asked_for(desk: Desk) -> None:
    """November was closed with the fee of 20; 25 is right, and a discount of 10 % was forgotten: 2.5 of 25.

    Without `--terms` a closed period keeps its terms. With it December takes 20 back, adds 25 and gives 2.50 off. Only
    what lies in the scope changes, and doing it again changes nothing.
    """
    desk.post(searches("s", 50))
    desk.close()
    discount = '  fees:\n    - {name: Platform, amount: "25"}\n  discounts:\n    - {name: Forgotten, percent: "10"}\n'
    desk.file.write_text(CARD[: CARD.index("  fees:")] + discount)
    assert rerate(desk, *WHOLE_NOVEMBER) == 0
    assert [line for line in desk.read("invoice", "acme", "--period", "2026-12")["lines"] if line["adjustment"]] == []
    (row,) = desk.read("rerate", "--dry-run", "--terms", *WHOLE_NOVEMBER)["customers"]
    assert (row["charge_booked"], row["charge"]) == ("20", "22.5")
    answer = desk.read("rerate", "--terms", *WHOLE_NOVEMBER, "--reason", "forgotten", "--operator", "ann")
    assert answer == {"changed": 0, "restated": 1}
    december = desk.read("invoice", "acme", "--period", "2026-12")
    adjusted = [line for line in december["lines"] if line["adjustment"]]
    assert [(line["period"], line["kind"], line["label"], line["amount"]) for line in adjusted] == [
        ("2026-11", "fee", "Platform", "25.00"),
        ("2026-11", "discount", "Forgotten", "-2.50"),
        ("2026-11", "fee", "Platform", "-20.00"),
    ]
    assert desk.read("rerate", "--terms", *WHOLE_NOVEMBER, "--reason", "x")["restated"] == 0
    (row,) = desk.read("rerate", "--dry-run", *WHOLE_NOVEMBER)["customers"]
    assert (row["charge_booked"], row["charge"]) == ("22.5", "22.5")
    desk.now = parse_instant("2027-01-05")
    desk.close("2026-12")
    january = desk.read("invoice", "acme", "--period", "2027-01")
    assert [line for line in january["lines"] if line["adjustment"]] == []
    report = verify(desk.data / LEDGER_NAME)
    assert [item for item in report.findings if item.check != "stripe windows"] == []


def test_a_period_that_is_closed_again_has_the_terms_of_that_closing(desk: Desk) -> None:
    """Restated terms stand for those of the invoice that there was, not of one that is made later."""
    desk.post(searches("s", 50))
    first = desk.close()
    desk.file.write_text(CARD.replace('"20"', '"25"'))
    desk.read("rerate", "--terms", *WHOLE_NOVEMBER, "--reason", "x", "--operator", "ann")
    desk.run("invoices", "void", first["invoice_id"], "--reason", "x", "--operator", "bob")
    desk.file.write_text(CARD.replace('"20"', '"30"'))
    desk.now += DAY_NANOS
    assert desk.close()["total"] == "30.00"
    assert desk.read("invoice", "acme", "--period", "2026-12")["total"] == "30.00"


def test_terms_hold_for_all_usage_of_a_period(desk: Desk) -> None:
    """Of one model's usage there is no fee."""
    result = desk.run("rerate", "--terms", "--model", "gpt-4o", "--reason", "x", fails=True)
    assert "--terms hold for all usage" in result.output
