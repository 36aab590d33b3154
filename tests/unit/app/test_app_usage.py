"""Usage that is no model call becomes one exact span, or a clear report."""

from __future__ import annotations

from decimal import Decimal

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import otelbill
from otelbill import config, guard
from otelbill.config import Settings
from otelbill.testing import capture_spans


def test_usage_is_one_span_without_duration() -> None:
    """One call is one span with meter, quantity, unit and payer, at one instant."""
    with capture_spans() as spans, otelbill.customer("acme"):
        otelbill.record_usage("vector_queries", 12, unit="query", event_id="e1", billable=False)
    [span] = spans
    assert span.start_time == span.end_time
    assert dict(span.attributes or {}) == {
        "otelbill.customer.id": "acme",
        "otelbill.schema.version": "1",
        "otelbill.meter": "vector_queries",
        "otelbill.quantity": 12,
        "otelbill.unit": "query",
        "otelbill.billable": False,
        "otelbill.event.id": "e1",
    }


@pytest.mark.parametrize(
    ("quantity", "rendered"),
    [
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (Decimal("0.10"), "0.10"),
        (Decimal("1E+3"), "1000"),
        (Decimal("-0"), "0"),
    ],
)
def test_quantities_are_exact(quantity: int | Decimal, rendered: int | str) -> None:
    """What OTLP cannot hold as an integer goes as decimal text, digit for digit."""
    with capture_spans() as spans:
        otelbill.record_usage("m", quantity)
    assert (spans[0].attributes or {})["otelbill.quantity"] == rendered


@pytest.mark.parametrize(
    ("quantity", "code"),
    [
        (0.1, "quantity_type"),
        (True, "quantity_type"),
        ("12", "quantity_type"),
        (None, "quantity_type"),
        (-1, "quantity_negative"),
        (Decimal("-0.1"), "quantity_negative"),
        (Decimal("NaN"), "quantity_infinite"),
        (Decimal("Infinity"), "quantity_infinite"),
        (10**38, "quantity_long"),
        (Decimal("1e999999"), "quantity_long"),
        (Decimal("1e-999999"), "quantity_long"),
    ],
)
def test_bad_quantities_are_reported_and_not_recorded(
    quantity: object, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A quantity that cannot be billed exactly makes no span, one warning with the remedy, and never an exception."""
    with capture_spans() as spans:
        otelbill.record_usage("m", quantity)  # type: ignore[arg-type]
        otelbill.record_usage("m", quantity)  # type: ignore[arg-type]
    assert spans == []
    assert guard.list_faults() == {code: 2}
    assert len(caplog.records) == 1
    config.use(Settings(strict=True))
    with pytest.raises(otelbill.OtelbillError) as caught:
        otelbill.record_usage("m", quantity)  # type: ignore[arg-type]
    assert caught.value.code == code


@pytest.mark.parametrize("field", ["meter", "unit", "event_id"])
def test_bad_names_are_reported(field: str) -> None:
    """Meter, unit and event id must be names a ledger can hold."""
    arguments: dict[str, object] = {"meter": "m", "unit": "u", "event_id": "e", field: "x" * 129}
    with capture_spans() as spans:
        otelbill.record_usage(quantity=1, **arguments)  # type: ignore[arg-type]
    assert spans == []
    assert guard.list_faults() == {f"{field}_invalid": 1}


def test_usage_on_a_span_that_nobody_keeps_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage that tracing samples out would be lost in silence; it is counted and said once."""
    monkeypatch.setattr("otelbill.tracer._tracer", TracerProvider(sampler=ALWAYS_OFF).get_tracer("otelbill"))
    otelbill.record_usage("m", 1)
    assert guard.list_faults() == {"usage_not_traced": 1}
