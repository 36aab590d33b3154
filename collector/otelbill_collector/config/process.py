"""The configuration of this process: file, its environment, command-line overrides. The only reader of os.environ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from otelbill_collector.config.loading import load_config
from otelbill_collector.config.price_file import PriceFile, load_price_file
from otelbill_collector.config.values import Config


def load_process_config(path: Path | None, overrides: Mapping[str, str | int]) -> Config:
    """`load_config` with this process's environment. Raises ConfigError with all problems."""
    return load_config(path, os.environ, overrides)


def load_process_prices(path: Path) -> PriceFile:
    """`load_price_file` with this process's environment. Raises ConfigError with all problems."""
    return load_price_file(path, os.environ)
