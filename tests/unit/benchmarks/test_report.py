"""Results become tables and a picture; what was not measured, or failed, is not shown as if it were."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.growth import Source, measure_folder
from benchmarks.report import BEGIN, END, render_files
from benchmarks.requests import Load
from otelbill_collector.decode.wire import decode_request

DAY_NANOS = 86_400 * 10**9
FIGURES = {"cpu_us_per_span": 2.5, "cores": 0.8, "ack_p50_ms": 9.5, "ack_p99_ms": 20.25, "load_cpu_us_per_span": 0.4}
POINT = {"stored": 1, "spans_per_second": 1, "cpu_us_per_span": 3.5, "memory_mb": 300.0, "disk_bytes_per_span": 99.0}


def make_results() -> dict[str, Any]:
    ran = {"command": "python -m benchmarks.x --json", "seconds": 3.5, "load_average_before": 0.25}
    names = {"cpu", "cores", "memory_gb", "kernel", "python", "commit", "date"}
    ours = {"spans_per_second": 312_345, "memory_mb": 400, "does": "all", **FIGURES}
    growth = {
        "records": 50_000_000,
        "early_at": 1_000_000,
        "cpu_ratio": 1.125,
        **dict.fromkeys(("cpu_us_per_span_early", "cpu_us_per_span_late", "bytes_per_span"), 3.5),
        **dict.fromkeys(("memory_peak_mb", "ready_after_kill_seconds"), 7),
        **{
            f"{name}_{unit}": 8.5
            for name in ("month_to_date", "month_to_date_largest", "explain_record")
            for unit in ("ms", "cpu_ms")
        },
        "points": [{**POINT, "stored": stored} for stored in (1_000_000, 25_000_000, 50_000_000)],
    }
    return {
        "machine": {name: f"the {name}" for name in names},
        "http-512": ran | {"result": {"spans_per_second": 312_345, **FIGURES}},
        "grpc-50": ran | {"failed": "exit status 1"},
        "peers": ran | {"result": {"peers": {"otelbill": ours}, "missing": {"otelcol-file": "no Go here"}}},
        "growth": ran | {"result": growth},
    }


def test_tables_and_picture_show_what_was_measured(tmp_path: Path) -> None:
    """The page keeps its own text; a benchmark that failed has no row of figures, and its command says so."""
    page, picture = tmp_path / "page.md", tmp_path / "picture.svg"
    page.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    render_files(make_results(), page, picture)
    text = page.read_text()
    render_files(make_results(), page, picture)
    assert page.read_text() == text
    assert text.startswith(f"before\n\n{BEGIN}")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    assert "| HTTP, 512 spans a request | 312,345 | 300,000 | 2.5 | 0.8 | 9.5 | 20.25 | 0.4 |" in text
    assert "gRPC, 50 spans |" not in text
    assert "| 0.25 | failed |" in text
    assert "| otelcol-file | not measured |" in text
    assert "| ratio | 1.125 | at most 1.25 |" in text
    drawn = picture.read_text()
    assert drawn.count("polyline") == 2
    assert "312,345" in drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_event_times_run_over_the_days() -> None:
    """A ledger of a month has the month's event times in order, from its beginning to now."""
    source = Source(Load(16), connections=1, records=16 * 640, days=30)
    ended = []
    for _ in range(640):
        ended += [span.ended_nanos for span in decode_request(bytes(source.take(0)))][:1]
    assert ended[-1] - ended[0] > 25 * DAY_NANOS
    assert source.begin_nanos - 6 * 10**9 < min(ended)
    assert len(source.samples) == 20
    assert all(len(bytes.fromhex(trace)) == 16 and name.startswith("customer-") for trace, name in source.samples)


def test_folders_are_measured_by_name(tmp_path: Path) -> None:
    """What a span takes on disk is everything in the data folder."""
    (tmp_path / "parquet" / "deep").mkdir(parents=True)
    (tmp_path / "parquet" / "deep" / "a").write_bytes(b"abc")
    (tmp_path / "parquet" / "b").write_bytes(b"12")
    (tmp_path / "ledger").write_bytes(b"x" * 7)
    assert measure_folder(tmp_path) == {"parquet": 5, "ledger": 7}
