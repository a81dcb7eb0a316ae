"""The structural schemas that the API server checks objects by, from the models of the API."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from fairlead_operator.api.v1alpha1 import Kind, KubeModel

Schema = dict[str, Any]

DROPPED = {"title", "$defs"}
KNOWN = {
    "additionalProperties", "anyOf", "default", "description", "enum", "exclusiveMaximum", "exclusiveMinimum",
    "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum",
    "pattern", "properties", "required", "type", "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type", "x-kubernetes-map-type", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}  # fmt: skip


class UnsupportedSchemaError(Exception):
    """A model uses what a structural schema cannot say."""


class _Structural(GenerateJsonSchema):
    """Pydantic's generator without what only JSON Schema has: null, empty defaults and const."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> Schema:
        """X instead of X or null: absent is the one way to say nothing."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Schema:
        """Defaults of objects are written out in full: CEL rules see the bare default, before its children's."""
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if default is None or default == ():
            return inner
        value = default.to_dict() if isinstance(default, KubeModel) else default
        value = str(value) if isinstance(value, str) else value
        return {**inner, "default": _without_empty_lists(value)}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> Schema:
        """An enum of words or of whole numbers, also with one value."""
        values = list(schema["expected"])
        return {"type": "integer" if all(type(value) is int for value in values) else "string", "enum": values}


def _without_empty_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty_lists(item) for key, item in value.items() if item != []}
    return value


def structural(model: type[KubeModel]) -> Schema:
    """The structural schema of a model: no references, no titles, OpenAPI 3.0.

    Raises:
        UnsupportedSchemaError: the model uses something that a structural schema cannot say.
    """
    schema = model.model_json_schema(by_alias=True, schema_generator=_Structural)
    return _convert(schema, schema.get("$defs", {}), (model.__name__,))


def _convert(schema: Schema, definitions: dict[str, Schema], path: tuple[str, ...]) -> Schema:
    schema = _inline(schema, definitions, path)
    converted = {key: value for key, value in schema.items() if key not in DROPPED}
    if unknown := converted.keys() - KNOWN:
        raise UnsupportedSchemaError(f"{'.'.join(path)}: a structural schema has no {', '.join(sorted(unknown))}")
    _exclusive_bounds(converted)
    _no_unions(converted, path)
    if "description" in converted:
        converted["description"] = " ".join(converted["description"].split())
    if "x-kubernetes-validations" in converted:
        converted["x-kubernetes-validations"] = [{key: r[key] for key in ("rule", "message")} for r in _rules(schema)]
    if "properties" in converted:
        converted["properties"] = {
            name: _convert(child, definitions, (*path, name)) for name, child in schema["properties"].items()
        }
        converted.pop("additionalProperties", None)
    for key in ("items", "additionalProperties"):
        if isinstance(converted.get(key), dict):
            converted[key] = _convert(converted[key], definitions, (*path, key))
    if converted.get("additionalProperties") is True:
        del converted["additionalProperties"]
    return _ordered(converted)


def _inline(schema: Schema, definitions: dict[str, Schema], path: tuple[str, ...]) -> Schema:
    seen: set[str] = set()
    while "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if name in seen or len(path) > 32:  # noqa: PLR2004 no honest schema is that deep
            raise UnsupportedSchemaError(f"{'.'.join(path)}: {name} contains itself; a structural schema is finite")
        seen.add(name)
        schema = {**definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _rules(schema: Schema) -> list[dict[str, str]]:
    return list(schema.get("x-kubernetes-validations", []))


def _exclusive_bounds(schema: Schema) -> None:
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            schema[bound] = schema[exclusive]
            schema[exclusive] = True


def _no_unions(schema: Schema, path: tuple[str, ...]) -> None:
    if "anyOf" in schema and not schema.get("x-kubernetes-int-or-string"):
        raise UnsupportedSchemaError(
            f"{'.'.join(path)}: a union; write one optional field for each member and a CEL rule that wants exactly one"
        )


_ORDER = ("description", "type", "format", "enum", "default")
_LAST = ("required", "properties", "items", "additionalProperties")


def _ordered(schema: Schema) -> Schema:
    first = [key for key in _ORDER if key in schema]
    middle = sorted(key for key in schema if key not in (*_ORDER, *_LAST))
    return {key: schema[key] for key in (*first, *middle, *(key for key in _LAST if key in schema))}


def root_schema(kind: Kind) -> Schema:
    """The schema of a whole object: what the API server adds, spec and status."""
    root: Schema = {
        "description": " ".join((kind.resource.__doc__ or "").split()),
        "type": "object",
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"description": "Version of the schema of this object.", "type": "string"},
            "kind": {"description": "Kind of this object.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(kind.spec),
            "status": structural(kind.status),
        },
    }
    if kind.rules:
        root["x-kubernetes-validations"] = list(kind.rules)
    return root
