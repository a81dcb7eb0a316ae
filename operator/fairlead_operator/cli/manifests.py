"""YAML files as people write them: bounded, with the line of each field, and findings instead of exceptions."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from fairlead_operator.api.check import Path as FieldPath
from fairlead_operator.cli.ask import UsageError

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_FILES: Final = 1000
MAX_DOCUMENTS: Final = 2000
MAX_NODES: Final = 200_000
"""Of one file, aliases counted as often as they are used."""
MAX_DEPTH: Final = 64
STDIN: Final = "-"
Severity = Literal["error", "warning", "note"]
_PART = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for a person: where, and what; a ``note`` asks for nothing."""

    file: str
    line: int
    path: str
    text: str
    severity: Severity = "error"

    def __str__(self) -> str:
        mark = "" if self.severity == "error" else f"{self.severity}: "
        path = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}: {mark}{path}{self.text}"


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file. ``lines`` are those of its fields, from 1, by their path."""

    file: str
    value: Mapping[str, Any]
    lines: Mapping[FieldPath, int]
    at: FieldPath = ()

    def finding(self, path: FieldPath | str, text: str, severity: Severity = "error") -> Finding:
        """A finding about a field; without that field, its line is that of the nearest one around it."""
        full = (*self.at, *(self.places(path) if isinstance(path, str) else path))
        line = next(self.lines[full[:size]] for size in range(len(full), -1, -1) if full[:size] in self.lines)
        return Finding(self.file, line, path if isinstance(path, str) else path_text(path), text, severity)

    def places(self, text: str) -> FieldPath:
        """``spec.variants[h100].name`` as keys and indices; items may be named by their name."""
        found: list[str | int] = []
        here: Any = self.value
        for name, index in _PART.findall(text):
            key: str | int = name or _index(here, index)
            found.append(key)
            here = here.get(key) if isinstance(here, dict) else _item(here, key)
        return tuple(found)


def _index(items: Any, text: str) -> str | int:
    if text.isascii() and text.isdecimal():
        return int(text)
    named = enumerate(items) if isinstance(items, list) else ()
    return next((index for index, item in named if isinstance(item, dict) and item.get("name") == text), text)


def _item(items: Any, index: str | int) -> Any:
    return items[index] if isinstance(items, list) and isinstance(index, int) and index < len(items) else None


def path_text(path: FieldPath) -> str:
    """``spec.variants[0].name``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read(names: Iterable[str]) -> Iterator[Document | Finding]:
    """The objects of the files, folders and of the standard input (``-``), or what is wrong with them.

    Raises:
        UsageError: there is no such file, or there are too many.
    """
    for name, text in _texts(names):
        yield from parse(name, text)


def _texts(names: Iterable[str]) -> Iterator[tuple[str, str | Finding]]:
    files = [file for name in names for file in _files(name)]
    if len(files) > MAX_FILES:
        raise UsageError(f"{len(files)} files are too many: check {MAX_FILES} at a time")
    for file in files:
        yield ("<stdin>" if file == STDIN else file), _text(file)


def _files(name: str) -> list[str]:
    if name == STDIN:
        return [name]
    path = Path(name)
    if path.is_dir():
        return sorted(str(one) for one in path.iterdir() if one.suffix in {".yaml", ".yml", ".json"})
    return [name]


def _text(file: str) -> str | Finding:
    try:
        if file == STDIN:
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as source:
                raw = source.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        return Finding(file, 1, "", f"has more than {MAX_BYTES} bytes. Split it.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return Finding(file, line, "", "is not UTF-8 text. Save it as UTF-8.")


def parse(file: str, text: str | Finding) -> Iterator[Document | Finding]:
    """The objects of one file; the items of a List are objects of their own."""
    if isinstance(text, Finding):
        yield text
        return
    builder = _Builder(file)
    try:
        for number, node in enumerate(yaml.compose_all(text, Loader=_Loader)):
            if number == MAX_DOCUMENTS:
                yield Finding(file, _line(node), "", f"has more than {MAX_DOCUMENTS} documents. Split it.")
                return
            document = builder.document(node)
            if document is not None:
                yield from _objects(document)
            yield from builder.take()
    except yaml.YAMLError as error:
        yield _syntax(file, error)
    except (_TooLargeError, RecursionError):
        yield Finding(file, 1, "", f"has more than {MAX_NODES} values, or deeper than {MAX_DEPTH}. Split it.")


def _objects(document: Document) -> Iterator[Document | Finding]:
    items = document.value.get("items")
    if document.value.get("kind") != "List" or not isinstance(items, list):
        yield document
        return
    for index, item in enumerate(items):
        if isinstance(item, dict):
            yield Document(document.file, item, document.lines, ("items", index))
        else:
            yield document.finding(("items", index), "is no object. Write apiVersion, kind, metadata and spec.")


def _syntax(file: str, error: yaml.YAMLError) -> Finding:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    text = f"is no YAML: {f'{context}, ' if context else ''}{problem}"[:200]
    return Finding(file, mark.line + 1 if mark is not None else 1, "", f"{text}. See the indentation and the quotes.")


class _TooLargeError(Exception):
    """A file has too many values."""


class _Loader(yaml.SafeLoader):
    """Times stay text, as for kubectl."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _line(node: yaml.Node | None) -> int:
    return 1 if node is None else node.start_mark.line + 1


@dataclass(slots=True)
class _Builder:
    """Turns the nodes of one file into values, and remembers lines."""

    file: str
    loader: _Loader = field(default_factory=lambda: _Loader(""))
    nodes: int = 0
    findings: list[Finding] = field(default_factory=list)
    lines: dict[FieldPath, int] = field(default_factory=dict)

    def take(self) -> list[Finding]:
        """What was found since the last call."""
        found, self.findings = self.findings, []
        return found

    def document(self, node: yaml.Node | None) -> Document | None:
        """The object; ``None`` for an empty document, or what is no object: that is found."""
        self.lines = {(): _line(node)}
        value = None if node is None else self._value(node, ())
        if value is None or isinstance(value, dict):
            return None if value is None else Document(self.file, value, self.lines)
        text = "is no object. Write apiVersion, kind, metadata and spec."
        self.findings.append(Finding(self.file, _line(node), "", text))
        return None

    def _value(self, node: yaml.Node, path: FieldPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooLargeError
        if isinstance(node, yaml.MappingNode):
            return self._map(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines.setdefault((*path, index), _line(item))
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            self.findings.append(
                Finding(self.file, _line(node), path_text(path), f"has tag {node.tag}. Remove the tag.")
            )
            return str(node.value)

    def _map(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                values = self._value(value_node, path)
                for one in values if isinstance(values, list) else [values]:
                    merged = {**(one if isinstance(one, dict) else {}), **merged}
                continue
            key = str(key_node.value)
            if key in own:
                text = "is there twice. Remove one of the two."
                self.findings.append(Finding(self.file, _line(key_node), path_text((*path, key)), text))
            self.lines[(*path, key)] = _line(key_node)
            own[key] = self._value(value_node, (*path, key))
        return {**merged, **own}
