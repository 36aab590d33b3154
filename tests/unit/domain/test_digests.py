"""The digest of a candidate is its identity in every ledger that holds it."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.records import digest_candidate
from otelbill_collector.domain.usage import Candidate, Problem, Role, UsageSource, replace

PLAIN = Candidate(b"t" * 16, b"s" * 8, b"", 1, 2, "openai", Role.CALL, 2_345)
_texts = st.none() | st.text(max_size=8)
_CHANGES: dict[str, st.SearchStrategy[object]] = {
    "trace_id": st.binary(max_size=16),
    "ended_nanos": st.integers(0, 2**63),
    "role": st.sampled_from(Role),
    "model": _texts,
    "response_id": _texts,
    "customer_id": _texts,
    "run_id": _texts,
    "step": _texts,
    "attempt": st.none() | st.integers(0, 3),
    "failed": st.booleans(),
    "reason": st.sampled_from([*Reason, *(reason.value for reason in Reason)]),
    "usage_source": st.sampled_from(UsageSource),
    "caveats": st.lists(st.text(max_size=3), max_size=2).map(tuple),
    "quantities": st.dictionaries(st.text(max_size=3), st.integers(0, 2**53) | st.just(Decimal("1.50")), max_size=4),
    "problem": st.none() | st.just(Problem("code", "field", "value", "hint")),
    "service": _texts,
    "traits": st.sampled_from([(), ("twin",), ("twin", "traces_apart")]),
}


def test_a_digest_of_today_is_the_digest_of_every_version() -> None:
    """Ledgers hold digests of earlier versions; a repeat of such a span must be recognised."""
    call = replace(
        PLAIN, reason=Reason.PROVIDER_CALL, model="gpt-4o", run_id="r'1", quantities={"requests": 1, "input_tokens": 5}
    )
    assert digest_candidate(call).hex() == "282803c320712fd03431a7791bc49902"


@given(st.fixed_dictionaries({}, optional=_CHANGES))
def test_a_digest_is_over_the_repr_of_every_field(changes: dict[str, object]) -> None:
    """Rendering fields in runs, some of them from memory, gives the text that rendering each by itself gives."""
    candidate = replace(PLAIN, **changes)
    values = {spec.name: getattr(candidate, spec.name) for spec in fields(Candidate)}
    values["quantities"] = sorted(candidate.quantities.items())
    text = "\x1f".join(map(repr, values.values()))
    assert digest_candidate(candidate) == hashlib.sha256(text.encode()).digest()[:16]
