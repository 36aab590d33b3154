"""An invoice as one HTML page that prints well and needs nothing else. Owns the markup; everything shown is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]  # an invoice as JSON values

_STYLE = """
body { font: 10pt/1.4 system-ui, sans-serif; color: #111; margin: 2em auto; max-width: 60em; padding: 0 1em }
h1 { font-size: 16pt; margin: 0 0 .3em }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: 0 0 1.5em }
dt { color: #555 } dd { margin: 0 }
table { border-collapse: collapse; width: 100% }
th { text-align: left; border-bottom: 1.5pt solid #111; padding: .3em .5em .3em 0 }
td { vertical-align: top; border-bottom: .5pt solid #bbb; padding: .3em .5em .3em 0 }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.how { color: #555; font-size: 8.5pt }
.id { color: #555; font: 7.5pt ui-monospace, monospace }
tfoot td { border-bottom: none; border-top: 1.5pt solid #111; font-weight: bold }
.draft { border: 1.5pt solid #b00; color: #b00; padding: .4em .8em; margin: 0 0 1em }
@media print { body { margin: 0; max-width: none } thead { display: table-header-group } tr { break-inside: avoid } }
"""
_STATES = {
    "open": "Not an invoice: the period is open, and this is what it would say now.",
    "draft": "Draft: not approved yet.",
    "voided": "Voided: this invoice does not count.",
}


def render_page(invoice: Json) -> str:
    """The page of an invoice or draft, in UTF-8."""
    title = f"{invoice['customer_id']}, {invoice['period']}"
    facts = {
        "Invoice": invoice["invoice_id"] or "none yet",
        "Customer": invoice["customer_id"],
        "Period": f"{invoice['period']}: {invoice['from']} to {invoice['to']} ({invoice['time_zone']})",
        "State": invoice["state"],
    }
    notice = _STATES.get(invoice["state"])
    rows = "".join(_render_row(line) for line in invoice["lines"])
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    history = "".join(f"<li>{_render_event(event)}</li>" for event in invoice["history"])
    parts = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Invoice for {escape(title)}</h1>",
        f'<p class="draft">{escape(notice)}</p>' if notice else "",
        f"<dl>{listed}</dl>",
        "<table><thead><tr><th>What</th><th>Period</th><th class=number>Quantity</th><th class=number>Unit price</th>",
        f"<th class=number>{escape(invoice['currency'])}</th></tr></thead><tbody>{rows}</tbody>",
        f'<tfoot><tr><td colspan="4">Total</td><td class=number>{escape(invoice["total"])}</td></tr></tfoot></table>',
        f"<ul>{history}</ul>" if history else "",
        "<p class=how>Amounts are exact until they are rounded here, once; the total is the rounded sum of the exact",
        " lines. Each line can be followed to its events with <code>otelbill explain</code>.</p></body></html>\n",
    )
    return "".join(parts)


def _render_row(line: Json) -> str:
    names = [line[name] for name in ("label", "provider", "model", "unit", "project", "step") if line[name]]
    kind = f"{line['kind']}, adjustment of {line['period']}" if line["adjustment"] else line["kind"]
    what = f"{escape(kind)}: {escape(' · '.join(names))}" if names else escape(kind)
    how = f"{escape(line['arithmetic'])}" + (f" · {line['events']:,} events" if line["events"] else "")
    cells = (line["quantity"] or "", line["unit_price"] or "", line["amount"])
    numbers = "".join(f"<td class=number>{escape(cell)}</td>" for cell in cells)
    first = f"<td>{what}<div class=how>{how}</div><div class=id>{escape(line['line_id'])}</div></td>"
    return f"<tr>{first}<td>{escape(line['period'])}</td>{numbers}</tr>"


def _render_event(event: Json) -> str:
    return escape(f"{event['state']} by {event['operator']} at {event['at']}: {event['reason']}")
