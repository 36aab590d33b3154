"""Meter an AI product from inside: who pays, for which step. Owns the public names, nothing else."""

from otelbill.attribution import attempt, carry, customer
from otelbill.content import AllowListExporter
from otelbill.errors import OtelbillError
from otelbill.frame import Frame
from otelbill.metered import metered
from otelbill.processor import MeteringSpanProcessor
from otelbill.propagation import extract, inject
from otelbill.provider import Status, configure, flush, status
from otelbill.usage import record_usage

__all__ = [
    "AllowListExporter",
    "Frame",
    "MeteringSpanProcessor",
    "OtelbillError",
    "Status",
    "attempt",
    "carry",
    "configure",
    "customer",
    "extract",
    "flush",
    "inject",
    "metered",
    "record_usage",
    "status",
]
