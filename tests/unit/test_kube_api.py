"""The API client against the fake server: the contract, and faults that a real server cannot be made to show."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from fairlead_operator.errors import ForbiddenError, GoneError, OverloadedError, RefusedError, UnreachableError
from fairlead_operator.kube.api import PAGE, Api
from fairlead_operator.kube.resources import SERVICES
from tests.builders.api_contract import CONTRACT, service
from tests.fakes.api_server import FakeApiServer, Fault


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer().running() as running:
        yield running


@pytest.fixture
async def api(server: FakeApiServer) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(session, server.url)


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_the_fake_keeps_the_contract(
    server: FakeApiServer, api: Api, check: Callable[[Api, str], Awaitable[None]]
) -> None:
    assert server.url
    await check(api, "team-a")


async def test_a_long_list_is_read_in_pages(server: FakeApiServer, api: Api) -> None:
    for index in range(PAGE + 3):
        await server.put("services", service("ns", f"s{index}"))
    assert len((await api.list(SERVICES)).items) == PAGE + 3
    assert server.count("GET", "/api/v1/services") == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, ForbiddenError), (401, ForbiddenError), (422, RefusedError), (429, OverloadedError), (503, OverloadedError)],
)
async def test_a_status_becomes_its_error(server: FakeApiServer, api: Api, status: int, error: type[Exception]) -> None:
    server.faults.append(Fault("GET", "services", status))
    with pytest.raises(error, match="get services ns/one: a fault was asked for"):
        await api.get(SERVICES, "ns", "one")


async def test_retry_after_is_handed_on(server: FakeApiServer, api: Api) -> None:
    server.faults.append(Fault("GET", "services", 429, headers={"Retry-After": "7"}))
    with pytest.raises(OverloadedError) as caught:
        await api.get(SERVICES, "ns", "one")
    assert caught.value.retry_after_s == 7


async def test_a_slow_server_is_unreachable(server: FakeApiServer) -> None:
    server.faults.append(Fault("GET", "services", delay_s=5))
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UnreachableError, match="no answer from"):
            await Api(session, server.url, timeout_s=0.05).get(SERVICES, "ns", "one")


async def test_a_version_that_is_too_old_is_gone(server: FakeApiServer, api: Api) -> None:
    server.compact()
    with pytest.raises(GoneError, match="too old"):
        await anext(api.watch(SERVICES, "1"))


async def test_an_answer_that_is_not_json_is_an_error_of_the_call() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>a proxy</html>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        api = Api(session, f"http://127.0.0.1:{runner.addresses[0][1]}")
        with pytest.raises(UnreachableError, match="not JSON"):
            await api.list(SERVICES)
    await runner.cleanup()


async def test_a_refused_connection_is_unreachable() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UnreachableError, match="no answer from"):
            await Api(session, "http://127.0.0.1:9").get(SERVICES, "ns", "one")


async def test_a_watch_that_is_cut_ends_without_an_error(server: FakeApiServer, api: Api) -> None:
    version = (await api.list(SERVICES)).version
    seen: list[str] = []

    async def follow() -> None:
        async for event in api.watch(SERVICES, version):
            seen.append(event.object["metadata"]["name"])
            await server.cut_watches()

    task = asyncio.create_task(follow())
    await server.put("services", service("ns", "one"))
    async with asyncio.timeout(5):
        await task
    assert seen == ["one"]
