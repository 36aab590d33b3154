"""Amounts of spans in columns: each combination of what decides prices is looked up once, the rest is arithmetic in C.

Owns the numbers that stand for payers, steps and price versions, and the plans by them. What a plan is, and what spans
that have none come to, is said by `domain.rating`; the arithmetic is `native.rating`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.prices import INSTANT_MAX, INSTANT_MIN, PriceVersion
from otelbill_collector.domain.rating import HeldPlan, Payer, Rater
from otelbill_collector.domain.span_columns import (
    COUNTED_UNITS,
    RATINGS,
    AmountColumns,
    Int32s,
    SpanColumns,
    Template,
)
from otelbill_collector.domain.usage import REQUESTS, RatingState, Role
from otelbill_collector.native import rating as native
from otelbill_collector.native.loading import find_library

_PLANS_MAX = 65_536  # models, steps, payers and sets of units come from outside
_PASSES_MAX = 16
_INPUTS = 3  # of COUNTED_UNITS: the size of a request
_CODES = {state: code for code, state in enumerate(RATINGS)}
_COUNTED_ROLES = (Role.CALL, Role.AGGREGATE)
_ANY: dict[str, object] = {  # fields of `native.PLAN`: holds whenever, for requests of any size; looks at each span
    **dict.fromkeys(("first_nanos", "above"), INSTANT_MIN),
    **dict.fromkeys(("last_nanos", "upto"), INSTANT_MAX),
    **dict.fromkeys(("rating", "version"), -1),
    **dict.fromkeys(("cost", "charge", "day_first"), 0),
    "day_last": DAY_NANOS - 1,
    "kind": native.ALONE,
}

Settle = Callable[[Template], RatingState | None]  # a rating that follows from the template alone


class SpanRater:
    """Rates spans in columns as `Rater` rates each. For one thread; `settle` knows what is held and not billable."""

    def __init__(self, rater: Rater, settle: Settle) -> None:
        self._rater = rater
        self._settle = settle
        self._library = find_library()
        self._forget(())

    def rate(self, spans: SpanColumns, customer: Int32s, step: Int32s) -> tuple[AmountColumns, NDArray[np.intp]]:
        """Amounts of spans that `customer` pays in `step`, and the rows that must be rated one by one."""
        if self._templates is not spans.templates or (self._table and len(self._table) > _PLANS_MAX):
            self._forget(spans.templates)
        count = len(spans)
        found = native.Amounts.create(count)
        found.outcome[:] = native.ALONE
        if self._table is not None and count:
            self._fill(
                self._table, spans, native.Spans(spans.template, customer, step, spans.ended_nanos, spans.counts), found
            )
        rest = np.flatnonzero(found.outcome)
        found.rating[rest] = found.version[rest] = -1
        found.priced[rest] = 0
        priced = found.priced.view(bool)
        return (
            AmountColumns(
                rating=found.rating,
                price_version=found.version,
                versions=self._versions,
                cost_attos=found.cost,
                charge_attos=found.charge,
                has_cost=priced,
                has_charge=priced.copy(),
                currency=self._rater.card.currency,
                has_currency=found.rating != _CODES[RatingState.NOT_BILLABLE],
                price_bodies=self._list_bodies(found.version),
            ),
            rest,
        )

    def number_version(self, version_id: str, body: str) -> int:
        """The code of a price version, which may be new."""
        code = self._version_codes.get(version_id)
        if code is None:
            code = self._version_codes[version_id] = len(self._versions)
            self._versions.append(version_id)
            self._bodies.append(body)
        return code

    def _forget(self, templates: Sequence[Template]) -> None:
        self._table = native.PlanTable(self._library) if self._library is not None else None
        self._templates = templates
        self._names: Sequence[str] = ()
        self._payers: dict[Payer, int] = {self._rater.find_payer(None): 0}
        self._steps: dict[str | None, int] = {None: 0}
        self._payer_list: list[Payer] = list(self._payers)
        self._step_list: list[str | None] = [None]
        self._counted = np.empty(0, dtype=np.uint8)
        self._payer_of = np.empty(0, dtype=np.int32)
        self._step_of = np.empty(0, dtype=np.int32)
        self._versions: list[str] = []
        self._bodies: list[str] = []
        self._version_codes: dict[str, int] = {}

    def _fill(self, table: native.PlanTable, spans: SpanColumns, columns: native.Spans, found: native.Amounts) -> None:
        facts = self._learn(spans)
        left = table.rate(columns, facts, found)
        for _ in range(_PASSES_MAX):
            missing = np.flatnonzero(found.outcome == native.NO_PLAN) if left else ()
            if not len(missing):
                return
            _, firsts = np.unique(found.key[missing], return_index=True)
            for row in missing[firsts].tolist():
                self._add_plan(table, spans, row, int(found.key[row]))
            left = table.rate(columns, facts, found)

    def _learn(self, spans: SpanColumns) -> native.Facts:
        """What is new in the lists of templates and names, which only grow."""
        if self._names is not spans.names:
            self._names = spans.names
            self._payer_of, self._step_of = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)
        templates = spans.templates[len(self._counted) : native.TEMPLATES_MAX]
        if templates:
            counted = [item.counted and item.role in _COUNTED_ROLES for item in templates]
            self._counted = np.concatenate([self._counted, np.array(counted, dtype=np.uint8)])
        names = spans.names[len(self._payer_of) :]
        if names:
            payers, steps = [self._number_payer(name) for name in names], [self._number_step(name) for name in names]
            self._payer_of = np.concatenate([self._payer_of, np.array(payers, dtype=np.int32)])
            self._step_of = np.concatenate([self._step_of, np.array(steps, dtype=np.int32)])
        return native.Facts(self._counted, self._payer_of, self._step_of)

    def _number_payer(self, name: str) -> int:
        payer = self._rater.find_payer(name)
        code = self._payers.setdefault(payer, len(self._payers))
        if code == len(self._payer_list):
            self._payer_list.append(payer)
        return code if code < native.PAYERS_MAX else -1

    def _number_step(self, name: str) -> int:
        if not self._rater.knows_step(name):
            return 0
        code = self._steps.setdefault(name, len(self._steps))
        if code == len(self._step_list):
            self._step_list.append(name)
        return code if code < native.STEPS_MAX else -1

    def _add_plan(self, table: native.PlanTable, spans: SpanColumns, row: int, key: int) -> None:
        """Look up what holds for a span, and so for all like it."""
        parts = native.split_key(key)
        template = spans.templates[parts.template]
        settled = self._settle(template)
        if settled is not None:
            table.add(key, _ANY | {"kind": native.SETTLED, "rating": _CODES[settled]})
            return
        used = tuple(unit for place, unit in enumerate(COUNTED_UNITS) if parts.units >> place & 1)
        if template.role is Role.CALL:
            used = (*used, REQUESTS)
        held = self._rater.find_held_plan(
            used,
            int(spans.ended_nanos[row]),
            sum(spans.counts[:_INPUTS, row].tolist()) if parts.units else 0,
            template=(template.provider, template.model, template.request_model, template.service_tier),
            payer=self._payer_list[parts.payer],
            step=self._step_list[parts.step],
        )
        table.add(key, _ANY | self._describe(held, used))

    def _describe(self, held: HeldPlan, used: Sequence[str]) -> dict[str, object]:
        """The fields of `native.PLAN` for a plan; prices past 64 bits are for the way one by one."""
        limits = dict(zip(("first_nanos", "last_nanos", "day_first", "day_last"), held.bounds, strict=True))
        found: dict[str, object] = {**limits, "above": held.above_tokens, "upto": held.upto_tokens}
        if held.priceless:
            return found | {"kind": native.SETTLED, "rating": _CODES[RatingState.UNPRICED]}
        if held.plan is None or any(not 0 <= price < 2**63 for pair in held.plan.prices for price in pair):
            return found
        prices = dict(zip(used, held.plan.prices, strict=True))
        columns = zip(*[prices.get(unit, (0, 0)) for unit in (*COUNTED_UNITS, REQUESTS)], strict=True)
        found |= dict(zip(("cost", "charge"), columns, strict=True))
        return found | {
            "kind": native.SUMMED,
            "rating": _CODES[RatingState.RATED],
            "version": self._number(held.plan.version),
        }

    def _number(self, version: PriceVersion) -> int:
        return self.number_version(version.version_id, version.body)

    def _list_bodies(self, versions: Int32s) -> dict[str, str]:
        used = np.zeros(len(self._versions) + 1, dtype=bool)
        used[versions] = True  # -1 is the last
        return {self._versions[code]: self._bodies[code] for code in np.flatnonzero(used[:-1]).tolist()}
