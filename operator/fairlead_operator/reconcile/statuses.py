"""Writes statuses: at once when something changed, figures once in a while, nothing when nothing did."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_operator.clock import Clock
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import COST_BUDGETS, MODEL_POOLS, ROUTING_POLICIES, Resource

FIGURES_S = {MODEL_POOLS: 10.0, ROUTING_POLICIES: 30.0, COST_BUDGETS: 2.0}
"""Budgets are looked at while money runs out: what they show must not be older than the action that they show."""
FIGURES_PER_S = 10
"""Of objects of a kind whose figures alone are written in a second, at most: with many, each waits for longer."""
FIGURES = frozenset(
    {
        "costPerHour",
        "costPerThousandRequests",
        "service",
        "spent",
        "reserved",
        "unreconciled",
        "idle",
        "burnPerHour",
        "forecast",
        "remaining",
        "usedPercent",
        "allowances",
        "fullest",
        "routers",
    }
)
"""Fields that move all the time; everything else in a status is news."""


class Statuses:
    """The statuses that this process has written."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._written: dict[str, dict[Key, _Written]] = defaultdict(dict)
        """By kind."""

    def present(self, raw: Object) -> Mapping[str, Any]:
        """The status as this process wrote it last; as the server has it when that is not known, or was changed."""
        written = self._last(raw)
        return raw.get("status") or {} if written is None else written.status

    def _last(self, raw: Object) -> "_Written | None":
        written = self._written[raw["kind"]].get(_place(raw))
        if written is None or written.uid != raw["metadata"]["uid"]:
            return None
        newer = int(raw["metadata"]["resourceVersion"]) > written.version
        return None if newer and raw.get("status") != written.stored else written

    async def write(self, resource: Resource, raw: Object, status: Mapping[str, Any]) -> float:
        """Write what changed; answers the seconds after which to come again, 0 when all is written."""
        uid, now, old = raw["metadata"]["uid"], self._clock.monotonic(), self.present(raw)
        every_s, last = self._every_s(resource), self._last(raw)
        if old == status:
            return 0.0
        if last is not None and _news(old) == _news(status) and now - last.at < every_s:
            return every_s - (now - last.at)
        meta = raw["metadata"]
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": uid},
            "status": dict(status),
        }
        stored = await self._api.apply(resource, body, status=True)
        version = int(stored["metadata"]["resourceVersion"])
        self._written[raw["kind"]][_place(raw)] = _Written(uid, status, now, stored.get("status"), version)
        return 0.0

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._written[key.kind].pop(key, None)

    def _every_s(self, resource: Resource) -> float:
        """Seconds between two writes of an object's figures."""
        return max(FIGURES_S[resource], len(self._written[resource.kind]) / FIGURES_PER_S)


@dataclass(frozen=True, slots=True)
class _Written:
    """One status: as it was sent and when, and as the server keeps it."""

    uid: str
    status: Mapping[str, Any]
    at: float
    stored: Mapping[str, Any] | None
    version: int


def _place(raw: Object) -> Key:
    return Key(raw["kind"], raw["metadata"].get("namespace", ""), raw["metadata"]["name"])


def _news(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a status that is written at once: no figures, and conditions without the numbers in their text."""
    kept = {key: value for key, value in status.items() if key not in FIGURES}
    kept["conditions"] = [
        (item.get("type"), item.get("status"), item.get("reason"), item.get("observedGeneration"))
        for item in status.get("conditions") or ()
    ]
    return kept
