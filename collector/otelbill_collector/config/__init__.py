"""Configuration: otelbill.yaml and the environment to one frozen `Config`. The only package that reads the environment.

Owns what may be set, its defaults and every complaint about it; does not construct anything that acts on it.
"""

from otelbill_collector.config.loading import load_config
from otelbill_collector.config.problems import ConfigError, ConfigProblem, render_problems
from otelbill_collector.config.values import (
    Address,
    Billing,
    Claims,
    Config,
    Customer,
    Forward,
    Limits,
    Listen,
    Stripe,
)

__all__ = [
    "Address",
    "Billing",
    "Claims",
    "Config",
    "ConfigError",
    "ConfigProblem",
    "Customer",
    "Forward",
    "Limits",
    "Listen",
    "Stripe",
    "load_config",
    "render_problems",
]
