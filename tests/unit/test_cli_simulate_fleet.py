"""``fairlead simulate fleet``: a workload and an engine from files, policies beside each other."""

import json
from pathlib import Path

import pytest

from fairlead_operator.cli.main import main

ENGINE = """
stepSeconds: {base: 0.02, perContextToken: 0, perToken: 1e-3}
kvTokens: 100000
tokenBudget: 256
pricePerHour: 10
coldStart: 30
replicas: {min: 1, max: 5}
objectives: {timeToFirstToken: 4, timePerOutputToken: 0.4, attainmentPercent: 95}
"""


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "requests.csv"
    rows = (f"{at * 0.7:.1f},{300 + at % 7 * 90},{5 + at % 11}" for at in range(900))
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engine.yaml"
    path.write_text(ENGINE, encoding="utf-8")
    return path


def simulate(*arguments: object) -> int:
    return main(["simulate", "fleet", *map(str, arguments)])


def test_policies_are_compared(
    workload: Path, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plots, schedule = tmp_path / "plots", tmp_path / "replicas.csv"
    policies = ["clairvoyant", "fairlead", "fixed"]
    more = ("--policies", ",".join(policies), "--plots", plots, "--schedule", schedule, "-o", "json")
    assert simulate(workload, "--engine", engine, *more) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["policy"] for row in rows] == policies
    assert {row["requests"] for row in rows} == {900}
    assert rows[0]["attainment_percent"] >= 95.0
    assert sorted(path.name for path in plots.iterdir()) == sorted(f"{name}.svg" for name in policies)
    lines = schedule.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "minute,clairvoyant,fairlead,fixed"
    assert len(lines) > 10


def test_the_table_says_what_it_is_worth(workload: Path, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(workload, "--engine", engine, "--policies", "fixed", "--count-from", 60) == 0
    shown = capsys.readouterr().out
    assert "Fluid bound" in shown
    assert "simulated, no GPU was used" in shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("kvTokens: 100000", "kvTokens: none"), "kvTokens"),
        (("kvTokens: 100000", ""), "kvTokens"),
        (("pricePerHour: 10", "pricePerHour: 10\nprice: 3"), "price"),
        (("min: 1, max: 5", "min: 6, max: 5"), "min 6 is above max 5"),
        (("timeToFirstToken: 4, timePerOutputToken: 0.4, ", ""), "timeToFirstToken"),
        (("base: 0.02", "base: .nan"), "base"),
        (("base: 0.02", "base: 0"), "base above 0"),
        (("stepSeconds:", "stepSeconds: ["), "engine.yaml"),
    ],
)
def test_a_mistake_in_the_engine_file_is_named(
    change: tuple[str, str], said: str, workload: Path, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.write_text(ENGINE.replace(*change), encoding="utf-8")
    assert simulate(workload, "--engine", engine) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n", "has no requests"),
        ("arrival_s,prompt_tokens,output_tokens\n0,x,1\n", "line 2: prompt_tokens is 'x'"),
    ],
)
def test_a_mistake_in_the_workload_is_named(
    text: str, said: str, workload: Path, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workload.write_text(text, encoding="utf-8")
    assert simulate(workload, "--engine", engine) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("--policies", "best"), ("--policies", ","), ("--count-from", "1e9"), ("--count-from", "nan")]
)
def test_a_wrong_option_is_refused(
    arguments: tuple[str, str], workload: Path, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(workload, "--engine", engine, *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(
    workload: Path, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "nowhere" / "replicas.csv"
    assert simulate(workload, "--engine", engine, "--policies", "fixed", "--schedule", place) == 2
    assert "cannot be written" in capsys.readouterr().err
