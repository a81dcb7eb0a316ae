"""What the API server does with a CRD's schema, in memory: defaults, bounds and CEL rules."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import cel
import jsonschema

Schema = dict[str, Any]


def defaulted(schema: Schema, value: Any) -> Any:
    """The value with the schema's defaults filled in, from the outside in."""
    value = deepcopy(value)
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = deepcopy(child["default"])
        children = schema.get("properties", {})
        return {name: defaulted(children.get(name, {}), item) for name, item in value.items()}
    if isinstance(value, list):
        return [defaulted(schema.get("items", {}), item) for item in value]
    return value


def schema_errors(schema: Schema, value: Any) -> list[str]:
    """What the schema's types and bounds refuse."""
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(value)]


def broken_rules(schema: Schema, value: Any, old: Any = None) -> list[str]:
    """The messages of the CEL rules that the value breaks; rules over oldSelf hold only when there is an old value."""
    return [
        rule["message"]
        for node, item, before in _nodes(schema, value, old)
        for rule in node.get("x-kubernetes-validations", [])
        if not _holds(rule["rule"], item, before)
    ]


def _holds(rule: str, value: Any, old: Any) -> bool:
    if "oldSelf" in rule and old is None:
        return True
    return bool(cel.evaluate(rule, {"self": value, "oldSelf": old}))


def _nodes(schema: Schema, value: Any, old: Any) -> Iterator[tuple[Schema, Any, Any]]:
    yield schema, value, old
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from _nodes(child, value[name], before.get(name))
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(schema.get("items", {}), item, None)
