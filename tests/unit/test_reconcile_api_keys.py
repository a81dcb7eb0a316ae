"""API keys on their way from ConfigMaps to routers, and what is said of them in Events."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.decide.facts import time_text
from fairlead_operator.decide.signals import Report
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import Cluster
from fairlead_operator.kube.events import Recorder
from fairlead_operator.reconcile import api_keys
from fairlead_operator.reconcile.api_keys import KeyNews
from fairlead_operator.reconcile.configuration import Compiler
from fairlead_operator.reconcile.context import Census
from fairlead_operator.settings import read_settings
from fairlead_router.contract import ApiKey, Issuer, Signals
from tests.fakes.api_server import FakeApiServer
from tests.fakes.clock import FakeClock, eventually

GATEWAY = "fairlead/gateway-1"


def key_object(name: str, namespace: str = "support", secret: str = "", **meta: Any) -> dict[str, Any]:
    digest = hashlib.sha256((secret or f"{namespace}/{name}").encode()).hexdigest()
    return {
        "metadata": {
            "name": f"fairlead-key-{name}",
            "namespace": namespace,
            "labels": {"fairlead.dev/api-key": "true"},
            "uid": f"uid-{namespace}-{name}",
            **meta,
        },
        "data": {"sha256": digest, "feature": "ticket-summary"},
    }


def gateway(name: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name, "namespace": "fairlead", "uid": name,
            "labels": {"app.kubernetes.io/name": "fairlead-gateway"},
        },
        "status": {
            "phase": "Running", "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-20T11:00:00Z"}],
        },
    }  # fmt: skip


class Reports:
    """What routers answered last."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self.asked: frozenset[str] = frozenset()
        self.rounds = 0


class Desk:
    """A cluster that is followed, its configuration, and who tells of keys. Has the parts of Context that are used."""

    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.clock = FakeClock()
        self.scraper = Reports()
        self.kicks = 0
        self.issuers: tuple[Issuer, ...] = ()
        self.feed = ConfigFeed(("ai-platform",), "fairlead")
        self.cluster = Cluster(Api(session, server.url), "fairlead", lambda _: None, self._kick, self.clock)
        self.compiler = Compiler(self.cluster, self.feed, read_settings({}), lambda: self.issuers)
        self.recorder = Recorder(Api(session, server.url), "operator-0", self.clock)
        self.census = Census()
        self.news = KeyNews(self)  # type: ignore[arg-type]  # the parts of Context that it uses
        self.tasks = [asyncio.create_task(run()) for run in self.cluster.tasks()]

    def _kick(self) -> None:
        self.kicks += 1

    async def put(self, body: dict[str, Any]) -> None:
        seen = self.kicks
        body["metadata"].setdefault("creationTimestamp", time_text(self.clock.now_ms()))
        await self.server.put("pods" if "status" in body else "configmaps", body)
        await eventually(lambda: self.kicks > seen)

    async def remove(self, name: str) -> None:
        seen = self.kicks
        await self.server.remove("configmaps", "support", f"fairlead-key-{name}")
        await eventually(lambda: self.kicks > seen)

    def told(self, namespace: str = "") -> tuple[ApiKey, ...]:
        """What the feed has for the gateway, or for a team's routers."""
        self.compiler.refresh()
        assert self.feed.config is not None
        return self.feed._scope(namespace or "fairlead").compiled.config.keys

    def confirm(self, *routers: str) -> None:
        """These routers report the present configuration."""
        self.compiler.refresh()
        version = self.feed._scope("fairlead").compiled.version
        for router in routers:
            said = Signals(router=router, config_version=version, endpoints_version="")
            self.scraper.reports[router] = Report(router, self.clock.now_ms(), said)
        self.scraper.rounds += 1

    @property
    def events(self) -> list[tuple[str, str, str]]:
        """Object, reason and note of every Event."""
        bodies = [body for place, body in self.server._objects.items() if place[0] == "events"]
        return [(one["regarding"]["name"], one["reason"], one["note"]) for one in bodies]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        desk = Desk(server, session)
        await desk.cluster.wait_synced()
        await desk.put(gateway("gateway-1"))
        yield desk
        for task in desk.tasks:
            task.cancel()
        await asyncio.gather(*desk.tasks, return_exceptions=True)


async def test_a_new_key_reaches_the_gateway_and_the_routers_of_its_namespace_only(desk: Desk) -> None:
    await desk.put(key_object("ticket-worker"))
    await desk.put(key_object("ranker", "search"))
    assert [key.name for key in desk.told()] == ["ranker", "ticket-worker"]
    assert [key.name for key in desk.told("support")] == ["ticket-worker"]
    assert desk.told("other") == ()
    (key,) = desk.told("support")
    assert (key.namespace, key.feature, key.expires_ms) == ("support", "ticket-summary", 0)
    assert key.hash == hashlib.sha256(b"support/ticket-worker").hexdigest()


async def test_a_revoked_key_leaves_the_configuration_and_every_change_has_a_version_of_its_own(desk: Desk) -> None:
    versions = []
    for step in ("none", "made", "revoked"):
        if step == "made":
            await desk.put(key_object("ticket-worker"))
        if step == "revoked":
            await desk.remove("ticket-worker")
        desk.told()
        versions.append(desk.feed._scope("fairlead").compiled.version)
    assert desk.told() == ()
    assert versions[0] == versions[2] != versions[1]


async def test_a_config_map_without_the_label_is_not_looked_at(desk: Desk) -> None:
    body = key_object("ticket-worker")
    body["metadata"]["labels"] = {}
    await desk.server.put("configmaps", body)
    await desk.put(key_object("other"))
    assert [key.name for key in desk.told()] == ["other"]


async def test_a_key_is_said_to_be_in_force_when_every_router_has_it_and_once(desk: Desk) -> None:
    await desk.put(gateway("gateway-2"))
    await desk.put(key_object("ticket-worker"))
    desk.confirm(GATEWAY)
    await desk.news.round()
    assert desk.events == []
    desk.confirm(GATEWAY, "fairlead/gateway-2")
    for _ in range(3):
        await desk.news.round()
    assert desk.events == [("fairlead-key-ticket-worker", "KeyInForce", "In force on 2 of 2 routers.")]


async def test_a_router_with_an_older_configuration_has_not_confirmed(desk: Desk) -> None:
    desk.confirm(GATEWAY)
    await desk.put(key_object("ticket-worker"))
    desk.compiler.refresh()
    await desk.news.round()
    assert desk.events == []


async def test_keys_of_before_are_not_announced_again_by_a_new_leader(desk: Desk) -> None:
    old = time_text(desk.clock.now_ms() - api_keys.NEWS_MS - 1000)
    await desk.put(key_object("old", creationTimestamp=old))
    await desk.put(key_object("new"))
    desk.confirm(GATEWAY)
    await desk.news.round()
    assert [name for name, _, _ in desk.events] == ["fairlead-key-new"]


async def test_what_is_wrong_with_a_key_is_said_once_and_again_when_it_changes(desk: Desk) -> None:
    bad = key_object("bad")
    bad["data"]["sha256"] = "short"
    await desk.put(bad)
    for _ in range(3):
        await desk.news.round()
    ((name, reason, note),) = desk.events
    assert (name, reason) == ("fairlead-key-bad", "KeyRefused")
    assert "64 digits" in note
    other = key_object("bad")
    other["data"]["feature"] = "x" * 200
    await desk.put(other)
    await desk.news.round()
    assert len(desk.events) == 2
    assert desk.told() == ()


async def test_a_heap_of_bad_keys_is_told_slowly_and_completely(desk: Desk) -> None:
    for number in range(5):
        await desk.put({**key_object(f"bad{number}"), "data": {}})
    await desk.news.round()
    assert len(desk.events) == api_keys.BAD_EACH_ROUND
    for _ in range(3):
        await desk.news.round()
    assert len(desk.events) == 5


async def test_a_copied_hash_is_refused_for_whoever_copied_it(desk: Desk) -> None:
    await desk.put(key_object("mine", secret="shared", creationTimestamp="2026-11-20T11:00:00Z"))
    await desk.put(key_object("theirs", "search", secret="shared", creationTimestamp="2026-11-20T11:00:01Z"))
    await desk.news.round()
    assert [(key.namespace, key.name) for key in desk.told()] == [("support", "mine")]
    assert [name for name, reason, _ in desk.events if reason == "KeyRefused"] == ["fairlead-key-theirs"]


async def test_a_change_of_the_issuers_is_a_new_configuration(desk: Desk) -> None:
    desk.told()
    before = desk.feed._scope("fairlead").compiled.version
    desk.issuers = (Issuer(issuer="https://k8s", jwks="{}"), Issuer(issuer="https://login", jwks="{}", audience="a"))
    desk.told()
    assert desk.feed.config is not None
    assert desk.feed.config.issuers == desk.issuers
    assert desk.feed._scope("fairlead").compiled.version != before


async def test_pods_that_change_do_not_make_the_keys_be_read_again(desk: Desk) -> None:
    await desk.put(key_object("ticket-worker"))
    ring = desk.cluster.snapshot().keys
    await desk.put(gateway("gateway-3"))
    assert desk.cluster.snapshot().keys is ring
