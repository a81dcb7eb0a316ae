"""The cluster as the reflectors see it, handed out as one value: whoever decides, decides on a snapshot."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        self._kept: dict[tuple[str, str, str], tuple[str, Any]] = {}

    def read(self, kind: str, body: Object, parse: Callable[[Object], T]) -> T:
        meta = body["metadata"]
        key, version = (kind, meta.get("namespace", ""), meta["name"]), meta["resourceVersion"]
        kept = self._kept.get(key)
        if kept is None or kept[0] != version:
            kept = (version, parse(body))
            self._kept[key] = kept
        value: T = kept[1]
        return value

    def keep_only(self, kind: str, names: set[tuple[str, str]]) -> None:
        for key in [key for key in self._kept if key[0] == kind and key[1:] not in names]:
            del self._kept[key]


class Cluster:
    """The reflectors of all kinds, and what changes in them wakes."""

    def __init__(self, api: Api, release_namespace: str, wake: Wake, changed: Callable[[], None], clock: Clock) -> None:
        self._wake = wake
        self._changed = changed
        self._clock = clock
        self._memo = _Memo()
        self._revision = 0
        self._snapshot: tuple[int, Snapshot] = (-1, Snapshot())
        self._departed: deque[Departed] = deque(maxlen=DEPARTED)
        self._gone: deque[PodFact] = deque(maxlen=GONE)
        self._ring: KeyRing | None = None
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
        if self._snapshot[0] != self._revision:
            self._snapshot = (self._revision, self._build())
        return self._snapshot[1]

    def _store(self, name: str) -> Store:
        return self._reflectors[name].store

    def _build(self) -> Snapshot:
        pods = self._store("Pod")
        return Snapshot(
            pools=self._typed(resources.MODEL_POOLS, ModelPool),
            policies=self._typed(resources.ROUTING_POLICIES, RoutingPolicy),
            budgets=self._typed(resources.COST_BUDGETS, CostBudget),
            raw={_key(kind, body): body for kind in resources.OWN_KINDS for body in self._store(kind.kind)},
            namespaces={
                one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in self._store("Namespace")
            },
            nodes={fact.name: fact for fact in self._facts("Node", node_fact)},
            pods=tuple(self._facts("Pod", pod_fact)),
            gone=tuple(self._gone),
            gateways=tuple(self._facts(GATEWAYS, pod_fact)),
            created_ms={_name(pod): created_ms(pod) for pod in pods},
            children={
                (kind, body["metadata"]["namespace"], body["metadata"]["name"]): body
                for kind in resources.CHILD_KINDS
                for body in self._store(kind)
            },
            keys=self._key_ring(),
        )

    def _key_ring(self) -> KeyRing:
        """Made anew only after one of its objects changed: there may be thousands, and pods change all the time."""
        if self._ring is None:
            self._ring = key_ring(self._facts(resources.CONFIG_MAPS.kind, key_fact))
        return self._ring

    def _facts(self, name: str, parse: Callable[[Object], T]) -> list[T]:
        store = self._store(name)
        self._memo.keep_only(name, store.keys())
        return [self._memo.read(name, body, parse) for body in sorted(store, key=_name)]

    def _typed(self, kind: Resource, model: type[K]) -> dict[str, K]:
        parsed = self._facts(kind.kind, lambda body: _parse(model, body))
        return {one.key: one for one in parsed if one is not None}

    def _listener(self, name: str) -> Callable[[Object | None, Object | None], None]:
        def changed(before: Object | None, after: Object | None) -> None:
            self._revision += 1
            body = after or before or {}
            if name == resources.CONFIG_MAPS.kind:
                self._ring = None
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
