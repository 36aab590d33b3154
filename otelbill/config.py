"""Owns the table of settings, the environment it is read from and the settings in force.
Does not own what a setting switches on; that is `instrument` and `shipper`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final
from urllib.parse import urlsplit

from otelbill.errors import ConfigError

SettingValue = str | int | bool | None

TRACES_PATH: Final = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings in force. Fields are the rows of `SETTINGS`; times in milliseconds, sizes in spans."""

    enabled: bool = True
    endpoint: str = "http://127.0.0.1:4328/v1/traces"
    token: str | None = None
    strict: bool = False
    instrument: bool = True
    capture_content: bool = False
    propagation_key: str | None = None
    service_name: str | None = None
    queue_max_spans: int = 65_536
    batch_max_spans: int = 512
    flush_interval_millis: int = 1_000
    request_timeout_millis: int = 10_000
    exit_timeout_millis: int = 2_000


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: field of `Settings`, environment variable, reader of its text, meaning."""

    name: str
    variable: str
    read: Callable[[str], SettingValue]
    meaning: str


def _read_bool(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in known:
        raise ValueError("use true or false")
    return known[text.strip().lower()]


def _read_count(text: str) -> int:
    if not text.strip().isascii() or not text.strip().isdigit() or int(text) < 1:
        raise ValueError("use a whole number above zero")
    return int(text)


def _read_text(text: str) -> str:
    if not text.strip():
        raise ValueError("leave it out instead of giving an empty text")
    return text.strip()


def _read_endpoint(text: str) -> str:
    parts = urlsplit(text.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or (parts.port is not None and parts.port < 1):
        raise ValueError("use a URL such as http://127.0.0.1:4328/v1/traces")
    return parts._replace(path=TRACES_PATH if parts.path in {"", "/"} else parts.path, query="", fragment="").geturl()


def _read_key(text: str) -> str:
    if len(text.strip()) < 16:
        raise ValueError("use at least 16 characters of secret")
    return text.strip()


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "enabled", "OTELBILL_ENABLED", _read_bool, "off: decorators and blocks do nothing, no span is made or sent"
    ),
    Setting("endpoint", "OTELBILL_ENDPOINT", _read_endpoint, "where the sidecar takes OTLP over HTTP"),
    Setting("token", "OTELBILL_TOKEN", _read_text, "bearer token the sidecar asks for"),
    Setting("strict", "OTELBILL_STRICT", _read_bool, "raise our faults instead of logging them; for tests"),
    Setting("instrument", "OTELBILL_INSTRUMENT", _read_bool, "switch on the LLM instrumentations that are installed"),
    Setting(
        "capture_content",
        "OTELBILL_CAPTURE_CONTENT",
        _read_bool,
        "leave the instrumentations' content capture as it is; what goes to the sidecar is stripped all the same",
    ),
    Setting(
        "propagation_key", "OTELBILL_PROPAGATION_KEY", _read_key, "secret that signs frames sent to other processes"
    ),
    Setting("service_name", "OTEL_SERVICE_NAME", _read_text, "name of this program, where otelbill makes the provider"),
    Setting("queue_max_spans", "OTELBILL_QUEUE_MAX_SPANS", _read_count, "spans that may wait in memory"),
    Setting("batch_max_spans", "OTELBILL_BATCH_MAX_SPANS", _read_count, "spans in one request"),
    Setting("flush_interval_millis", "OTELBILL_FLUSH_INTERVAL_MILLIS", _read_count, "longest wait for a full batch"),
    Setting("request_timeout_millis", "OTELBILL_REQUEST_TIMEOUT_MILLIS", _read_count, "longest wait for an answer"),
    Setting("exit_timeout_millis", "OTELBILL_EXIT_TIMEOUT_MILLIS", _read_count, "longest delay of the program's exit"),
)

_settings: Settings | None = None


def load_settings(
    given: Mapping[str, SettingValue], environment: Mapping[str, str]
) -> tuple[Settings, tuple[ConfigError, ...]]:
    """Settings from arguments, then environment, then defaults; with every error at once.

    A setting in error keeps its default, so the caller decides whether to go on.
    """
    errors = [
        ConfigError("setting_unknown", f"unknown setting {name!r}", hint=f"known are {', '.join(_list_names())}")
        for name in sorted(set(given) - set(_list_names()))
    ]
    values: dict[str, SettingValue] = {}
    for setting in SETTINGS:
        value = given.get(setting.name)
        text = environment.get(setting.variable) if value is None else str(value)
        if not text:
            continue
        try:
            values[setting.name] = setting.read(text)
        except ValueError as error:
            errors.append(
                ConfigError("setting_invalid", f"{setting.name} ({setting.variable}) is not usable", hint=str(error))
            )
    return replace(Settings(), **values), tuple(errors)  # type: ignore[arg-type]  # each reader returns its field's type


def current() -> Settings:
    """Settings in force: those of `use()`, else those of the environment, read once."""
    global _settings
    if _settings is None:
        _settings = load_settings({}, os.environ)[0]
    return _settings


def use(settings: Settings | None) -> None:
    """Put `settings` in force; `None` reads the environment again at the next `current()`."""
    global _settings
    _settings = settings


def read_environment() -> Mapping[str, str]:
    """The environment of this process; nothing else in the package reads it."""
    return os.environ


def set_environment_defaults(defaults: Mapping[str, str]) -> None:
    """Set variables that the user has not set."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def is_sdk_disabled() -> bool:
    """Whether OTEL_SDK_DISABLED makes every tracer a no-op."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _list_names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Settings))
