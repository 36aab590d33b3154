"""Files of records without what retention has removed. Owns the way from one file to the other; keeps its order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from otelbill_collector.ledger.parquet import SEGMENT_ID, Cancelled, open_writer


def cut_records(path: Path, source: Path, after: int, stop: Callable[[], bool]) -> int:
    """Write those records of a file that come from segments past `after`; returns how many. Raises Cancelled."""
    count = 0
    with pq.ParquetFile(source) as file, open_writer(path) as writer:
        for number in range(file.num_row_groups):
            if stop():
                raise Cancelled
            part = file.read_row_group(number)
            part = part.filter(pc.greater(part[SEGMENT_ID], after))
            if part.num_rows:
                writer.write_table(part, row_group_size=part.num_rows)
            count += part.num_rows
    return count
