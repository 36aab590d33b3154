"""What the documentation says can be done: commands, links, names, configurations and the quickstart."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import otelbill_collector
from otelbill_collector.cli import cli
from otelbill_collector.ledger.views import VIEWS
from otelbill_collector.testing.demo.programs import await_condition, start_python
from otelbill_collector.testing.demo.sidecar import SidecarProcess, find_ports
from otelbill_collector.testing.provider import ProviderServer
from tests.whole_ledger import make_ledger

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES += sorted(REPOSITORY.glob("docs/**/*.md"))
MANUAL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
QUICKSTART_LINES_MAX = 30
ENVIRON = {"OTELBILL_TOKEN": "t", "STRIPE_API_KEY": "sk_test_1"}

Block = tuple[str, str]  # language, text
Path_ = tuple[str, ...]  # a command below `otelbill`


def list_blocks(text: str) -> list[Block]:
    """Fenced code blocks with their language; indentation of the fence is taken off."""
    found = []
    for indent, language, body in re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        found.append((language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)))
    return found


def list_commands(group: click.Group = cli, prefix: Path_ = ()) -> Iterator[tuple[Path_, click.Command]]:
    """Every command with its path, groups included."""
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from list_commands(command, (*prefix, name))


def list_documented_lines(text: str) -> list[str]:
    """Lines that call `otelbill`, in code blocks and in inline code."""
    lines = [line for language, body in list_blocks(text) if language != "python" for line in body.splitlines()]
    lines += re.findall(r"`(otelbill [^`\n]+)`", text)
    return [line.strip() for line in lines if re.match(r"\s*otelbill [a-z]", line)]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words name, and the words left over."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name!r} in `otelbill {' '.join(words)}`"
        command = command.commands[name]
    return command, rest


def parse_line(line: str) -> None:
    """Parse a command line as click would, without running it; placeholders are words like others."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("&")] if "&" in words else words
    command, rest = find_command(words)
    if not isinstance(command, click.Group):
        command.make_context("otelbill", rest, resilient_parsing=False)


COMMANDS = list(list_commands())
LINES = sorted({(page.name, line) for page in PAGES for line in list_documented_lines(page.read_text("utf-8"))})


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda value: value if isinstance(value, tuple) else "")
def test_every_command_has_help_with_examples_that_parse(path: Path_, command: click.Command) -> None:
    """`--help` of each command shows at least one example of that command, and each example is understood."""
    shown = CliRunner().invoke(cli, [*path, "--help"], terminal_width=200).output
    examples = [line.strip() for line in shown.splitlines() if re.match(r" {4,}(.* \| )?otelbill ", line)]
    assert any(line.partition("otelbill ")[2].startswith(" ".join(path)) for line in examples), shown
    for line in examples:
        parse_line("otelbill " + re.split(r"\s{3,}", line.partition("otelbill ")[2])[0])


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=" ".join)
def test_every_command_is_documented(path: Path_) -> None:
    """Each command stands somewhere in the documentation."""
    assert f"otelbill {' '.join(path)}" in MANUAL


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: str(value))
def test_every_documented_command_line_is_understood(page: str, line: str) -> None:
    """A command line in the documentation names a command, options and arguments that exist."""
    try:
        parse_line(line)
    except click.MissingParameter:
        # Inline mentions such as `otelbill explain` name the command only; in a block it would be a mistake.
        assert f"`{line}`" in MANUAL, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    """Relative links name files of the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def list_dotted_names() -> list[str]:
    """Names in backticks that claim to be ours: of the two packages, or beginning with a part of the sidecar."""
    parts = {module.name for module in pkgutil.iter_modules(otelbill_collector.__path__)}
    names = re.findall(r"`([a-z_]\w*(?:\.\w+)+)(?:\(\))?`", MANUAL)
    settings = set(re.findall(r"`([a-z_.]+)`", (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8")))
    return sorted({name for name in names if _is_ours(name, parts) and name not in settings})


def _is_ours(name: str, parts: set[str]) -> bool:
    head = name.partition(".")[0]
    attributes = re.findall(r'"(otelbill\.[a-z.]+)"', (REPOSITORY / "otelbill/attributes.py").read_text("utf-8"))
    leaving = ("otelbill.cost", "otelbill.charge", "otelbill.currency", "otelbill.price.version")
    if name in attributes or name in leaving or name.endswith((".yaml", ".json", ".md", ".py", ".sqlite")):
        return False
    return head in {"otelbill", "otelbill_collector"} or head in parts


@pytest.mark.parametrize("name", list_dotted_names())
def test_every_dotted_name_resolves(name: str) -> None:
    """A module, class or function that the documentation names is there."""
    full = name if name.startswith(("otelbill.", "otelbill_collector.")) else f"otelbill_collector.{name}"
    assert _resolve(full), name


def _resolve(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def list_configurations() -> list[tuple[str, str]]:
    """YAML blocks that are an otelbill.yaml: their first key is one of its sections."""
    sections = json.loads((REPOSITORY / "docs/otelbill.schema.json").read_text(encoding="utf-8"))["properties"]
    blocks = [
        (page.name, body) for page in PAGES for kind, body in list_blocks(page.read_text("utf-8")) if kind == "yaml"
    ]
    return [
        (page, body)
        for page, body in blocks
        if (key := re.search(r"^(\w+):", body, re.MULTILINE)) and key[1] in sections
    ]


@pytest.mark.parametrize(("page", "body"), list_configurations())
def test_every_configuration_passes_its_check(page: str, body: str, tmp_path: Path) -> None:
    """`otelbill check-config` has nothing to say against what the documentation shows."""
    file = tmp_path / "otelbill.yaml"
    file.write_text(body, encoding="utf-8")
    result = CliRunner(env=ENVIRON).invoke(cli, ["check-config", str(file)])
    assert result.exit_code == 0, f"{page}: {result.output} {result.exception}"


def test_the_quickstart_is_short_and_bills_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the README's quickstart, run as it stands, is a call and a unit of its own on acme's bill."""
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Quickstart")[2].partition("\n## ")[0]
    blocks = list_blocks(section)
    assert sum(len(body.splitlines()) for _, body in blocks) <= QUICKSTART_LINES_MAX
    script = tmp_path / "app.py"
    script.write_text(next(body for language, body in blocks if language == "python"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "collector"))))
    ports, folder, config = find_ports(), tmp_path / "ledger", tmp_path / "otelbill.yaml"
    folder.mkdir()
    listen = {"grpc": ports.grpc, "http": ports.http, "api": ports.api}
    config.write_text(json.dumps({"listen": {name: f"127.0.0.1:{port}" for name, port in listen.items()}}))

    with ProviderServer() as provider, SidecarProcess(config, ports, folder) as sidecar:
        given = {
            "OPENAI_BASE_URL": provider.openai_base_url,
            "OPENAI_API_KEY": "any",
            "OTELBILL_ENDPOINT": sidecar.endpoint,
        }
        with start_python([str(script)], log=tmp_path / "app.log", given=given) as program:
            program.await_success(60)
        await_condition(lambda: _count_events(folder) == 2, 15)

    for line in (line for _, body in blocks for line in body.splitlines()):
        if line.startswith(("otelbill usage", "otelbill explain")):
            words = [*shlex.split(line, comments=True)[1:], "--data-dir", str(folder)]
            assert "acme" in CliRunner().invoke(cli, words, catch_exceptions=False).stdout


def _count_events(folder: Path) -> int:
    result = CliRunner().invoke(
        cli, ["usage", "--by", "customer", "--where", "customer=acme", "--json", "--data-dir", str(folder)]
    )
    return sum(json.loads(line)["events"] for line in result.stdout.splitlines())


@pytest.fixture(scope="module")
def queried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a row in every table."""
    return make_ledger(tmp_path_factory.mktemp("queried") / "ledger").parent


QUERIES = [
    (page.name, body) for page in PAGES for language, body in list_blocks(page.read_text("utf-8")) if language == "sql"
]


@pytest.mark.parametrize(("page", "sql"), QUERIES)
def test_every_documented_query_is_answered(page: str, sql: str, queried: Path) -> None:
    """SQL in the documentation runs as it stands, in every form of output."""
    for form in ([], ["--json"], ["--csv"]):
        result = CliRunner().invoke(cli, ["query", sql, "--data-dir", str(queried), *form])
        assert result.exit_code == 0, f"{page}: {result.output}"


def test_the_columns_of_every_view_are_documented(queried: Path) -> None:
    """What `DESCRIBE` lists of a view stands in docs/queries.md, and nothing else does."""
    text = (REPOSITORY / "docs/queries.md").read_text(encoding="utf-8")
    _, _, described = text.partition("## The views")
    described, _, _ = described.partition("## Examples")
    named = set(re.findall(r"`([a-z_0-9]+)`", described))
    columns = set()
    for view in VIEWS:
        result = CliRunner().invoke(cli, ["query", f"DESCRIBE {view}", "--json", "--data-dir", str(queried)])
        columns |= {json.loads(line)["column_name"] for line in result.stdout.splitlines()}
    states = {"rated", "unpriced", "held", "not_billable"}
    assert columns - named == set()
    assert named - columns - set(VIEWS) - states == set()
