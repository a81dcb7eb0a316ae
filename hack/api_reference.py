"""Write docs/reference/api.md: every field of the three kinds, from the CRDs.

usage: python -m hack.api_reference [--check]
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "api.md"
BOUNDS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters",
    "minItems": "≥ {} items",
    "maxItems": "≤ {} items",
    "maxProperties": "≤ {} entries",
    "pattern": "`{}`",
    "format": "{}",
}
HEAD = "# The kinds\n\nGenerated from `crds/` by `make generate`. A field marked * must be set.\n"


def main() -> int:
    """Write the page, or with --check compare it; 1 when it differs."""
    text = page()
    if "--check" in sys.argv:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        if not same:
            print(f"{PAGE.relative_to(ROOT)} is not what the CRDs say. Run `make generate`.")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        parts += kind(yaml.safe_load(path.read_text(encoding="utf-8")))
    return "\n".join(parts)


def kind(crd: dict[str, Any]) -> Iterator[str]:
    """One kind: its spec, its status, its columns."""
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    names = crd["spec"]["names"]
    yield f"\n## {names['kind']} (`{names['shortNames'][0]}`)\n\n{schema.get('description', '')}\n"
    for rule in schema.get("x-kubernetes-validations", []):
        yield f"- {rule['message']}"
    for part in ("spec", "status"):
        yield f"\n### {part}\n\n| field | type | default | meaning |\n|---|---|---|---|"
        yield from fields(schema["properties"][part], "")
    columns = [f"{c['name']} `{c['jsonPath']}`" for c in version.get("additionalPrinterColumns", [])]
    yield "\nColumns: " + " · ".join(columns) + "\n"


def fields(schema: dict[str, Any], path: str) -> Iterator[str]:
    """A row for each property below a schema, depth first."""
    for name, child in schema.get("properties", {}).items():
        star = "*" if name in schema.get("required", []) else ""
        rules = " ".join(f"Rule: {rule['message']}." for rule in child.get("x-kubernetes-validations", []))
        default = f"`{child['default']}`" if "default" in child else ""
        text = f"{child.get('description', '')} {rules}".replace("\n", " ").replace("|", "\\|").strip()
        yield f"| `{path}{name}`{star} | {shape(child)} | {default} | {text} |"
        yield from fields(child.get("items", child), f"{path}{name}{'[]' if 'items' in child else ''}.")


def shape(schema: dict[str, Any]) -> str:
    """The type and bounds of a schema in words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    name = "integer or string" if schema.get("x-kubernetes-int-or-string") else schema.get("type", "any")
    if "items" in schema:
        name = f"list of {shape(schema['items'])}" if "properties" not in schema["items"] else "list"
    bounds = [words.format(schema[key]) for key, words in BOUNDS.items() if key in schema]
    return ", ".join([name, *bounds]).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
