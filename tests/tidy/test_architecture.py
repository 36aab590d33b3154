"""The rules of docs/architecture.md that a machine can check. Each has a planted fault that it finds."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.tidy.source import Module, list_modules

# What each part of the sidecar may import from the sidecar. `app` and `cli` wire; nothing imports them.
ALLOWED = {
    "domain": {"domain"},
    "native": {"native"},
    "decode": {"domain", "decode", "native"},
    "ledger": {"domain", "ledger", "native"},
    "receive": {"domain", "decode", "receive"},
    "export": {"domain", "decode", "ledger", "export"},
    "web": {"domain", "ledger", "web"},
    "testing": {"domain", "testing"},
    "config": {"domain", "decode", "config"},  # decode: names of dialects are checked
    "pipeline": {"domain", "decode", "ledger"},
    "isolation": {"domain", "decode", "pipeline"},
    "ingest": {"domain", "pipeline", "isolation"},
    "listeners": {"config", "receive"},
    "column_rules": {"decode", "ledger", "rules"},
    "rules": {"domain", "decode", "span_rating"},
    "span_rating": {"domain", "native"},
    "jobs": {"domain"},
    "explanation": {"domain", "ledger"},
    "offline": {"domain", "decode", "ledger", "rules", "explanation"},
    "dialect_guide": {"decode"},
    "doctor": {"domain", "decode", "offline", "dialect_guide"},
    "archive": {"domain", "ledger", "explanation", "credit_evidence"},
    "archive_check": set(),
    "archive_credits": set(),
    "credit_evidence": {"domain", "ledger"},
    "invoice_page": set(),
    "operations": {
        *("billing", "crediting", "domain", "ledger", "export", "jobs", "pipeline", "explanation", "isolation"),
        "simulation",
        "retention",
    },
    "retention": {"audit", "billing", "config", "domain", "invoicing", "ledger"},
    "simulation": {"domain", "invoicing", "ledger"},
    "forecast": {"domain", "invoicing", "ledger", "simulation"},
    "commands": {"billing", "domain", "ledger", "operations", "web"},
    "crediting": {"domain", "ledger"},
    "invoicing": {"domain", "ledger"},
    "credit_payment": {"domain", "ledger"},
    "billing": {"config", "credit_payment", "domain", "ledger", "invoicing"},
}
LEDGER_WRITERS = {"books", "booking", "corrections", "credits", "journal", "periods", "resolutions", "sqlite"}
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 420


def find_forbidden_imports(module: Module) -> list[str]:
    """Names that a module imports although its part may not."""
    allowed = ALLOWED.get(module.area)
    if allowed is None:
        return []
    inside = [name for name in module.imports() if name.startswith("otelbill_collector.")]
    return [name for name in inside if name.split(".")[1] not in allowed]


def find_floats(tree: ast.AST) -> Iterator[int]:
    """Lines that make a floating-point number: a literal, float(...), or true division."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=float()) | ast.Call(func=ast.Name(id="float")):
                yield node.lineno
            case ast.BinOp(op=ast.Div()) if not _joins_paths(node):
                yield node.lineno


def _joins_paths(node: ast.BinOp) -> bool:
    """pathlib's a / b: the right side is a text or the name of a file."""
    return isinstance(node.right, ast.JoinedStr) or ast.unparse(node.right).startswith(("'", '"', "LEDGER_NAME"))


def find_environment_reads(tree: ast.AST) -> list[int]:
    """Lines that touch os.environ or os.getenv."""
    return [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]


def find_sql(tree: ast.AST) -> list[int]:
    """Lines that run SQL."""
    calls = ("execute", "executemany", "executescript")
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in calls]


SIDECAR = list_modules("otelbill_collector")
APP = list_modules("otelbill")
EVERYTHING = (*APP, *SIDECAR)


def _ids(modules: tuple[Module, ...]) -> list[str]:
    return [module.name for module in modules]


@pytest.mark.parametrize("module", SIDECAR, ids=_ids(SIDECAR))
def test_imports_point_one_way(module: Module) -> None:
    """A part imports only what the architecture allows it, so that it can be read and tested without the rest."""
    assert find_forbidden_imports(module) == []


@pytest.mark.parametrize("module", APP, ids=_ids(APP))
def test_the_app_package_never_needs_the_sidecar(module: Module) -> None:
    """Whoever meters an app installs no web server: only the command line looks for the sidecar, and copes without."""
    if module.name != "otelbill.cli":
        assert [name for name in module.imports() if name.startswith("otelbill_collector")] == []


@pytest.mark.parametrize("module", SIDECAR, ids=_ids(SIDECAR))
def test_no_float_where_money_and_counts_are_made(module: Module) -> None:
    """Counts are integers and money is exact: no float literal, float() or true division in domain and ledger."""
    if module.area in ("domain", "ledger"):
        assert list(find_floats(module.tree)) == []


@pytest.mark.parametrize("module", EVERYTHING, ids=_ids(EVERYTHING))
def test_the_environment_is_read_in_one_place(module: Module) -> None:
    """Only `config` reads the environment; switching content capture off for instrumentations has to write it."""
    if module.area not in ("config", "content", "instrument", "testing", "provider", "native"):
        assert find_environment_reads(module.tree) == []


@pytest.mark.parametrize("module", SIDECAR, ids=_ids(SIDECAR))
def test_sql_stands_in_the_ledger_only(module: Module) -> None:
    """Another database means another ledger package and nothing else."""
    if module.area not in ("ledger", "testing"):
        assert find_sql(module.tree) == []


@pytest.mark.parametrize("module", SIDECAR, ids=_ids(SIDECAR))
def test_pages_read_and_never_write_the_ledger(module: Module) -> None:
    """The web part may use read models; what writes is handed to it as operations."""
    if module.area == "web":
        used = {name.split(".")[2] for name in module.imports() if name.startswith("otelbill_collector.ledger.")}
        assert used & LEDGER_WRITERS == set()


@pytest.mark.parametrize("module", EVERYTHING, ids=_ids(EVERYTHING))
def test_functions_and_files_stay_short(module: Module) -> None:
    """A function fits a screen and a file a sitting."""
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []
    assert len(module.path.read_text().splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("module", EVERYTHING, ids=_ids(EVERYTHING))
def test_every_module_says_what_it_owns(module: Module) -> None:
    """A module opens with what it owns, and a public function or class says what it is."""
    assert ast.get_docstring(module.tree), "no module docstring"
    silent = [
        node.name
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and "overload" not in [ast.unparse(decorator) for decorator in node.decorator_list]
    ]
    assert silent == []


def test_there_are_no_import_cycles() -> None:
    """A module can be understood after those it imports; a cycle has no first one."""
    names = {module.name for module in EVERYTHING}
    edges = {module.name: {name for name in module.imports() if name in names} for module in EVERYTHING}
    settled: set[str] = set()
    while True:
        ready = {name for name, needs in edges.items() if name not in settled and needs <= settled | {name}}
        if not ready:
            break
        settled |= ready
    assert set(edges) - settled == set()


@pytest.mark.parametrize(
    ("source", "finder"),
    [
        ("rate = 0.1", lambda tree: list(find_floats(tree))),
        ("share = total / parts", lambda tree: list(find_floats(tree))),
        ("x = float('1')", lambda tree: list(find_floats(tree))),
        ("import os\nx = os.environ['A']", find_environment_reads),
        ("db.execute('select 1')", find_sql),
    ],
)
def test_each_rule_finds_its_planted_fault(source: str, finder: object) -> None:
    """A rule that cannot fail protects nothing."""
    assert callable(finder)
    assert finder(ast.parse(source))


def test_the_import_rule_finds_a_planted_fault() -> None:
    """A receiver that reaches for the ledger is found."""
    tree = ast.parse("from otelbill_collector.ledger.sqlite import SqliteStore")
    planted = Module("otelbill_collector.receive.planted", SIDECAR[0].path, tree)
    assert find_forbidden_imports(planted) == ["otelbill_collector.ledger.sqlite"]
