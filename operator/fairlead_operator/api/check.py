"""What the API server refuses of an object by its schema, found without one, and what to write instead.

Types, bounds, unknown fields, lists with keys and CEL rules, as structural schemas of CustomResourceDefinitions have
them. Texts are our own; tests/cluster compares the verdicts with those of a real API server.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fairlead_operator import units
from fairlead_operator.api.cel import RuleError, holds
from fairlead_operator.api.structural import Schema
from fairlead_operator.api.v1alpha1.modelpool import ENGINE_ARGUMENT_PATTERN

Path = tuple[str | int, ...]
SHOWN: Final = 60
FIELDS_SHOWN: Final = 12
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "integer": (int,),
    "string": (str,),
    "object": (dict,),
    "array": (list,),
}
_WANTED: Final[Mapping[str, str]] = {
    "integer": "a whole number",
    "string": "text: put it in quotes",
    "object": "a map of fields",
    "array": "a list: begin each item with a dash",
}
_EXAMPLES: Final[Mapping[str, str]] = {
    units.DURATION_PATTERN: "Write a duration such as 90s or 1h30m",
    ENGINE_ARGUMENT_PATTERN: "Write --name or --name=value",
    units.USD_PATTERN: "Write digits with at most six decimal places, in quotes, such as '0.45'",
}
_FLAG = re.compile(r"\(--([a-z0-9-]+)\)")


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is refused; ``remedy`` is what to write instead, empty where ``what`` says it."""

    path: Path
    what: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """Both as sentences."""
        parts = [part for part in (self.what, self.remedy) if part]
        return " ".join(part if part.endswith("?") else f"{part}." for part in parts)


def violations(schema: Schema, value: Any) -> list[Violation]:
    """Everything that is wrong with the object. Rules are asked only where types and bounds are right."""
    found = list(_shape(schema, value, (), schema))
    return found or list(_rules(schema, with_defaults(schema, value), ()))


def with_defaults(schema: Schema, value: Any) -> Any:
    """The value with the schema's defaults filled in, from the outside in, as the API server does it."""
    if isinstance(value, dict):
        children = schema.get("properties", {})
        missing = {
            name: deepcopy(child["default"])
            for name, child in children.items()
            if value.get(name) is None and "default" in child
        }
        return {name: with_defaults(children.get(name, {}), item) for name, item in {**value, **missing}.items()}
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    return value


def shown(value: Any) -> str:
    """A value in a message, never long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def meant(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """The known name that this one resembles; empty if there is none."""
    plain = {_plain(one): one for one in known}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    return plain[close[0]] if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()


def _shape(schema: Schema, value: Any, path: Path, root: Schema) -> Iterator[Violation]:
    wrong = _type_problem(schema, value)
    if wrong is not None:
        yield Violation(path, *wrong)
    elif isinstance(value, dict):
        yield from _map_shape(schema, value, path, root)
    elif isinstance(value, list):
        yield from _list_shape(schema, value, path, root)
    else:
        yield from (Violation(path, *one) for one in _value_problems(schema, value))


def _type_problem(schema: Schema, value: Any) -> tuple[str, str] | None:
    if value is None:
        return None if "default" in schema else ("has no value", "Give it one, or remove the line")
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, int | str) and not isinstance(value, bool):
            return None
        quoted = f"Put it in quotes: '{value}'" if isinstance(value, float) else "Write a whole number, or text"
        return f"is {shown(value)}, {'a bare decimal' if isinstance(value, float) else 'no number and no text'}", quoted
    wanted = schema.get("type")
    if wanted is None or (isinstance(value, _TYPES[wanted]) and not isinstance(value, bool)):
        return None
    example = _EXAMPLES.get(schema.get("pattern", ""))
    return f"is {shown(value)}", example or f"It must be {_WANTED[wanted]}"


def _map_shape(schema: Schema, value: dict[str, Any], path: Path, root: Schema) -> Iterator[Violation]:
    children, free = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", []):
        if name not in value:
            what = _first_sentence(children[name]) or "it is required"
            yield Violation((*path, name), "is missing", f"Add it: {what[:1].lower()}{what[1:]}")
    if len(value) > schema.get("maxProperties", len(value)):
        yield Violation(path, f"has {len(value)} entries", f"At most {schema['maxProperties']} are allowed")
    for name, item in value.items():
        if name in children:
            yield from _shape(children[name], item, (*path, name), root)
        elif isinstance(free, dict):
            yield from _shape(free, item, (*path, name), root)
        elif children:
            yield Violation((*path, name), "is an unknown field", _unknown_remedy(name, children, root))


def _first_sentence(schema: Schema) -> str:
    """What a field is, without the full stop; empty where its schema does not say."""
    return str(schema.get("description", "")).partition(". ")[0].rstrip(".")


def _unknown_remedy(name: str, children: Mapping[str, Schema], root: Schema) -> str:
    """By what vLLM calls the field, by where it belongs, by what it resembles."""
    places = _places(root)
    if place := places.get(_plain(name)):
        return f"It belongs to {place}"
    if close := meant(name, children):
        return f"Did you mean {close}?"
    if close := meant(name, [key for key in places if len(key) > len("replicas")]):
        return f"Did you mean {places[close]}?"
    names = ", ".join([*list(children)[:FIELDS_SHOWN], *(["..."] if len(children) > FIELDS_SHOWN else [])])
    return f"Fields here are {names}"


def _places(root: Schema) -> dict[str, str]:
    """Where each field of a spec is, by its name and by vLLM's; of several the outermost."""
    found: dict[str, str] = {}
    queue: list[tuple[str, Schema]] = [("spec", root.get("properties", {}).get("spec", {}))]
    for path, schema in queue:
        node = schema.get("items", schema)
        for name, child in node.get("properties", {}).items():
            place = f"{path}{'[]' if 'items' in schema else ''}.{name}"
            flags = _FLAG.findall(str(child.get("description", "")))
            for word in (name, *flags):
                found.setdefault(_plain(word), place)
            queue.append((place, child))
    return found


def _list_shape(schema: Schema, value: list[Any], path: Path, root: Schema) -> Iterator[Violation]:
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if len(value) < least:
        yield Violation(path, f"has {len(value)} items", f"At least {least} is needed")
    if len(value) > most:
        yield Violation(path, f"has {len(value)} items", f"At most {most} are allowed")
    items = schema.get("items", {})
    for index, item in enumerate(value):
        yield from _shape(items, item, (*path, index), root)
    yield from _doubles(schema, with_defaults(schema, value), path)


def _doubles(schema: Schema, value: list[Any], path: Path) -> Iterator[Violation]:
    """Items of sets, and of lists with keys, that are there already."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys is None and schema.get("x-kubernetes-list-type") != "set":
        return
    first: dict[str, int] = {}
    for index, item in enumerate(value):
        if keys is not None and not isinstance(item, dict):
            continue
        mark = item if keys is None else {key: item.get(key) for key in keys}
        before = first.setdefault(json.dumps(mark, sort_keys=True, default=str), index)
        if before != index:
            names = shown(item) if keys is None else " and ".join(f"{key} {shown(mark[key])}" for key in keys)
            yield Violation((*path, index), f"has {names}, as item {before} has", "Remove or rename one of them")


def _value_problems(schema: Schema, value: Any) -> Iterator[tuple[str, str]]:
    if "enum" in schema and value not in schema["enum"]:
        words = [str(one) for one in schema["enum"]]
        close = meant(str(value), words)
        hint = f"Did you mean {close}? " if close else ""
        yield f"is {shown(value)}", f"{hint}It must be one of {', '.join(words)}"
    elif isinstance(value, str):
        yield from _text_problems(schema, value)
    elif isinstance(value, int):
        yield from _number_problems(schema, value)


def _text_problems(schema: Schema, value: str) -> Iterator[tuple[str, str]]:
    if len(value) > schema.get("maxLength", len(value)):
        yield f"has {len(value)} characters", f"At most {schema['maxLength']} are allowed"
    if len(value) < schema.get("minLength", 0):
        yield "is empty", "Give it a value, or remove the line"
    pattern = schema.get("pattern")
    if pattern is not None and re.search(re.sub(r"\$$", r"\\Z", pattern), value, re.ASCII) is None:
        example = _EXAMPLES.get(pattern) or _first_sentence(schema)
        yield f"is {shown(value)}", f"{example}{'. ' if example else ''}It must match {pattern}"
    if schema.get("format") == "date-time" and not _is_time(value):
        yield f"is {shown(value)}", "Write a time such as 2026-12-01T08:00:00Z"


def _is_time(text: str) -> bool:
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:]{8}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})", text) is None:
        return False
    try:
        datetime.fromisoformat(re.sub(r"\.[0-9]+", "", text).upper())
    except ValueError:
        return text[17:19] == "60"  # a leap second is a time too
    return True


def _number_problems(schema: Schema, value: int) -> Iterator[tuple[str, str]]:
    if value < schema.get("minimum", value):
        yield f"is {value}", f"It must be at least {schema['minimum']}"
    if value > schema.get("maximum", value):
        yield f"is {value}", f"It must be at most {schema['maximum']}"


def _rules(schema: Schema, value: Any, path: Path) -> Iterator[Violation]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _kept(rule["rule"], value):
            yield Violation(path, rule["message"])
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if value.get(name) is not None:
                yield from _rules(child, value[name], (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(schema.get("items", {}), item, (*path, index))


def _kept(rule: str, value: Any) -> bool:
    try:
        return holds(rule, value)
    except RuleError:
        return False
