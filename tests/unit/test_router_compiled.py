"""Which modules of the router these tests run on: `make unit-compiled` runs them on those that the image runs."""

import importlib
import os
from pathlib import Path

import fairlead_router
from fairlead_router.structs import is_compiled
from hack.compile import MODULES, PACKAGE


def test_the_hot_modules_are_compiled_exactly_where_that_was_asked_for() -> None:
    asked = os.environ.get("FAIRLEAD_COMPILED") == "1"
    modules = MODULES["fairlead_router"]
    found = {name: is_compiled(importlib.import_module(f"fairlead_router.{name}")) for name in modules}
    assert found == dict.fromkeys(modules, asked)


def test_modules_whose_records_are_decoded_are_never_compiled() -> None:
    for name in ("contract", "structs", "main"):
        assert not is_compiled(importlib.import_module(f"fairlead_router.{name}"))


def test_what_runs_is_what_the_repository_says() -> None:
    (package,) = map(Path, fairlead_router.__path__)
    sources = {path.name: path.read_bytes() for path in PACKAGE.glob("*.py")}
    assert {path.name: path.read_bytes() for path in package.glob("*.py")} == sources
