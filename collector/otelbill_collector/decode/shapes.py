"""What the rules made of spans of one kind, remembered. Owns the memory and when it may answer; owns no rule.

A *shape* is a scope and the attribute names of its spans that any rule looks at. For a span of a new kind the rules are
run once on a view that notes whose values they looked at (`_Watched`). A later span of that shape with the same bytes
in those places is of the same *kind*: only what the rules copy or count differs, and that is read anew from each span:

- ids and times; customer, project, run, step, event and response id, cleaned as the rules clean them;
- counts: summed by `split_counts`, or by `_split_plain` where every count is a plain integer and no sum is impossible.
  What else the rules decide by counts they decide by presence, by zero or not, and by thresholds of the dialect table.
  These make the span's *signature*; what came out, the *outcome*, is remembered for each signature of a kind.

An outcome is remembered only when the span rebuilt from it equals what the rules said. What is not remembered is read
by the rules, so that a new rule or dialect needs nothing here. All memory is bounded, and forgotten as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from otelbill_collector.decode.counting import CACHE_RULES, JSON_TYPE
from otelbill_collector.decode.dialects import Dialect, Plan, find_plan, find_rows, find_shape
from otelbill_collector.decode.draft import find_service
from otelbill_collector.decode.spans import Value
from otelbill_collector.decode.values import forget_values
from otelbill_collector.decode.wire import Scope

KINDS_MAX = 16_384
NAMES_MAX = 500_000  # attribute names in all layouts together

OWN_KEYS = ("otelbill.customer.id", "otelbill.project.id", "otelbill.run.id", "otelbill.step", "otelbill.event.id")
_PLAIN_FACTS = ("input", "output", "total", "cache_read", "cache_write", "reasoning")
_NEEDED_FACTS = _PLAIN_FACTS[:2]
SUMMED_FACTS = (*_PLAIN_FACTS, "cache_write_5m", "cache_write_1h")
"""Counts that `scan.c` sums, in its order."""
_THRESHOLDS = frozenset({"input_min", "uncached_min", "total_min"})

Raw = tuple[bytes, ...]


class Shape:
    """Where the values stand that spans with these names are read from: `read(attributes)` gives them in one go.

    First those that every span has for itself (`own`, `responses`, then counts), from `fixed` on those of the names in
    `noted`, which tell kinds apart. `read` is None where nothing can be remembered.
    """

    __slots__ = (
        *("_names", "counted", "facts", "fixed", "graded", "ignored", "made_up", "noted", "own", "plain", "plan"),
        *("read", "responses", "steps"),
    )

    def __init__(self, plan: Plan | None, names: frozenset[str], *, ignored: bool) -> None:
        self.plan = plan
        self.ignored = ignored
        self.read: Callable[[Any], Raw] | None = None  # Any: the parser's map
        self.noted: tuple[str, ...] = ()
        if plan is None or plan.explicit or plan.output_images:
            return
        responses = plan.texts.get("response_id", ())
        counts = {fact: keys[0] for fact, keys in plan.counts}
        own = tuple(key for key in OWN_KEYS if key in names)
        self._names = (*own, *responses, *counts.values())
        self.own = tuple(own.index(key) if key in own else None for key in OWN_KEYS)
        self.responses = range(len(own), len(own) + len(responses))
        self.made_up = plan.dialect.own_response_ids
        self.steps, self.graded = _list_steps(plan.dialect, counts.keys())
        self.facts = tuple(counts)
        self.counted = slice(self.responses.stop, self.responses.stop + len(counts))
        self.plain = self._place_counts(plan)
        self._names += (min(names),) * (2 - len(self._names))  # one name alone would not be read as a tuple
        self.fixed = len(self._names)
        self.note(item.media_type for item in plan.usage_objects if item.media_type in names)

    def _place_counts(self, plan: Plan) -> tuple[int, ...] | None:
        """Places of input, output, total, cache read, cache write and reasoning (0 is absent); None: not plain."""
        if plan.units or plan.dialect.output_from_total or not plan.dialect.output_includes_reasoning:
            return None
        if not set(_NEEDED_FACTS) <= set(self.facts) <= set(_PLAIN_FACTS):
            return None
        places = {fact: self.responses.stop + index for index, fact in enumerate(self.facts)}
        return tuple(places.get(fact, 0) for fact in _PLAIN_FACTS)

    def list_copied(self) -> tuple[str, ...]:
        """The names that every span has a value of its own for."""
        return self._names[: self.responses.stop]

    def list_counts(self) -> tuple[str | None, ...]:
        """The names of `SUMMED_FACTS`, None where absent; empty where there are other counts or other sums."""
        names = dict(zip(self.facts, self._names[self.counted], strict=True))
        plan = self.plan
        assert plan is not None  # who asks has a shape that can be read
        if plan.units or plan.dialect.output_from_total or not plan.dialect.output_includes_reasoning:
            return ()
        summed = set(_NEEDED_FACTS) <= set(names) <= set(SUMMED_FACTS)
        return tuple(names.get(fact) for fact in SUMMED_FACTS) if summed else ()

    def note(self, names: Iterable[str | None]) -> None:
        """Tell kinds apart by the values of these names as well."""
        self.noted += tuple(name for name in names if name is not None and name not in self.noted)
        self.read = itemgetter(*self._names, *self.noted)


def _list_steps(dialect: Dialect, facts: Collection[str]) -> tuple[list[int], bool]:
    """The numbers that faults of a dialect compare counts with, and whether those of a span with these facts matter."""
    steps, matter = {1}, False
    for fault in dialect.faults:
        found = {fault.when[name] for name in _THRESHOLDS & set(fault.when)}
        steps |= found
        matter |= bool(found) and not any(fact in facts for fact in fault.when.get("missing", ()))
    return sorted(steps), matter


class Kind:
    """Spans of one shape that say the same in all places but those that each has for itself."""

    __slots__ = ("aggregate", "bare", "includes", "outcomes", "plain", "provider", "read_whole")

    def __init__(self, shape: Shape, plan: Plan, provider: str | None, *, aggregate: bool, media: Mapping[str, Value]):
        self.provider = provider
        self.aggregate = aggregate
        self.includes = CACHE_RULES[plan.dialect.find_cache_rule(provider)]
        objects = [
            item
            for item in plan.usage_objects
            if not (aggregate and item.form == "provider_metadata")
            and (item.media_type is None or media.get(item.media_type) == JSON_TYPE)
        ]
        self.read_whole = bool(objects) or plan.hidden_params
        self.bare = not (plan.counts or plan.units or self.read_whole)
        self.plain = None if self.read_whole else shape.plain
        self.outcomes: dict[tuple[object, ...], tuple[Any, ...]] = {}  # Any: fields of candidates, `_read_outcome`


Layout = tuple[str, ...]
"""All attribute names of a span, in the parser's order."""


@dataclass(slots=True, eq=False)
class Ground:
    """What is known of a scope of a request before its first span is read.

    It does not hold the scope, which holds it: a request would stay in memory until the next collection of cycles.
    """

    name: str
    version: str
    service: str | None
    shapes: dict[Layout, Shape]
    latest: dict[int, tuple[Layout, Shape]]  # by number of names: most spans are like the last one of their size


class Memory:
    """Shapes by scope and names, and kinds by shape, status, free name and the noted values."""

    def __init__(self) -> None:
        self.learning = threading.Lock()  # held from what is noted to what is kept under it
        self.kinds: dict[tuple[object, ...], Kind] = {}
        self._scopes: dict[tuple[str, str], tuple[dict[Layout, Shape], dict[int, tuple[Layout, Shape]]]] = {}
        self._shapes: dict[tuple[str, str, frozenset[str]], Shape] = {}
        self._names = 0

    def enter(self, scope: Scope) -> Ground:
        """The ground of a scope, which keeps it until its request is done."""
        key = (scope.name, scope.version)
        found = self._scopes.get(key)
        if found is None:
            self._count_names(4)
            found = self._scopes[key] = ({}, {})
        shapes, latest = found
        ground = scope.memory = Ground(scope.name, scope.version, find_service(scope.resource), shapes, latest)
        return ground

    def find_shape(self, ground: Ground, layout: Layout) -> Shape:
        """The shape of a layout."""
        shape = ground.shapes.get(layout)
        if shape is None:
            shape = ground.shapes[layout] = self._make_shape(ground, layout)
        ground.latest[len(layout)] = layout, shape
        return shape

    def _make_shape(self, ground: Ground, layout: Layout) -> Shape:
        self._count_names(len(layout))
        names = find_shape(layout)
        key = (ground.name, ground.version, names)
        shape = self._shapes.get(key)
        if shape is None:
            plan = find_plan(*key)
            ignored = plan is None and find_rows(ground.name, ground.version)[0].mirror_prefix is None
            shape = self._shapes[key] = Shape(plan, names, ignored=ignored)
        return shape

    def keep_kind(self, key: tuple[object, ...], kind: Kind) -> Kind:
        """The kind under this key: the given one where there is none yet."""
        if len(self.kinds) >= KINDS_MAX:
            self.kinds.clear()
        return self.kinds.setdefault(key, kind)

    def count_names(self) -> int:
        """How many attribute names are held."""
        return self._names

    def forget(self) -> None:
        """Forget everything; the rules answer until it is learned again."""
        self.kinds.clear()
        self._scopes.clear()
        self._shapes.clear()
        self._names = 0
        forget_values()

    def _count_names(self, more: int) -> None:
        self._names += more
        if self._names > NAMES_MAX:
            self.forget()


MEMORY = Memory()
