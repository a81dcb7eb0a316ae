"""Writes the CustomResourceDefinitions, and their copies in the chart, from the models of the API.

``python -m hack.crds`` writes, ``python -m hack.crds --check`` says which files differ from the models.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fairlead_operator.api.structural import Schema, UnsupportedSchemaError, root_schema, structural
from fairlead_operator.api.v1alpha1 import GROUP, KINDS, VERSION, Column, Kind
from fairlead_operator.api.v1alpha1.kinds import CATEGORY

ROOT = Path(__file__).resolve().parent.parent
CRDS = Path("crds")
CHART_CRDS = Path("charts/fairlead/templates/crds")
HEADER = "# Written by python -m hack.crds from fairlead_operator.api.{version}; change the models, not this file.\n"
CHART_HEAD = "{{- if .Values.crds.install }}\n"
CHART_KEEP = "  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n"
CHART_TAIL = "{{- end }}\n"
WIDTH = 110


def custom_resource_definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}, **({"scale": dict(kind.scale)} if kind.scale else {})},
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "schema": {"openAPIV3Schema": root_schema(kind)},
    }
    names = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.kind.lower(),
        "shortNames": [kind.short_name],
        "categories": [CATEGORY],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
        "description": column.description,
        **({"priority": 1} if column.wide else {}),
    }


# --- lint ----------------------------------------------------------------------------------------------------------

Node = tuple[str, Schema]


def nodes(schema: Schema, path: str = "") -> Iterator[Node]:
    """Every schema in a schema with its path, from the outside in."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], path + mark)


def lint(kind: Kind) -> list[str]:
    """What breaks the conventions of the API in the schema of a kind, one line each."""
    parts = {"spec": structural(kind.spec), "status": structural(kind.status)}
    problems = [
        f"{kind.kind} {path}: {complaint}"
        for name, schema in parts.items()
        for path, node in nodes(schema, name)
        for check, complaint in _CHECKS
        if not check(path, node)
    ]
    status = parts["status"]
    if next(iter(status["properties"])) != "conditions" or status.get("required"):
        problems.append(f"{kind.kind} status: conditions come first, and every field is optional")
    return problems


def _bounded_string(_path: str, node: Schema) -> bool:
    return (
        node.get("type") != "string" or bool(node.keys() & {"maxLength", "enum"}) or node.get("format") == "date-time"
    )


def _bounded_list(_path: str, node: Schema) -> bool:
    return node.get("type") != "array" or {"maxItems", "x-kubernetes-list-type"} <= node.keys()


def _bounded_map(_path: str, node: Schema) -> bool:
    return "additionalProperties" not in node or "maxProperties" in node


def _map_of_values(_path: str, node: Schema) -> bool:
    return "properties" not in node.get("additionalProperties", {})


def _bounded_integer(_path: str, node: Schema) -> bool:
    is_integer = node.get("type") == "integer" or node.get("x-kubernetes-int-or-string", False)
    return not is_integer or "enum" in node or {"minimum", "maximum"} <= node.keys()


def _known_type(_path: str, node: Schema) -> bool:
    if node.get("x-kubernetes-int-or-string"):
        return "type" not in node
    return node.get("type") in {"string", "integer", "array", "object"}


def _described(path: str, node: Schema) -> bool:
    return path.endswith(("[]", "{}")) or str(node.get("description", "")).endswith(".")


def _closed_object(_path: str, node: Schema) -> bool:
    ways = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
    return node.get("type") != "object" or bool(node.keys() & ways)


def _rules_speak(_path: str, node: Schema) -> bool:
    return all(rule.get("message") for rule in node.get("x-kubernetes-validations", []))


def _optional_says_default(path: str, node: Schema) -> bool:
    if not path.startswith("spec"):
        return True
    required = node.get("required", [])
    optional = [child for name, child in node.get("properties", {}).items() if name not in required]
    return all("Default: " in child.get("description", "") for child in optional)


def _good_names(_path: str, node: Schema) -> bool:
    return all(name[0].islower() and name.isalnum() and name != "phase" for name in node.get("properties", {}))


_CHECKS: tuple[tuple[Callable[[str, Schema], bool], str], ...] = (
    (_known_type, "is none of string, integer, list and object: no floats, no bools"),
    (_described, "has no description that is a sentence"),
    (_bounded_string, "a string without maxLength or enum"),
    (_bounded_list, "a list without maxItems or list type"),
    (_bounded_map, "a map without maxProperties"),
    (_map_of_values, "a map of objects: write a list with map keys"),
    (_bounded_integer, "an integer without minimum and maximum, or enum"),
    (_closed_object, "an object without fields"),
    (_rules_speak, "a CEL rule without a message"),
    (_optional_says_default, "an optional field whose description does not say its default"),
    (_good_names, "a field name that is not camelCase, or phase"),
)


# --- files ---------------------------------------------------------------------------------------------------------


def manifest(kind: Kind) -> str:
    """The file of a kind in crds/."""
    return HEADER.format(version=VERSION) + _yaml(custom_resource_definition(kind))


def chart_template(kind: Kind) -> str:
    """The same as a template of the chart: installed and kept as the values say."""
    body = _yaml(custom_resource_definition(kind)).replace("{{", '{{ "{{" }}')
    name = f"metadata:\n  name: {kind.crd_name}\n"
    before, found, after = body.partition(name)
    if not found:
        raise UnsupportedSchemaError(f"{kind.crd_name}: the manifest does not begin with its name")
    return HEADER.format(version=VERSION) + CHART_HEAD + before + name + CHART_KEEP + after + CHART_TAIL


def files() -> dict[Path, str]:
    """Every written file and its text, by its path from the root of the repository."""
    plain = {CRDS / f"{kind.plural}.yaml": manifest(kind) for kind in KINDS}
    return plain | {CHART_CRDS / f"{kind.plural}.yaml": chart_template(kind) for kind in KINDS}


def _yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_NoAliases, sort_keys=False, width=WIDTH, allow_unicode=True)


class _NoAliases(yaml.SafeDumper):
    """Writes equal parts out each time: anchors are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 the base class gives the parameter
        """Never."""
        return True


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them; 1 when a file differs or the schemas break a convention."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say which files differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="where crds/ and charts/ are")
    options = parser.parse_args(arguments)
    if problems := [problem for kind in KINDS for problem in lint(kind)]:
        print("\n".join(problems), file=sys.stderr)
        return 1
    if options.check:
        return _compare(options.root)
    for path, text in files().items():
        (options.root / path).parent.mkdir(parents=True, exist_ok=True)
        (options.root / path).write_text(text, encoding="utf-8")
    return 0


def _compare(root: Path) -> int:
    differing = [path for path, text in files().items() if _read(root / path) != text]
    for path in differing:
        print(f"{path} differs from the models: python -m hack.crds writes it", file=sys.stderr)
    return 1 if differing else 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
