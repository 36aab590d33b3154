"""The archive of an invoice is checked by its own script, in an interpreter that has nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import parse_instant
from tests.spans import chat
from tests.unit.billing.test_invoice_commands import CARD, DECEMBER, NOVEMBER, Desk, searches

RICH = CARD.replace(
    "  fees:",
    """    - {name: Packs, unit: packs, pricing: package, price: "3", package_size: 10, rounding: up}
    - name: Pages
      unit: pages
      pricing: volume
      tiers:
        - {up_to: 10, price: "1", flat: "2"}
        - {price: "0.5", flat: "1"}
    - name: Seats
      unit: seats
      pricing: stairstep
      tiers:
        - {up_to: 5, flat: "10"}
        - {flat: "15"}
  discounts:
    - {name: Friends, percent: "7.5"}
    - {name: Mini, percent: "10", model: "gpt-4o-m*"}
  minimums:
    - {name: Least, amount: "90"}
  commitments:
    - {name: Promise, amount: "200", from: 2026-10-31T23:00:00Z, to: 2026-12-31T23:00:00Z}
  fees:
    - {name: Support, amount: "10", prorate: true, from: 2026-11-10, to: 2026-12-07}""",
)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script without site packages, environment or this repository."""
    command = [sys.executable, "-I", "-S", "check.py"]
    return subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Two closed months: every pricing model, fees, discounts, a minimum, a commitment; late and corrected usage."""
    desk = Desk(tmp_path, monkeypatch, RICH)
    desk.post(*[chat(f"c{n}", tokens=(3_001, 37), ended=NOVEMBER + n) for n in range(5)], searches("s", 1_050))
    desk.post(*[searches(unit, 11, unit=unit) for unit in ("packs", "pages", "seats")])
    desk.close()
    desk.post(chat("late", tokens=(77, 7), ended=NOVEMBER), searches("more", 100), searches("pages2", 1, unit="pages"))
    desk.post(chat("d", tokens=(5, 5), ended=DECEMBER), searches("d2", 7, DECEMBER))
    (record,) = [row for row in desk.read("explain", "resp-c1")["records"] if row["quantities"]]
    desk.run(
        "adjust", record["event_id"], "--charge", "1.23", "--currency", "EUR", "--reason", "agreed", "--operator", "ann"
    )
    desk.now = parse_instant("2027-01-05")
    desk.close("2026-12")
    return desk


def export(desk: Desk, number: int, target: Path) -> Path:
    """Pack the n-th invoice."""
    rows = [json.loads(line) for line in desk.run("invoices", "list", "--json").stdout.splitlines()]
    desk.run("export", "--invoice", rows[number]["invoice_id"], "--output", str(target))
    return target


def test_the_script_agrees_with_both_invoices(desk: Desk, tmp_path: Path) -> None:
    """Each line is recomputed from the records up: usage, charges, terms, differences, rounding, ids."""
    kinds = set()
    for number in (0, 1):
        folder = unpack(export(desk, number, tmp_path / f"{number}.tar"), tmp_path / f"unpacked{number}")
        result = check(folder)
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
        invoice = json.loads((folder / "invoice.json").read_text())
        assert f"add up to {invoice['total']} EUR" in result.stdout
        kinds |= {(line["kind"], line["adjustment"]) for line in invoice["lines"]}
    assert kinds >= {(kind, False) for kind in ("usage", "charge", "fee", "discount", "minimum", "commitment")}
    assert kinds >= {(kind, True) for kind in ("usage", "charge", "discount")}


def test_the_same_invoice_packs_to_the_same_bytes(desk: Desk, tmp_path: Path) -> None:
    """Two people who export an invoice can compare digests."""
    first, second = (export(desk, 1, tmp_path / name).read_bytes() for name in ("a.tar", "b.tar"))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert "exists" in desk.run("export", "--invoice", "inv1.x", "--output", str(tmp_path / "a.tar"), fails=True).output
    assert (
        "no invoice"
        in desk.run("export", "--invoice", "inv1.x", "--output", str(tmp_path / "c.tar"), fails=True).output
    )
    assert not list(tmp_path.glob("c.tar*"))


@pytest.mark.parametrize(
    "name", ["invoice.json", "records.jsonl", "price_versions.json", "earlier_invoices.json", "about.json"]
)
def test_a_changed_byte_is_found(desk: Desk, tmp_path: Path, name: str) -> None:
    """Whatever file a digit is changed in, the script says so."""
    folder = unpack(export(desk, 1, tmp_path / "a.tar"), tmp_path / "unpacked")
    text = (folder / name).read_text()
    place = text.index("2")
    (folder / name).write_text(text[:place] + "3" + text[place + 1 :])
    result = check(folder)
    assert result.returncode == 1
    assert f"SHA-256 of {name}" in result.stdout or "cannot be read" in result.stdout


@pytest.mark.parametrize(
    ("name", "before", "after", "says"),
    [
        ("records.jsonl", '"input_tokens": 3001', '"input_tokens": 3000', "charge of record"),
        ("records.jsonl", '"searches": 7', '"searches": 8', "quantity of"),
        ("invoice.json", '"adjustment":true', '"adjustment":false', "invoice id"),
        ("price_versions.json", "0.000002", "0.000003", "price version id"),
    ],
)
def test_a_forger_who_mends_the_digests_is_found(
    desk: Desk, tmp_path: Path, name: str, before: str, after: str, says: str
) -> None:
    """With the list of digests made to fit, the amounts and ids still do not."""
    folder = unpack(export(desk, 1, tmp_path / "a.tar"), tmp_path / "unpacked")
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after, 1))
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    listed = [line.split("  ") for line in (folder / "MANIFEST.sha256").read_text().splitlines()]
    mended = (f"{digest if item == name else old}  {item}\n" for old, item in listed)
    (folder / "MANIFEST.sha256").write_text("".join(mended))
    result = check(folder)
    assert result.returncode == 1
    assert says in result.stdout


def test_the_script_knows_that_discounts_leave_nothing_below_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3.00, 80 % and 30 % take 2.40 and the 0.60 that is left: for the script, too."""
    prices, _, _ = CARD.partition("  charges:")
    names = '    - {name: Partner, percent: "80"}\n    - {name: Special, percent: "30"}\n'
    desk = Desk(tmp_path, monkeypatch, f"{prices}\n  discounts:\n{names}")
    desk.post(chat("c", tokens=(0, 300_000), ended=NOVEMBER))
    desk.close()
    result = check(unpack(export(desk, 0, tmp_path / "0.tar"), tmp_path / "unpacked"))
    assert (result.returncode, result.stdout[-9:]) == (0, "0.00 EUR\n")


def test_an_archive_with_corrected_charges_and_terms_is_whole(desk: Desk, tmp_path: Path) -> None:
    """What a closed period was rated anew by, prices, charges and terms, is in the archive of what adjusts it."""
    card = RICH.replace('"0.01"', '"0.02"').replace('price: "3"', 'price: "4"').replace('amount: "20"', 'amount: "25"')
    desk.file.write_text(card.replace('percent: "7.5"', 'percent: "5"').replace('amount: "90"', 'amount: "95"'))
    scope = ("--from", "2026-10-31T23:00:00Z", "--to", "2026-12-31T23:00:00Z")
    answer = desk.read("rerate", "--terms", *scope, "--reason", "typing error", "--operator", "ann")
    assert answer["changed"] > 3
    assert answer["restated"] == 2
    desk.post(searches("jan", 7, parse_instant("2027-01-02")))
    desk.now = parse_instant("2027-02-05")
    january = desk.close("2027-01")
    assert {line["period"] for line in january["lines"]} == {"2026-11", "2026-12", "2027-01"}
    folder = unpack(export(desk, 2, tmp_path / "january.tar"), tmp_path / "january")
    result = check(folder)
    assert result.returncode == 0, result.stdout
