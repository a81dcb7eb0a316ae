"""The page of mistakes and the how-to say what the programs say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.mistakes import MISTAKES, Mistake, page, refused, validated

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/mistakes.md"
HOW_TO = ROOT / "docs/how-to/check-a-pool-before-applying.md"
BLOCK = re.compile(r"^```(text|yaml|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_page_is_what_is_said() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()


def test_there_are_twelve() -> None:
    assert len(MISTAKES) == 12
    assert len({one.title for one in MISTAKES}) == 12


@pytest.mark.parametrize("one", MISTAKES, ids=lambda one: one.title)
def test_validate_has_a_line_for_each(one: Mistake) -> None:
    first = validated(one).splitlines()[0]
    assert re.match(r"mistake\.yaml:\d+: ", first)


@pytest.mark.parametrize("one", list(refused()), ids=lambda one: one.title)
def test_what_the_server_refuses_validate_refuses(one: Mistake) -> None:
    assert validated(one).splitlines()[-1].startswith("failed: ")


def test_the_commands_of_the_how_to_print_what_it_shows(tmp_path: Path) -> None:
    text = HOW_TO.read_text(encoding="utf-8")
    whole = text
    for kind, body in BLOCK.findall(text):
        if kind == "console":
            whole = whole.replace(f"```console\n{body}```", f"```console\n{_ran(body, tmp_path)}```", 1)
        elif body.startswith("apiVersion"):
            (tmp_path / "pool.yaml").write_text(body, encoding="utf-8")
    if os.environ.get("UPDATE_GOLDEN"):
        HOW_TO.write_text(whole, encoding="utf-8")
    assert HOW_TO.read_text(encoding="utf-8") == whole


def _ran(body: str, folder: Path) -> str:
    """The commands of a block with what they print now."""
    fairlead = f"{sys.executable} -m fairlead_operator.cli.main"
    path = os.pathsep.join(str(ROOT / part) for part in ("operator", "router-sidecar"))
    lines = []
    for line in body.splitlines():
        if line.startswith("$ "):
            command = re.sub(r"\bfairlead\b", fairlead, line.removeprefix("$ "))
            done = subprocess.run(  # our own page
                ["sh", "-c", command],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": path},
            )
            lines += [line, *(done.stdout + done.stderr).splitlines()]
    return "".join(f"{line}\n" for line in lines)
