"""Events of API keys: which are in force on every router, and what is wrong with the others.

A key has no status of its own, so its Events are where a team, and ``fairlead key create``, reads that it works.
"""

from collections.abc import Iterator

from fairlead_operator.api.v1alpha1 import EventReason
from fairlead_operator.decide.api_keys import KeyFact, KeyRing
from fairlead_operator.kube.api import Object
from fairlead_operator.kube.resources import CONFIG_MAPS
from fairlead_operator.reconcile.context import Confirmed, Context, confirmations
from fairlead_operator.status.events import Event
from fairlead_router.contract import Signals

NEWS_MS = 600_000
"""A key is announced within ten minutes of its making; after that, nobody waits for it, and a new leader is silent."""
GOOD_EACH_ROUND = 20
BAD_EACH_ROUND = 2
"""Slower than Events are allowed at all, so that a heap of bad keys leaves room for those of other objects."""


class KeyNews:
    """Tells each piece of news once. Only the leader does, after each scrape of the routers."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self._told: dict[str, str] = {}

    async def round(self) -> None:
        """Write the Events that are due."""
        ring = self._c.cluster.snapshot().keys
        present = {fact.uid for fact in ring.facts}
        self._told = {uid: text for uid, text in self._told.items() if uid in present}
        for fact, event in (*self._bad(ring), *self._good(ring)):
            await self._c.recorder.tell(about(fact), event)
            self._told[fact.uid] = event.message

    def _bad(self, ring: KeyRing) -> list[tuple[KeyFact, Event]]:
        news = [
            (fact, Event("Warning", EventReason.KEY_REFUSED, f"Not an API key in force: {problem}."))
            for fact in ring.facts
            if (problem := ring.problem(fact))
        ]
        return [(fact, event) for fact, event in news if self._told.get(fact.uid) != event.message][:BAD_EACH_ROUND]

    def _good(self, ring: KeyRing) -> list[tuple[KeyFact, Event]]:
        """New keys in namespaces all of whose routers have the keys as they are now."""
        found: list[tuple[KeyFact, Event]] = []
        confirmed: dict[str, Confirmed] = {}
        for fact in self._new(ring):
            if fact.namespace not in confirmed:
                confirmed[fact.namespace] = self._confirmed(fact.namespace)
            routers = confirmed[fact.namespace]
            if 0 < routers.total == routers.confirmed:
                text = f"In force on {routers.confirmed} of {routers.total} routers."
                found.append((fact, Event("Normal", EventReason.KEY_IN_FORCE, text)))
        return found[:GOOD_EACH_ROUND]

    def _new(self, ring: KeyRing) -> Iterator[KeyFact]:
        since = self._c.clock.now_ms() - NEWS_MS
        for fact in reversed(ring.facts):
            if fact.created_ms < since:
                return
            if not ring.problem(fact) and fact.uid not in self._told:
                yield fact

    def _confirmed(self, namespace: str) -> Confirmed:
        """How many of the routers that take requests of this namespace have its keys."""

        def has(place: str, signals: Signals) -> bool:
            return self._c.feed.knows_keys(place, signals.config_version)

        return confirmations(self._c, {*self._c.feed.platform, namespace}, has)


def about(fact: KeyFact) -> Object:
    """The ConfigMap, as an Event names it; items of a list do not say their kind."""
    meta = {"namespace": fact.namespace, "name": fact.object_name, "uid": fact.uid}
    return {"apiVersion": CONFIG_MAPS.api_version, "kind": CONFIG_MAPS.kind, "metadata": meta}
