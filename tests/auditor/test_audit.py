"""The product's amounts are those of a second implementation that was written from the documentation alone.

Every seed is a few random months of a few customers: cards, zones, late events, corrections, credits. The product gets
spans and operator commands through its public path; the auditor gets the same as plain data. They agree to the last digit.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from otelbill_collector.app import build_stages
from otelbill_collector.billing import Billing
from otelbill_collector.commands import build_operate
from otelbill_collector.config import ConfigError, load_config
from otelbill_collector.explanation import explain_identifier
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.operations import Operations
from otelbill_collector.pipeline import Request, carry_batch
from tests.auditor.auditor import (
    SECOND,
    Key,
    Usage,
    bill_period,
    find_charge,
    find_cost,
    round_lines,
    round_total,
    subtract,
)
from tests.auditor.random_months import MONTHS, Month, format_instant, make_month
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
        file = folder / "otelbill.yaml"
        content = {
            "customers": month.customers,
            "billing": {"grace": "0s"},
            "provider_prices": list(month.account.provider_prices),
            "rate_card": month.account.card,
        }
        file.write_text(yaml.safe_dump(content))
        self.now = max(end for periods in month.periods.values() for _, end in periods) + 1
        config = load_config(file, {}, {"data_dir": str(folder / "ledger")})
        self.store = SqliteStore(folder / "ledger")
        self.stages = build_stages(config, self.store)
        self.operations = Operations(
            self.stages, None, lambda: self.now, billing=Billing(self.store, config, lambda: self.now)
        )
        self.operate = build_operate(self.operations)

    def post(self, usages: Sequence[Usage]) -> None:
        """Book the spans of usage."""
        body = build_request([make_span(usage) for usage in usages])
        carry_batch([Request(body, self.now)], self.stages, self.now)
        self.operations.fold()

    def show(self, usage: Usage) -> Json:
        """The latest record of an event."""
        found = self.store.read(lambda connection: explain_identifier(connection, trace_id(usage.name).hex()))
        return max(found["records"], key=lambda record: record["revision"])

    def close(self, customer: str, label: str) -> Json:
        """The invoice of a period that must be closable."""
        arguments = {"customer_id": customer, "label": label, "operator": "ann", "reason": "over"}
        answer = self.operate["close"](arguments)
        assert not answer["refused"], answer["refused"]
        (invoice,) = answer["closed"]
        return invoice


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


class Audit:
    """One scenario in both books, step by step; every comparison is an assertion."""

    def __init__(self, month: Month, product: Product) -> None:
        self.month, self.product = month, product
        self.usage: dict[str, Usage] = {}
        self.invoiced: dict[tuple[str, int], dict[Key, Fraction]] = defaultdict(dict)
        self.compared = 0

    def arrive(self, closings: int) -> None:
        """Post what arrives after so many closings."""
        coming = [usage for when, usage in self.month.arrivals if when == closings]
        if coming:
            self.product.post(coming)
        self.usage |= {usage.name: usage for usage in coming}

    def compare_records(self) -> None:
        """Each record's charge and cost."""
        for usage in self.usage.values():
            record = self.product.show(usage)
            expected = (find_charge(self.month.account, usage), find_cost(self.month.account, usage))
            assert (read_amount(record["charge"]), read_amount(record["cost"])) == expected, (usage, record)

    def compare_invoice(self, customer: str, number: int, invoice: Json) -> None:
        """Each line, its rounding, and the total."""
        expected: dict[Key, Fraction] = {}
        periods = self.month.periods[customer]
        for place in range(number + 1):
            lines = bill_period(self.month.account, customer, list(self.usage.values()), periods[: place + 1])
            changed = subtract(lines, self.invoiced[customer, place])
            self.invoiced[customer, place] = lines
            expected |= {(format_instant(periods[place][0]), *key): amount for key, amount in changed.items()}
        assert group_lines(invoice) == expected
        exact = [Fraction(line["exact"]) for line in invoice["lines"]]
        digits = self.month.digits
        assert [Fraction(line["amount"]) for line in invoice["lines"]] == round_lines(exact, digits)
        assert Fraction(invoice["total"]) == round_total(sum(expected.values(), Fraction(0)), digits)
        self.compared += len(exact)


def open_month(seed: int, folder: Path) -> tuple[Month, Product]:
    """The first month of a seed whose card is not refused: entries of equal rank that meet are an error at load."""
    for attempt in range(100):
        month = make_month(Random(f"{seed}/{attempt}"))
        try:
            return month, Product(folder, month)
        except ConfigError as error:
            refused = error
    raise refused


@pytest.mark.parametrize("seed", SEEDS)
def test_random_months_agree(seed: int, tmp_path: Path) -> None:
    """Records, lines and totals are the auditor's, before and after late events and corrections."""
    month, product = open_month(seed, tmp_path)
    audit = Audit(month, product)
    for number in range(MONTHS):
        audit.arrive(number)
        audit.compare_records()
        for customer in month.customers:
            audit.compare_invoice(customer, number, product.close(customer, month.labels[number]))
    product.store.close()
