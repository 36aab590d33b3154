"""The native work on columns through a library built with sanitizers: `python -m tests.native_columns LIBRARY`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from otelbill_collector.ledger.claim_runs import make_entries, read_prefixes
from otelbill_collector.ledger.known_keys import KnownKeys
from otelbill_collector.native import links, loading
from otelbill_collector.native.keys import digest_sha256


def main() -> None:
    """Run what the unit tests of ids, keys and tables run, and the filter; a sanitizer ends the process."""
    loading.LIBRARY = Path(sys.argv[1])  # type: ignore[attr-defined]
    assert loading.find_library() is not None
    from tests.unit.ledger import test_column_ids, test_column_singles  # the library is chosen before

    for seed in range(8):
        test_column_ids.test_columns_have_the_keys_ids_and_digests_of_their_candidates(seed)
        test_column_singles.test_a_table_of_keys_is_a_dictionary(seed)
        test_column_singles.test_company_is_found_wherever_it_is(seed)
    test_column_ids.test_codes_that_point_nowhere_are_refused()
    for size in range(0, 200, 3):
        for lanes in (0, 1, 2):
            digest_sha256(b"x" * size, lanes)
    keys = np.random.default_rng(1).integers(0, 256, (3_000, 16), dtype=np.uint8)
    known = KnownKeys(5_000)
    known.add(read_prefixes(keys), 1)
    assert known.mark(read_prefixes(keys)).all()
    for count in (0, 1, 3_000):
        links.sort_entries(make_entries(1, keys[:count], range(count)))
    print("clean")


if __name__ == "__main__":
    main()
