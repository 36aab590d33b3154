"""What is written about the configuration is what the sidecar does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from otelbill_collector.config import Config, load_config
from otelbill_collector.config.schema import Setting, list_settings, render_schema
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.rating import Rater

ENVIRON = {"OTELBILL_TOKEN": "t", "STRIPE_API_KEY": "k"}


def list_yaml_examples(text: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def test_the_schema_is_current(repository: Path) -> None:
    """docs/otelbill.schema.json is what the code accepts. Write render_schema() there after a change."""
    assert (repository / "docs/otelbill.schema.json").read_text(encoding="utf-8") == render_schema()


@pytest.mark.parametrize("setting", list_settings(), ids=lambda setting: setting.path)
def test_every_setting_is_documented(repository: Path, setting: Setting) -> None:
    """Each setting stands in docs/configuration.md with its default and its meaning."""
    default = setting.default if setting.default in ("required", "none") else f"`{setting.default}`"
    row = f"| `{setting.path}` | {default} | {setting.meaning} |"
    assert row in (repository / "docs/configuration.md").read_text(encoding="utf-8").splitlines()


def test_no_setting_is_documented_that_is_not_there(repository: Path) -> None:
    """A row for a setting that is gone is an error."""
    text = (repository / "docs/configuration.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)) == {setting.path for setting in list_settings()}


@pytest.mark.parametrize("name", ["configuration.md", "pricing.md"])
def test_examples_load(repository: Path, tmp_path: Path, name: str) -> None:
    """Every YAML example is a valid configuration."""
    examples = list_yaml_examples((repository / "docs" / name).read_text(encoding="utf-8"))
    assert examples
    for example in examples:
        path = tmp_path / "otelbill.yaml"
        path.write_text(example, encoding="utf-8")
        assert isinstance(load_config(path, ENVIRON), Config)


def test_the_example_of_a_price_version_is_real(repository: Path, tmp_path: Path) -> None:
    """The price version shown is the one that the rate card shown gives."""
    text = (repository / "docs/pricing.md").read_text(encoding="utf-8")
    path = tmp_path / "otelbill.yaml"
    example = next(found for found in list_yaml_examples(text) if "markup:" in found and "gpt-4o-mini" in found)
    card = example.replace('{unit: input_tokens, model: "gpt-4o-mini*"', '{unit: input_tokens, model: "x"')
    path.write_text(card, encoding="utf-8")
    rated = Rater(load_config(path, {}).rate_card).rate(
        {"input_tokens": 1}, parse_instant("2026-11-20"), provider="openai", model="gpt-4o-mini"
    )
    assert rated.version is not None
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert rated.version.read_body() == json.loads(shown)
    assert rated.charge_attos is not None
    assert format_attos(rated.charge_attos) == "0.00000018"
