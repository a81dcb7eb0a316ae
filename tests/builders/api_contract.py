"""What the operator relies on in an API server: the fake one and the real one must both pass."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from fairlead_operator.clock import SystemClock
from fairlead_operator.errors import ConflictError, NotFoundError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.reflector import Reflector, Source
from fairlead_operator.kube.resources import DEPLOYMENTS, LEASES, REPLICA_SETS, SERVICES
from tests.fakes.clock import eventually

LABEL = {"app.kubernetes.io/managed-by": "fairlead-operator"}


def service(namespace: str, name: str, port: int = 80, labels: dict[str, str] | None = None) -> Object:
    """A small namespaced object that every API server has."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": LABEL if labels is None else labels},
        "spec": {"ports": [{"name": "http", "port": port, "targetPort": 8000}], "selector": {"app": name}},
    }


async def an_applied_object_is_there_and_applying_it_again_changes_nothing(api: Api, namespace: str) -> None:
    first = await api.apply(SERVICES, service(namespace, "one"))
    again = await api.apply(SERVICES, service(namespace, "one"))
    assert (await api.get(SERVICES, namespace, "one"))["metadata"]["uid"] == first["metadata"]["uid"]
    assert first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]


async def a_missing_object_is_told_as_not_found(api: Api, namespace: str) -> None:
    with pytest.raises(NotFoundError):
        await api.get(SERVICES, namespace, "absent")


async def replacing_an_old_version_is_a_conflict(api: Api, namespace: str) -> None:
    lease = {
        "apiVersion": LEASES.api_version,
        "kind": "Lease",
        "metadata": {"name": "l", "namespace": namespace},
        "spec": {"holderIdentity": "a"},
    }
    old = await api.create(LEASES, namespace, lease)
    await api.replace(LEASES, namespace, "l", {**old, "spec": {"holderIdentity": "b"}})
    with pytest.raises(ConflictError):
        await api.replace(LEASES, namespace, "l", {**old, "spec": {"holderIdentity": "c"}})


async def creating_a_name_twice_is_a_conflict(api: Api, namespace: str) -> None:
    await api.create(SERVICES, namespace, service(namespace, "two"))
    with pytest.raises(ConflictError):
        await api.create(SERVICES, namespace, service(namespace, "two"))


async def deleting_with_the_uid_of_another_object_is_a_conflict(api: Api, namespace: str) -> None:
    await api.apply(SERVICES, service(namespace, "three"))
    with pytest.raises(ConflictError):
        await api.delete(SERVICES, namespace, "three", "00000000-0000-0000-0000-000000000000")


async def a_list_is_cut_to_its_labels_and_namespace(api: Api, namespace: str) -> None:
    await api.apply(SERVICES, service(namespace, "ours"))
    await api.apply(SERVICES, service(namespace, "theirs", labels={"app": "x"}))
    listing = await api.list(SERVICES, namespace=namespace, labels="app.kubernetes.io/managed-by=fairlead-operator")
    assert [item["metadata"]["name"] for item in listing.items] == ["ours"]


async def a_watch_tells_what_happens_after_its_version(api: Api, namespace: str) -> None:
    version = (await api.list(SERVICES, namespace=namespace)).version
    made = await api.apply(SERVICES, service(namespace, "four"))
    await api.apply(SERVICES, service(namespace, "four", port=81))
    await api.delete(SERVICES, namespace, "four", made["metadata"]["uid"])
    kinds = []
    async with asyncio.timeout(10), aclosing(api.watch(SERVICES, version, namespace=namespace)) as events:
        async for event in events:
            kinds.append(event.type)
            if event.type == "DELETED":
                break
    assert kinds == ["ADDED", "MODIFIED", "DELETED"]


async def a_reflector_follows_what_is_made_and_deleted(api: Api, namespace: str) -> None:
    await api.apply(SERVICES, service(namespace, "before"))
    reflector = Reflector(api, Source(SERVICES, namespace), lambda *_: None, SystemClock(), random.Random())  # noqa: S311 - spreads retries
    task = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(10):
            await reflector.synced.wait()
        made = await api.apply(SERVICES, service(namespace, "after"))
        await eventually(lambda: reflector.store.keys() == {(namespace, "before"), (namespace, "after")})
        await api.delete(SERVICES, namespace, "after", made["metadata"]["uid"])
        await eventually(lambda: reflector.store.keys() == {(namespace, "before")})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def deployment(namespace: str, template_of: str, **notes: str) -> Object:
    """A Deployment without pods, whose template carries a label, with these annotations."""
    labels = {"app": "rolled"}
    pod = {"containers": [{"name": "engine", "image": "localhost/none"}]}
    template = {"metadata": {"labels": {**labels, "template": template_of}}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "rolled", "namespace": namespace, "labels": LABEL, "annotations": notes},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }


async def a_field_that_is_applied_no_longer_goes_away(api: Api, namespace: str) -> None:
    await api.apply(DEPLOYMENTS, deployment(namespace, "1", kept="a", dropped="b"))
    after = await api.apply(DEPLOYMENTS, deployment(namespace, "1", kept="a"))
    assert after["metadata"]["annotations"].get("kept") == "a"
    assert "dropped" not in after["metadata"]["annotations"]


async def each_template_of_a_deployment_keeps_the_annotations_of_its_time_in_a_replica_set(
    api: Api, namespace: str
) -> None:
    """This is the history of rollouts: a template that comes back finds its ReplicaSet again."""

    async def history() -> dict[str, str]:
        found = await api.list(REPLICA_SETS, namespace=namespace, labels="app=rolled")
        notes = [one["metadata"]["annotations"] for one in found.items]
        return {one["revision"]: one.get("served", "") for one in notes}

    async def becomes(wanted: dict[str, str]) -> None:
        async with asyncio.timeout(20):
            while await history() != wanted:  # noqa: ASYNC110 - a controller of the server's makes it so
                await asyncio.sleep(0.05)

    await api.apply(DEPLOYMENTS, deployment(namespace, "1", revision="1"))
    await becomes({"1": ""})
    await api.apply(DEPLOYMENTS, deployment(namespace, "1", revision="1", served="1"))
    await becomes({"1": "1"})
    await api.apply(DEPLOYMENTS, deployment(namespace, "2", revision="2", served="1"))
    await becomes({"1": "1", "2": "1"})
    await api.apply(DEPLOYMENTS, deployment(namespace, "1", revision="1", served="1"))
    await asyncio.sleep(0.2)
    assert await history() == {"1": "1", "2": "1"}


CONTRACT: list[Callable[[Api, str], Awaitable[None]]] = [
    an_applied_object_is_there_and_applying_it_again_changes_nothing,
    a_missing_object_is_told_as_not_found,
    replacing_an_old_version_is_a_conflict,
    creating_a_name_twice_is_a_conflict,
    deleting_with_the_uid_of_another_object_is_a_conflict,
    a_list_is_cut_to_its_labels_and_namespace,
    a_watch_tells_what_happens_after_its_version,
    a_reflector_follows_what_is_made_and_deleted,
    a_field_that_is_applied_no_longer_goes_away,
    each_template_of_a_deployment_keeps_the_annotations_of_its_time_in_a_replica_set,
]
