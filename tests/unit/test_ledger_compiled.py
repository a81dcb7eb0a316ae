"""Which modules of the ledger these tests run on: `make unit-compiled` runs them on those that the image runs."""

import importlib
import os
import re
from pathlib import Path

import fairlead_operator
from fairlead_operator.ledger.escrow import Account, Terms
from fairlead_operator.ledger.together import on_top
from fairlead_router.structs import is_compiled
from hack.compile import LEDGER, MODULES


def test_the_hot_modules_are_compiled_exactly_where_that_was_asked_for() -> None:
    asked = os.environ.get("FAIRLEAD_COMPILED") == "1"
    modules = MODULES["fairlead_operator"]
    found = {name: is_compiled(importlib.import_module(f"fairlead_operator.{name}")) for name in modules}
    assert found == dict.fromkeys(modules, asked)


def test_modules_that_records_get_their_keywords_from_are_never_compiled() -> None:
    assert not is_compiled(importlib.import_module("fairlead_operator.ledger.structs"))


def test_what_runs_is_what_the_repository_says() -> None:
    (package,) = map(Path, fairlead_operator.__path__)
    sources = {path.name: path.read_bytes() for path in (LEDGER / "ledger").glob("*.py")}
    assert {path.name: path.read_bytes() for path in (package / "ledger").glob("*.py")} == sources


def test_two_records_are_the_same_if_they_hold_the_same() -> None:
    """A decision that was made on what is still stored stands; the two are not one object."""
    loaded, stored = (Account(held=10, holders=1, cap_high=1000) for _ in range(2))
    decided = Account(held=10, holders=1, recall_until=5, cap_high=1000)
    assert on_top(decided, loaded, stored, peak=10, terms=Terms(limit=1000, start=0, end=9), now=5) == decided


def test_compiled_modules_compare_records_only_by_same() -> None:
    """A comparison of two records whose classes mypyc knows is one of identity: their bases are not compiled."""
    for name in MODULES["fairlead_operator"]:
        source = (LEDGER / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert not re.search(r"(==|!=) (escrow\.)?NOTHING", source), name
