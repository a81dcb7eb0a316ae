"""Who gets the configuration, and that nobody takes the places of all others."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.config_server import WAITING_EACH, ConfigServer, Readiness
from fairlead_operator.render.router_config import Compiled, CompiledEndpoints, version_of
from fairlead_operator.tokens import Identity, KeysUnavailableError, TokenError, Verifier
from fairlead_router.contract import Endpoints, PoolConfig, RouterConfig
from tests.fakes.clock import eventually

CONFIG = RouterConfig(pools=(PoolConfig(pool="team-a/chat"), PoolConfig(pool="team-b/chat")))


class Door(Verifier):
    """Believes a token that is namespace/pod."""

    def __init__(self) -> None:
        self.open = True

    async def identify(self, token: str, audience: str) -> Identity:
        assert audience == "fairlead.dev/control"
        if not self.open:
            raise KeysUnavailableError("the cluster's token keys are not known yet")
        namespace, _, pod = token.partition("/")
        if not pod:
            raise TokenError("this is no signed token")
        return Identity(namespace, "default", pod)


class Desk:
    def __init__(self) -> None:
        self.door, self.feed = Door(), ConfigFeed(("platform",), "fairlead")
        self.state = Readiness(ready=False, reasons=("not listed yet: Pod",))
        self.server = ConfigServer(self.feed, self.door, lambda: self.state, CollectorRegistry())
        transport = httpx.ASGITransport(self.server.app())
        self.client = httpx.AsyncClient(transport=transport, base_url="http://operator")

    def publish(self, config: RouterConfig = CONFIG) -> None:
        places = Endpoints()
        self.feed.publish(Compiled(config, version_of(config)), CompiledEndpoints(places, version_of(places)))

    async def ask(self, token: str, query: str = "") -> httpx.Response:
        return await self.client.get(f"/v1/config?{query}", headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    await desk.client.aclose()


async def test_before_anything_is_compiled_a_router_is_told_to_come_again(desk: Desk) -> None:
    answer = await desk.ask("team-a/r1")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_token_decides_what_is_seen_and_a_query_does_not(desk: Desk) -> None:
    desk.publish()
    seen = (await desk.ask("team-a/r1", "namespace=platform&router=platform/x")).json()["config"]
    assert [one["pool"] for one in seen["pools"]] == ["team-a/chat"]
    assert len((await desk.ask("platform/r1")).json()["config"]["pools"]) == 2


async def test_without_a_token_or_keys_nothing_is_seen(desk: Desk) -> None:
    desk.publish()
    assert (await desk.ask("nobody")).status_code == 401
    desk.door.open = False
    assert (await desk.ask("team-a/r1")).status_code == 503


@pytest.mark.parametrize("wait", ["²", "-1", "x", "1e9", "0"])
async def test_a_wait_that_is_no_number_is_none(desk: Desk, wait: str) -> None:
    desk.publish()
    have = (await desk.ask("team-a/r1")).json()
    query = f"have={have['version']}&endpoints={have['endpointsVersion']}&wait={wait}"
    assert (await desk.ask("team-a/r1", query)).json().get("config") is None


async def test_one_pod_keeps_only_so_many_requests_open(desk: Desk) -> None:
    desk.publish()
    have = (await desk.ask("team-a/r1")).json()
    query = f"have={have['version']}&endpoints={have['endpointsVersion']}&wait=30"
    waiting = [asyncio.create_task(desk.ask("team-a/r1", query)) for _ in range(WAITING_EACH)]
    await eventually(lambda: desk.server._waiting.total() == WAITING_EACH)
    assert (await desk.ask("team-a/r1", query)).status_code == 429
    assert (await desk.ask("team-a/r2")).status_code == 200
    desk.publish(RouterConfig(pools=(*CONFIG.pools, PoolConfig(pool="team-a/new"))))
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    assert not desk.server._waiting
    assert (await desk.ask("team-a/r1")).status_code == 200


async def test_probes_say_what_is_missing(desk: Desk) -> None:
    assert (await desk.client.get("/healthz")).text == "ok\n"
    assert (await desk.client.get("/readyz")).status_code == 503
    desk.state = Readiness(ready=True)
    assert (await desk.client.get("/readyz")).text == "ok\n"
