"""What routers report, and that silence is never taken for zero."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fairlead_operator.signals.scrape import MAX_BYTES, Scraper, Target
from tests.fakes.clock import FakeClock


class Tokens:
    async def token(self, audience: str) -> str:
        return f"token-for-{audience}"


class Fleet:
    """One listener that is every router; what it answers is chosen by a test."""

    def __init__(self, session: aiohttp.ClientSession, port: int, clock: FakeClock) -> None:
        self.answer: Callable[[web.Request], Any] = lambda _: {}
        self.seen: list[str] = []
        self.clock = clock
        self.scraper = Scraper(session, Tokens(), clock, port)

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append(request.headers.get("Authorization", ""))
        said = self.answer(request)
        if isinstance(said, int):
            return web.Response(status=said)
        return web.Response(text=said if isinstance(said, str) else json.dumps(said))


def signals(router: str = "ns/r1", **fields: Any) -> dict[str, Any]:
    return {"router": router, "configVersion": "c", "endpointsVersion": "e", **fields}


async def test_an_answer_that_comes_in_pieces_is_read_whole(fleet: Fleet) -> None:
    pools = [{"pool": f"ns/p{index}"} for index in range(20_000)]
    fleet.answer = lambda _: signals(pools=pools)
    await fleet.scraper.round([TARGET])
    found = fleet.scraper.reports["ns/r1"].signals
    assert found is not None
    assert len(found.pools) == 20_000


async def test_an_answer_without_an_end_is_no_answer(fleet: Fleet) -> None:
    fleet.answer = lambda _: json.dumps(signals()) + " " * (MAX_BYTES + 1)
    await fleet.scraper.round([TARGET])
    assert not fleet.scraper.reports


TARGET = Target("ns/r1", "127.0.0.1")


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleets: list[Fleet] = []

    async def handle(request: web.Request) -> web.Response:
        return await fleets[0].handle(request)

    app = web.Application()
    app.router.add_get("/-/signals", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        fleets.append(Fleet(session, runner.addresses[0][1], FakeClock()))
        yield fleets[0]
    await runner.cleanup()


async def test_an_answer_is_kept_with_the_time_it_came(fleet: Fleet) -> None:
    fleet.answer = lambda _: signals(uptimeS=5)
    await fleet.scraper.round([TARGET])
    report = fleet.scraper.reports["ns/r1"]
    assert report.received_ms == fleet.clock.now_ms()
    assert report.signals is not None
    assert report.signals.uptime_s == 5
    assert fleet.seen == ["Bearer token-for-fairlead.dev/signals"]


@pytest.mark.parametrize("bad", [503, "no json", "[]", {"router": 7}])
async def test_a_router_that_fails_keeps_its_old_report_with_its_old_time(fleet: Fleet, bad: Any) -> None:
    fleet.answer = lambda _: signals()
    await fleet.scraper.round([TARGET])
    before = fleet.scraper.reports["ns/r1"]
    await fleet.clock.advance(5)
    fleet.answer = lambda _: bad
    await fleet.scraper.round([TARGET])
    assert fleet.scraper.reports["ns/r1"] == before


async def test_an_address_that_is_another_pods_by_now_says_nothing(fleet: Fleet) -> None:
    fleet.answer = lambda _: signals("ns/other")
    await fleet.scraper.round([TARGET])
    assert "ns/r1" not in fleet.scraper.reports


async def test_a_router_that_is_gone_is_forgotten(fleet: Fleet) -> None:
    fleet.answer = lambda _: signals()
    await fleet.scraper.round([TARGET])
    await fleet.scraper.round([])
    assert not fleet.scraper.reports


async def test_a_refused_connection_hurts_no_other(fleet: Fleet) -> None:
    fleet.answer = lambda _: signals()
    await fleet.scraper.round([Target("ns/dead", "127.0.0.2"), TARGET])
    assert set(fleet.scraper.reports) <= {"ns/r1", "ns/dead"}
    assert "ns/r1" in fleet.scraper.reports


async def test_a_router_counts_as_asked_once_the_round_has_ended_whether_or_not_it_answers(fleet: Fleet) -> None:
    fleet.answer = lambda _: 503
    assert fleet.scraper.asked == frozenset()
    await fleet.scraper.round([TARGET])
    assert fleet.scraper.asked == {"ns/r1"}
    await fleet.scraper.round([])
    assert fleet.scraper.asked == frozenset()
