"""The draft invoice of a customer with a million events: `python -m benchmarks.invoices --json`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.stored_records import DAY, append_events, open_ledger
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.ledger.sqlite import SqliteStore

