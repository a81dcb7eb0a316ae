"""One Lease, one holder; a holder that cannot renew gives up before another may take over."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from fairlead_operator.clock import SystemClock
from fairlead_operator.errors import LeaseLostError
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.election import NEWS, Election, Seat, Term
from tests.fakes.api_server import FakeApiServer, Fault
from tests.fakes.clock import eventually

SHORT = Term(duration_s=0.4, deadline_s=0.3, retry_s=0.05)


class Stage:
    """Candidates for one Lease on a fake server."""

    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._api = Api(session, server.url)
        self.tasks: list[asyncio.Task[None]] = []

    def candidate(self, name: str) -> Election:
        return Election(self._api, Seat("fairlead", "fairlead-operator", name), SystemClock(), SHORT)

    def start(self, candidate: Election) -> None:
        task = asyncio.create_task(candidate.run())
        self.tasks.append(task)

    def spec(self) -> dict[str, object]:
        lease = self.server.get("leases", "fairlead", "fairlead-operator")
        assert lease is not None
        spec: dict[str, object] = lease["spec"]
        return spec


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        stage = Stage(server, session)
        yield stage
        for task in stage.tasks:
            task.cancel()
        await asyncio.gather(*stage.tasks, return_exceptions=True)


async def test_the_first_candidate_leads_and_the_second_waits(stage: Stage) -> None:
    first, second = stage.candidate("a"), stage.candidate("b")
    stage.start(first)
    await eventually(first.leading.is_set)
    stage.start(second)
    await asyncio.sleep(SHORT.duration_s * 2)
    assert not second.leading.is_set()
    assert stage.spec()["holderIdentity"] == "a"
    assert first.transitions == 1


async def test_a_silent_holder_is_followed_and_the_term_is_counted(stage: Stage) -> None:
    first, second = stage.candidate("a"), stage.candidate("b")
    stage.start(first)
    silent = stage.tasks[-1]
    await eventually(first.leading.is_set)
    silent.cancel()
    stage.start(second)
    await eventually(second.leading.is_set)
    assert second.transitions == 2
    assert stage.spec()["leaseTransitions"] == 2


async def test_a_released_lease_is_taken_at_once(stage: Stage) -> None:
    first, second = stage.candidate("a"), stage.candidate("b")
    stage.start(first)
    task = stage.tasks[-1]
    await eventually(first.leading.is_set)
    task.cancel()
    await first.release()
    assert stage.spec()["holderIdentity"] == ""
    stage.start(second)
    await eventually(second.leading.is_set, seconds=1)


async def test_a_leader_that_cannot_renew_in_time_gives_up(stage: Stage) -> None:
    first = stage.candidate("a")
    stage.start(first)
    task = stage.tasks[-1]
    await eventually(first.leading.is_set)
    stage.server.faults.append(Fault("GET", "leases", 503, times=1000))
    with pytest.raises(LeaseLostError, match="was not renewed for"):
        await asyncio.wait_for(task, 5)
    assert not first.leading.is_set()


async def test_a_server_that_hangs_counts_as_no_renewal(stage: Stage) -> None:
    first = stage.candidate("a")
    stage.start(first)
    task = stage.tasks[-1]
    await eventually(first.leading.is_set)
    stage.server.faults.append(Fault("GET", "leases", times=1000, delay_s=2))
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(task, 5)


async def test_a_renewal_that_was_answered_late_counts_from_when_it_was_sent(stage: Stage) -> None:
    first = stage.candidate("a")
    stage.start(first)
    task = stage.tasks[-1]
    await eventually(first.leading.is_set)
    stage.server.faults.append(Fault("PUT", "leases", delay_s=SHORT.deadline_s * 0.8))
    await eventually(lambda: not stage.server.faults[0].times)
    stage.server.faults.append(Fault("GET", "leases", times=1000, delay_s=2))
    begun = asyncio.get_running_loop().time()
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(task, 5)
    assert asyncio.get_running_loop().time() - begun < SHORT.duration_s


async def test_a_leader_that_finds_another_holder_gives_up(stage: Stage) -> None:
    first = stage.candidate("a")
    stage.start(first)
    task = stage.tasks[-1]
    await eventually(first.leading.is_set)
    lease = stage.server.get("leases", "fairlead", "fairlead-operator")
    assert lease is not None
    await stage.server.put("leases", {**lease, "spec": {**lease["spec"], "holderIdentity": "b"}})
    with pytest.raises(LeaseLostError, match="held by 'b'"):
        await asyncio.wait_for(task, 5)


async def test_the_leader_tells_the_others_which_budgets_are_in_force(stage: Stage) -> None:
    first, second = stage.candidate("a"), stage.candidate("b")
    heard: list[tuple[int, int]] = []
    second.heard = heard.append
    stage.start(first)
    await eventually(first.leading.is_set)
    first.publish((1, 7))
    stage.start(second)
    await eventually(lambda: (1, 7) in heard)
    lease = stage.server.get("leases", "fairlead", "fairlead-operator")
    assert lease is not None
    assert lease["metadata"]["annotations"][NEWS] == "1.7"


async def test_a_term_is_counted_above_what_others_remember(stage: Stage) -> None:
    first = stage.candidate("a")
    stage.start(first)
    await eventually(first.leading.is_set)
    await first.outrank(41)
    assert first.transitions == 42
    await eventually(lambda: stage.spec()["leaseTransitions"] == 42)
