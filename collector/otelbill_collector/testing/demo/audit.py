"""Collects the findings of a run: the provider's tally, the sidecar's ledger and the reconciliation with Stripe.

Owns the questions asked of each book and how their answers are put side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from otelbill_collector.testing.demo.findings import (
    MICROS,
    TOKEN_UNITS,
    CustomerTotals,
    Findings,
    Json,
    ModelBooks,
    NotBilled,
    StripeEvent,
    StripeLane,
)
from otelbill_collector.testing.demo.sidecar import SidecarProcess
from otelbill_collector.testing.usage import TalliedCall


def collect_findings(
    sidecar: SidecarProcess, tally: Sequence[TalliedCall], reconciliation: Json, stripe_ids: Mapping[str, str]
) -> Findings:
    """Ask every book. `reconciliation` is the answer of the operation `reconcile`. Raises ProgramFailed."""
    totals = sum_customers(sidecar.fetch("/v1/usage", {"by": "customer,model"}))
    runs = {row["run"] for row in sidecar.fetch("/v1/usage", {"by": "run"}) if row["run"]}
    explained = {run: sidecar.fetch(f"/v1/explain/{run}") for run in sorted(runs)}
    records = {run: select_in_force(answer["records"]) for run, answer in explained.items()}
    books = sidecar.fetch("/v1/usage", {"by": "model,usage_source"})
    return Findings(
        customers=totals,
        models=compare_models(tally, books),
        not_billed=list_not_billed(tally, [record for rows in records.values() for record in rows]),
        events=list_events([intent for answer in explained.values() for intent in answer["stripe"]]),
        lanes=_list_lanes(totals, reconciliation, stripe_ids),
        differences=(*reconciliation["differences"], *_list_leftovers(sidecar)),
        shown_run=(shown := _choose_run(records)),
        records=tuple(records.get(shown, ())),
    )


def select_in_force(records: Sequence[Json]) -> list[Json]:
    """The last booking of each event; `records` are in booking order."""
    return list({record["event_id"]: record for record in records if record["kind"] == "usage"}.values())


def count_answered(tally: Sequence[TalliedCall]) -> int:
    """Calls that the provider answered, usage reported or not: each must become one event."""
    return sum(call.status == 200 for call in tally)


def sum_customers(rows: Sequence[Json]) -> tuple[CustomerTotals, ...]:
    """Totals from usage by customer and model; rows without a model are usage of the application's own."""
    by_customer: dict[str, list[Json]] = {}
    for row in rows:
        by_customer.setdefault(row["customer"] or "(suspense)", []).append(row)
    return tuple(_sum_rows(customer, group) for customer, group in sorted(by_customer.items()))


def _sum_rows(customer: str, rows: Sequence[Json]) -> CustomerTotals:
    tokens: Counter[str] = Counter()
    other: dict[str, Decimal] = {}
    for row in rows:
        for unit, quantity in row["quantities"].items():
            if unit in TOKEN_UNITS:
                tokens[unit] += quantity
            elif row["model"] is None:
                other[unit] = other.get(unit, Decimal(0)) + Decimal(quantity)
    return CustomerTotals(
        customer=customer,
        calls=sum(row["events"] for row in rows if row["model"] is not None),
        tokens=dict(tokens),
        other={unit: f"{quantity:f}" for unit, quantity in other.items()},
        cost=sum((Decimal(row["cost"] or 0) for row in rows), Decimal(0)),
        charge=sum((Decimal(row["charge"] or 0) for row in rows), Decimal(0)),
    )


def compare_models(tally: Sequence[TalliedCall], rows: Sequence[Json]) -> tuple[ModelBooks, ...]:
    """Answered calls whose usage reached the caller, against usage by model and source without what is held."""
    said: dict[str, Counter[str]] = {}
    for call in tally:
        if call.status == 200 and call.reported:
            said.setdefault(call.model, Counter()).update({"calls": 1, **_pick_tokens(call.quantities)})
    billed: dict[str, Counter[str]] = {}
    for row in rows:
        if row["model"] is not None and row["usage_source"] != "unknown":
            counts = {"calls": row["events"], **_pick_tokens(row["quantities"])}
            billed.setdefault(row["model"], Counter()).update(counts)
    return tuple(
        ModelBooks(model, *_split_calls(said.get(model, Counter())), *_split_calls(billed.get(model, Counter())))
        for model in sorted({*said, *billed})
    )


def list_not_billed(tally: Sequence[TalliedCall], records: Sequence[Json]) -> tuple[NotBilled, ...]:
    """Refused attempts by status from the provider; failed calls, held calls and plain steps from the ledger."""
    reasons = Counter(record["reason"] for record in records if record["rating"] in ("not_billable", "held"))
    limited = sum(call.status == 429 for call in tally)
    unreported = [call.quantities for call in tally if call.status == 200 and not call.reported]
    sizes = [sum(quantities.get(unit, 0) for unit in TOKEN_UNITS[:4]) for quantities in unreported]
    found = [
        NotBilled(
            "attempts refused by the provider (429)", limited, "the client tried again; each call is billed once"
        ),
        NotBilled("calls that failed", reasons["failed_without_usage"], "no answer, no usage"),
        NotBilled("steps of the agent", reasons["structure"], "they lead to calls, they use nothing themselves"),
        NotBilled(
            "streams without include_usage",
            reasons["no_usage_reported"],
            f"held, not guessed: see `otelbill held` (the provider counted {sum(sizes)} tokens)",
            held=True,
        ),
    ]
    return tuple(item for item in found if item.count)


def list_events(intents: Sequence[Json]) -> tuple[StripeEvent, ...]:
    """The meter events among the explanations of all runs, each once, by customer and window."""
    events = {
        item["identifier"]: StripeEvent(
            item["identifier"],
            item["customer_id"],
            item["window_start"],
            item["window_end"],
            int(item["value"]),
            item["state"],
        )
        for item in intents
    }
    return tuple(sorted(events.values(), key=lambda event: (event.customer, event.window_start, event.identifier)))


def _list_lanes(
    totals: Sequence[CustomerTotals], reconciliation: Json, stripe_ids: Mapping[str, str]
) -> tuple[StripeLane, ...]:
    at_stripe: dict[str, Decimal] = {}
    for row in reconciliation["rows"]:
        name = row["stripe_customer_id"]
        at_stripe[name] = at_stripe.get(name, Decimal(0)) + Decimal(row["stripe"])
    books = {lane["customer_id"]: lane for lane in reconciliation["lanes"]}
    return tuple(
        _join_lane(item, stripe_ids.get(item.customer, "-"), books.get(item.customer), at_stripe) for item in totals
    )


def _join_lane(
    totals: CustomerTotals, stripe_id: str, lane: Json | None, at_stripe: Mapping[str, Decimal]
) -> StripeLane:
    lane = lane or {"booked": "0", "intended": 0, "carry": "0"}
    return StripeLane(
        customer=totals.customer,
        stripe_customer=stripe_id,
        charge=totals.charge * MICROS,
        booked=Decimal(lane["booked"]),
        intended=int(lane["intended"]),
        carry=Decimal(lane["carry"]),
        stripe=at_stripe.get(stripe_id, Decimal(0)),
    )


def _list_leftovers(sidecar: SidecarProcess) -> list[str]:
    """Named differences: what the sidecar could not process or price."""
    letters = sidecar.fetch("/v1/dead-letters")
    unpriced = [record for record in sidecar.fetch("/v1/held") if record["rating"] == "unpriced"]
    found = [f"dead letter {letter['letter_id']}: {letter['code']} {letter['field']}" for letter in letters]
    return found + [f"event {record['event_id']} has no price: {record['quantities']}" for record in unpriced]


def _choose_run(records: Mapping[str, Sequence[Json]]) -> str:
    """The run with the most kinds of records, then the shortest: it shows most on the least space."""

    def rank(run: str) -> tuple[int, int, str]:
        return -len({(record["reason"], record["operation"]) for record in records[run]}), len(records[run]), run

    return min(records, key=rank, default="")


def _pick_tokens(quantities: Mapping[str, Any]) -> dict[str, int]:
    return {unit: quantities[unit] for unit in TOKEN_UNITS if quantities.get(unit)}


def _split_calls(counts: Counter[str]) -> tuple[int, dict[str, int]]:
    return counts["calls"], {unit: counts[unit] for unit in TOKEN_UNITS if counts[unit]}
