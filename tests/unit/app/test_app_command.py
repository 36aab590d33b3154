"""The `otelbill` command works where the sidecar is installed, and says how to install it where it is not."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from otelbill import cli


def test_without_the_sidecar_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing extra is exit code 2 and one line, not a traceback."""
    monkeypatch.setitem(sys.modules, "otelbill_collector.cli", None)
    assert cli.main() == 2
    assert "pip install 'otelbill[collector]'" in capsys.readouterr().err


def test_with_the_sidecar_its_command_line_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's half adds nothing to the sidecar's commands."""
    commands = ModuleType("otelbill_collector.cli")
    commands.main = lambda: 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "otelbill_collector.cli", commands)
    assert cli.main() == 7
