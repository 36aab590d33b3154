"""The front page: what each customer used and pays, what waits for somebody, and how Stripe stands.

Owns HTML only. It is given what the JSON API gives, needs no script and no file beside it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from otelbill_collector.ledger.rollups import UsageQuery

FRONT_QUERY = UsageQuery(by=("customer",))
_ROWS_MAX = 500
_DIGITS = 60  # sums of amounts with 18 decimals stay exact
_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
_OPEN_STATES = ("pending", "sending", "unknown")
_BAD_STATES = ("rejected", "mismatch", "dead")

Json = Mapping[str, Any]  # what the read models give


@dataclass(frozen=True, slots=True)
class FrontPage:
    """What the page shows: groups of `FRONT_QUERY`, the number of dead letters, the outbox."""

    usage: Sequence[Json]
    dead_letters: int
    stripe: Json


@dataclass(slots=True)
class _Total:
    """One customer in one currency."""

    calls: int = 0
    tokens: int = 0
    cost: Decimal | None = None
    charge: Decimal | None = None
    unpriced: int = 0
    held: int = 0

    def add(self, row: Json) -> None:
        self.calls += int(row["quantities"].get("requests", 0))
        self.tokens += sum(int(row["quantities"].get(name, 0)) for name in _TOKENS)
        self.cost = _add(self.cost, row["cost"])
        self.charge = _add(self.charge, row["charge"])
        self.unpriced += row["unpriced"]
        self.held += row["held"]


def render_front(page: FrontPage) -> str:
    """The page as HTML."""
    totals: dict[tuple[str | None, str], _Total] = {}
    for row in page.usage:
        totals.setdefault((row["customer"], row["currency"] or ""), _Total()).add(row)
    suspense = sum(row["events"] for row in page.usage if row["customer"] is None)
    tiles = (
        ("unpriced", sum(total.unpriced for total in totals.values()), "no price matches", "v1/held"),
        ("held", sum(total.held for total in totals.values()), "usage is not known", "v1/held"),
        ("in suspense", suspense, "no customer", "v1/suspense"),
        ("dead letters", page.dead_letters, "no rule could process", "v1/dead-letters"),
    )
    return _PAGE.format(
        tiles="".join(_render_tile(*tile) for tile in tiles),
        rows=_render_totals(totals)
        or '<tr><td colspan="8">Nothing yet. Send OTLP to 4327 (gRPC) or 4328 (HTTP).</td></tr>',
        more=f"<p>The first {_ROWS_MAX} customers.</p>" if len(totals) > _ROWS_MAX else "",
        stripe=_render_stripe(page.stripe),
    )


def _render_tile(name: str, count: int, meaning: str, link: str) -> str:
    kind = "tile wait" if count else "tile"
    return f'<a class="{kind}" href="{link}"><b>{count:,}</b> {name}<small>{meaning}</small></a>'


def _render_totals(totals: Mapping[tuple[str | None, str], _Total]) -> str:
    rows = []
    for (customer, currency), total in sorted(totals.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        name = html.escape(customer) if customer else "<i>nobody (suspense)</i>"
        margin = None if currency != "USD" else _subtract(total.charge, total.cost)
        waits = ", ".join(
            f"{count} {word}" for count, word in ((total.unpriced, "unpriced"), (total.held, "held")) if count
        )
        cells = (f"{total.calls:,}", f"{total.tokens:,}", *map(_format, (total.cost, total.charge, margin)))
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td>{name}</td>{numbers}<td>{html.escape(currency)}</td><td>{waits}</td></tr>")
    return "".join(rows[:_ROWS_MAX])


def _render_stripe(status: Json) -> str:
    counts: Counter[str] = Counter(status["counts"])
    parts = [
        (sum(counts[state] for state in ("accepted", "duplicate", "confirmed")), "delivered"),
        (sum(counts[state] for state in _OPEN_STATES), "waiting"),
        (sum(counts[state] for state in _BAD_STATES), "need a person"),
    ]
    if not sum(count for count, _ in parts) and not status["lanes"]:
        return "<p>Nothing is metered for Stripe. <code>otelbill stripe plan</code> shows what its set-up lacks.</p>"
    said = ", ".join(f"{count:,} {word}" for count, word in parts)
    oldest = status["oldest_waiting_at"]
    waiting = f"; the oldest waits since {html.escape(oldest[:19])}Z" if oldest else ""
    return f"<p>Meter events: {said}{waiting}.</p>{_render_stops(status['stops'])}"


def _render_stops(stops: Iterable[Json]) -> str:
    items = "".join(f"<li><b>{html.escape(stop['code'])}</b> {html.escape(stop['message'])}</li>" for stop in stops)
    return f'<p class="wait">Sending has stopped for:</p><ul>{items}</ul>' if items else ""


def _add(total: Decimal | None, amount: str | None) -> Decimal | None:
    if amount is None:
        return total
    with localcontext(prec=_DIGITS):
        return Decimal(amount) + (total or 0)


def _subtract(charge: Decimal | None, cost: Decimal | None) -> Decimal | None:
    if charge is None:
        return None
    with localcontext(prec=_DIGITS):
        return charge - (cost or 0)


def _format(amount: Decimal | None) -> str:
    return "\u2013" if amount is None else f"{amount.normalize():,f}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>otelbill</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; --wait: #b45309; }}
@media (prefers-color-scheme: dark) {{ :root {{ --wait: #f59e0b; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }}
th {{ font-weight: 600; }} .n {{ text-align: right; font-variant-numeric: tabular-nums; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }}
.tile {{ background: var(--soft); border-radius: .5rem; padding: .7rem .9rem; color: inherit; text-decoration: none; }}
.tile b {{ font-size: 1.3rem; }} .tile small {{ display: block; opacity: .7; }} .wait, .wait b {{ color: var(--wait); }}
</style></head><body>
<h1>otelbill</h1>
<div>What this ledger holds, and what waits for somebody.</div>
<div class="tiles">{tiles}</div>
<h2>Customers</h2>
<table><thead><tr><th>customer</th><th class="n">calls</th><th class="n">tokens</th><th class="n">cost</th>
<th class="n">charge</th><th class="n">margin</th><th>currency</th><th>waiting</th></tr></thead>
<tbody>{rows}</tbody></table>
{more}<p><small>Cost is what providers charge, charge what customers pay, margin the charge less the known cost.
What is unpriced or held has no charge yet.</small></p>
<h2>Stripe</h2>
{stripe}
<h2>More</h2>
<p>As JSON: <a href="v1/usage?by=customer,step,model">usage by customer, step and model</a>,
<a href="v1/usage?by=day">by day</a>, <a href="v1/held">held and unpriced</a>,
<a href="v1/suspense">suspense</a>,
<a href="v1/dead-letters">dead letters</a>, <a href="v1/stripe/status">Stripe status</a>.
For machines: <a href="metrics">metrics</a>, <a href="readyz">readiness</a>.
At a terminal: <code>otelbill usage</code>, <code>otelbill explain ID</code>, <code>otelbill suspense</code>.</p>
</body></html>
"""
