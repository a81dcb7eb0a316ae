"""What a pool becomes: applied when it differs from what was applied last, never taken from somebody else."""

import hashlib
import json
from dataclasses import dataclass

from fairlead_operator.decide.facts import LABEL_POOL
from fairlead_operator.errors import FairleadError, NotFoundError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.kube.resources import CHILD_KINDS, DEPLOYMENTS

Place = tuple[str, str, str]


class NameTakenError(FairleadError):
    """An object of this name exists and belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class _Applied:
    digest: str
    result: Object


class Children:
    """The Deployments, Services and PodDisruptionBudgets of all pools."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._applied: dict[Place, _Applied] = {}

    def live(self, snapshot: Snapshot, kind: str, namespace: str, name: str) -> Object | None:
        """The object as last seen or written, whichever is newer."""
        seen = snapshot.children.get((kind, namespace, name))
        written = self._applied.get((kind, namespace, name))
        if seen is None or written is None:
            return seen
        return max(seen, written.result, key=_version)

    def written_replicas(self, namespace: str, name: str) -> int | None:
        """The replicas of a Deployment when it was last written here; ``None`` before that."""
        written = self._applied.get((DEPLOYMENTS.kind, namespace, name))
        return None if written is None else int(written.result["spec"].get("replicas") or 0)

    async def ensure(self, snapshot: Snapshot, owner_uid: str, body: Object) -> Object:
        """Make the object as it is rendered; nothing is sent when it is so already.

        Raises:
            NameTakenError: the name belongs to an object that is not this owner's.
        """
        meta, kind = body["metadata"], body["kind"]
        place = (kind, meta["namespace"], meta["name"])
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        live = self.live(snapshot, *place) or await self._look(place)
        if live is not None and not _owned(live, owner_uid):
            raise NameTakenError(_taken(place, live, body))
        done = self._applied.get(place)
        if live is not None and done is not None and (digest, _mark(done.result)) == (done.digest, _mark(live)):
            return live
        result = await self._api.apply(CHILD_KINDS[kind], body)
        self._applied[place] = _Applied(digest, result)
        return result

    async def prune(self, snapshot: Snapshot, owner_uid: str, namespace: str, pool: str, keep: set[str]) -> list[str]:
        """Delete the pool's Deployments of variants that are no longer in its spec; answers their names."""
        gone = [
            body
            for (kind, place, name), body in snapshot.children.items()
            if kind == DEPLOYMENTS.kind and place == namespace and name not in keep and _owned(body, owner_uid)
            if body["metadata"].get("labels", {}).get(LABEL_POOL) == pool
            if "deletionTimestamp" not in body["metadata"]
        ]
        for body in gone:
            meta = body["metadata"]
            await self._api.delete(DEPLOYMENTS, namespace, meta["name"], meta["uid"])
            self._applied.pop((DEPLOYMENTS.kind, namespace, meta["name"]), None)
        return [str(body["metadata"]["name"]) for body in gone]

    def forget(self, namespace: str, pool: str) -> None:
        """The pool is gone: its children go by garbage collection."""
        self._applied = {
            place: done for place, done in self._applied.items() if not (place[1] == namespace and _of(done, pool))
        }

    async def _look(self, place: Place) -> Object | None:
        """The object itself: the store shows only what carries our label, and may be a moment behind."""
        kind, namespace, name = place
        try:
            return await self._api.get(CHILD_KINDS[kind], namespace, name)
        except NotFoundError:
            return None


def _owned(body: Object, owner_uid: str) -> bool:
    return any(owner["uid"] == owner_uid for owner in body["metadata"].get("ownerReferences") or ())


def _of(done: _Applied, pool: str) -> bool:
    return any(owner["name"] == pool for owner in done.result["metadata"].get("ownerReferences") or ())


def _version(body: Object) -> int:
    text = str(body["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


def _mark(body: Object) -> str:
    """What changes when somebody edits the object; a Deployment's status alone does not."""
    meta = body["metadata"]
    return str(meta.get("generation") or meta["resourceVersion"])


def _taken(place: Place, live: Object, wanted: Object) -> str:
    kind, namespace, name = place
    owners = live["metadata"].get("ownerReferences") or ()
    own = wanted["metadata"]["ownerReferences"][0]
    if owners and (owners[0]["kind"], owners[0]["name"]) == (own["kind"], own["name"]):
        whose = f"is of a deleted {own['kind']} of the same name"
        return f"{kind} {namespace}/{name} {whose}; this one follows when it is gone."
    whose = f"belongs to {owners[0]['kind']} {owners[0]['name']}" if owners else "was made by somebody else"
    remedy = "Rename the pool or the variant, or delete that object."
    return f"{kind} {namespace}/{name} {whose} and was left as it is. {remedy}"
