"""Settings come from one table, arguments before environment before defaults, with every error at once."""

from __future__ import annotations

from dataclasses import fields

import pytest

from otelbill.config import SETTINGS, Settings, load_settings


def test_the_table_has_every_setting_once() -> None:
    """A field without a row could not be set; a row without a field would do nothing."""
    assert len(SETTINGS) == len(fields(Settings))
    assert {setting.name for setting in SETTINGS} == {field.name for field in fields(Settings)}
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)


def test_arguments_win_over_the_environment() -> None:
    """An argument is more exact than a variable; a variable more than the default."""
    environment = {"OTELBILL_ENDPOINT": "http://sidecar:4328", "OTELBILL_STRICT": "yes", "OTELBILL_TOKEN": "t"}
    settings, errors = load_settings({"strict": False, "queue_max_spans": 7}, environment)
    assert errors == ()
    assert settings == Settings(endpoint="http://sidecar:4328/v1/traces", strict=False, token="t", queue_max_spans=7)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OTELBILL_ENDPOINT", "localhost:4328"),
        ("OTELBILL_ENDPOINT", "http://host:notaport/"),
        ("OTELBILL_ENDPOINT", "http:///v1/traces"),
        ("OTELBILL_STRICT", "maybe"),
        ("OTELBILL_QUEUE_MAX_SPANS", "0"),
        ("OTELBILL_QUEUE_MAX_SPANS", "²"),
        ("OTELBILL_BATCH_MAX_SPANS", "1.5"),
        ("OTELBILL_PROPAGATION_KEY", "short"),
        ("OTELBILL_TOKEN", " "),
    ],
)
def test_a_bad_value_is_named_with_its_remedy_and_the_default_holds(variable: str, text: str) -> None:
    """A typing error does not stop the app; the error names the setting and never quotes the value."""
    settings, errors = load_settings({}, {variable: text})
    assert settings == Settings()
    [error] = errors
    assert variable in str(error)
    assert error.hint


def test_all_errors_come_at_once() -> None:
    """Three errors are three reports, not three runs."""
    _, errors = load_settings({"colour": "blue", "strict": "x"}, {"OTELBILL_ENDPOINT": "x"})
    assert [error.code for error in errors] == ["setting_unknown", "setting_invalid", "setting_invalid"]
