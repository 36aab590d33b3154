"""otelbill.yaml as plain values that know their lines. Owns YAML and `${NAME}` references; knows no setting.

Of YAML's implicit types only null, true/false, integers, floats and strings exist here: a date stays text, and a
customer called `no` or `010` stays what was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from otelbill_collector.config.problems import ConfigError, ConfigProblem, PathParts, render_path

Plain = None | bool | int | str | list["Plain"] | dict[str, "Plain"]

_REFERENCE = re.compile(r"\$?\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FILE_BYTES_MAX = 16 * 2**20
_DEPTH_MAX = 32
_NODES_MAX = 500_000  # a few lines of nested anchors can stand for billions of values
_SCALARS = (
    (re.compile(r"(?:null|Null|NULL|~)?"), "null"),
    (re.compile(r"(?:true|True|TRUE)"), "true"),
    (re.compile(r"(?:false|False|FALSE)"), "false"),
    (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), "int"),
    (re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.nan"), "float"),
)


class WrittenFloat(str):
    """A number that YAML would read as binary floating point, as it was written."""

    __slots__ = ()


@dataclass(slots=True)
class Document:
    """A parsed file: its values, the line of every path, the paths that hold values of the environment."""

    file: str | None
    root: Plain = field(default_factory=dict)
    lines: dict[PathParts, int] = field(default_factory=dict)
    secret_paths: set[PathParts] = field(default_factory=set)
    problems: list[ConfigProblem] = field(default_factory=list)
    complained: set[PathParts] = field(default_factory=set)

    def add_problem(self, path: PathParts, message: str, remedy: str) -> None:
        """Note a complaint at the line of the path, or of the nearest thing above it that is in the file."""
        self.complained.add(path)
        self.problems.append(ConfigProblem(self.file, self.find_line(path), render_path(path), message, remedy))

    def find_line(self, path: PathParts) -> int | None:
        """1-based line of a path or of its nearest ancestor; None without a file."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def load_document(path: Path | None, environ: Mapping[str, str]) -> Document:
    """The plain values of a file (None: of none). Raises ConfigError when it cannot be read."""
    if path is None:
        return Document(None)
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            message, remedy = f"is larger than {FILE_BYTES_MAX} bytes", "give the path of an otelbill.yaml"
            raise ConfigError([ConfigProblem(str(path), None, "", message, remedy)])
        text = raw.decode("utf-8-sig")
    except OSError as error:
        message = f"cannot be read: {error.strerror or type(error).__name__}"
        raise ConfigError([ConfigProblem(str(path), None, "", message, "give the path of an otelbill.yaml")]) from None
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 at byte {error.start}"
        raise ConfigError([ConfigProblem(str(path), None, "", message, "save the file as UTF-8")]) from None
    return parse_document(text, file=str(path), environ=environ)


def parse_document(text: str, *, file: str | None, environ: Mapping[str, str]) -> Document:
    """Values of a YAML text with references resolved; what is wrong goes to `problems`."""
    document = Document(file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        what = getattr(error, "problem", None) or "cannot be read"
        problem = ConfigProblem(file, line, "", f"is not YAML: {what}", "check indentation, colons and quotes here")
        document.problems.append(problem)
        return document
    if node is not None:
        document.root = _read_node(document, node, (), environ)
    return document


def _read_node(document: Document, node: yaml.Node, path: PathParts, environ: Mapping[str, str]) -> Plain:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > _DEPTH_MAX or len(document.lines) > _NODES_MAX:
        if path[:1] not in document.complained:
            document.add_problem(
                path[:1], "is nested too deeply or too large", "look for anchors that repeat themselves"
            )
        return None
    if isinstance(node, yaml.MappingNode):
        return _read_mapping(document, node, path, environ)
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(document, item, (*path, index), environ) for index, item in enumerate(node.value)]
    return _read_scalar(document, node, path, environ)


def _read_mapping(
    document: Document, node: yaml.MappingNode, path: PathParts, environ: Mapping[str, str]
) -> dict[str, Plain]:
    values: dict[str, Plain] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.add_problem(path, "has a key that is not text", "write keys as plain words")
            continue
        key = str(key_node.value)
        document.lines[(*path, key)] = key_node.start_mark.line + 1
        if key in values:
            document.add_problem((*path, key), "is given twice", "keep one of the two; the other would be lost")
            continue
        values[key] = _read_node(document, value_node, (*path, key), environ)
    return values


def _read_scalar(document: Document, node: yaml.Node, path: PathParts, environ: Mapping[str, str]) -> Plain:
    text = str(node.value)
    if getattr(node, "style", None) in ("'", '"', "|", ">"):
        return _resolve_references(document, text, path, environ)
    kind = next((kind for pattern, kind in _SCALARS if pattern.fullmatch(text)), "text")
    if kind == "text":
        return _resolve_references(document, text, path, environ)
    if kind == "int":
        return int(text) if len(text) < 40 else text
    if kind == "float":
        return WrittenFloat(text)
    return {"null": None, "true": True, "false": False}[kind]


def _resolve_references(document: Document, text: str, path: PathParts, environ: Mapping[str, str]) -> str:
    """`${NAME}` becomes the variable's value, `$${NAME}` the text `${NAME}`."""

    def resolve(match: re.Match[str]) -> str:
        name = match.group(1)
        if match.group(0).startswith("$$"):
            return match.group(0)[1:]
        if not _NAME.fullmatch(name):
            document.add_problem(path, "has a reference that is not ${NAME}", "write $${...} for the text itself")
        elif not environ.get(name):
            document.add_problem(
                path, f"refers to the environment variable {name}, which is not set", f"set {name}, or write the value"
            )
        document.secret_paths.add(path)
        return environ.get(name, "")

    return _REFERENCE.sub(resolve, text)
