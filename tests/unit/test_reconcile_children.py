"""Children are written when they differ, repaired when somebody edits them, and never taken from others."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.reconcile.children import Children, NameTakenError
from fairlead_operator.render.services import pool_service
from tests.builders.resources import make_pool
from tests.fakes.api_server import FakeApiServer

POOL = make_pool("chat").parsed()
UID = POOL.metadata.uid


class Nursery:
    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.children = Children(Api(session, server.url))

    def snapshot(self) -> Snapshot:
        found = self.server.get("services", "ai-platform", "chat")
        return Snapshot(children={} if found is None else {("Service", "ai-platform", "chat"): found})

    async def ensure(self, snapshot: Snapshot | None = None, **spec: Any) -> Object:
        body = pool_service(POOL)
        return await self.children.ensure(snapshot or self.snapshot(), UID, {**body, "spec": {**body["spec"], **spec}})

    @property
    def writes(self) -> int:
        return self.server.count("PATCH", "/services/")


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        yield Nursery(server, session)


async def test_a_child_is_made_once(nursery: Nursery) -> None:
    await nursery.ensure()
    await nursery.ensure()
    assert nursery.writes == 1


async def test_a_store_that_is_behind_makes_no_second_write(nursery: Nursery) -> None:
    await nursery.ensure(Snapshot())
    await nursery.ensure(Snapshot())
    assert nursery.writes == 1


async def test_a_child_that_is_rendered_differently_is_written(nursery: Nursery) -> None:
    await nursery.ensure()
    await nursery.ensure(sessionAffinity="ClientIP")
    assert nursery.writes == 2


async def test_a_child_that_somebody_edited_is_put_right(nursery: Nursery) -> None:
    made = await nursery.ensure()
    await nursery.server.put("services", {**made, "spec": {**made["spec"], "selector": {"app": "mine"}}})
    await nursery.ensure()
    assert nursery.writes == 2
    kept = nursery.server.get("services", "ai-platform", "chat")
    assert kept is not None
    assert "fairlead.dev/pool" in kept["spec"]["selector"]


async def test_a_child_that_somebody_deleted_is_made_again(nursery: Nursery) -> None:
    await nursery.ensure()
    await nursery.server.remove("services", "ai-platform", "chat")
    await nursery.ensure()
    assert nursery.writes == 2


async def test_a_name_of_somebody_else_is_left_alone(nursery: Nursery) -> None:
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat", "namespace": "ai-platform"}, "spec": {}}
    await nursery.server.put("services", body)
    with pytest.raises(NameTakenError, match="was made by somebody else and was left as it is"):
        await nursery.ensure(Snapshot())
    assert nursery.writes == 0


async def test_a_child_of_another_pool_is_left_alone(nursery: Nursery) -> None:
    body = pool_service(make_pool("chat").metadata(uid="another").parsed())
    await nursery.server.put("services", body)
    with pytest.raises(NameTakenError, match="is of a deleted ModelPool of the same name"):
        await nursery.ensure()
    other = pool_service(make_pool("chat").parsed())
    other["metadata"]["ownerReferences"][0] |= {"name": "chat-l40s", "uid": "another"}
    await nursery.server.put("services", other)
    with pytest.raises(NameTakenError, match="belongs to ModelPool chat-l40s and was left as it is"):
        await nursery.ensure()


async def test_the_children_of_a_deleted_pool_are_forgotten_and_those_of_others_are_not(nursery: Nursery) -> None:
    await nursery.ensure()
    nursery.children.forget("ai-platform", "chat-8b")
    nursery.children.forget("team-a", "chat")
    assert len(nursery.children._applied) == 1
    nursery.children.forget("ai-platform", "chat")
    assert not nursery.children._applied
