"""The cluster as the reflectors see it, handed out as one value: whoever decides, decides on a snapshot."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from fairlead_operator.api.v1alpha1 import CostBudget, ModelPool, RoutingPolicy
from fairlead_operator.api.v1alpha1.common import Resource as Typed
from fairlead_operator.clock import Clock
from fairlead_operator.decide.api_keys import API_KEYS, KeyRing, key_fact, key_ring
from fairlead_operator.decide.facts import LABEL_POOL, NodeFact, PodFact, node_fact, pod_fact, time_ms
from fairlead_operator.errors import ApiError
from fairlead_operator.kube import resources
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.reflector import Reflector, Source, Store
from fairlead_operator.kube.resources import Resource

log = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K", bound=Typed)
Wake = Callable[[Key], None]

DEPARTED = 10_000
"""Deleted pods that wait to be billed. A replica that does not lead forgets the oldest: the leader bills them."""
GONE = 256
"""Deleted pods whose drain is still to be told."""
GATEWAYS = "gateways"
"""Name of the second set of pods: those of the gateway in the release's namespace."""


@dataclass(frozen=True, slots=True)
class Departed:
    """A pod that was deleted, and when: its last running time is still to be billed."""

    pod: PodFact
    at_ms: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the operator knows of the cluster. Keys are ``namespace/name``; nodes and namespaces: name."""

    pools: Mapping[str, ModelPool] = field(default_factory=dict)
    policies: Mapping[str, RoutingPolicy] = field(default_factory=dict)
    budgets: Mapping[str, CostBudget] = field(default_factory=dict)
    raw: Mapping[Key, Object] = field(default_factory=dict)
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nodes: Mapping[str, NodeFact] = field(default_factory=dict)
    pods: tuple[PodFact, ...] = ()
    gone: tuple[PodFact, ...] = ()
    """Pods that were deleted lately and whose routers said how their drain went, the oldest first."""
    gateways: tuple[PodFact, ...] = ()
    created_ms: Mapping[str, int] = field(default_factory=dict)
    children: Mapping[tuple[str, str, str], Object] = field(default_factory=dict)
    """Deployments, Services and PodDisruptionBudgets that carry our label, by (kind, namespace, name)."""
    keys: KeyRing = field(default_factory=KeyRing)


class _Memo:
    """What was read of each object, kept while its resourceVersion stays."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[tuple[str, str], tuple[str, Any]]] = {}

    def read(self, name: str, bodies: Iterable[Object], parse: Callable[[Object], T]) -> list[T]:
        """All objects of a kind, by namespace and name; those that are gone are forgotten."""
        before, kept = self._kept.get(name, {}), {}
        for body in bodies:
            meta = body["metadata"]
            key, version = (meta.get("namespace", ""), meta["name"]), meta["resourceVersion"]
            known = before.get(key)
            kept[key] = known if known is not None and known[0] == version else (version, parse(body))
        self._kept[name] = kept
        return [kept[key][1] for key in sorted(kept)]


class Cluster:
    """The reflectors of all kinds, and what changes in them wakes."""

    def __init__(self, api: Api, release_namespace: str, wake: Wake, changed: Callable[[], None], clock: Clock) -> None:
        self._wake = wake
        self._changed = changed
        self._clock = clock
        self._memo = _Memo()
        self._snapshot = Snapshot()
        self._departed: deque[Departed] = deque(maxlen=DEPARTED)
        self._gone: deque[PodFact] = deque(maxlen=GONE)
        managed = resources.MANAGED_BY
        sources = {
            **{kind.kind: Source(kind) for kind in (*resources.OWN_KINDS, resources.NAMESPACES, resources.NODES)},
            **{kind.kind: Source(kind, labels=managed) for kind in (resources.PODS, *resources.CHILD_KINDS.values())},
            resources.CONFIG_MAPS.kind: Source(resources.CONFIG_MAPS, labels=API_KEYS),
            GATEWAYS: Source(resources.PODS, namespace=release_namespace, labels=resources.GATEWAY),
        }
        dice = random.Random()  # noqa: S311 - spreads retries; guards nothing
        self._reflectors = {
            name: Reflector(api, source, self._listener(name), clock, dice) for name, source in sources.items()
        }
        self._stale = set(sources)
        """What has changed since the last snapshot."""
        self._readers: Mapping[str, Callable[[], dict[str, Any]]] = {
            resources.MODEL_POOLS.kind: lambda: {"pools": self._typed(resources.MODEL_POOLS, ModelPool)},
            resources.ROUTING_POLICIES.kind: lambda: {
                "policies": self._typed(resources.ROUTING_POLICIES, RoutingPolicy)
            },
            resources.COST_BUDGETS.kind: lambda: {"budgets": self._typed(resources.COST_BUDGETS, CostBudget)},
            resources.NAMESPACES.kind: lambda: {"namespaces": self._namespaces()},
            resources.NODES.kind: lambda: {"nodes": {one.name: one for one in self._facts("Node", node_fact)}},
            resources.PODS.kind: self._pods,
            GATEWAYS: lambda: {"gateways": tuple(self._facts(GATEWAYS, pod_fact))},
            resources.CONFIG_MAPS.kind: lambda: {"keys": key_ring(self._facts(resources.CONFIG_MAPS.kind, key_fact))},
        }
        """The fields of a snapshot that are read of one kind alone."""

    @property
    def synced(self) -> bool:
        """Whether every reflector has seen its whole list."""
        return all(reflector.synced.is_set() for reflector in self._reflectors.values())

    @property
    def problems(self) -> tuple[ApiError, ...]:
        """What keeps reflectors from following their kinds now."""
        return tuple(one.problem for one in self._reflectors.values() if one.problem is not None)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The kinds that were never seen whole."""
        return tuple(name for name, one in self._reflectors.items() if not one.synced.is_set())

    def tasks(self) -> list[Callable[[], Any]]:
        """The coroutines to run, one for each kind."""
        return [reflector.run for reflector in self._reflectors.values()]

    async def wait_synced(self) -> None:
        """Return when every reflector has seen its whole list."""
        await asyncio.gather(*(reflector.synced.wait() for reflector in self._reflectors.values()))

    def take_departed(self) -> list[Departed]:
        """Pods that were deleted since the last call."""
        departed = list(self._departed)
        self._departed.clear()
        return departed

    def snapshot(self) -> Snapshot:
        """The present state; the same value as long as nothing changes."""
        if self._stale:
            self._snapshot = self._build()
            self._stale.clear()
        return self._snapshot

    def _store(self, name: str) -> Store:
        return self._reflectors[name].store

    def _build(self) -> Snapshot:
        """What is of kinds that have not changed stays the very object that it was: one change of many costs little."""
        fields: dict[str, Any] = {}
        for name in self._stale & self._readers.keys():
            fields |= self._readers[name]()
        if not self._stale.isdisjoint(kind.kind for kind in resources.OWN_KINDS):
            fields["raw"] = {_key(kind, body): body for kind in resources.OWN_KINDS for body in self._store(kind.kind)}
        if not self._stale.isdisjoint(resources.CHILD_KINDS):
            fields["children"] = self._children()
        return replace(self._snapshot, **fields)

    def _pods(self) -> dict[str, Any]:
        found = self._facts(resources.PODS.kind, lambda body: (pod_fact(body), created_ms(body)))
        return {
            "pods": tuple(fact for fact, _ in found),
            "created_ms": {fact.key: created for fact, created in found},
            "gone": tuple(self._gone),
        }

    def _namespaces(self) -> dict[str, Mapping[str, str]]:
        return {one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in self._store("Namespace")}

    def _children(self) -> dict[tuple[str, str, str], Object]:
        return {
            (kind, body["metadata"]["namespace"], body["metadata"]["name"]): body
            for kind in resources.CHILD_KINDS
            for body in self._store(kind)
        }

    def _facts(self, name: str, parse: Callable[[Object], T]) -> list[T]:
        return self._memo.read(name, self._store(name), parse)

    def _typed(self, kind: Resource, model: type[K]) -> dict[str, K]:
        parsed = self._facts(kind.kind, lambda body: _parse(model, body))
        return {one.key: one for one in parsed if one is not None}

    def _listener(self, name: str) -> Callable[[Object | None, Object | None], None]:
        def changed(before: Object | None, after: Object | None) -> None:
            self._stale.add(name)
            body = after or before or {}
            if after is None and name == "Pod":
                self._depart(pod_fact(body))
            for key in woken_by(name, body):
                self._wake(key)
            self._changed()

        return changed

    def _depart(self, pod: PodFact) -> None:
        self._departed.append(Departed(pod, self._clock.now_ms()))
        if pod.drained is not None:
            self._gone.append(pod)


def woken_by(name: str, body: Object) -> list[Key]:
    """The objects of our own kinds that a change of this object is about."""
    meta = body["metadata"]
    namespace = meta.get("namespace", "")
    if name in {kind.kind for kind in resources.OWN_KINDS}:
        return [Key(name, namespace, meta["name"])]
    pool = (meta.get("labels") or {}).get(LABEL_POOL, "")
    return [Key(resources.MODEL_POOLS.kind, namespace, pool)] if pool else []


def created_ms(body: Object) -> int:
    """When the object was created."""
    return time_ms(body["metadata"].get("creationTimestamp")) or 0


def _parse(model: type[K], body: Object) -> K | None:
    try:
        return model.parse(body)
    except ValidationError as error:
        log.warning("%s %s does not fit its schema and is left alone: %s", model.__name__, _name(body), error)
        return None


def _key(kind: Resource, body: Object) -> Key:
    return Key(kind.kind, body["metadata"].get("namespace", ""), body["metadata"]["name"])


def _name(body: Object) -> str:
    return f"{body['metadata'].get('namespace', '')}/{body['metadata']['name']}"
