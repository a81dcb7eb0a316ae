"""What is recorded on a real engine is learned of in one part and judged by the other, and replayed as it was sent."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest

from fairlead_operator.performance import fit
from fairlead_operator.performance.step import StepTime
from tests.bench.autoscaler import real_engine
from tests.bench.autoscaler.real_runs import (
    Record,
    Run,
    Seen,
    Shown,
    beside,
    compared,
    learned,
    read,
    replayed,
    report,
    write,
)

STEP = StepTime(0.004, 2e-6, 3e-4)
EMPTY = Record(16_384, 512, 64, ())
ENGINE = EMPTY.engine(STEP)
BESIDE = 0.003


def callers(count: int, each: int, *, fitted: bool = False) -> Run:
    """What callers see of such an engine, who each send so many requests."""
    sent = [
        Seen(caller, 0.001 * caller, 40 + 60 * (turn % 5) + 10 * caller, 10 + 9 * (turn % 7), 0.0, 0.0)
        for turn in range(each)
        for caller in range(count)
    ]
    return lived(Run(callers=count, fitted=fitted, requests=tuple(sent)))


def arrivals(rate: float, count: int) -> Run:
    """What requests at even distances see."""
    sent = [Seen(at, at / rate, 50 + 70 * (at % 4), 20 + 5 * (at % 3), 0.0, 0.0) for at in range(count)]
    return lived(Run(rate=rate, requests=tuple(sent)))


def lived(run: Run) -> Run:
    """The run as its clients see it."""
    copies = replayed(ENGINE, run, BESIDE if run.callers else 0.0)
    seen = [
        msgspec.structs.replace(one, sent=copy.arrival, ttft=copy.ttft + BESIDE, tpot=copy.tpot)
        for one, copy in zip(run.requests, copies, strict=True)
    ]
    shown = shown_by(STEP) if run.fitted else ()
    return msgspec.structs.replace(run, requests=tuple(sorted(seen, key=lambda one: one.sent)), shown=shown)


def shown_by(step: StepTime) -> tuple[Shown, ...]:
    """Two dozen seconds of metrics of an engine under changing load."""
    rounds = []
    for at in range(24):
        sequences, prompts = 1.0 + at % 6, 100.0 * (at % 5)
        context = 200.0 * sequences
        gap = step.step(sequences, 0, context) / (1 - step.per_token * prompts)
        rounds.append((sequences, sequences / gap, prompts))
    gaps, tokens, computed = (list(accumulate(column, initial=0.0)) for column in zip(*rounds, strict=True))
    return tuple(
        Shown(float(at), fit.Sample(gaps[at], tokens[at], computed[at], 1.0, 200.0)) for at in range(len(gaps))
    )


@pytest.mark.parametrize("run", [callers(1, 30), callers(5, 20), arrivals(3.0, 60)], ids=lambda run: run.name)
def test_what_the_simulated_replica_did_is_replayed_to_the_same_latencies(run: Run) -> None:
    line = compared(ENGINE, run, BESIDE)
    assert line.errors == pytest.approx((0, 0), abs=1e-6)
    assert line.requests == len(run.requests)


def test_a_caller_sends_its_next_request_when_its_last_has_ended_and_not_when_it_was_sent_then() -> None:
    run = callers(1, 3)
    slower = replayed(replace(ENGINE, step=StepTime(0.040, 0.0, 0.0)), run, 0.5)
    assert [one.arrival for one in slower[1:]] == [pytest.approx(one.last + 0.5) for one in slower[:-1]]
    random = replayed(ENGINE, arrivals(3.0, 9), 0.5)
    assert [one.arrival for one in random] == pytest.approx([at / 3 for at in range(9)])


def test_what_clients_see_beside_the_steps_is_found() -> None:
    assert beside(ENGINE, [callers(4, 20, fitted=True), callers(1, 20, fitted=True)]) == pytest.approx(BESIDE, abs=1e-4)


def test_steps_are_learned_of_the_runs_that_are_not_judged() -> None:
    found = report(msgspec.structs.replace(EMPTY, runs=(callers(1, 40, fitted=True), callers(2, 20), arrivals(3, 60))))
    assert found.fit.step is not None
    assert found.fit.step.step(3, 100, 600) == pytest.approx(STEP.step(3, 100, 600), rel=0.1)
    assert [line.name for line in found.lines] == ["2 callers", "3.0/s"]
    assert found.figures["runs"] == 2
    assert found.figures["requests"] == 100
    assert max(found.figures["median_ttft_error"], found.figures["median_tpot_error"]) < 0.05


def test_a_run_that_is_judged_is_not_learned_of() -> None:
    judged = msgspec.structs.replace(callers(2, 3), shown=shown_by(STEP))
    assert learned([judged]).step is None
    with pytest.raises(ValueError, match="nothing known"):
        report(msgspec.structs.replace(EMPTY, runs=(judged,)))


def test_a_record_is_kept_and_read_whole(tmp_path: Path) -> None:
    record = msgspec.structs.replace(EMPTY, runs=(callers(2, 3, fitted=True), arrivals(2.0, 3)))
    write(tmp_path / "record.json", record)
    assert read(tmp_path / "record.json") == record


def test_a_record_is_compared_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write(path, msgspec.structs.replace(EMPTY, runs=(callers(4, 20, fitted=True), callers(2, 20))))
    monkeypatch.setattr("sys.argv", ["real_engine", "--from", str(path)])
    assert real_engine.main() == 0
