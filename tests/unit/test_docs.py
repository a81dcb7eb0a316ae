"""What the documents show works: Python runs, manifests are accepted, commands and files exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead_operator.api.v1alpha1 import KINDS

BY_NAME = {kind.kind: kind.resource for kind in KINDS}
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"`((?:docs|examples|hack|operator|router-sidecar|tests|charts|crds)/[^`\s:*{}]+)`")


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}#{number}")
        for page in PAGES
        for number, (name, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if name == language
    ]


@pytest.mark.parametrize("text", blocks("python"))
def test_python_in_the_documents_runs(text: str) -> None:
    exec(compile(text, "docs", "exec"), {})  # noqa: S102 - our own documents


@pytest.mark.parametrize("text", blocks("yaml"))
def test_manifests_in_the_documents_are_accepted(text: str) -> None:
    for document in yaml.safe_load_all(text):
        if document and document.get("apiVersion", "").startswith("fairlead.dev/"):
            BY_NAME[document["kind"]].parse(document)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_make_words_named_in_the_documents_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [name for name in LINK.findall(text) if not (ROOT / name).exists()] == []
    words = set(re.findall(r"`make ([a-z0-9-]+)", text))
    assert [word for word in words if not re.search(rf"^{word}:|\b{word}\b.*:", makefile, re.MULTILINE)] == []
