"""The page for app developers is true: its examples run, and every setting is in its table with its default."""

from __future__ import annotations

import re

import pytest

from otelbill.config import SETTINGS, Settings
from tests.contract.app_sink import REPOSITORY, open_sink, run_app

PAGE = (REPOSITORY / "docs" / "in-the-app.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_runs_without_a_warning(example: str) -> None:
    """A newcomer who pastes an example sees no error and no line from us."""
    with open_sink() as sink:
        run = run_app(example, OTELBILL_ENDPOINT=sink.endpoint)
    assert (run.status, run.errors) == (0, "")


def test_the_first_example_reaches_the_sidecar() -> None:
    """The five-minute example bills what it says it bills."""
    with open_sink() as sink:
        run_app(EXAMPLES[0], OTELBILL_ENDPOINT=sink.endpoint)
    [usage] = [span for span in sink.spans() if span["name"] == "usage vector_queries"]
    assert (usage["otelbill.customer.id"], usage["otelbill.step"], usage["otelbill.quantity"]) == ("acme", "search", 12)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_in_the_table(setting: object) -> None:
    """Name, variable and default of each setting stand in one row."""
    default = getattr(Settings(), setting.name)  # type: ignore[attr-defined]
    shown = "–" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    assert f"| `{setting.name}` | `{setting.variable}` | {shown} |" in PAGE  # type: ignore[attr-defined]
