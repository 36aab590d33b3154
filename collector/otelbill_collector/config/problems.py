"""What can be wrong with a configuration, as values: where, what, and what to do about it. Owns their text form.

No value that came from the environment, and no secret, ever gets into a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PathParts = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One complaint: `file` and `line` (1-based) where known, the path of the setting, what is wrong, the remedy."""

    file: str | None
    line: int | None
    path: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """One line: `otelbill.yaml:12: rate_card.prices[2].price: ... (remedy)`."""
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        setting = f"{self.path}: " if self.path else ""
        return f"{place}{setting}{self.message} ({self.remedy})"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` lists everything that is wrong with it."""

    code = "invalid_config"

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def sort_problems(problems: Iterable[ConfigProblem], first: str | None) -> list[ConfigProblem]:
    """In the order of the lines, those of the file `first` before those of others."""
    return sorted(problems, key=lambda problem: (problem.file != first, problem.file or "", problem.line or 0))


def render_path(parts: PathParts) -> str:
    """`rate_card.prices[2].price`"""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def render_problems(problems: Iterable[ConfigProblem]) -> str:
    """Text for a terminal: a block of two lines for each problem, and how many there are."""
    blocks = []
    for problem in problems:
        place = ":".join(str(part) for part in (problem.file, problem.line) if part is not None)
        head = " ".join(part for part in (place, problem.path) if part)
        blocks.append(f"{head or 'configuration'}: {problem.message}\n    -> {problem.remedy}")
    count = len(blocks)
    return "\n".join([*blocks, f"{count} problem{'s' if count != 1 else ''}"])
