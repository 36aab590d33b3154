"""Wraps apart.c: groups of rows decided where nothing is weighed but who pays."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import make_array, point_at


class TemplateFacts(NamedTuple):
    """What apart.c asks of templates: role code, flags, and a code of the emitter."""

    role: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    emitter: NDArray[np.int32]


class Payers(NamedTuple):
    """Codes by row of who pays, overwritten with what is decided; -1 is nobody."""

    customer: NDArray[np.int32]
    project: NDArray[np.int32]
    step: NDArray[np.int32]
    run: NDArray[np.int32]


def decide_apart(
    library: ctypes.CDLL,
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    facts: TemplateFacts,
    *,
    templates: NDArray[np.int32],
    span_ids: NDArray[np.uint8],
    parent_ids: NDArray[np.uint8],
    has_parent: NDArray[np.uint8],
    settled: NDArray[np.uint8],
    payers: Payers,
) -> NDArray[np.uint8]:
    """1 for every group that is decided, all of whose rows are settled; `payers` then hold what is decided.

    Raises MemoryError.
    """
    groups = len(starts) - 1
    apart: NDArray[np.uint8] = make_array(groups, "u1")
    arrays: list[NDArray[Any]] = [
        *(starts, rows, templates, facts.role, facts.flags, facts.emitter, span_ids, parent_ids, has_parent),
        settled,
        *payers,
        apart,
    ]
    pointers = [ctypes.c_void_p(point_at(array)) for array in arrays]
    if library.ob_decide_apart(ctypes.c_int64(groups), *pointers):
        raise MemoryError("no memory to decide a trace")
    return apart
