"""What the operator renders for an engine is what vLLM's own parser and configuration take."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fairlead_operator.decide.engine_table.arguments import Option, options
from hack.vllm import arguments, environment
from tests.bench.engine_args.bad import Bad, bad
from tests.bench.engine_args.good import Case, cases
from tests.bench.engine_args.judge import Folders, Line, faults, line

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
VERSION = arguments.short(environment.VERSION)
STEP = 3
"""Every third pool: the bench shows all."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Pools that are rendered, and pools of which the operator says what vLLM does; with what vLLM says of each."""

    rendered: list[tuple[Case, Line, str]]
    doubted: list[tuple[Bad, str]]


@pytest.fixture(scope="module")
def judged(vllm: environment.Environment, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """All of them in one process, as vLLM takes seconds to be imported; what it finds out about its classes is kept."""
    folders = Folders(tmp_path_factory.mktemp("models"), models / "tiny")
    good = [case for case in cases(small=True) if case.version == VERSION][::STEP]
    doubted = [one for one in bad() if one.version == VERSION and one.does != "cannot say"][::STEP]
    lines = [line(pool, folders) for pool in [*(one.pool for one in good), *(one.pool for one in doubted)]]
    said = faults(VERSION, lines, vllm.home / "facts")
    return Judged(list(zip(good, lines, said, strict=False)), list(zip(doubted, said[len(good) :], strict=True)))


def test_vllm_takes_what_is_rendered(judged: Judged) -> None:
    assert [(dict(case.chosen), words) for case, _, words in judged.rendered if words] == []
    assert len(judged.rendered) > 10
    assert all(line.model for _, line, _ in judged.rendered)


def test_vllm_refuses_what_is_said_to_be_refused_and_takes_the_rest(judged: Judged) -> None:
    wrong = [(one.title, words) for one, words in judged.doubted if (one.does == "refuses") != bool(words)]
    assert wrong == []


def test_the_options_that_the_operator_knows_are_those_of_vllms_parser() -> None:
    told = {
        Option(tuple(one["names"]), one["takes"], tuple(one.get("choices", ())))
        for one in arguments.listed(environment.ENGINE_SETTINGS)
    }
    known = {Option(one.names, one.takes, one.choices) for one in options() if VERSION in one.versions}
    assert known == told
