"""What metering costs in the app, as a ratio to a bare OpenTelemetry span measured beside it. Prints; judges nothing.

Every sample of a variant stands between two samples of the bare span, all in process CPU time; rounds in which the two
differ by more than a quarter are left out, and the median of the ratios is printed. Compare ratios, not microseconds.

    python benchmarks/in_process.py --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import otelbill
from otelbill.frame import Entry, Frame, set_entry

Sample = Callable[[int], None]


def main() -> None:
    """Measure every variant and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=2_000)
    options = parser.parse_args()
    provider = TracerProvider()
    provider.add_span_processor(SpanProcessor())
    metering = TracerProvider()
    metering.add_span_processor(otelbill.MeteringSpanProcessor())
    trace.set_tracer_provider(provider)
    ratios = {
        name: measure_ratio(sample, make_bare_span(provider), rounds=options.rounds, calls=options.calls)
        for name, sample in list_variants(provider, metering).items()
    }
    if options.json:
        print(json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()}))
        return
    for name, ratio in ratios.items():
        print(f"{name:46s} {ratio:6.3f}")


def list_variants(provider: TracerProvider, metering: TracerProvider) -> dict[str, Sample]:
    """Every variant by name; each runs its body `calls` times."""
    acme = otelbill.customer("acme", project="p", run="r")
    return {
        "@metered with its span": run_inside(acme, repeat(step)),
        "@metered generator of one item with its span": run_inside(acme, repeat(lambda: list(stream()))),
        "frame only, block made once": repeat(acme(lambda: None)),
        "frame only, block made each time": repeat(make_block),
        "record_usage": run_inside(acme, repeat(lambda: otelbill.record_usage("queries", 1))),
        "span with MeteringSpanProcessor, in a frame": run_inside(acme, make_bare_span(metering)),
        "span with MeteringSpanProcessor, no frame": make_bare_span(metering),
        "span with 5 attributes (for comparison)": make_span_with_attributes(provider),
    }


@otelbill.metered
def step() -> None:
    """A metered body of nothing."""


@otelbill.metered
def stream() -> Iterator[int]:
    """A metered stream of one item."""
    yield 1


def make_block() -> None:
    """A block made and entered once, as a web handler does."""
    with otelbill.customer("acme", project="p", run="r"):
        pass


def repeat(body: Callable[[], object]) -> Sample:
    """A sample of calls of `body`."""

    def run(calls: int) -> None:
        for _ in range(calls):
            body()

    return run


def run_inside(block: AbstractContextManager[object], sample: Sample) -> Sample:
    """`sample` inside `block`, entered once."""

    def run(calls: int) -> None:
        with block:
            sample(calls)

    return run


def make_bare_span(provider: TracerProvider) -> Sample:
    """A sample of spans without attributes."""
    tracer = provider.get_tracer("benchmark")

    def run(calls: int) -> None:
        for _ in range(calls):
            with tracer.start_as_current_span("x"):
                pass

    return run


def make_span_with_attributes(provider: TracerProvider) -> Sample:
    """A sample of spans with the five attributes that a metered span carries."""
    tracer = provider.get_tracer("benchmark")
    entry = Entry(Frame("acme", "p", "r", "step"), None, None)

    def run(calls: int) -> None:
        for _ in range(calls):
            with tracer.start_as_current_span("x", set_entry(entry), attributes=entry.frame.span_attributes):
                pass

    return run


def measure_ratio(sample: Sample, base: Sample, *, rounds: int, calls: int) -> float:
    """Median of CPU time of `sample` over that of `base` around it."""
    sample(calls)
    base(calls)
    ratios = []
    for _ in range(rounds):
        before, middle, after = (measure_seconds(run, calls) for run in (base, sample, base))
        if abs(before - after) <= 0.25 * max(before, after):
            ratios.append(middle / ((before + after) / 2))
    return statistics.median(ratios) if ratios else float("nan")


def measure_seconds(run: Sample, calls: int) -> float:
    """Process CPU seconds of one sample."""
    started = time.process_time()
    run(calls)
    return time.process_time() - started


if __name__ == "__main__":
    main()
