"""A copy of one kind, kept by list and watch, in which nothing stays that the server no longer has.

After a gap (410) the whole copy is replaced by a new list, and what vanished meanwhile is told like any deletion.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fairlead_operator.clock import Clock
from fairlead_operator.errors import ApiError, GoneError
from fairlead_operator.kube.api import Api, Object, WatchEvent
from fairlead_operator.kube.resources import Resource

log = logging.getLogger(__name__)

Key = tuple[str, str]
Changed = Callable[[Object | None, Object | None], None]
"""Called with the object before and after; None where it did not exist."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0


def key_of(body: Object) -> Key:
    """(namespace, name); the namespace is empty for cluster-wide kinds."""
    meta = body["metadata"]
    return meta.get("namespace", ""), meta["name"]


class Store:
    """The objects of one kind by (namespace, name)."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}

    def get(self, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        return self._objects.get((namespace, name))

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, body: Object) -> Object | None:
        """Keep the object; answers what was there before."""
        key = key_of(body)
        before = self._objects.get(key)
        self._objects[key] = body
        return before

    def drop(self, key: Key) -> Object | None:
        """Forget the object; answers what was there before."""
        return self._objects.pop(key, None)

    def keys(self) -> set[Key]:
        """The names of all objects."""
        return set(self._objects)


@dataclass(frozen=True, slots=True)
class Source:
    """What a reflector follows."""

    resource: Resource
    namespace: str = ""
    labels: str = ""


def slim(body: Object) -> Object:
    """The object without its managed fields, which are half of its size and which nobody here reads."""
    body["metadata"].pop("managedFields", None)
    return body


class Reflector:
    """Keeps one store. ``synced`` is set after the first whole list; ``problem`` says why there is none."""

    def __init__(self, api: Api, source: Source, changed: Changed, clock: Clock, dice: random.Random) -> None:
        self._api = api
        self.source = source
        self._changed = changed
        self._clock = clock
        self._dice = dice
        self.store = Store()
        self.synced = asyncio.Event()
        self.problem: ApiError | None = None
        self._version = ""

    async def run(self) -> None:
        """List and watch until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._follow()
                pause = FIRST_PAUSE_S
            except GoneError:
                self._version = ""
                continue
            except ApiError as error:
                self.problem = error
                wait = max(error.retry_after_s, pause * self._dice.uniform(0.5, 1.0))
                log.info("reflector %s waits %.1fs: %s", self.source.resource.title, wait, error)
                await self._clock.sleep(wait)
                pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _follow(self) -> None:
        """List if the version to go on from is unknown, then watch until the server ends the watch."""
        where: dict[str, Any] = {"namespace": self.source.namespace, "labels": self.source.labels}
        if not self._version:
            listing = await self._api.list(self.source.resource, **where)
            self._replace([slim(item) for item in listing.items])
            self._version = listing.version
            self.synced.set()
        self.problem = None
        async for event in self._api.watch(self.source.resource, self._version, **where):
            self._take(event)

    def _take(self, event: WatchEvent) -> None:
        self._version = event.object["metadata"]["resourceVersion"]
        if event.type == "BOOKMARK":
            return
        if event.type == "DELETED":
            before = self.store.drop(key_of(event.object))
            if before is not None:
                self._changed(before, None)
            return
        body = slim(event.object)
        self._changed(self.store.put(body), body)

    def _replace(self, items: list[Object]) -> None:
        """Make the store equal to the list; tells only what differs."""
        gone = self.store.keys() - {key_of(item) for item in items}
        for key in gone:
            self._changed(self.store.drop(key), None)
        for item in items:
            before = self.store.put(item)
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._changed(before, item)
