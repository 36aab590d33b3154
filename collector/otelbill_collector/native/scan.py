"""`scan.c` for Python: calls, and arrays for what they give. Owns the handle; what it is told is `decode.scanner`'s."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import make_array, point_at

RESOURCE, OUTCOME, NAME = 1, 5, 6  # tables of `scan.c` that are told entry by entry
RULES, IGNORED, READ = 0, 1, 2  # states of a layout
INCLUDES_NO, INCLUDES_YES, INCLUDES_CHECKED = 0, 1, 2
REST_WORDS = 9  # of each span left to the rules: see `Raw.rest`
POSITIONS_MAX = 512  # attributes of a span that can be recognised
KIND_BYTES_MAX = 8_192
_UNITS = 5

_int32, _int64, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class Layout(ctypes.Structure):
    """`Layout` of `scan.c`: positions of values, -1 where a span has none."""

    _fields_ = (
        ("state", _int32),
        ("graded", _int32),
        ("counts", _int32 * 8),
        ("texts", _int32 * 3),
        ("response", _int32),
        ("run", _int32),
        ("own_id_size", _int32),
        ("noted", _int32),
        ("noted_count", _int32),
        ("steps", _int32),
        ("steps_count", _int32),
        ("last_kind", _int32),
        ("last_size", _int32),
        ("last_place", _int64),
    )


# Columns in the order of `Columns` in `scan.c`: name, type, entries a row.
_ROWS: tuple[tuple[str, str, int], ...] = (
    *((name, "i4", 1) for name in ("template", "request", "number", "customer", "project", "step", "service")),
    *(("trace_id", "u1", 16), ("span_id", "u1", 8), ("parent_span_id", "u1", 8), ("has_parent", "u1", 1)),
    *(("started_nanos", "i8", 1), ("ended_nanos", "i8", 1), ("received_nanos", "i8", 1)),
)
_POINTERS = len(_ROWS) + 6


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a scan. Events, attributes and scopes are counted over a whole request."""

    earliest_nanos: int
    spans_max: int
    attributes_max: int
    events_max: int
    all_attributes_max: int
    scopes_max: int


@dataclass(frozen=True, slots=True)
class Raw:
    """What a scan gave. `rest` has a row for each span left to the rules: request, number of the span, whether it is
    new (rather than odd), then start and size of the span, its resource and its scope in the request's bytes.
    """

    spans: NDArray[np.int64]  # of each request; -1: it is for the parser as a whole
    ignored: NDArray[np.int64]
    rows: dict[str, NDArray[Any]]
    response_id: tuple[NDArray[np.uint8], NDArray[np.int32]]  # pool and starts
    run_id: tuple[NDArray[np.uint8], NDArray[np.int32]]
    rest: NDArray[np.int64]


class NativeScanner:
    """One scanner of the library. Not for several threads at once: while it scans, the interpreter's lock is free."""

    def __init__(self, library: ctypes.CDLL, free_word: bytes, *, entries_max: int, bytes_max: int) -> None:
        self._library = library
        _declare(library)
        handle = library.ob_scanner_make(free_word, len(free_word), entries_max, bytes_max)
        if not handle:
            raise MemoryError("the native scanner has no memory")
        self._handle = handle
        self._end = weakref.finalize(self, library.ob_scanner_free, handle)

    def scan(self, bodies: Sequence[bytes], received: Sequence[int], latest: Sequence[int], bounds: Bounds) -> Raw:
        """Read requests. `latest` is the latest event time that each may have."""
        count = len(bodies)
        spans, ignored, sizes = make_array(count, "i8"), make_array(count, "i8"), (_int64 * 4)()
        limits = (
            *(bounds.earliest_nanos, bounds.spans_max, bounds.attributes_max),
            *(bounds.events_max, bounds.all_attributes_max, bounds.scopes_max),
        )
        self._library.ob_scanner_scan(
            self._handle,
            count,
            (ctypes.c_char_p * count)(*bodies),
            (_int64 * count)(*map(len, bodies)),
            (_int64 * count)(*received),
            (ctypes.c_uint64 * count)(*latest),
            (_int64 * 6)(*limits),
            point_at(spans),
            point_at(ignored),
            sizes,
        )
        return self._take(spans, ignored, *sizes)

    def _take(
        self, spans: NDArray[Any], ignored: NDArray[Any], count: int, words: int, responses: int, runs: int
    ) -> Raw:
        columns, pointers = make_columns(count, words, responses, runs)
        self._library.ob_scanner_take(self._handle, (_pointer * _POINTERS)(*pointers))
        return Raw(spans, ignored, *columns)

    def forget(self) -> None:
        """Forget all that was told."""
        self._library.ob_scanner_forget(self._handle)

    def keep(self, table: int, number: int, key: bytes, value: int) -> bool:
        """Tell the value of a key. False, here and below: the scanner is full, and must forget first."""
        return int(self._library.ob_scanner_keep(self._handle, table, number, key, len(key), value)) >= 0

    def add_scope(self, key: bytes) -> int:
        """The root of the attribute names of a scope; -1, here and below: full."""
        return int(self._library.ob_scanner_add_scope(self._handle, key, len(key)))

    def add_layout(
        self, root: int, names: Sequence[bytes], layout: Layout, noted: Sequence[int], steps: Sequence[int]
    ) -> int:
        """The number of the layout of these names in wire order, in place of the one of before."""
        layout.noted_count, layout.steps_count = len(noted), len(steps)
        sizes = (_int32 * len(names))(*map(len, names))
        places, numbers = (_int32 * len(noted))(*noted), (_int64 * len(steps))(*steps)
        return int(
            self._library.ob_scanner_add_layout(
                self._handle, root, b"".join(names), sizes, len(names), ctypes.byref(layout), places, numbers
            )
        )

    def add_kind(self, layout: int, key: bytes, *, readable: bool, includes: int, bare: bool) -> int:
        """The number of a kind of a layout."""
        return int(
            self._library.ob_scanner_add_kind(self._handle, layout, key, len(key), int(readable), includes, int(bare))
        )


Pooled = tuple[NDArray[np.uint8], NDArray[np.int32]]
Columns = tuple[dict[str, NDArray[Any]], Pooled, Pooled, NDArray[np.int64]]


class _Memory:
    """Arrays one behind the other in one allocation: twenty by themselves cost more than reading fifty spans."""

    def __init__(self, size: int) -> None:
        self._bytes = make_array(size, "u1")
        self._start = point_at(self._bytes)
        self._used = 0
        self.pointers: list[int] = []

    def cut(self, shape: int | tuple[int, ...], kind: str, size: int) -> NDArray[Any]:
        """The next array, of `size` bytes."""
        found: NDArray[Any] = np.ndarray(shape, kind, self._bytes, self._used)
        self.pointers.append(self._start + self._used)
        self._used += size + -size % 8
        return found


_ROW_BYTES = sum(int(kind[1]) * width for _, kind, width in _ROWS) + 8 * _UNITS + 2 * 4


def make_columns(count: int, words: int = 0, responses: int = 0, runs: int = 0) -> tuple[Columns, list[int]]:
    """Arrays for what a scan gives (`rows`, `response_id`, `run_id` and `rest` of `Raw`), and where they are."""
    memory = _Memory(count * _ROW_BYTES + 8 * words + responses + runs + 16 * _POINTERS)
    rows = {
        name: memory.cut(count if width == 1 else (count, width), kind, count * int(kind[1]) * width)
        for name, kind, width in _ROWS
    }
    rows["counts"] = memory.cut((_UNITS, count), "i8", 8 * _UNITS * count)
    response_id = memory.cut(responses, "u1", responses), memory.cut(count + 1, "i4", 4 * count + 4)
    run_id = memory.cut(runs, "u1", runs), memory.cut(count + 1, "i4", 4 * count + 4)
    response_id[1][0] = run_id[1][0] = 0
    rest = memory.cut((words // REST_WORDS, REST_WORDS), "i8", 8 * words)
    return (rows, response_id, run_id, rest), memory.pointers


def _declare(library: ctypes.CDLL) -> None:
    library.ob_scanner_make.restype = _pointer
    library.ob_scanner_make.argtypes = (ctypes.c_char_p, _int64, _int64, _int64)
    for name in ("free", "forget"):
        getattr(library, f"ob_scanner_{name}").argtypes = (_pointer,)
        getattr(library, f"ob_scanner_{name}").restype = None
    library.ob_scanner_scan.argtypes = (_pointer, _int32, *[_pointer] * 8)
    library.ob_scanner_scan.restype = None
    library.ob_scanner_take.argtypes = (_pointer, _pointer)
    library.ob_scanner_take.restype = None
    library.ob_scanner_keep.argtypes = (_pointer, _int32, _int32, ctypes.c_char_p, _int64, _int32)
    library.ob_scanner_add_scope.argtypes = (_pointer, ctypes.c_char_p, _int64)
    library.ob_scanner_add_layout.argtypes = (_pointer, _int32, ctypes.c_char_p, _pointer, _int32, *[_pointer] * 3)
    library.ob_scanner_add_kind.argtypes = (_pointer, _int32, ctypes.c_char_p, _int64, _int32, _int32, _int32)
