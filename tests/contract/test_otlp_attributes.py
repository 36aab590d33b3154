"""Spans that no rule can process: kept whole with field, value and remedy while their batch goes on; never billed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.otlp_requests import NANOS, encode, make_chat, make_id, now_nanos
from tests.sidecar_process import Json, Sidecar

_INPUT, _OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
_YEAR = 365 * 86_400 * NANOS

_BROKEN: dict[str, tuple[str, Any]] = {
    "negative": (_INPUT, -1),
    "text": (_INPUT, "a lot"),
    "2**63 as text": (_INPUT, str(2**63)),
    "2**63 as double": (_OUTPUT, float(2**63)),
    "infinite": (_OUTPUT, math.inf),
    "fraction": (_INPUT, 12.5),
    "bool": (_OUTPUT, True),
    "list": (_INPUT, [1, 2]),
    "negative cache": ("gen_ai.usage.cache_read.input_tokens", -5),
}


# How emitters say that the provider did not tell: Vercel's SDK writes NaN, others an empty value.
_WITHHELD: dict[str, Any] = {"NaN": math.nan, "empty text": "", "bytes": b"\x01\x02"}


def _find_letter(sidecar: Sidecar, seed: str) -> Json:
    letters = sidecar.get("/v1/dead-letters").json()
    found = [letter for letter in letters if letter["span_id"] == make_id(f"span {seed}", 8).hex()]
    return found[0] if found else None


@pytest.mark.parametrize("case", _BROKEN)
def test_a_broken_count_is_a_dead_letter_and_its_batch_goes_on(shared_sidecar: Sidecar, case: str) -> None:
    """Guarantee: a count that is no count is never guessed, never zero; it is kept with field, value and remedy."""
    field, value = _BROKEN[case]
    seed, customer = f"broken {case}", f"broken-{case}"
    attributes = {"input_tokens": value} if field == _INPUT else {"output_tokens": value}
    if field not in {_INPUT, _OUTPUT}:
        attributes = {field.replace(".", "__"): value}
    good = [make_chat(f"{seed} {place}", customer) for place in ("before", "after")]
    spans = [good[0], make_chat(seed, customer, **attributes), good[1]]
    assert shared_sidecar.export(encode(*spans)).status_code == 200
    assert shared_sidecar.usage("customer", customer=customer)[0]["events"] == 2
    assert shared_sidecar.quantities(customer) == {"input_tokens": 200, "output_tokens": 40, "requests": 2}
    letter = _find_letter(shared_sidecar, seed)
    assert letter is not None, "neither billed nor kept: lost"
    assert letter["field"] == field
    assert letter["code"]
    assert letter["hint"]
    assert letter["value"], "the letter must show the value that was refused"


@pytest.mark.parametrize("case", _WITHHELD)
@pytest.mark.parametrize("side", ["input_tokens", "output_tokens"])
def test_a_count_that_says_nothing_holds_the_call(shared_sidecar: Sidecar, case: str, side: str) -> None:
    """Guarantee: NaN is what emitters write when usage is unknown: the call is held and shown, never billed as zero."""
    customer = f"withheld-{case}-{side}"
    spans = [make_chat(customer, customer, **{side: _WITHHELD[case]}), make_chat(f"{customer} good", customer)]
    assert shared_sidecar.export(encode(*spans)).status_code == 200
    rows = shared_sidecar.usage("customer,rating,usage_source", customer=customer)
    assert {(row["rating"], row["usage_source"], row["events"]) for row in rows} == {
        ("held", "unknown", 1),
        ("rated", "reported", 1),
    }
    held = [row for row in shared_sidecar.get("/v1/held").json() if row["customer_id"] == customer]
    assert [(row["charge"], row["cost"]) for row in held] == [(None, None)]
    assert not held[0]["quantities"].get(side), "a quantity was made up"


_TIMES = {
    "missing": 0,
    "1970": 3600 * NANOS,
    "tomorrow": lambda: now_nanos() + 86_400 * NANOS,
    "far future": lambda: now_nanos() + 50 * _YEAR,
    "2**64-1": 2**64 - 1,
}


@pytest.mark.parametrize("case", _TIMES)
def test_an_impossible_event_time_is_a_dead_letter(shared_sidecar: Sidecar, case: str) -> None:
    """Guarantee: no usage is booked at a time at which it cannot have happened, nor silently moved to now."""
    moment = _TIMES[case]
    at = moment() if callable(moment) else moment
    seed, customer = f"time {case}", f"time-{case}"
    spans = [make_chat(seed, customer, at=at), make_chat(f"{seed} good", customer)]
    assert shared_sidecar.export(encode(*spans)).status_code == 200
    letter = _find_letter(shared_sidecar, seed)
    assert letter is not None
    assert "time" in letter["field"].lower()
    assert shared_sidecar.usage("customer", customer=customer)[0]["events"] == 1


@pytest.mark.parametrize(("trace_id", "span_id"), [(b"", b"12345678"), (b"1234567890123456", b""), (b"", b"")])
def test_a_span_without_ids_is_never_billed_under_a_made_up_one(
    shared_sidecar: Sidecar, trace_id: bytes, span_id: bytes
) -> None:
    """Guarantee: ids are what a duplicate is told by; without them a span is dead-lettered, its neighbour billed."""
    name = f"ids-{len(trace_id)}-{len(span_id)}"
    broken = make_chat(name, name)
    broken.trace_id, broken.span_id = trace_id, span_id
    before = len(shared_sidecar.get("/v1/dead-letters").json())
    assert shared_sidecar.export(encode(broken, make_chat(f"{name} good", name))).status_code == 200
    assert len(shared_sidecar.get("/v1/dead-letters").json()) == before + 1
    assert shared_sidecar.usage("customer", customer=name)[0]["events"] == 1


@pytest.mark.parametrize("length", [1, 7, 9, 16])
def test_a_span_id_of_another_length_is_a_dead_letter(shared_sidecar: Sidecar, length: int) -> None:
    """Guarantee: an id of a wrong length is not cut or padded into somebody else's."""
    name = f"length-{length}"
    broken = make_chat(name, name)
    broken.span_id = b"\x07" * length
    before = len(shared_sidecar.get("/v1/dead-letters").json())
    assert shared_sidecar.export(encode(broken)).status_code == 200
    assert len(shared_sidecar.get("/v1/dead-letters").json()) == before + 1
    assert shared_sidecar.quantities(name) == {}


def test_sums_go_on_beyond_64_bits(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: sums of the largest counts are exact in the API and on the command line, and break no page."""
    sidecar = new_sidecar().start()
    largest, count = 2**53, 2100
    spans = [make_chat(f"huge {number}", "acme", input_tokens=largest) for number in range(count)]
    assert sidecar.export(encode(*spans)).status_code == 200
    assert sidecar.get("/v1/dead-letters").json() == []
    answer = sidecar.get("/v1/usage?by=customer")
    assert answer.status_code == 200
    total = largest * count
    assert total > 2**64
    assert int(answer.json()[0]["quantities"]["input_tokens"]) == total
    assert int(sidecar.list_json("usage")[0]["quantities"]["input_tokens"]) == total
    assert sidecar.get("/").status_code == sidecar.get("/metrics").status_code == 200


@pytest.mark.parametrize("count", [2**53 + 1, 2**63 - 1])
def test_a_count_no_json_reader_can_hold_is_a_dead_letter(shared_sidecar: Sidecar, count: int) -> None:
    """Guarantee: counts beyond 2^53 are beyond every model and every JSON reader, and are refused loudly."""
    name = f"beyond-{count}"
    assert shared_sidecar.export(encode(make_chat(name, name, input_tokens=count))).status_code == 200
    assert shared_sidecar.quantities(name) == {}
    assert _find_letter(shared_sidecar, name)["value"] == str(count)


def test_dead_letters_are_listed_and_replayed_by_the_command(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: the command shows field, value and remedy; a replay keeps what is wrong, with or without sidecar.

    Of a text only its length is shown: it may be content.
    """
    sidecar = new_sidecar().start()
    sidecar.export(encode(make_chat("good"), make_chat("bad", input_tokens=-7), make_chat("worse", output_tokens="x")))
    for phase in ("running", "stopped"):
        letters = sidecar.list_json("dead-letters", "list")
        assert {(letter["field"], letter["value"]) for letter in letters} == {
            (_INPUT, "-7"),
            (_OUTPUT, "text of 1 characters"),
        }, phase
        replayed = sidecar.run("dead-letters", "replay")
        assert replayed.returncode == 0, replayed.stderr
        assert len(sidecar.list_json("dead-letters", "list")) == 2, phase
        assert sidecar.list_json("usage")[0]["events"] == 1
        if phase == "running":
            assert sidecar.stop() == 0


def test_a_dead_letter_whose_cause_is_gone_is_billed_by_a_replay(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: replay takes the span as it was sent; once a limit allows it, it is billed, and once."""
    narrow = {"limits": {"attributes_per_span": 16}}
    sidecar = new_sidecar(narrow).start()
    wide = make_chat("wide", **{f"extra__{number}": number for number in range(30)})
    assert sidecar.export(encode(wide, make_chat("slim"))).status_code == 200
    assert sidecar.usage()[0]["events"] == 1
    assert len(sidecar.get("/v1/dead-letters").json()) == 1
    assert sidecar.stop() == 0
    sidecar.write_config({"listen": sidecar.settings["listen"]})
    sidecar.start()
    for _ in range(2):
        assert sidecar.run("dead-letters", "replay").returncode == 0
        assert sidecar.usage()[0]["events"] == 2
    assert sidecar.get("/v1/dead-letters").json() == []
    sidecar.export(encode(wide))
    assert sidecar.usage()[0]["events"] == 2


def test_dead_letters_survive_a_kill_and_are_not_doubled_by_a_retry(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: acknowledged means kept, for dead letters too; the same broken span sent again is the same letter."""
    sidecar = new_sidecar().start()
    body = encode(make_chat("bad", input_tokens=-7))
    for _ in range(2):
        assert sidecar.export(body).status_code == 200
    sidecar.restart()
    assert sidecar.export(body).status_code == 200
    assert len(sidecar.get("/v1/dead-letters").json()) == 1
