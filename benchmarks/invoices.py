"""The draft invoice of a customer with a million events: `python -m benchmarks.invoices --json`."""

from __future__ import annotations
