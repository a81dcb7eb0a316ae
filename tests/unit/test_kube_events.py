"""An Event is written once for what happened once, and a storm is cut."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import aiohttp
import pytest

from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.events import BURST, REPEAT_S, Recorder
from fairlead_operator.logs import JsonFormatter
from tests.fakes.api_server import FakeApiServer, Fault
from tests.fakes.clock import FakeClock

POOL: Object = {
    "apiVersion": "fairlead.dev/v1alpha1",
    "kind": "ModelPool",
    "metadata": {"name": "chat", "namespace": "team-a", "uid": "u1", "resourceVersion": "5"},
}


@dataclass(frozen=True)
class Told:
    type: str = "Normal"
    reason: str = "ScaledUp"
    message: str = "3 to 4 replicas"
    key: str = ""
    fields: Mapping[str, object] = field(default_factory=dict)


class Desk:
    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.clock = FakeClock()
        self.recorder = Recorder(Api(session, server.url), "operator-0", self.clock)

    @property
    def written(self) -> int:
        return self.server.count("POST", "/events")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        yield Desk(server, session)


async def test_the_same_event_is_written_once_within_ten_minutes(desk: Desk) -> None:
    assert await desk.recorder.tell(POOL, Told())
    assert not await desk.recorder.tell(POOL, Told())
    assert desk.written == 1
    await desk.clock.advance(REPEAT_S)
    assert await desk.recorder.tell(POOL, Told())


async def test_another_text_key_or_object_is_another_event(desk: Desk) -> None:
    other = {**POOL, "metadata": {**POOL["metadata"], "uid": "u2"}}
    assert await desk.recorder.tell(POOL, Told())
    assert await desk.recorder.tell(POOL, Told(message="4 to 5 replicas"))
    assert await desk.recorder.tell(POOL, Told(key="h100"))
    assert await desk.recorder.tell(other, Told())
    assert desk.written == 4


async def test_a_storm_is_cut_to_a_burst_and_goes_on_slowly(desk: Desk) -> None:
    told = [await desk.recorder.tell(POOL, Told(message=f"change {index}")) for index in range(BURST + 10)]
    assert sum(told) == BURST
    await desk.clock.advance(1)
    assert await desk.recorder.tell(POOL, Told(message="later"))


async def test_an_event_that_the_storm_cut_is_told_as_soon_as_there_is_room(desk: Desk) -> None:
    for index in range(BURST):
        await desk.recorder.tell(POOL, Told(message=f"change {index}"))
    assert not await desk.recorder.tell(POOL, Told(message="later"))
    await desk.clock.advance(1)
    assert await desk.recorder.tell(POOL, Told(message="later"))


async def test_an_event_is_a_log_line_with_its_numbers(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await desk.recorder.tell(POOL, Told(fields={"from": 3, "to": 4}))
    line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert line | {"ts": ""} == {
        "ts": "",
        "level": "info",
        "event": "ScaledUp",
        "pool": "team-a/chat",
        "from": 3,
        "to": 4,
        "message": "3 to 4 replicas",
    }


async def test_an_event_that_cannot_be_written_is_no_error(desk: Desk) -> None:
    desk.server.faults.append(Fault("POST", "events", 403))
    assert not await desk.recorder.tell(POOL, Told())


async def test_an_event_names_its_object_and_is_cut_to_the_bound(desk: Desk) -> None:
    await desk.recorder.tell(POOL, Told(message="ä" * 2000))
    [body] = [one for place, one in desk.server._objects.items() if place[0] == "events"]
    assert body["regarding"]["uid"] == "u1"
    assert len(body["note"].encode()) <= 1024
