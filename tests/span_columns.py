"""Span columns for tests, made of candidates: what the scanner would make of the same spans. Owns no assertions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from otelbill_collector.domain.span_columns import COUNTED_UNITS, Bytes, SpanColumns, Template, Texts
from otelbill_collector.domain.usage import REQUESTS, Candidate, Role
from tests.spans import T0

_SHARED = tuple(spec.name for spec in fields(Template) if spec.name != "counted")
_TEXT_BYTES_MAX = 127


def build_columns(
    candidates: Sequence[Candidate],
    received: Sequence[int] | None = None,
    templates: list[Template] | None = None,
    names: list[str] | None = None,
) -> SpanColumns:
    """The columns of candidates, all of one request. `templates` and `names` are added to where given, as the scanner
    does from batch to batch. Raises ValueError for a candidate that has no form in columns (`fits_columns`).
    """
    templates, names = [] if templates is None else templates, [] if names is None else names
    codes = {template: code for code, template in enumerate(templates)}
    named: dict[str | None, int] = {None: -1, **{name: code for code, name in enumerate(names)}}
    for candidate in candidates:
        template = _find_template(candidate)
        if template not in codes:
            codes[template] = len(templates)
            templates.append(template)
        for name in (candidate.customer_id, candidate.project_id, candidate.step, candidate.service):
            if name not in named:
                assert name is not None
                named[name] = len(names)
                names.append(name)
    count = len(candidates)
    columns = SpanColumns(
        templates,
        names,
        template=np.array([codes[_find_template(c)] for c in candidates], dtype=np.int32),
        request=np.zeros(count, dtype=np.int32),
        trace_id=_join([c.trace_id for c in candidates], 16),
        span_id=_join([c.span_id for c in candidates], 8),
        parent_span_id=_join([c.parent_span_id or bytes(8) for c in candidates], 8),
        has_parent=np.array([bool(c.parent_span_id) for c in candidates], dtype=np.uint8),
        started_nanos=np.array([c.started_nanos for c in candidates], dtype=np.int64),
        ended_nanos=np.array([c.ended_nanos for c in candidates], dtype=np.int64),
        received_nanos=np.array(received if received is not None else [T0] * count, dtype=np.int64),
        counts=np.array(
            [[int(c.quantities.get(unit, 0)) for c in candidates] for unit in COUNTED_UNITS], dtype=np.int64
        ).reshape(len(COUNTED_UNITS), count),
        customer=np.array([named[c.customer_id] for c in candidates], dtype=np.int32),
        project=np.array([named[c.project_id] for c in candidates], dtype=np.int32),
        step=np.array([named[c.step] for c in candidates], dtype=np.int32),
        service=np.array([named[c.service] for c in candidates], dtype=np.int32),
        response_id=build_texts([c.response_id for c in candidates]),
        run_id=build_texts([c.run_id for c in candidates]),
    )
    for row, candidate in enumerate(candidates):
        if columns.build_candidate(row) != candidate:
            raise ValueError(f"has no form in columns: {candidate}")
    return columns


def fits_columns(candidate: Candidate) -> bool:
    """Whether a candidate has a form in columns: plain token counts, ids that need no cleaning, nothing explicit."""
    texts = [text for text in (candidate.response_id, candidate.run_id) if text is not None]
    if not all(text.isascii() and text.isprintable() and 0 < len(text) <= _TEXT_BYTES_MAX for text in texts):
        return False
    if any("@" in text for text in texts) or len(candidate.parent_span_id) not in (0, 8):
        return False
    try:
        build_columns([candidate])
    except (ValueError, OverflowError):
        return False
    return True


def build_texts(texts: Sequence[str | None]) -> Texts:
    """Texts, absent ones as empty."""
    raw = [(text or "").encode("ascii") for text in texts]
    starts = np.zeros(len(raw) + 1, dtype=np.int32)
    np.cumsum([len(item) for item in raw], out=starts[1:])
    return Texts(np.frombuffer(b"".join(raw), dtype=np.uint8).copy(), starts)


def _find_template(candidate: Candidate) -> Template:
    counted = candidate.role in (Role.CALL, Role.AGGREGATE) and bool(candidate.quantities.keys() - {REQUESTS})
    return Template(**{name: getattr(candidate, name) for name in _SHARED}, counted=counted)


def _join(ids: Sequence[bytes], size: int) -> Bytes:
    return np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(len(ids), size).copy()
