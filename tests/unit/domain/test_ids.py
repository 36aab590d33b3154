"""Claim keys are stored in ledgers: an upgrade must find again what an earlier version wrote."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.decode.claims import claim_keys
from otelbill_collector.domain.ids import (
    derive_claim_key,
    derive_gap_key,
    derive_number_keys,
    derive_response_key,
    derive_trace_key,
    derive_twin_key,
    is_twin_key,
)
from tests.unit.decode.span_kit import make_call

BUCKETS = st.integers(0, 2**63)


@given(st.binary(max_size=40), st.text(max_size=300))
def test_keys_made_the_short_way_are_the_keys_of_the_definition(trace_id: bytes, text: str) -> None:
    """Trace, response and model keys are length-prefixed digests of their parts, whatever their length."""
    assert derive_trace_key(trace_id) == derive_claim_key("claim-trace", trace_id)
    assert derive_response_key(text) == derive_claim_key("claim-response", text)
    assert derive_gap_key(text, 895_000_000) == derive_twin_key("claim-gap", text, 895_000_000)


@given(st.integers(0, 2**55), st.integers(0, 2**55), st.lists(BUCKETS, max_size=4))
def test_number_keys_are_those_of_the_definition(asked: int, answered: int, buckets: list[int]) -> None:
    """Two calls of equal numbers meet under the same keys in every version."""
    keys = derive_number_keys(asked, answered, buckets)
    assert keys == [derive_twin_key("claim-twin", asked, answered, bucket) for bucket in buckets]
    assert all(is_twin_key(key) for key in keys)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (
            {"gen_ai__response__id": "chatcmpl-abcdefgh"},
            [
                "14f60a06b2317e611da919862e515f75",
                "3b87593dc3211a548cd31c726790b9a4",
            ],
        ),
        (
            {},
            [
                "14f60a06b2317e611da919862e515f75",
                "a16a54ccbe2a820c5ca4ae706ec1f3be",
                "beea72cf836babc2d169c65ca0146871",
            ],
        ),
        (
            {"scope_name": "opentelemetry.instrumentation.openai.v1", "gen_ai__response__id": "chatcmpl-abcdefgh"},
            [
                "14f60a06b2317e611da919862e515f75",
                "3b87593dc3211a548cd31c726790b9a4",
                "a16a54ccbe2a820c5ca4ae706ec1f3be",
                "beea72cf836babc2d169c65ca0146871",
            ],
        ),
        (
            {
                "scope_name": "opentelemetry.instrumentation.openai.v1",
                "gen_ai__usage__input_tokens": None,
                "gen_ai__usage__output_tokens": None,
            },
            [
                "14f60a06b2317e611da919862e515f75",
                "85ab6c6585327d219038ed3a3b4333c9",
                "cbeb80d919e2b4e8f7ccd7c95933d79b",
            ],
        ),
    ],
)
def test_keys_of_known_spans_never_change(changes: dict[str, Any], keys: list[str]) -> None:
    """The very bytes that version 0.1 stored for these spans."""
    assert [key.hex() for key in claim_keys(make_call(**changes))] == keys
