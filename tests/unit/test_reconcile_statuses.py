"""A status is written when it says something new, and its figures at most every ten seconds."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fairlead_operator.kube.api import Api
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import COST_BUDGETS, MODEL_POOLS
from fairlead_operator.reconcile.statuses import FIGURES_PER_S, FIGURES_S, Statuses
from tests.builders.resources import make_budget, make_pool
from tests.fakes.api_server import FakeApiServer
from tests.fakes.clock import FakeClock


class Desk:
    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession, raw: dict[str, Any]) -> None:
        self.server = server
        self.clock = FakeClock()
        self.statuses = Statuses(Api(session, server.url), self.clock)
        self.raw = raw

    async def write(self, **status: Any) -> float:
        return await self.statuses.write(MODEL_POOLS, self.raw, status)

    @property
    def written(self) -> int:
        return self.server.count("PATCH", "/status")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        raw = await server.put("modelpools", make_pool("chat").obj())
        yield Desk(server, session, raw)


def ready(message: str, status: str = "True") -> list[dict[str, Any]]:
    return [{"type": "Ready", "status": status, "reason": "Ready", "message": message, "observedGeneration": 1}]


async def test_the_same_status_is_written_once(desk: Desk) -> None:
    await desk.write(replicas=2)
    await desk.write(replicas=2)
    assert desk.written == 1
    assert desk.statuses.present(desk.raw) == {"replicas": 2}


async def test_figures_wait_and_say_how_long(desk: Desk) -> None:
    await desk.write(replicas=2, costPerHour="1.00")
    await desk.clock.advance(4)
    assert await desk.write(replicas=2, costPerHour="2.00") == pytest.approx(FIGURES_S[MODEL_POOLS] - 4)
    await desk.clock.advance(6)
    assert await desk.write(replicas=2, costPerHour="2.00") == 0
    assert desk.written == 2


async def test_routers_that_come_and_go_are_figures_and_a_condition_that_they_turn_is_not(desk: Desk) -> None:
    await desk.write(routers={"total": 2, "programmed": 2}, conditions=ready("All 2 routers."))
    assert await desk.write(routers={"total": 3, "programmed": 3}, conditions=ready("All 3 routers.")) > 0
    assert await desk.write(routers={"total": 3, "programmed": 2}, conditions=ready("2 of 3.", "False")) == 0
    assert desk.written == 2


async def test_the_more_objects_there_are_the_longer_figures_wait(desk: Desk) -> None:
    pools = [await desk.server.put("modelpools", make_pool(f"chat-{number}").obj()) for number in range(150)]
    for raw in pools:
        await desk.statuses.write(MODEL_POOLS, raw, {"costPerHour": "1.00"})
    await desk.clock.advance(FIGURES_S[MODEL_POOLS])
    wait = await desk.statuses.write(MODEL_POOLS, pools[0], {"costPerHour": "2.00"})
    assert wait == pytest.approx(len(pools) / FIGURES_PER_S - FIGURES_S[MODEL_POOLS])
    assert await desk.statuses.write(MODEL_POOLS, pools[0], {"replicas": 2}) == 0
    for raw in pools[:100]:
        desk.statuses.forget(Key("ModelPool", "ai-platform", raw["metadata"]["name"]))
    assert await desk.statuses.write(MODEL_POOLS, pools[-1], {"costPerHour": "2.00"}) == 0


async def test_a_condition_that_turns_is_written_at_once_and_its_numbers_wait(desk: Desk) -> None:
    await desk.write(conditions=ready("2 of 2 replicas are ready."))
    assert await desk.write(conditions=ready("3 of 3 replicas are ready.")) > 0
    assert await desk.write(conditions=ready("0 of 3 replicas are ready.", "False")) == 0
    assert desk.written == 2


async def test_the_status_of_a_new_object_of_the_same_name_starts_anew(desk: Desk) -> None:
    await desk.write(replicas=2)
    again = {**desk.raw, "metadata": {**desk.raw["metadata"], "uid": "other"}}
    assert desk.statuses.present(again) == {}


async def test_a_status_that_somebody_else_changed_is_put_right(desk: Desk) -> None:
    await desk.write(replicas=2)
    stored = desk.server.get("modelpools", "ai-platform", "chat")
    assert stored is not None
    desk.raw = await desk.server.put("modelpools", {**stored, "status": {"replicas": 9}})
    assert desk.statuses.present(desk.raw) == {"replicas": 9}
    await desk.write(replicas=2)
    assert desk.written == 2


async def test_an_object_that_changed_without_its_status_is_not_written_again(desk: Desk) -> None:
    await desk.write(replicas=2)
    stored = desk.server.get("modelpools", "ai-platform", "chat")
    assert stored is not None
    desk.raw = await desk.server.put("modelpools", {**stored, "spec": {**stored["spec"], "replicas": 7}})
    await desk.write(replicas=2)
    assert desk.written == 1


async def test_a_status_that_was_read_before_ours_arrived_is_not_taken_for_anothers(desk: Desk) -> None:
    await desk.write(replicas=2)
    await desk.write(replicas=2)
    assert desk.statuses.present(desk.raw) == {"replicas": 2}


async def test_a_deleted_object_is_forgotten(desk: Desk) -> None:
    await desk.write(replicas=2)
    desk.statuses.forget(Key("ModelPool", "ai-platform", "chat"))
    assert desk.statuses.present(desk.raw) == {}


async def test_a_budgets_figures_follow_within_two_seconds(desk: Desk) -> None:
    desk.raw = await desk.server.put("costbudgets", make_budget("team").obj())

    async def write(percent: int, action: str) -> float:
        return await desk.statuses.write(COST_BUDGETS, desk.raw, {"usedPercent": percent, "activeAction": action})

    await write(40, "None")
    assert 0 < await write(58, "None") <= FIGURES_S[COST_BUDGETS] <= 3
    assert await write(100, "Reject") == 0
    stored = desk.server.get("costbudgets", desk.raw["metadata"]["namespace"], "team")
    assert stored is not None
    assert stored["status"] == {"usedPercent": 100, "activeAction": "Reject"}
