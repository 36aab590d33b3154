"""What is derived from columns is what is derived span by span: identifiers, claim keys, content digests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otelbill_collector.decode import column_keys
from otelbill_collector.decode.claims import claim_keys
from otelbill_collector.decode.column_keys import derive_keys
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.ids import derive_event_id, derive_record_id
from otelbill_collector.domain.records import digest_candidate
from otelbill_collector.domain.span_columns import COUNTED_UNITS, SpanColumns
from otelbill_collector.domain.usage import INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS, Candidate, Role, UsageSource
from otelbill_collector.ledger import column_ids
from otelbill_collector.ledger.column_ids import derive_events, derive_records, digest_contents
from otelbill_collector.native.build import CannotBuild, build_library, find_compiler
from otelbill_collector.native.keys import digest_sha256
from otelbill_collector.native.loading import find_library
from tests.span_columns import build_columns
from tests.spans import T0

needs_library = pytest.mark.skipif(find_library() is None, reason="the native library is not built")
SECOND = 10**9


def draw_text(rng: Random, *, plain: bool) -> str | None:
    """A text of the kinds that stand in templates, names or ids; None at times."""
    if rng.random() < 0.3:
        return None
    signs = "ab0'\"\\ -_" if plain else "ab0'\"\\ -_\té\u2028😀/@:"
    text = "".join(rng.choices(signs, k=rng.choice([1, 3, 9, 10, 36, 127])))
    return rng.choice([text, "1234567890" * 3, "resp_0123456789"])


def draw_instant(rng: Random) -> int:
    """Instants of which many lie near the edges of the buckets, and a few at the ends of the range."""
    edges = (0, 1, -1, SECOND // 4, -SECOND // 4, SECOND // 4 - 1, 1 - SECOND // 4, rng.randrange(4 * SECOND))
    start = rng.choice([T0, T0 + SECOND, 0, 2**62, -(2**62)])
    return start + rng.choice(edges)


def draw_candidate(rng: Random) -> Candidate:
    """A candidate that has a form in columns; most of its fields are odd ones."""
    role = rng.choice([*Role, Role.CALL, Role.CALL])
    quantities: dict[str, int] = {}
    if role in (Role.CALL, Role.AGGREGATE) and rng.random() < 0.8:
        numbers = {unit: rng.choice([0, 1, 7, 10, 99, 100, 12_345, 2**53]) for unit in COUNTED_UNITS}
        quantities = {unit: n for unit, n in numbers.items() if n or unit in (INPUT_TOKENS, OUTPUT_TOKENS)}
    if role is Role.CALL:
        quantities[REQUESTS] = 1
    models = (None, "gpt-4o-2024-08-06", "openai/GPT-4o", "modèle:latest", "m" * 300)
    return Candidate(
        trace_id=bytes(rng.choices([0, 9, 34, 39, 92, 127, 255, rng.randrange(256)], k=16)),
        span_id=rng.randbytes(8),
        parent_span_id=rng.choice([b"", rng.randbytes(8), b"''\"\"\\\\\n\r"]),
        started_nanos=(started := draw_instant(rng)),
        ended_nanos=rng.choice([started, started + rng.randrange(9 * SECOND), draw_instant(rng)]),
        dialect=rng.choice(["gen_ai", "it's"]),
        role=role,
        detail=rng.randrange(3),
        provider=draw_text(rng, plain=False),
        model=rng.choice(models),
        request_model=rng.choice(models),
        operation=draw_text(rng, plain=False),
        response_id=draw_text(rng, plain=True),
        service_tier=draw_text(rng, plain=False),
        customer_id=draw_text(rng, plain=False),
        project_id=draw_text(rng, plain=False),
        run_id=draw_text(rng, plain=True),
        step=draw_text(rng, plain=False),
        attempt=rng.choice([None, 0, 3]),
        failed=rng.random() < 0.3,
        billable=rng.random() < 0.7,
        reason=rng.choice(list(Reason)),
        usage_source=rng.choice(list(UsageSource)),
        caveats=rng.choice([(), ("input_tokens",), ("a", "b")]),
        quantities=quantities,
        emitter=rng.choice(["", "scope", 'it\'s "odd"']),
        service=draw_text(rng, plain=False),
        traits=rng.choice([(), ("twin",), ("twin", "traces_apart"), ("traces_apart",), ("implies_call",)]),
    )


def split_keys(columns: SpanColumns) -> list[tuple[bytes, ...]]:
    keys, starts = derive_keys(columns)
    assert len(keys) == starts[-1]
    rows = [key.tobytes() for key in keys]
    return [tuple(rows[start:end]) for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def list_digests(digests: np.ndarray) -> list[bytes]:
    return [digest.tobytes() for digest in digests]


@needs_library
@settings(deadline=None)
@given(st.binary(max_size=300))
@example(b"a" * 55)
@example(b"a" * 56)
@example(b"a" * 64)
@example(b"a" * 119)
def test_the_digest_is_sha256(message: bytes) -> None:
    """Guarantee: the portable version and the one chosen for this processor, alone and in pairs, are SHA-256."""
    for lanes in (0, 1, 2):
        assert digest_sha256(message, lanes) == hashlib.sha256(message).digest()


@pytest.fixture(params=["native", "singly"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library and without it."""
    if request.param == "singly":
        for module in (column_keys, column_ids):
            monkeypatch.setattr(module, "find_library", lambda: None)
    elif find_library() is None:
        pytest.skip("the native library is not built")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(20))
def test_columns_have_the_keys_ids_and_digests_of_their_candidates(seed: int) -> None:
    """Guarantee: a span booked from columns meets the same span booked by itself: every key, id and digest is equal."""
    rng = Random(seed)
    candidates = [draw_candidate(rng) for _ in range(rng.choice([0, 1, 2, 301]))]
    columns = build_columns(candidates)
    assert split_keys(columns) == [claim_keys(candidate) for candidate in candidates]
    assert list_digests(digest_contents(columns)) == [digest_candidate(candidate) for candidate in candidates]
    events = [derive_event_id(candidate.trace_id, candidate.span_id, None) for candidate in candidates]
    found = derive_events(columns)
    assert [digest.hex() for digest in list_digests(found)] == events
    revisions = [rng.choice([0, 0, 1, 9, 10, 99, 123_456, 2**62]) for _ in events]
    reversals = [rng.random() < 0.4 for _ in events]
    given = np.array(revisions, dtype=np.int64), np.array(reversals, dtype=np.bool_)
    records = [digest.hex() for digest in list_digests(derive_records(found, *given))]
    rows = zip(events, revisions, reversals, strict=True)
    assert records == [derive_record_id(event, number, "reversal" if back else "usage") for event, number, back in rows]


def test_templates_and_names_may_be_others_from_batch_to_batch() -> None:
    """Guarantee: what is remembered of templates and names is never taken for that of another scanner's."""
    rng = Random(1)
    batches = [[draw_candidate(rng) for _ in range(20)] for _ in range(4)]
    grown = [build_columns(batch, templates=_TEMPLATES, names=_NAMES) for batch in batches]
    for batch, columns in zip(
        [*batches, *batches], [*grown, *[build_columns(batch) for batch in batches]], strict=True
    ):
        check_digests(batch, columns)
    check_digests(batches[0], grown[0])


_TEMPLATES: list = []  # type: ignore[type-arg]
_NAMES: list[str] = []


def check_digests(batch: Sequence[Candidate], columns: SpanColumns) -> None:
    assert split_keys(columns) == [claim_keys(candidate) for candidate in batch]
    assert list_digests(digest_contents(columns)) == [digest_candidate(candidate) for candidate in batch]


@needs_library
def test_codes_that_point_nowhere_are_refused() -> None:
    """Guarantee: columns that no scanner makes raise, and are never read past their ends."""
    for name, value in (("template", 5), ("template", -1), ("customer", 9), ("service", -2)):
        columns = build_columns([draw_candidate(Random(3))])
        getattr(columns, name)[0] = value
        with pytest.raises(ValueError, match="not there"):
            digest_contents(columns)
    columns = build_columns([draw_candidate(Random(3))])
    columns.template[0] = 7
    with pytest.raises(ValueError, match="not there"):
        derive_keys(columns)
    columns = build_columns([draw_candidate(Random(3))])
    columns.counts[0, 0] = 2**54
    with pytest.raises(ValueError, match="out of range"):
        derive_keys(columns)


def test_the_library_touches_no_byte_that_it_was_not_given(tmp_path: Path) -> None:
    """Ids, keys, tables and the filter under the address and undefined-behaviour sanitizers find nothing."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    asked = [*compiler, "-print-file-name=libasan.so"]
    runtime = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("no C compiler with an address sanitizer")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")
    try:
        library = build_library(tmp_path / "sanitized.so", flags)
    except CannotBuild as error:
        pytest.skip(f"no sanitizers: {error}"[:200])
    given = {"LD_PRELOAD": runtime, "PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0"}
    environment = {**os.environ, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.native_columns", str(library)]
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "clean"), result.stderr[-4_000:]
