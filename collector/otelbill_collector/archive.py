"""Everything behind an invoice in one file that a stranger can check. Owns the archive's form; computes no amounts.

A plain tar whose bytes depend on its content only: names in order, no times, no owners.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from importlib import resources
from io import BytesIO
from typing import IO, Any

from otelbill_collector.credit_evidence import render_credit_evidence
from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.periods import Period
from otelbill_collector.explanation import render_record
from otelbill_collector.ledger.corrections import list_corrections
from otelbill_collector.ledger.journal import find_price_version
from otelbill_collector.ledger.line_records import list_period_records
from otelbill_collector.ledger.periods import Invoice, list_invoices, require_invoice

Json = dict[str, Any]  # Any: JSON values
_MEMORY_BYTES = 64 * 2**20
_PIECE_BYTES = 2**20
_README = """An invoice of otelbill with everything behind it. To check it, unpack this file and run

    python check.py

with any Python from 3.9 on; nothing has to be installed. It computes every line anew and says what differs.

credits.py             what check.py burns credits with
invoice.json           the invoice as it was frozen; its id is a digest of these bytes
about.json             its id, and who closed, approved or voided it, when and why
records.jsonl          every record that had been booked for the periods on the invoice, reversals included
price_versions.json    the text of every price that a record or line names; the id is a digest of it
corrections.json       what operators said of these events, who, when and why
credits.json           grants and voids, and all usage since the first of them that credits could pay for
earlier_invoices.json  the customer's invoices before this one: what adjustments are differences to
MANIFEST.sha256        digests of all these files
"""


class _Packer:
    """Members of the archive, each with its digest."""

    def __init__(self, target: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 closed below
        self._digests: list[str] = []

    def add(self, name: str, body: IO[bytes], size: int) -> None:
        """Add a file that stands at its start."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        hasher = hashlib.sha256()
        while piece := body.read(_PIECE_BYTES):
            hasher.update(piece)
        self._digests.append(f"{hasher.hexdigest()}  {name}\n")
        body.seek(0)
        self._tar.addfile(info, body)

    def add_text(self, name: str, text: str) -> None:
        """Add a file of text."""
        raw = text.encode()
        self.add(name, BytesIO(raw), len(raw))

    def finish(self) -> None:
        """Add the list of digests, which has none itself, and close."""
        raw = "".join(self._digests).encode()
        info = tarfile.TarInfo("MANIFEST.sha256")
        info.size, info.mode = len(raw), 0o644
        self._tar.addfile(info, BytesIO(raw))
        self._tar.close()


def pack_invoice(connection: sqlite3.Connection, invoice_id: str, target: IO[bytes]) -> Json:
    """Write the archive of an invoice; returns what it holds. Raises UnknownInvoice."""
    invoice = require_invoice(connection, invoice_id)
    earlier = _list_earlier(connection, invoice)
    packer = _Packer(target)
    packer.add_text("README.txt", _README)
    packer.add_text("check.py", resources.files("otelbill_collector").joinpath("archive_check.py").read_text("utf-8"))
    packer.add_text(
        "credits.py", resources.files("otelbill_collector").joinpath("archive_credits.py").read_text("utf-8")
    )
    packer.add_text("invoice.json", invoice.text)
    packer.add_text("about.json", _render({"invoice_id": invoice_id, "history": _list_history(invoice)}))
    packer.add_text("earlier_invoices.json", _render({item.invoice_id: item.text for item in earlier}))
    versions = {line.entry.version for item in (invoice, *earlier) for line in item.lines}
    versions |= {term.version_id for item in (invoice, *earlier) for term in item.terms}
    versions |= {term["version"] for item in invoice.content.get("restated", ()) for term in item["terms"]}
    events: set[str] = set()
    count = 0
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as body:
        for record in _list_records(connection, invoice):
            body.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            versions.add(record["price_version"])
            events.add(record["event_id"])
            count += 1
        size = body.tell()
        body.seek(0)
        packer.add("records.jsonl", body, size)
    packer.add_text("price_versions.json", _render(_load_versions(connection, versions)))
    packer.add_text("credits.json", _render(render_credit_evidence(connection, invoice)))
    packer.add_text("corrections.json", _render(_list_corrections(connection, events)))
    packer.finish()
    return {"invoice_id": invoice_id, "records": count, "lines": len(invoice.lines), "earlier_invoices": len(earlier)}


def _render(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _list_earlier(connection: sqlite3.Connection, invoice: Invoice) -> list[Invoice]:
    """The invoices that stood when this one was made."""
    known = {item.invoice_id: item for item in list_invoices(connection, customer_id=invoice.customer_id)}
    return [known[name] for name in invoice.content["after"]]


def _list_history(invoice: Invoice) -> list[Json]:
    return [event.render() for event in invoice.events]


def _list_records(connection: sqlite3.Connection, invoice: Invoice) -> Iterator[Json]:
    """Records of every period on the invoice, up to its mark, by period and in booking order."""
    periods: dict[int, Period] = {line.period.start_nanos: line.period for line in invoice.lines}
    periods.setdefault(invoice.start_nanos, invoice.period)
    for _, period in sorted(periods.items()):
        for record in list_period_records(connection, invoice.customer_id, period, upto=invoice.mark):
            yield render_record(record)


def _load_versions(connection: sqlite3.Connection, names: set[str | None]) -> dict[str, str]:
    """Texts by id, with the period charges that they name."""
    bodies: dict[str, str] = {}
    waiting = sorted(name for name in names if name)
    while waiting:
        name = waiting.pop()
        body = find_price_version(connection, name)
        if name not in bodies and body is not None:
            bodies[name] = body
            prices = json.loads(body).get("prices", {}).values()
            waiting += [price["entry"]["period_charge"]["version"] for price in prices if price["charge"] == "period"]
    return bodies


def _list_corrections(connection: sqlite3.Connection, events: set[str]) -> list[Json]:
    return [
        {
            "event_id": item.event_id,
            "aspect": item.aspect.value,
            "value": item.value,
            "batch": item.batch,
            "operator": item.operator,
            "reason": item.reason,
            "given_at": format_instant(item.given_nanos),
            "reverses": item.reverses,
        }
        for item in list_corrections(connection)
        if item.event_id in events
    ]
