"""The cluster's own token issuer: a new key is told of within half a minute, and a removed one goes."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fairlead_operator.kube.api import Api
from fairlead_operator.kube.issuers import REFRESH_S, RETRY_S, Issuers
from tests.builders.router import jwks
from tests.fakes.clock import FakeClock, eventually, settle


class Server:
    """The two documents of an API server."""

    def __init__(self) -> None:
        self.keys: Any = json.loads(jwks())
        self.status = 200
        self.asked = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        found = {"issuer": "https://k8s"} if "openid-configuration" in request.path else self.keys
        return web.json_response(found, status=self.status)


class Rig:
    def __init__(self, server: Server, api: Api) -> None:
        self.server = server
        self.clock = FakeClock()
        self.changes = 0
        self.issuers = Issuers(api, self._changed, self.clock)

    def _changed(self) -> None:
        self.changes += 1

    def knows(self, *names: str) -> bool:
        return self.key_ids() == set(names)

    def key_ids(self) -> set[str]:
        return {key["kid"] for one in self.issuers.known for key in json.loads(one.jwks)["keys"]}


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    server, app = Server(), web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        yield Rig(server, Api(session, f"http://127.0.0.1:{runner.addresses[0][1]}"))
    await runner.cleanup()


async def test_a_rotation_is_seen_without_a_restart_and_a_removed_key_goes(rig: Rig) -> None:
    running = asyncio.create_task(rig.issuers.run())
    await eventually(lambda: rig.key_ids() == {"one"})
    for names in (("one", "two"), ("two",)):
        rig.server.keys = json.loads(jwks(*names))
        await settle()
        await rig.clock.advance(REFRESH_S)
        await eventually(partial(rig.knows, *names))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert rig.changes == 3
    assert REFRESH_S <= 60


async def test_an_api_server_that_is_away_changes_nothing_and_is_asked_again_soon(rig: Rig) -> None:
    assert await rig.issuers.refresh() == REFRESH_S
    rig.server.status = 503
    assert await rig.issuers.refresh() == RETRY_S
    assert rig.key_ids() == {"one"}
    assert rig.changes == 1


async def test_another_order_of_the_same_keys_is_no_change(rig: Rig) -> None:
    rig.server.keys = json.loads(jwks("one", "two"))
    await rig.issuers.refresh()
    rig.server.keys["keys"].reverse()
    await rig.issuers.refresh()
    assert rig.changes == 1
