"""The claim keys of spans in columns: what `claims.claim_keys` gives for each, all at once. Owns no formula."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from threading import Lock

import numpy as np

from otelbill_collector.decode.claims import claim_keys
from otelbill_collector.decode.twins import find_own_family
from otelbill_collector.domain.span_columns import Bytes, Int32s, SpanColumns, Template
from otelbill_collector.domain.usage import Role, UsageSource
from otelbill_collector.native import keys
from otelbill_collector.native.loading import find_library


def derive_keys(columns: SpanColumns) -> tuple[Bytes, Int32s]:
    """Claim keys [m, 16], span by span, and where those of each span start [n + 1]. Raises ValueError for codes that
    point nowhere and counts past any that the rules let through.
    """
    if find_library() is None:
        return _derive_singly(columns)
    return keys.derive_claim_keys(columns, _TEMPLATES.find(columns.templates))


def _derive_singly(columns: SpanColumns) -> tuple[Bytes, Int32s]:
    found = [claim_keys(columns.build_candidate(row)) for row in range(len(columns))]
    starts = np.zeros(len(found) + 1, dtype=np.int32)
    np.cumsum([len(item) for item in found], out=starts[1:])
    joined = b"".join([key for item in found for key in item])
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16), starts


class _Templates:
    """What the templates seen last mean for keys: they only grow, so each is looked at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seen: list[Template] = []
        self._families: dict[str, int] = {}
        self._known = keys.KeyTemplates(np.zeros(0, np.uint8), np.zeros(0, np.int32), keys.Pieces.of())

    def find(self, templates: Sequence[Template]) -> keys.KeyTemplates:
        """The meaning of all templates."""
        with self._lock:
            count = len(self._seen)
            if count > len(templates) or not all(map(is_, self._seen, templates)):
                self._seen, self._families, count = [], {}, 0
                self._known = keys.KeyTemplates(np.zeros(0, np.uint8), np.zeros(0, np.int32), keys.Pieces.of())
            if count < len(templates):
                self._add(templates[count:])
            return self._known

    def _add(self, templates: Sequence[Template]) -> None:
        before = len(self._families)
        codes = []
        for template in templates:
            family = find_own_family(template.request_model, template.model)
            codes.append(-1 if family is None else self._families.setdefault(family, len(self._families)))
        self._seen += templates
        flags = [_find_flags(template) for template in templates]
        self._known = keys.KeyTemplates(
            np.concatenate([self._known.flags, np.array(flags, dtype=np.uint8)]),
            np.concatenate([self._known.family, np.array(codes, dtype=np.int32)]),
            self._known.families.extended(family.encode() for family in list(self._families)[before:]),
        )


def _find_flags(template: Template) -> int:
    flags = keys.IS_CALL if template.role is Role.CALL else 0
    flags |= keys.HAS_TWINS if "twin" in template.traits else 0
    flags |= keys.HAS_FAILED if template.failed else 0
    flags |= keys.HAS_TRACES_APART if "traces_apart" in template.traits else 0
    flags |= keys.IS_KNOWN if template.usage_source is not UsageSource.UNKNOWN else 0
    return flags | (keys.HAS_COUNTS if template.counted else 0)


_TEMPLATES = _Templates()
