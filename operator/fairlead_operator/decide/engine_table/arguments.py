"""The options of ``vllm serve``: their names, what they take, and which of them a written name means.

arguments.json is written from vLLM's own parsers by ``python -m hack.vllm.arguments``.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

from fairlead_operator.decide.engine_table.versions import KNOWN

Takes = Literal["nothing", "switch", "text", "int", "float", "size", "json", "words"]

_PATTERNS: Final[Mapping[Takes, str]] = {
    "int": r"[+-]?[0-9]+",
    "float": r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "size": r"-1|auto|[0-9]+(\.[0-9]+)?[kKmMgGtT]?i?",
}
_WANTED: Final[Mapping[Takes, str]] = {
    "int": "a whole number",
    "float": "a number",
    "size": "a whole number, such as 4096, 16k or 2G",
    "json": "JSON",
}
_UNSET = "None"
"""What leaves an option at its default."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its names, what it takes, the values it is limited to (empty: any), the versions that have it so."""

    names: tuple[str, ...]
    takes: Takes
    choices: tuple[str, ...] = ()
    versions: tuple[str, ...] = KNOWN

    @property
    def name(self) -> str:
        """The name that the option is known by: of a switch the one that turns it on."""
        return next((name for name in self.names if f"--no-{name[2:]}" in self.names), self.names[0])


@functools.cache
def options() -> tuple[Option, ...]:
    """Every option of every known version; one that differs between versions is there once for each."""
    document = json.loads(files(__package__).joinpath("arguments.json").read_text(encoding="utf-8"))
    return tuple(
        Option(
            tuple(entry["names"]), entry["takes"], tuple(entry.get("choices", ())), tuple(entry.get("versions", KNOWN))
        )
        for entry in document["options"]
    )


@functools.cache
def named(version: str | None) -> Mapping[str, Option]:
    """The options by each of their names; without a version those of all, the newest where they differ."""
    return {
        name: option
        for known in KNOWN
        if version in {None, known}
        for option in options()
        if known in option.versions
        for name in option.names
    }


def meant(name: str, version: str | None) -> tuple[str, ...]:
    """Names of options that a written name may mean: itself, or those that begin with it, as Python's parser has it.

    One name: that is meant. Several: the parser refuses it as ambiguous. None: the parser does not know it.
    """
    known = named(version)
    if name in known:
        return (name,)
    found = {known[full].names: full for full in sorted(known, reverse=True) if full.startswith(name)}
    return tuple(sorted(found.values()))


def value_fault(option: Option, value: str | None) -> str:
    """What is wrong with the value after ``=`` (``None``: there is none); empty if nothing is."""
    if option.takes in {"nothing", "switch"}:
        return "" if value is None else "takes no value"
    if value is None:
        return "" if option.takes == "words" and option.names == ("--hf-token",) else "needs a value, after ="
    if option.choices and value not in option.choices:
        return f"takes one of {', '.join(option.choices)}"
    if value == _UNSET or _fits(option.takes, value):
        return ""
    return f"takes {_WANTED[option.takes]}"


def part_fault(option: Option) -> str:
    """What is wrong with setting a part of an option, as in ``--option.key=value``; empty if nothing is."""
    return "" if option.takes in {"json", "text"} else "has no parts to set"


def _fits(takes: Takes, value: str) -> bool:
    if takes == "json":
        return _is_json(value)
    return takes not in _PATTERNS or re.fullmatch(_PATTERNS[takes], value) is not None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
