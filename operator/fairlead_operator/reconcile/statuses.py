"""Writes statuses: at once when something changed, figures at most every ten seconds, nothing when nothing did."""

from collections.abc import Mapping
from typing import Any

from fairlead_operator.clock import Clock
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import Resource

FIGURES_S = 10.0
FIGURES = frozenset(
    {
        "costPerHour",
        "costPerThousandRequests",
        "service",
        "spent",
        "reserved",
        "unreconciled",
        "remaining",
        "usedPercent",
        "allowances",
        "fullest",
    }
)
"""Fields that move all the time; everything else in a status is news."""


class Statuses:
    """The statuses that this process has written, by the uid of their objects."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._written: dict[str, tuple[Mapping[str, Any], float]] = {}

    def present(self, raw: Object) -> Mapping[str, Any]:
        """The status as this process wrote it last, else as the API server has it."""
        written = self._written.get(raw["metadata"]["uid"])
        return written[0] if written else raw.get("status") or {}

    async def write(self, resource: Resource, raw: Object, status: Mapping[str, Any]) -> float:
        """Write what changed; answers the seconds after which to come again, 0 when all is written."""
        uid, now = raw["metadata"]["uid"], self._clock.monotonic()
        old, at = self.present(raw), self._written.get(uid, ({}, now - FIGURES_S))[1]
        if old == status:
            return 0.0
        if _news(old) == _news(status) and now - at < FIGURES_S:
            return FIGURES_S - (now - at)
        meta = raw["metadata"]
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": uid},
            "status": dict(status),
        }
        await self._api.apply(resource, body, status=True)
        self._written[uid] = (status, now)
        return 0.0

    def forget(self, uid: str) -> None:
        """The object is gone."""
        self._written.pop(uid, None)


def _news(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a status that is written at once: no figures, and conditions without the numbers in their text."""
    kept = {key: value for key, value in status.items() if key not in FIGURES}
    kept["conditions"] = [
        (item.get("type"), item.get("status"), item.get("reason"), item.get("observedGeneration"))
        for item in status.get("conditions") or ()
    ]
    return kept
