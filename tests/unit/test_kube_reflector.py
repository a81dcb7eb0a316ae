"""A reflector never keeps what the server no longer has, whatever happens to its watch."""

import asyncio
import random
from collections.abc import AsyncIterator

import aiohttp
import pytest

from fairlead_operator.clock import SystemClock
from fairlead_operator.errors import ForbiddenError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.reflector import LONGEST_PAUSE_S, Reflector, Source
from fairlead_operator.kube.resources import SERVICES
from fairlead_operator.kube.wakeups import ERROR_PAUSES_S, settings
from tests.builders.api_contract import service
from tests.fakes.api_server import FakeApiServer, Fault
from tests.fakes.clock import eventually

Seen = list[tuple[str | None, str | None]]


class Rig:
    """A reflector on a fake server, and what it told."""

    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.told: Seen = []
        api = Api(session, server.url)
        self.reflector = Reflector(api, Source(SERVICES), self._note, SystemClock(), random.Random(1))  # noqa: S311 - spreads retries
        self._task: asyncio.Task[None] | None = None

    def _note(self, before: Object | None, after: Object | None) -> None:
        names = [None if body is None else str(body["metadata"]["name"]) for body in (before, after)]
        self.told.append((names[0], names[1]))

    async def start(self) -> None:
        self._task = asyncio.create_task(self.reflector.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def names(self) -> set[str]:
        return {name for _, name in self.reflector.store.keys()}  # noqa: SIM118 - iterating gives the objects


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        rig = Rig(server, session)
        yield rig
        await rig.stop()


async def test_what_vanished_in_a_gap_is_told_as_deleted_and_leaves_no_ghost(rig: Rig) -> None:
    await rig.server.put("services", service("ns", "a"))
    await rig.server.put("services", service("ns", "b"))
    await rig.start()
    await eventually(lambda: rig.names() == {"a", "b"})
    rig.server.faults.append(Fault("GET", "watch=1", 500, times=1))
    await rig.server.cut_watches()
    await rig.server.remove("services", "ns", "b")
    rig.server.compact()
    await eventually(lambda: rig.names() == {"a"})
    assert rig.told == [(None, "a"), (None, "b"), ("b", None)]


async def test_a_cut_watch_goes_on_where_it_was_without_a_new_list(rig: Rig) -> None:
    await rig.server.put("services", service("ns", "a"))
    await rig.start()
    await eventually(lambda: rig.names() == {"a"})
    await rig.server.cut_watches()
    await rig.server.put("services", service("ns", "b"))
    await eventually(lambda: rig.names() == {"a", "b"})
    assert rig.server.count("GET", "limit=") == 1


async def test_a_bookmark_moves_the_version_and_tells_nothing(rig: Rig) -> None:
    await rig.start()
    await eventually(rig.reflector.synced.is_set)
    await rig.server.bookmark("services")
    await rig.server.put("services", service("ns", "a"))
    await eventually(lambda: rig.names() == {"a"})
    assert rig.told == [(None, "a")]


async def test_a_forbidden_list_is_a_problem_and_no_crash(rig: Rig) -> None:
    rig.server.faults.append(Fault("GET", "services", 403, times=1))
    await rig.start()
    await eventually(lambda: rig.reflector.problem is not None)
    assert isinstance(rig.reflector.problem, ForbiddenError)
    assert not rig.reflector.synced.is_set()
    await eventually(rig.reflector.synced.is_set)
    await eventually(lambda: rig.reflector.problem is None)


async def test_an_expired_page_starts_the_list_over(rig: Rig) -> None:
    await rig.server.put("services", service("ns", "a"))
    rig.server.faults.append(Fault("GET", "limit=", 410, times=1))
    await rig.start()
    await eventually(lambda: rig.names() == {"a"})


async def test_managed_fields_are_not_kept(rig: Rig) -> None:
    body = service("ns", "a")
    body["metadata"]["managedFields"] = [{"manager": "x"}]
    await rig.server.put("services", body)
    await rig.start()
    await eventually(lambda: rig.names() == {"a"})
    stored = rig.reflector.store.get("ns", "a")
    assert stored is not None
    assert "managedFields" not in stored["metadata"]


def test_the_end_of_an_outage_is_noticed_within_ten_seconds() -> None:
    pauses = settings().networking.error_backoffs
    assert pauses == ERROR_PAUSES_S
    assert max(ERROR_PAUSES_S) <= 10
    assert sum(ERROR_PAUSES_S) > 60
    assert LONGEST_PAUSE_S <= 10
