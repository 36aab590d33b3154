"""The shipped source as syntax trees, for the rules that are tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = {"otelbill": REPOSITORY / "otelbill", "otelbill_collector": REPOSITORY / "collector" / "otelbill_collector"}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, path and tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def area(self) -> str:
        """The part it belongs to: the folder below the package, or the file's own name at the top."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def imports(self) -> Iterator[str]:
        """Dotted names of everything imported when the module runs, wherever in the file."""
        skipped = {id(node) for block in self._list_typing_blocks() for node in ast.walk(block)}
        for node in ast.walk(self.tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [alias.name for alias in node.names if _is_module(node.module, alias.name)]
                yield from (f"{node.module}.{name}" for name in modules)
                if len(modules) < len(node.names):
                    yield node.module

    def _list_typing_blocks(self) -> list[ast.If]:
        """`if TYPE_CHECKING:` blocks: what they import is never loaded."""
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]


def _is_module(package: str, name: str) -> bool:
    """Whether `from package import name` imports a module and not something inside the package."""
    root = ROOTS.get(package.split(".")[0])
    if root is None:
        return False
    place = root.joinpath(*package.split(".")[1:], name)
    return place.is_dir() or place.with_suffix(".py").is_file()


@cache
def list_modules(package: str) -> tuple[Module, ...]:
    """All modules of a package, sorted by name."""
    root = ROOTS[package]
    modules = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root.parent).with_suffix("")
        name = ".".join(relative.parts).removesuffix(".__init__")
        modules.append(Module(name, path, ast.parse(path.read_text("utf-8"))))
    return tuple(modules)
