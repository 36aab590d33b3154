"""Transfers in double entry: what is posted follows what should be, and nothing unsound is ever posted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from otelbill_collector.domain.credits import Place
from otelbill_collector.domain.transfers import (
    Flow,
    Key,
    Kind,
    Posted,
    Transfer,
    UnbalancedTransfer,
    list_transfers,
    require_balanced,
    sum_posted,
)

KEY = Key(Kind.BURN, "g1", Place(0, "", "", "gpt", "output_tokens"), "USD")
TOOK = Flow("grant:g1", "consumed:acme", "output_tokens", 5, 10)

# (what should be, the transfers that lead there from 5 units worth 10: direction, units, worth)
STEPS = [
    ("more of both", TOOK._replace(amount=7, value_attos=14), [("burn", 2, 4)]),
    ("less of both", TOOK._replace(amount=2, value_attos=4), [("back", 3, 6)]),
    ("nothing any more", None, [("back", 5, 10)]),
    ("the same", TOOK, []),
    ("a higher price", TOOK._replace(value_attos=20), [("back", 5, 10), ("burn", 5, 20)]),
    ("fewer at a higher price", TOOK._replace(amount=4, value_attos=16), [("back", 5, 10), ("burn", 4, 16)]),
    ("more units, same worth", TOOK._replace(amount=6), [("burn", 1, 0)]),
]


@pytest.mark.parametrize(("case", "wanted", "expected"), STEPS, ids=[row[0] for row in STEPS])
def test_a_correction_is_the_difference_and_names_what_it_corrects(
    case: str, wanted: Flow | None, expected: list[tuple[str, int, int]]
) -> None:
    """Nothing is edited: transfers lead from what is posted to what should be, and each names the last before it."""
    first = Transfer(1, KEY, "acme", TOOK, 100)
    wants = {} if wanted is None else {KEY: wanted}
    made = list_transfers(wants, sum_posted([first]), customer_id="acme", booked_nanos=200, next_id=2)
    shown = [
        ("burn" if item.flow.source == "grant:g1" else "back", item.flow.amount, item.flow.value_attos) for item in made
    ]
    assert shown == expected, case
    assert {item.corrects for item in made} <= {1}
    total = sum_posted([first, *made])[KEY].flow
    assert total == wanted if wanted else (total.amount, total.value_attos) == (0, 0)


UNSOUND = [
    ("nothing", {"amount": 0}, "moves nothing"),
    ("less than nothing", {"amount": -1}, "moves nothing, or less"),
    ("a worth below nothing", {"value_attos": -1}, "or less"),
    ("between strangers", {"source": "grant:g2"}, "does not touch grant:g1"),
    ("to another customer", {"target": "consumed:globex"}, "is not between"),
    ("to itself", {"target": "grant:g1"}, "is not between"),
    ("to another grant", {"target": "grant:g2"}, "is not between"),
]


@pytest.mark.parametrize(("case", "change", "problem"), UNSOUND, ids=[row[0] for row in UNSOUND])
def test_an_unsound_transfer_is_refused_before_it_is_written(case: str, change: dict[str, int], problem: str) -> None:
    """A fault of ours stops the posting instead of entering the books."""
    item = Transfer(1, KEY, "acme", TOOK._replace(**change), 100)
    with pytest.raises(UnbalancedTransfer, match=problem):
        require_balanced(item)


def test_a_rollover_goes_from_grant_to_grant() -> None:
    """The rest of one grant is the beginning of the next, not an expiry and an issue."""
    item = Transfer(1, KEY._replace(kind=Kind.ROLL), "acme", TOOK._replace(target="grant:g2"), 100)
    require_balanced(item)
    with pytest.raises(UnbalancedTransfer):
        require_balanced(replace(item, flow=item.flow._replace(target="expired")))


def test_what_came_back_whole_may_go_another_way() -> None:
    """After a complete reversal the next transfer sets the direction."""
    back = TOOK._replace(source=TOOK.target, target=TOOK.source)
    items = [Transfer(1, KEY, "acme", TOOK, 1), Transfer(2, KEY, "acme", back, 2), Transfer(3, KEY, "acme", TOOK, 3)]
    assert sum_posted(items)[KEY] == Posted(TOOK, 3)
