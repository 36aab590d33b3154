"""OTLP files as arguments of commands: read together, each fault with its file's name."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from otelbill_collector.decode.spans import SpanView


def load_spans(files: Iterable[Path]) -> list[SpanView]:
    """The spans of all files, - for standard input. Raises ClickException with the file and what is wrong with it."""
    from otelbill_collector.decode.wire import MalformedRequest
    from otelbill_collector.offline import read_spans

    spans: list[SpanView] = []
    for file in files:
        try:
            body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
            spans.extend(read_spans(body))
        except OSError as error:
            raise click.ClickException(f"{file}: {error.strerror}") from error
        except MalformedRequest as error:
            raise click.ClickException(f"{file}: {error}; give OTLP protobuf or OTLP/JSON trace requests") from error
    return spans
