"""Coverage-guided fuzzing of decoding, selection and claims with atheris, which is no dependency of this project.

    pip install atheris                                  (CPython 3.11 to 3.13 on Linux)
    python -m tests.fuzz.coverage_guided seeds FOLDER    write the recorded requests as a first corpus
    python -m tests.fuzz.coverage_guided FOLDER -max_total_time=600 -max_len=65536

What it finds is written to a file `crash-...` in the current folder; `python -m tests.fuzz.coverage_guided crash-...`
runs it again. The oracle is `tests.fuzzing.check_request`; half of the mutations are those of the seeded fuzz test.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

SHARED = Path(__file__).resolve().parents[3] / "shared"


def write_seeds(folder: Path) -> int:
    """Write every recorded request to the folder; returns how many."""
    from tests.corpus import load_cases

    folder.mkdir(parents=True, exist_ok=True)
    cases = load_cases(Path(os.environ.get("OTELBILL_SHARED", SHARED)) / "data")
    for case in cases:
        (folder / case.name.replace("/", "--")).write_bytes(case.body)
    return len(cases)


def run(arguments: list[str]) -> None:
    """Fuzz until libFuzzer's limits; does not return. Any: atheris has no types."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["otelbill_collector.decode"]):
        from tests.fuzzing import check_request, list_mutation_keys, mutate
    keys = list_mutation_keys()

    def take(data: bytes) -> None:
        check_request(data)

    def change(data: bytes, size_max: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            try:
                return mutate(data, chance, keys)[:size_max]
            except DecodeError:
                pass  # no request any more: only its bytes can be changed
        return bytes(atheris.Mutate(data, size_max))

    atheris.Setup(arguments, take, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["seeds"]:
        print(write_seeds(Path(sys.argv[2])), "requests written")
    else:
        run(sys.argv)
