"""What the operator renders for an engine is what vLLM's own parser and configuration take."""

from pathlib import Path

import pytest

from fairlead_operator.decide.engine_table.arguments import Option, options
from hack.models.__main__ import make
from hack.vllm import arguments, environment
from tests.bench.engine_args.bad import bad
from tests.bench.engine_args.good import cases
from tests.bench.engine_args.judge import Folders, faults, line

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
VERSION = arguments.short(environment.VERSION)
STEP = 3
"""Every third pool: the bench shows all."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("models"), make() / "tiny")


def test_vllm_takes_what_is_rendered(folders: Folders, tmp_path: Path) -> None:
    found = [case for case in cases(small=True) if case.version == VERSION][::STEP]
    lines = [line(case.pool, folders) for case in found]
    said = faults(VERSION, lines, tmp_path)
    assert [(dict(case.chosen), words) for case, words in zip(found, said, strict=True) if words] == []
    assert len(lines) > 10
    assert all(one.model for one in lines)


def test_vllm_refuses_what_is_said_to_be_refused_and_takes_the_rest(folders: Folders, tmp_path: Path) -> None:
    found = [one for one in bad() if one.version == VERSION and one.does != "cannot say"][::STEP]
    said = faults(VERSION, [line(one.pool, folders) for one in found], tmp_path)
    wrong = [
        (one.title, words) for one, words in zip(found, said, strict=True) if (one.does == "refuses") != bool(words)
    ]
    assert wrong == []


def test_the_options_that_the_operator_knows_are_those_of_vllms_parser() -> None:
    told = {
        Option(tuple(one["names"]), one["takes"], tuple(one.get("choices", ())))
        for one in arguments.listed(environment.ENGINE_SETTINGS)
    }
    known = {Option(one.names, one.takes, one.choices) for one in options() if VERSION in one.versions}
    assert known == told
