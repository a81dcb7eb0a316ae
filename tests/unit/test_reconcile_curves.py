"""Capacity curves: computed beside the loop, once for what hardly differs, and never for ever waiting."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest
from msgspec import DecodeError

from fairlead_operator.curve_worker import Result, Task, answer
from fairlead_operator.performance.curve import Curve, curve
from fairlead_operator.performance.step import Engine, Mix, Objectives, StepTime
from fairlead_operator.reconcile import curves as module
from fairlead_operator.reconcile.curves import KEPT, MAX_WAITING, Curves, Question, elsewhere, sharing

ENGINE = Engine(StepTime(0.008, 4e-8, 2.4e-5), 400_000)
AIM = Objectives(2.0, 0.05)
MIX: Mix = ((1_884, 247),) * 20
FOUND = Result(Curve((1.0, 2.0), (1.0, 0.99)))


class Computed:
    """Counts what it is asked; an error is raised."""

    def __init__(self, result: Result | Exception = FOUND) -> None:
        self.asked: list[tuple[Engine, int]] = []
        self.result = result

    async def __call__(self, task: Task) -> Result:
        assert (len(task.mix), task.seed, task.objectives.attainment) == (20, 1, 0.99)
        self.asked.append((task.engine, task.replicas))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def computed() -> Computed:
    return Computed()


@pytest.fixture
async def curves(computed: Computed) -> AsyncIterator[Curves]:
    made = Curves(computed)
    yield made
    await made.close()


def question(engine: Engine = ENGINE, replicas: int = 1, objectives: Objectives = AIM) -> Question:
    return Question(engine, MIX, objectives, replicas)


async def answered(curves: Curves, asked: Question) -> Curve | None:
    """What comes of it once nothing is under way."""
    curves.find(asked)
    await asyncio.gather(*curves._waiting.values())
    return curves.find(asked)


async def test_a_curve_is_not_known_at_first_and_then_kept(curves: Curves, computed: Computed) -> None:
    assert curves.find(question()) is None
    assert await answered(curves, question()) == Curve((1.0, 2.0), (1.0, 0.99))
    curves.find(question())
    assert len(computed.asked) == 1


async def test_what_hardly_differs_is_computed_once(curves: Curves, computed: Computed) -> None:
    await answered(curves, question())
    await answered(curves, question(replace(ENGINE, step=replace(ENGINE.step, base=0.00801))))
    assert len(computed.asked) == 1
    await answered(curves, question(replace(ENGINE, step=replace(ENGINE.step, base=0.012))))
    await answered(curves, question(objectives=Objectives(1.0, 0.05)))
    assert len(computed.asked) == 3


async def test_curves_are_of_as_many_replicas_as_share_the_load_or_fewer(curves: Curves, computed: Computed) -> None:
    for replicas in (0, 1, 3, 5, 99):
        await answered(curves, question(replicas=replicas))
    assert [replicas for _, replicas in computed.asked] == [1, 2, 4, 16]
    assert sharing(8) == 8


def test_a_question_is_like_another_until_a_number_moved_by_a_tenth() -> None:
    slower = replace(ENGINE, step=replace(ENGINE.step, base=0.0085))
    assert question(slower).like(question())
    assert not question(replace(ENGINE, kv_tokens=500_000)).like(question())
    assert not question(replicas=2).like(question())
    assert question(replace(ENGINE, step=StepTime(0.008, 0.0, 2.4e-5))).key != question().key


async def test_what_cannot_be_computed_is_asked_once_and_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    computed = Computed(Result(error="a step takes no time"))
    curves = Curves(computed)
    for _ in range(3):
        assert await answered(curves, question()) is None
        await asyncio.sleep(0.001)
    assert len(computed.asked) == 1
    await curves.close()


@pytest.mark.parametrize("result", [OSError("no process"), TimeoutError(), DecodeError("killed")])
async def test_a_process_that_failed_is_tried_again_after_a_while(
    result: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.001)
    computed = Computed(result)
    curves = Curves(computed)
    assert await answered(curves, question()) is None
    assert len(computed.asked) == 1
    await asyncio.sleep(0.01)
    computed.result = FOUND
    assert await answered(curves, question()) == FOUND.curve
    await curves.close()


async def test_neither_what_is_kept_nor_what_waits_grows_without_bound(curves: Curves) -> None:
    engines = [replace(ENGINE, token_budget=place) for place in range(1, KEPT + 400)]
    for engine in engines:
        curves.find(question(engine))
    assert len(curves._waiting) <= MAX_WAITING
    for start in range(0, len(engines), MAX_WAITING):
        for engine in engines[start : start + MAX_WAITING]:
            curves.find(question(engine))
        await answered(curves, question(engines[start]))
    assert len(curves._known) == KEPT


# --- in another process ---


def task(engine: Engine = ENGINE) -> Task:
    return Task(engine, MIX, AIM, 1, 1)


def test_the_worker_computes_what_the_function_does() -> None:
    result = msgspec.json.decode(answer(msgspec.json.encode(task())), type=Result)
    assert result == Result(curve(ENGINE, MIX, AIM))


def test_what_the_function_refuses_is_the_workers_answer() -> None:
    idle = Engine(StepTime(0.0, 0.0, 0.0), 400_000)
    result = msgspec.json.decode(answer(msgspec.json.encode(task(idle))), type=Result)
    assert result.curve is None
    assert "no time" in result.error


async def test_a_curve_comes_from_another_process() -> None:
    result = await elsewhere(task())
    assert result.curve is not None
    assert result.curve.capacity(0.99) > 1


async def test_whoever_closes_waits_for_no_process() -> None:
    curves = Curves()
    assert curves.find(question()) is None
    await asyncio.sleep(0)
    await curves.close()
    assert curves._waiting == {}
