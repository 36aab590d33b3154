"""What is said of the supported instrumentations is what the table says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from otelbill_collector.cli import cli
from otelbill_collector.decode.dialects import list_dialects
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.dialect_guide import (
    describe_dialects,
    find_advice,
    list_reasons,
    load_advice,
    load_content_names,
    render_page,
)

RECORDED_IDS = (r"\bchatcmpl-[A-Za-z0-9]{16,}", r"\bmsg_01[A-Za-z0-9]{10,}", r"\bresp_[0-9a-f]{20,}")
SHIPPED = Path(__file__).resolve().parents[3] / "collector"


def test_the_page_is_current(repository: Path) -> None:
    """docs/dialects.md is made from the table: `python -m otelbill_collector.dialect_guide > docs/dialects.md`."""
    assert (repository / "docs/dialects.md").read_text(encoding="utf-8") == render_page()


def test_every_reason_has_its_meaning() -> None:
    """A code that is stored and sent is explained; the explanation is the one beside the code."""
    assert [code for code, _ in list_reasons()] == [reason.value for reason in Reason]
    assert dict(list_reasons())["internal"] == "Marked `otelbill.billable=false`."


def test_every_dialect_and_fault_is_on_the_page() -> None:
    """A user can choose: nothing that the table knows to be wrong is left out."""
    page = render_page()
    for dialect in list_dialects():
        assert f"| `{dialect.name}` |" in page
        for fault in dialect.faults:
            assert fault.why in page


def test_advice_is_for_dialects_that_exist_and_speaks_in_sentences() -> None:
    """A dialect that is renamed must take its advice along."""
    for topics in load_advice().values():
        assert all(text.endswith(".") for text in topics.values())
    assert find_advice("strands", "twice") == find_advice("no such dialect", "twice")
    assert find_advice("openlit", "content") != find_advice("no such dialect", "content")


def test_names_of_content_are_no_names_of_counts() -> None:
    """What is reported as content is never what is billed from."""
    exact, prefixes = load_content_names()
    assert not [name for name in exact if "usage" in name or "token" in name]
    assert not [prefix for prefix in prefixes if "gen_ai.usage.x".startswith(prefix)]


def test_the_command_prints_the_table() -> None:
    """`otelbill dialects --json` gives one object per dialect, with versions and known faults."""
    done = CliRunner().invoke(cli, ["dialects", "--json"])
    assert done.exit_code == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == json.loads(json.dumps(describe_dialects()))
    assert "openlit" in CliRunner().invoke(cli, ["dialects"]).stdout


@pytest.mark.parametrize("pattern", RECORDED_IDS)
def test_no_rule_names_a_recorded_answer(pattern: str) -> None:
    """Rules hold for emitters, never for one recording: no response id stands in what is shipped."""
    texts = [
        path.read_text(encoding="utf-8") for path in (SHIPPED / "otelbill_collector/decode").iterdir() if path.is_file()
    ]
    assert texts
    assert not [found for text in texts if (found := re.search(pattern, text))]
