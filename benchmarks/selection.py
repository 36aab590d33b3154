"""What it costs to find the billable calls: wire bytes to spans, spans to candidates, candidates to decisions.

The corpus of recorded spans, prompts included, is repeated with ids and times of its own each time. Figures are process
CPU time per span, by stage, for the corpus alone, for a stream of which one third is plain HTTP spans, and for the one
emitter of the ingest benchmark. Each request is taken both ways in turn: `spans` one by one, and `columns` through the
scanner, where only what it leaves to the rules and claims that need weighing are Python objects. Prints; judges nothing
but that both ways find as many candidates. Storing and rating are not in it.

    python -m benchmarks.selection --json
    python -m benchmarks.selection --spans 50000 --profile
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import os
import pstats
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.requests import Load, Template
from otelbill_collector.decode.claims import FOREVER_NANOS, claim_keys, decide_group
from otelbill_collector.decode.column_claims import create_column_claims
from otelbill_collector.decode.column_keys import derive_keys
from otelbill_collector.decode.scanner import Scanner
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.span_columns import SpanColumns
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.offline import list_groups
from tests.corpus import Case, load_cases, parse_sent
from tests.spans import T0, TestSpan, build_request

_SLOT_NANOS = 10 * 10**9  # each copy of a case has ten seconds of its own: equal numbers at one time are one call
_CASES_MAX = 1_000
_LIMITS = {"spans_max": 20_000, "attributes_max": 1_000, "earliest_nanos": 0, "future_nanos": 2**62}
_HTTP = {
    "http.request.method": "POST",
    "http.response.status_code": 200,
    "url.full": "https://api.example.com/v1/orders/4711",
    "server.address": "api.example.com",
    "server.port": 443,
    "network.protocol.version": "1.1",
    "user_agent.original": "python-httpx/0.28",
}


@dataclass(slots=True)
class Figures:
    """CPU seconds by way and stage, and what they were spent on. `recognised`: spans that the scanner read itself."""

    spans_way: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "select": 0.0, "claims": 0.0})
    columns_way: dict[str, float] = field(default_factory=lambda: {"scan": 0.0, "rules": 0.0, "claims": 0.0})
    spans: int = 0
    recognised: int = 0
    candidates: int = 0
    groups: int = 0
    wire_bytes: int = 0

    def render(self) -> dict[str, object]:
        """Microseconds per span of the whole stream, whatever the stage."""
        return {
            "spans": self.spans,
            "candidates": self.candidates,
            "groups": self.groups,
            "recognised": self.recognised,
            "bytes_per_span": self.wire_bytes // self.spans,
            "cpu_us_per_span": {"spans": self._share(self.spans_way), "columns": self._share(self.columns_way)},
            "spans_per_cpu_second": int(self.spans / sum(self.columns_way.values())),
        }

    def _share(self, seconds: dict[str, float]) -> dict[str, float]:
        whole = {**seconds, "total": sum(seconds.values())}
        return {name: round(part * 1e6 / self.spans, 2) for name, part in whole.items()}


class Repeater:
    """Copies of one case with other ids and times of the same length, by replacing bytes: no message is parsed."""

    def __init__(self, case: Case, slot: int) -> None:
        self._body = case.body
        self._slot = slot
        spans = [sent.span for sent in parse_sent(case.body)]
        self.spans = len(spans)
        self._ids = sorted({span.trace_id for span in spans} | {span.span_id for span in spans})
        self._times = sorted({at for span in spans for at in (span.start_time_unix_nano, span.end_time_unix_nano)})
        found = (select_span(view) for view in decode_request(case.body))
        texts = {item.response_id.encode() for item in found if item is not None and item.response_id}
        self._texts = sorted(text for text in texts if len(text) >= 10 and not text.startswith(b"digest:"))

    def repeat(self, number: int) -> bytes:
        """The case's request for the `number`th time."""
        body, salt = self._body, f"{number} {self._slot}".encode()
        for old in self._ids:
            body = body.replace(old, hashlib.sha256(salt + old).digest()[: len(old)])
        for text in self._texts:
            body = body.replace(text, text[:-8] + hashlib.sha256(salt + text).hexdigest()[:8].encode())
        start = T0 + (number * _CASES_MAX + self._slot) * _SLOT_NANOS
        for at in self._times:
            body = body.replace(at.to_bytes(8, "little"), (at - self._times[0] + start).to_bytes(8, "little"))
        return body


def main() -> None:
    """Measure the streams and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--spans", type=int, default=500_000, help="length of each stream")
    parser.add_argument("--profile", action="store_true", help="print the dearest functions of the corpus alone")
    options = parser.parse_args()
    repeaters = [Repeater(case, slot) for slot, case in enumerate(load_cases(find_corpus()))]
    if options.profile:
        print_profile(repeaters, options.spans)
        return
    report = {
        "corpus": measure(list_requests(repeaters, options.spans, with_http=False)).render(),
        "one_third_http": measure(list_requests(repeaters, options.spans, with_http=True)).render(),
        "one_emitter": measure(list_plain_requests(options.spans)).render(),
    }
    if options.json:
        print(json.dumps(report))
        return
    for name, figures in report.items():
        print(name, json.dumps(figures))


def find_corpus() -> Path:
    """Folder with the recorded spans; exits with the remedy where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("OTELBILL_SHARED", beside)) / "data"
    if not (folder / "spans").is_dir():
        sys.exit(f"no recorded spans at {folder}; set OTELBILL_SHARED to the folder that holds data/spans")
    return folder


def list_requests(repeaters: list[Repeater], spans: int, *, with_http: bool) -> Iterator[bytes]:
    """Requests of about 700 spans (1,050 with the HTTP spans), until there are `spans` of them."""
    in_corpus = sum(item.spans for item in repeaters)
    http = build_http(in_corpus // 2) if with_http else b""
    in_request = in_corpus + (in_corpus // 2 if with_http else 0)
    for number in range(1, spans // in_request + 2):
        # Requests are messages of one repeated field: joined bytes are the joined request.
        yield b"".join(item.repeat(number) for item in repeaters) + http


def list_plain_requests(spans: int) -> Iterator[bytes]:
    """Requests of 512 spans of 14 attributes, as `benchmarks.ingest` sends them."""
    load = Load()
    template = Template(load, seed=1)
    for number in range(1, spans // load.spans + 2):
        yield bytes(template.renew(T0 + number * _SLOT_NANOS)[0])


def build_http(count: int) -> bytes:
    """Spans of an HTTP client; their ids do not matter, because nobody keeps them."""
    spans = [
        TestSpan(f"http {i}", _HTTP, started=T0, scope="opentelemetry.instrumentation.httpx") for i in range(count)
    ]
    return build_request(spans)


def measure(requests: Iterator[bytes]) -> Figures:
    """CPU time of each stage over all requests, one after the other, each request both ways."""
    figures, columns = Figures(), ColumnsWay()
    for number, body in enumerate(requests):
        found = [take_spans(body, figures)] if number % 2 else []
        found.append(columns.take(body, figures))
        found += [] if number % 2 else [take_spans(body, figures)]
        if found[0] != found[1]:
            sys.exit(f"the ways differ: {found[0]} and {found[1]} candidates")
        figures.candidates += found[0]
        figures.wire_bytes += len(body)
    return figures


def take_spans(body: bytes, figures: Figures) -> int:
    """Every span a Python object; returns how many candidates there were."""
    started = time.process_time()
    views = decode_request(body)
    decoded = time.process_time()
    found = [candidate for view in views if (candidate := select_span(view)) is not None]
    selected = time.process_time()
    figures.groups += decide([item for item in found if item.problem is None])
    decided = time.process_time()
    figures.spans_way["decode"] += decoded - started
    figures.spans_way["select"] += selected - decoded
    figures.spans_way["claims"] += decided - selected
    figures.spans += len(views)
    return len(found)


def decide(candidates: list[Candidate]) -> int:
    """Decide all groups of candidates; returns how many there are."""
    groups = 0
    for group in list_groups(candidates):
        decide_group(group, FOREVER_NANOS)
        groups += 1
    return groups


class ColumnsWay:
    """The same through the scanner, which keeps what it learns from request to request."""

    def __init__(self) -> None:
        self._scanner = Scanner()
        self._claims = create_column_claims()
        if self._claims is None:
            sys.exit("no native library; run `python -m otelbill_collector.native.build`")

    def take(self, body: bytes, figures: Figures) -> int:
        """Returns how many candidates there were."""
        started = time.process_time()
        scanned = self._scanner.scan([body], [T0], **_LIMITS)
        read = time.process_time()
        bodies = scanned.rest if not scanned.whole else {0: body}
        views = {number: decode_request(part) for number, part in bodies.items()}
        found = [item for part in views.values() for view in part if (item := select_span(view)) is not None]
        if not scanned.whole:
            self._scanner.learn(scanned, views)
        selected = time.process_time()
        self._decide(scanned.columns, [item for item in found if item.problem is None])
        decided = time.process_time()
        figures.columns_way["scan"] += read - started
        figures.columns_way["rules"] += selected - read
        figures.columns_way["claims"] += decided - selected
        figures.recognised += len(scanned.columns) + int(scanned.ignored[0])
        return len(scanned.columns) + len(found)

    def _decide(self, columns: SpanColumns, others: list[Candidate]) -> None:
        """By columns where nothing is weighed but who pays, by candidates where there is more to it."""
        assert self._claims is not None  # the constructor leaves without
        apart = find_apart(columns, [key for item in others for key in claim_keys(item)])
        decided = self._claims.decide(columns, apart)
        decide([*others, *columns.build_candidates(np.flatnonzero(~decided.rows))])


def find_apart(columns: SpanColumns, other_keys: list[bytes]) -> NDArray[np.bool_]:
    """The rows in whose trace no span shares a claim key with another trace or candidate, or one beside the trace's."""
    keys, starts = derive_keys(columns)
    count = len(columns)
    owners = np.append(np.repeat(np.arange(count), np.diff(starts)), np.full(len(other_keys), count))
    of_trace = np.zeros(len(owners), dtype=np.bool_)
    of_trace[starts[:-1]] = True
    everyone = np.concatenate([keys, np.frombuffer(b"".join(other_keys), dtype=np.uint8).reshape(-1, 16)])
    words = np.ascontiguousarray(everyone).view("<u8")
    order = np.lexsort((words[:, 1], words[:, 0]))
    same = (words[order][1:] == words[order][:-1]).all(axis=1)
    weighed = same & ~(of_trace[order][1:] & of_trace[order][:-1])
    shared = np.zeros(count + 1, dtype=np.bool_)
    shared[owners[order][1:][weighed]] = True
    shared[owners[order][:-1][weighed]] = True
    groups = np.append(0, np.cumsum(~same))  # number of each key, in order; those of traces are the traces
    traces = np.empty(len(owners), dtype=np.int64)
    traces[order] = groups
    mine = traces[starts[:-1]]
    return ~np.isin(mine, mine[shared[:count]])


def print_profile(repeaters: list[Repeater], spans: int) -> None:
    """The functions that take most time themselves; the profiler makes small functions look dearer than they are."""
    requests = list(list_requests(repeaters, spans, with_http=False))
    profile = cProfile.Profile()
    profile.runcall(measure, iter(requests))
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
