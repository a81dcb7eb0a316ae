"""What is done about replicas beside writing their number: who else writes it, and which pods go."""

import logging
from collections.abc import Iterable, Mapping

from fairlead_operator.decide.facts import DELETION_COST, PodFact
from fairlead_operator.decide.second_writer import SOMEBODY, Write, noted, paused, writer_of
from fairlead_operator.decide.signals import Report
from fairlead_operator.decide.variants import Counts
from fairlead_operator.decide.victims import deletion_costs
from fairlead_operator.errors import ApiError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import DEPLOYMENTS, FIELD_MANAGER, PODS
from fairlead_operator.reconcile.books import PoolBook
from fairlead_operator.reconcile.children import Children

log = logging.getLogger(__name__)


class SecondWriters:
    """Notices when somebody else writes the replicas of a pool's Deployments."""

    def __init__(self, api: Api, children: Children) -> None:
        self._api = api
        self._children = children

    async def look(
        self, book: PoolBook, deployments: Iterable[Object], generation: int, now_ms: int
    ) -> dict[str, int] | None:
        """Note what was written since the last look; answers the replicas that Fairlead wrote, by Deployment.

        ``None``: Fairlead leaves the number alone.
        """
        ours: dict[str, int] = {}
        for body in deployments:
            meta, live = body["metadata"], int(body["spec"].get("replicas") or 0)
            written = self._children.written_replicas(meta["namespace"], meta["name"])
            if written is None:
                continue
            ours[meta["name"]] = written
            if written != live and book.foreign_seen.get(meta["name"]) != meta.get("generation"):
                book.foreign_seen[meta["name"]] = meta.get("generation")
                writer = await self._writer(meta["namespace"], meta["name"])
                write = Write(writer, str(meta["name"]), written, live, now_ms)
                book.foreign = noted(book.foreign, write, generation)
        return None if paused(book.foreign, generation, now_ms) else ours

    async def _writer(self, namespace: str, name: str) -> str:
        try:
            return writer_of(await self._api.get(DEPLOYMENTS, namespace, name), FIELD_MANAGER)
        except ApiError:
            return SOMEBODY


async def mark_victims(api: Api, pods: Iterable[PodFact], counts: Counts, reports: Mapping[str, Report]) -> None:
    """Have the emptiest pods go first. A pod that cannot be marked goes by its age: nothing waits for it."""
    running = {
        pod.key: report.of(pod.pool).running
        for pod in pods
        if (report := reports.get(pod.key)) is not None and report.signals is not None
    }
    by_key = {pod.key: pod for pod in pods}
    for key, cost in deletion_costs(tuple(by_key.values()), counts, running).items():
        pod = by_key[key]
        meta = {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "annotations": {DELETION_COST: str(cost)}}
        try:
            await api.apply(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta})
        except ApiError as error:
            log.warning("cannot mark %s to go first: %s", key, error)
