"""`otelbill prices` says what is wrong, what applies and what changes, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otelbill_collector.cli import cli

CARD = """\
prices:
  - {unit: output_tokens, model: "gpt-4o-mini*", price: "2.40", per: 1000000, to: 2027-01-01}
  - {unit: output_tokens, model: "gpt-4o-mini*", price: "2.20", per: 1000000, from: 2027-01-01}
  - {unit: outcomes, price: "0.99"}
  - {unit: outcomes, price: "0.79", group: enterprise}
markup: [{percent: "20"}]
charges: [{name: Pages, unit: pages, pricing: package, price: "12.50", package_size: 1000}]
fees: [{name: Platform, amount: "49"}]
"""
CONFIG = "rate_card: {file: rates.yaml}\ncustomers: {acme: {group: enterprise}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a card, and a configuration that names it."""
    (tmp_path / "rates.yaml").write_text(CARD, encoding="utf-8")
    (tmp_path / "otelbill.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["prices", *words])


def read(*words: str) -> object:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_check_passes_what_is_right() -> None:
    """A card and a configuration are told apart by what is in them; each is counted."""
    result = run("check", "rates.yaml", "otelbill.yaml")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "rates.yaml: ok (4 prices, 1 markup, 1 charges, 1 fees)",
        "otelbill.yaml: ok (4 prices, 1 markup, 1 charges, 1 fees)",
    ]


def test_check_names_every_problem_of_every_file(folder: Path) -> None:
    """One bad file does not hide another; exit status 1 and a line for each problem."""
    (folder / "one.yaml").write_text("prices:\n  - {unit: a, price: -1}\n  - {unit: a, price: 0.5}\n", encoding="utf-8")
    (folder / "two.yaml").write_text("fees:\n  - {name: F}\n", encoding="utf-8")
    result = run("check", "one.yaml", "rates.yaml", "two.yaml")
    assert result.exit_code == 1
    for text in (
        "one.yaml:2 prices[0].price",
        "one.yaml:3 prices[1].price",
        "rates.yaml: ok",
        "two.yaml:2 fees[0].amount",
    ):
        assert text in result.output
    rows = json.loads(run("check", "one.yaml", "--json").output)
    assert [(row["ok"], [problem["line"] for problem in row["problems"]]) for row in rows] == [(False, [2, 3])]


def test_a_gap_is_a_warning_and_strict_makes_it_count(folder: Path) -> None:
    """A gap alone passes; --strict is for a pipeline that wants none."""
    text = 'prices:\n  - {unit: a, price: "1", to: 2026-01-01}\n  - {unit: a, price: "1", from: 2026-02-01}\n'
    (folder / "gap.yaml").write_text(text, encoding="utf-8")
    result = run("check", "gap.yaml")
    assert (result.exit_code, "gap.yaml:3 prices[1].from" in result.output) == (0, True)
    assert "1 warning" in result.output
    assert run("check", "gap.yaml", "--strict").exit_code == 1


def test_list_shows_every_entry() -> None:
    """With its version, for whom it holds and when, and which price book stands beside it."""
    found = read("list", "rates.yaml")
    assert isinstance(found, dict)
    rows = {(row["list"], row["name"], row["from"]): row for row in found["entries"]}
    assert len(found["entries"]) == 7
    assert rows["charges", "Pages", None]["says"] == "pages, 12.5 per package of 1,000, rounded up"
    assert rows["prices", "output_tokens", "2027-01-01T00:00:00Z"]["says"] == "2.2 per 1,000,000"
    assert all(len(row["version"]) == 16 for row in rows.values())
    assert len(found["price_book"]) == 16
    in_force = read("list", "rates.yaml", "--at", "2026-12-31")
    assert isinstance(in_force, dict)
    assert ("output_tokens", None) in {(row["name"], row["from"]) for row in in_force["entries"]}
    assert not any(row["from"] for row in in_force["entries"])


@pytest.mark.parametrize(("at", "charge"), [("2026-12-31T23:59:59Z", "0.0000024"), ("2027-01-01", "0.0000022")])
def test_list_shows_what_applies(at: str, charge: str) -> None:
    """For a customer, model and time: the charge and the cost of each unit, and the entry it comes from."""
    found = read("list", "--customer", "acme", "--provider", "openai", "--model", "gpt-4o-mini", "--at", at)
    assert isinstance(found, dict)
    rates = {rate["unit"]: rate for rate in found["rates"]}
    assert (rates["output_tokens"]["charge"], rates["output_tokens"]["cost"]) == (charge, "0.0000006")
    # 0.15 per million and 20 % of it
    assert (rates["input_tokens"]["charge"], rates["input_tokens"]["cost"]) == ("0.00000018", "0.00000015")
    assert (rates["outcomes"]["charge"], rates["outcomes"]["cost"]) == ("0.79", None)
    assert (rates["pages"]["charge"], rates["pages"]["entry"]["name"]) == ("period", "Pages")


def test_list_without_a_file_is_at_cost(folder: Path) -> None:
    """Where nothing is configured, what applies is the provider's price."""
    (folder / "otelbill.yaml").unlink()
    found = read("list", "--provider", "openai", "--model", "gpt-4o-mini")
    assert isinstance(found, dict)
    assert {rate["charge"] == rate["cost"] for rate in found["rates"]} == {True}


def test_diff_says_what_changes_for_whom_and_when(folder: Path) -> None:
    """A change of an end is a change of the time between; writing a price for another number of units is none."""
    new = CARD.replace("2027-01-01", "2027-02-01").replace('"0.99"', '"99", per: 100').replace('"49"', '"59"')
    new = new.replace('  - {unit: outcomes, price: "0.79", group: enterprise}\n', "")
    (folder / "new.yaml").write_text(new, encoding="utf-8")
    found = read("diff", "rates.yaml", "new.yaml")
    assert isinstance(found, dict)
    keys = ("list", "name", "for", "from", "to", "before", "after")
    assert [tuple(change[key] for key in keys) for change in found["changes"]] == [
        (
            "prices",
            "output_tokens",
            {"model": "gpt-4o-mini*"},
            "2027-01-01T00:00:00Z",
            "2027-02-01T00:00:00Z",
            "2.2 per 1,000,000",
            "2.4 per 1,000,000",
        ),
        ("prices", "outcomes", {"group": "enterprise"}, None, None, "0.79 each", None),
        ("fees", "Platform", {}, None, None, "49 each period", "59 each period"),
    ]
    assert "0.79 each" in run("diff", "rates.yaml", "new.yaml").output


def test_diff_of_configurations_knows_groups_and_provider_prices(folder: Path) -> None:
    """Between two configurations, who belongs where and what providers charge are compared as well."""
    new = CONFIG.replace("enterprise", "startup") + 'provider_prices: [{model: m, unit: pages, price: "2"}]\n'
    (folder / "new.yaml").write_text(new, encoding="utf-8")
    found = read("diff", "otelbill.yaml", "new.yaml")
    assert isinstance(found, dict)
    assert sorted((change["list"], change["before"], change["after"]) for change in found["changes"]) == [
        ("customers", "group enterprise", "group startup"),
        ("provider_prices", None, "costs 2 each"),
    ]
    same = read("diff", "otelbill.yaml", "rates.yaml")
    assert isinstance(same, dict)
    assert same["changes"] == []


def test_a_file_that_is_not_there_is_named() -> None:
    """No traceback: the path, and what to give instead."""
    result = run("list", "nowhere.yaml")
    assert result.exit_code != 0
    assert "nowhere.yaml" in str(result.exception)


def test_simulate_takes_a_card_by_itself(folder: Path) -> None:
    """The other card may be the file that `otelbill prices check` checks; groups stay as they are configured."""
    from otelbill_collector.app import build_rater
    from otelbill_collector.cli.repricing import _build_other
    from otelbill_collector.config import load_config

    (folder / "next.yaml").write_text(CARD.replace("0.79", "0.69"), encoding="utf-8")
    rater = build_rater(_build_other(load_config(folder / "otelbill.yaml", {}), folder / "next.yaml"))
    assert rater.rate({"outcomes": 100}, 0, customer_id="acme").charge_attos == 69 * 10**18
