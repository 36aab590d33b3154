"""The product's amounts are those of a second implementation that was written from the documentation alone.

Every seed is a few random months of a few customers: cards, zones, late events, corrections, credits. The product gets
spans and operator commands through its public path, the auditor the same as plain data. They agree to the last digit.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from otelbill_collector.app import build_rater, build_stages
from otelbill_collector.archive import pack_invoice
from otelbill_collector.archive_check import Checker
from otelbill_collector.billing import Billing, build_billing_rules
from otelbill_collector.commands import build_operate
from otelbill_collector.config import Config, ConfigError, load_config
from otelbill_collector.crediting import create_terms, render_balance
from otelbill_collector.explanation import render_record
from otelbill_collector.ledger.lineage import list_trace
from otelbill_collector.ledger.periods import list_invoices
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.operations import Operations
from otelbill_collector.pipeline import Request, carry_batch
from otelbill_collector.simulation import Agreements, identify_prices, render_simulation, simulate
from tests.auditor.auditor import (
    Account,
    Key,
    Usage,
    bill_period,
    cut,
    find_charge,
    find_cost,
    round_lines,
    round_total,
    subtract,
)
from tests.auditor.credit_auditor import Grant, burn, list_demands, name_follower
from tests.auditor.random_months import (
    CUSTOMERS,
    MONTHS,
    Month,
    correct_prices,
    correct_terms,
    format_instant,
    make_grants,
    make_month,
)
from tests.spans import TestSpan, build_request, trace_id

SEEDS = range(int(os.environ.get("OTELBILL_AUDIT_FROM", "0")), int(os.environ.get("OTELBILL_AUDIT_MONTHS", "25")))
Json = Mapping[str, Any]


def make_span(usage: Usage) -> TestSpan:
    """The span that an application would send."""
    attributes: dict[str, Any] = {"otelbill.customer.id": usage.customer}
    if usage.step:
        attributes["otelbill.step"] = usage.step
    if usage.project:
        attributes["otelbill.project.id"] = usage.project
    if usage.model is None:
        ((unit, quantity),) = usage.quantities.items()
        attributes |= {"otelbill.meter": unit, "otelbill.quantity": quantity, "otelbill.unit": unit}
    else:
        attributes |= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": usage.provider,
            "gen_ai.request.model": usage.model,
            "gen_ai.response.model": usage.model,
            "gen_ai.response.id": f"resp-{usage.name}",
            "gen_ai.usage.input_tokens": usage.quantities["input_tokens"],
            "gen_ai.usage.output_tokens": usage.quantities["output_tokens"],
        }
        if "reasoning_tokens" in usage.quantities:
            attributes["gen_ai.usage.reasoning_tokens"] = usage.quantities["reasoning_tokens"]
    return TestSpan(usage.name, attributes, trace=usage.name, started=usage.at - 1, ended=usage.at)


class Product:
    """The product with one configuration, driven as the command line drives it."""

    def __init__(self, folder: Path, month: Month) -> None:
        self.folder, self.month = folder, month
        self.now = max(end for periods in month.periods.values() for _, end in periods) + 1
        self.open(self.configure(month.account))

    def configure(self, account: Account) -> Config:
        """The configuration that agrees an account with all customers."""
        file = self.folder / "otelbill.yaml"
        content = {
            "customers": self.month.customers,
            "billing": {"grace": "0s"},
            "provider_prices": list(account.provider_prices),
            "rate_card": account.card,
        }
        file.write_text(yaml.safe_dump(content))
        return load_config(file, {}, {"data_dir": str(self.folder / "ledger")})

    def open(self, config: Config) -> None:
        """Open the books, as a start of the collector does."""
        self.config = config
        self.store = SqliteStore(self.folder / "ledger")
        self.stages = build_stages(config, self.store)
        billing, terms = Billing(self.store, config, lambda: self.now), create_terms(config.rate_card)
        self.operations = Operations(self.stages, None, lambda: self.now, build_rater(config), billing, terms)
        self.operate = build_operate(self.operations)

    def rerate(self, account: Account, *, terms: bool) -> None:
        """Start again with a corrected card, and rate everything again by it."""
        self.store.close()
        self.open(self.configure(account))
        prices = identify_prices(build_rater(self.config))
        arguments = {"where": {}, "prices": prices, "operator": "ann", "reason": "typing error", "terms": terms}
        self.operate["rerate"](arguments)

    def simulate(self, account: Account, customer: str) -> list[Fraction]:
        """What a customer's periods come to, as booked and under another account."""
        other, periods = self.configure(account), self.month.periods[customer]
        sides = build_billing_rules(self.config), build_billing_rules(other)
        agreements = Agreements(*sides, tuple(self.month.customers))
        scope = Scope(periods[0][0], periods[-1][1], {"customer_id": customer})
        found = self.store.read(
            lambda connection: simulate(connection, build_rater(other), scope, lambda *_: None, agreements)
        )
        row = next(row for row in render_simulation(found, "")["customers"] if row["customer"] == customer)
        return [Fraction(row["charge_booked"]), Fraction(row["charge"])]

    def post(self, usages: Sequence[Usage]) -> None:
        """Book the spans of usage."""
        body = build_request([make_span(usage) for usage in usages])
        carry_batch([Request(body, self.now)], self.stages, self.now)
        self.operations.fold()

    def show(self, usages: Iterable[Usage]) -> dict[str, Json]:
        """The latest record of each event, by the name of its usage."""
        names = {trace_id(usage.name).hex(): usage.name for usage in usages}
        traces = [bytes.fromhex(name) for name in names]
        records = self.store.read(lambda connection: list_trace(connection, traces))
        rendered = sorted((render_record(record) for record in records), key=lambda record: int(record["revision"]))
        return {names[record["trace_id"]]: record for record in rendered}

    def correct(self, usage: Usage, **change: Any) -> str:
        """Correct an event; the batch."""
        event = self.show([usage])[usage.name]["event_id"]
        answer = self.operate["adjust"]({"event_ids": [event], "operator": "ann", "reason": "wrong", **change})
        return str(answer["batch"])

    def take_back(self, batch: str) -> None:
        """Take back a batch of corrections."""
        self.operate["take-back"]({"batch": batch, "operator": "ann", "reason": "right after all"})

    def grant(self, grant: Grant) -> str:
        """Give credits; the id of the grant."""
        arguments: dict[str, Any] = {
            "customer_id": grant.customer,
            "operator": "ann",
            "reason": grant.grant_id,
            "start": format_instant(grant.start),
            "priority": grant.priority,
            "origin": "paid" if grant.paid else "promotional",
            "project_id": grant.scope.get("project"),
            **{name: grant.scope.get(name) for name in ("step", "model", "unit")},
        }
        if grant.is_units:
            arguments |= {"units": str(grant.amount), "unit": grant.asset}
        else:
            arguments |= {"amount": str(grant.amount), "currency": grant.asset}
        if grant.expires is not None:
            arguments["expires"] = format_instant(grant.expires)
        if grant.rollover_until is not None:
            arguments |= {
                "rollover_until": format_instant(grant.rollover_until),
                "rollover_percent": str(grant.rollover_percent),
                "rollover_max": None if grant.rollover_max is None else str(grant.rollover_max),
            }
        given = {name: value for name, value in arguments.items() if value is not None}
        grant_id = str(self.operate["credits-grant"](given)["grant_id"])
        if grant.voided is not None:
            now, self.now = self.now, grant.voided
            self.operate["credits-void"]({"grant_id": grant_id, "operator": "ann", "reason": "cancelled"})
            self.now = now
        return grant_id

    def balance(self, customer: str, at: int) -> dict[str, Fraction]:
        """What a customer has of each asset."""
        found = self.store.read(lambda connection: render_balance(connection, customer, at))
        return {row["asset"]: Fraction(row["left"]) for row in found["balances"] if Fraction(row["left"])}

    def close(self, customer: str, label: str) -> Json:
        """The invoice of a period that must be closable."""
        arguments = {"customer_id": customer, "label": label, "operator": "ann", "reason": "over"}
        answer = self.operate["close"](arguments)
        assert not answer["refused"], answer["refused"]
        invoice: Json = answer["closed"][0]
        return invoice


def make_change(random: Random, kind: str, usage: Usage, currency: str) -> tuple[Usage | None, dict[str, Any]]:
    """The usage after a correction (None: void), and what `otelbill adjust` is given."""
    if kind == "void":
        return None, {"void": True}
    if kind == "customer_id":
        customer = random.choice(CUSTOMERS)
        return replace(usage, customer=customer), {"customer_id": customer}
    if kind == "charge":
        charge = f"{random.randint(0, 9)}.{random.randint(0, 99999):05}"
        return replace(usage, charge=Fraction(charge)), {"charge": charge, "currency": currency}
    unit = "output_tokens" if usage.model else next(iter(usage.quantities))
    changed = {unit: usage.quantities.get("reasoning_tokens", 0) + random.randint(1, 500)}
    return replace(usage, quantities={**usage.quantities, **changed}), {"quantities": changed}


def read_amount(text: str | None) -> Fraction | None:
    """An amount as the product writes it: a decimal or a fraction."""
    return None if text is None else Fraction(text.replace(" ", ""))


def group_lines(invoice: Json) -> dict[Key, Fraction]:
    """Exact amounts of an invoice's lines by what they are for, in the auditor's words."""
    found: dict[Key, Fraction] = defaultdict(Fraction)
    for line in invoice["lines"]:
        key: Key = (line["kind"], line["label"].split(":")[0])
        if line["kind"] == "usage":
            place = (line["project"], line["step"], line["provider"], line["model"])
            key = ("usage", *place, line["unit"], read_amount(line["unit_price"]))
        found[line["period_from"], *key] += Fraction(line["exact"])
    return {key: amount for key, amount in found.items() if amount}


def group_credits(invoice: Json) -> dict[Key, Fraction]:
    """Exact amounts of lines of credit by period and grant, in the auditor's words."""
    found: dict[Key, Fraction] = defaultdict(Fraction)
    for line in invoice["lines"]:
        match = re.match(r"credit (\w+): (?:rolled over from (\w+))?", line["label"])
        if line["kind"] == "credit" and match is not None:
            name = match[1] if match[2] is None else name_follower(match[2])
            found[line["period_from"], "credit", name] += Fraction(line["exact"])
    return dict(found)


class Audit:
    """One scenario in both books, step by step; every comparison is an assertion."""

    def __init__(self, month: Month, product: Product) -> None:
        self.month, self.product = month, product
        self.usage: dict[str, Usage] = {}
        self.invoiced: dict[tuple[str, int], dict[Key, Fraction]] = defaultdict(dict)
        self.grants: list[Grant] = []
        self.compared = 0
        self.charges: dict[str, dict[int, Fraction]] = defaultdict(dict)  # what no event carries, by end of period
        self.paid: dict[tuple[str, int], dict[Key, Fraction]] = defaultdict(dict)  # lines of credit so far

    def arrive(self, closings: int) -> None:
        """Post what arrives after so many closings."""
        coming = [usage for when, usage in self.month.arrivals if when == closings]
        if coming:
            self.product.post(coming)
        self.usage |= {usage.name: usage for usage in coming}

    def correct(self, random: Random, *, charges: bool) -> None:
        """Correct some events, and take some of it back."""
        kinds = ["void", "customer_id", "quantities", *(["charge"] if charges else [])]
        for name in random.sample(sorted(self.usage), min(len(self.usage), random.randint(0, 4))):
            before = self.usage[name]
            after, change = make_change(random, random.choice(kinds), before, self.month.account.card["currency"])
            if after == before:
                continue
            batch = self.product.correct(before, **change)
            if random.random() < 0.3:
                self.product.take_back(batch)
            elif after is None:
                del self.usage[name]
            else:
                self.usage[name] = after

    def decide_unpriced(self, random: Random, *, charges: bool) -> None:
        """What has no price keeps its period open until somebody decides: give it a charge, or void it."""
        for name, usage in list(self.usage.items()):
            if find_charge(self.month.account, usage) is None:
                kind = "charge" if charges else "void"
                after, change = make_change(random, kind, usage, self.month.account.card["currency"])
                self.product.correct(usage, **change)
                del self.usage[name]
                if after is not None:
                    self.usage[name] = after

    def give(self, grants: Sequence[Grant]) -> None:
        """Give credits in both books."""
        self.grants += [replace(grant, grant_id=self.product.grant(grant)) for grant in grants]

    def rerate(self, random: Random) -> None:
        """Correct prices, and sometimes terms, as they should have been from the beginning."""
        terms = random.random() < 0.5
        card = correct_prices(random, self.month.account.card)
        account = replace(self.month.account, card=correct_terms(random, card) if terms else card)
        self.month = replace(self.month, account=account)
        self.product.rerate(account, terms=terms)

    def compare_simulation(self, random: Random) -> None:
        """What closed periods come to, and would have under other prices and terms."""
        card = correct_terms(random, correct_prices(random, self.month.account.card))
        other = replace(self.month.account, card=card)
        usage = list(self.usage.values())
        for customer, periods in self.month.periods.items():
            expected = [
                sum(
                    (sum(bill_period(account, customer, usage, periods[: place + 1]).values(), Fraction(0))
                     for place in range(MONTHS)),
                    Fraction(0),
                )
                for account in (self.month.account, other)
            ]  # fmt: skip
            assert self.product.simulate(other, customer) == expected, customer

    def compare_balances(self, at: int) -> None:
        """What every customer has at an instant."""
        for customer in self.month.customers:
            charges = self.charges[customer]
            demands = list_demands(self.month.account, customer, self.usage.values(), charges)
            mine = [grant for grant in self.grants if grant.customer == customer]
            assert self.product.balance(customer, at) == burn(mine, demands, at).balances, (customer, at)

    def compare_records(self) -> None:
        """Each record's charge and cost."""
        records = self.product.show(self.usage.values())
        for usage in self.usage.values():
            record = records[usage.name]
            expected = (find_charge(self.month.account, usage), find_cost(self.month.account, usage))
            assert (read_amount(record["charge"]), read_amount(record["cost"])) == expected, (usage, record)

    def compare_invoice(self, customer: str, number: int, invoice: Json) -> None:
        """Each line, exact and rounded, and the total; then both books remember what was invoiced."""
        stated, expected, charges = self.state_lines(customer, number)
        paid, credits = self.state_credits(customer, number, charges)
        others = [line for line in invoice["lines"] if line["kind"] != "credit"]
        assert group_lines({**invoice, "lines": others}) == expected
        assert group_credits(invoice) == credits
        exact = [Fraction(line["exact"]) for line in invoice["lines"]]
        digits = self.month.digits
        assert [Fraction(line["amount"]) for line in invoice["lines"]] == round_lines(exact, digits)
        total = sum((*expected.values(), *credits.values()), Fraction(0))
        assert Fraction(invoice["total"]) == round_total(total, digits)
        self.invoiced |= {(customer, place): lines for place, lines in stated.items()}
        self.paid |= {(customer, place): lines for place, lines in paid.items()}
        self.charges[customer] = charges
        self.compared += len(exact)

    def state_lines(
        self, customer: str, number: int
    ) -> tuple[dict[int, dict[Key, Fraction]], dict[Key, Fraction], dict[int, Fraction]]:
        """All lines of each period so far, what of them is new, and what credits are asked for beside usage."""
        periods, charges = self.month.periods[customer], dict(self.charges[customer])
        stated: dict[int, dict[Key, Fraction]] = {}
        expected: dict[Key, Fraction] = {}
        for place in range(number + 1):
            start, end = periods[place]
            stated[place] = bill_period(self.month.account, customer, list(self.usage.values()), periods[: place + 1])
            changed = subtract(stated[place], self.invoiced[customer, place])
            expected |= {(format_instant(start), *key): amount for key, amount in changed.items()}
            beside = sum((amount for key, amount in changed.items() if key[0] != "usage"), Fraction(0))
            charges[end] = charges.get(end, Fraction(0)) + cut(beside)
        return stated, expected, charges

    def state_credits(
        self, customer: str, number: int, charges: Mapping[int, Fraction]
    ) -> tuple[dict[int, dict[Key, Fraction]], dict[Key, Fraction]]:
        """What grants pay of each period so far, and what of it is new."""
        demands = list_demands(self.month.account, customer, self.usage.values(), charges)
        mine = [grant for grant in self.grants if grant.customer == customer]
        paid: dict[int, dict[Key, Fraction]] = {}
        expected: dict[Key, Fraction] = {}
        for place in range(number + 1):
            start, end = self.month.periods[customer][place]
            found = burn(mine, demands, end).list_paid(start, end)
            paid[place] = {("credit", grant_id): -value for grant_id, value in found.items()}
            changed = subtract(paid[place], self.paid[customer, place])
            expected |= {(format_instant(start), *key): amount for key, amount in changed.items()}
        return paid, expected


def check_archives(product: Product, folder: Path) -> None:
    """Every invoice is exported and checked by the script inside its archive."""
    for invoice in product.store.read(list_invoices):
        target = BytesIO()
        product.store.read(partial(pack_invoice, invoice_id=invoice.invoice_id, target=target))
        target.seek(0)
        with tarfile.open(fileobj=target) as tar:
            tar.extractall(folder / invoice.invoice_id, filter="data")
        assert Checker(folder / invoice.invoice_id).run() == [], invoice.invoice_id


def open_month(seed: int, folder: Path) -> tuple[Month, Product]:
    """The first month of a seed whose card is not refused: entries of equal rank that meet are an error at load."""
    for attempt in range(100):
        month = make_month(Random(f"{seed}/{attempt}"))
        try:
            return month, Product(folder, month)
        except ConfigError as error:
            refused = error
    raise refused


def audit_month(seed: int, folder: Path) -> Audit:
    """Drive one seed through both books, comparing after every step."""
    month, product = open_month(seed, folder)
    audit = Audit(month, product)
    random = Random(f"{seed}/changes")
    with_credits = random.random() < 0.5
    if with_credits:
        audit.give(make_grants(random, month))
    for number in range(MONTHS):
        audit.arrive(number)
        if number:
            audit.correct(random, charges=not with_credits)
        audit.compare_records()
        audit.decide_unpriced(random, charges=not with_credits)
        audit.compare_records()
        for instant in month.list_instants(random):
            audit.compare_balances(instant)
        for customer in month.customers:
            audit.compare_invoice(customer, number, product.close(customer, month.labels[number]))
        if not with_credits and number == MONTHS - 2:
            audit.rerate(random)
    audit.compare_simulation(random)
    check_archives(product, folder)
    product.store.close()
    return audit


@pytest.mark.parametrize("seed", SEEDS)
def test_random_months_agree(seed: int, tmp_path: Path) -> None:
    """Records, lines, totals and balances are the auditor's, before and after late events and corrections."""
    assert audit_month(seed, tmp_path).compared


def test_one_unit_in_the_last_digit_is_noticed(tmp_path: Path) -> None:
    """The comparison fails when any line, exact or rounded, or the total is off by one in its last digit."""
    month, product = open_month(0, tmp_path)
    audit = Audit(month, product)
    audit.arrive(0)
    customer = max(CUSTOMERS, key=lambda name: sum(usage.customer == name for usage in audit.usage.values()))
    invoice = product.close(customer, month.labels[0])
    assert invoice["lines"]
    for faulty in list_faulty(invoice):
        with pytest.raises(AssertionError):
            audit.compare_invoice(customer, 0, faulty)
    audit.compare_invoice(customer, 0, invoice)
    product.store.close()


def test_one_atto_of_a_record_or_a_balance_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails when a record's charge or a customer's balance is off by one in the 18th decimal."""
    month, product = open_month(0, tmp_path)
    audit = Audit(month, product)
    audit.arrive(0)
    audit.compare_records()
    balance = product.balance
    name, record = next(iter(product.show(audit.usage.values()).items()))
    charge = str(Fraction(record["charge"]) + Fraction(1, 10**18))
    shown = {**product.show(audit.usage.values()), name: {**record, "charge": charge}}
    monkeypatch.setattr(product, "show", lambda usages: shown)
    with pytest.raises(AssertionError):
        audit.compare_records()
    at, atto = month.list_instants(Random(0))[-1], Fraction(1, 10**18)
    audit.compare_balances(at)
    monkeypatch.setattr(product, "balance", lambda customer, at: {**balance(customer, at), "USD": atto})
    with pytest.raises(AssertionError):
        audit.compare_balances(at)
    product.store.close()


def list_faulty(invoice: Json) -> Iterator[Json]:
    """The invoice with one amount changed by one unit in its last digit, for every amount on it."""
    yield {**invoice, "total": add_one(invoice["total"])}
    for place, line in enumerate(invoice["lines"]):
        for name in ("exact", "amount"):
            lines = list(invoice["lines"])
            lines[place] = {**line, name: add_one(line[name])}
            yield {**invoice, "lines": lines}


def add_one(text: str) -> str:
    """A decimal or a fraction with one more in its last digit."""
    if "/" in text:
        numerator, denominator = text.split("/")
        return f"{int(numerator) + 1}/{denominator}"
    amount = Decimal(text)
    return str(amount + Decimal(1).scaleb(int(amount.as_tuple().exponent)))
