"""An API server for faults that a real one cannot be made to show: gaps, cut watches, conflicts, slowness, overload.

It keeps versions, optimistic locking, label selectors, pages, bookmarks and server-side apply as a merge, and gives
each template of a Deployment its ReplicaSet. What it says is held to the real one by tests/builders/api_contract.py,
which both must pass.
"""

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Object = dict[str, Any]
Place = tuple[str, str, str]

CLUSTER_WIDE = frozenset({"namespaces", "nodes"})


@dataclass
class Fault:
    """Answer the next ``times`` requests that match with a status, after a delay, instead of what is true."""

    method: str
    path: str
    status: int = 0
    times: int = 1
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    def fits(self, request: web.Request) -> bool:
        return self.times > 0 and self.method == request.method and self.path in request.path_qs


@dataclass(frozen=True)
class Change:
    """One entry of the server's history."""

    version: int
    type: str
    plural: str
    body: Object


class FakeApiServer:
    """Objects, their history, and who watches."""

    def __init__(self) -> None:
        self.url = ""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._objects: dict[Place, Object] = {}
        self._applied: dict[Place, Object] = {}
        self._history: list[Change] = []
        self._version = 100
        self._compacted = 0
        self._news = asyncio.Condition()
        self._cut = 0

    # --- what a test does to the cluster

    async def put(self, plural: str, body: Object) -> Object:
        """Create or replace an object behind everybody's back."""
        place = (plural, body["metadata"].get("namespace", ""), body["metadata"]["name"])
        return await self._store(place, copy.deepcopy(body))

    async def remove(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object."""
        body = self._objects.pop((plural, namespace, name))
        await self._record("DELETED", plural, body)

    def compact(self) -> None:
        """Forget the history: who watches from before now gets 410."""
        self._compacted = self._version

    async def cut_watches(self) -> None:
        """End every watch that is open."""
        self._cut += 1
        async with self._news:
            self._news.notify_all()

    async def bookmark(self, plural: str) -> None:
        """Send the present version to who watches."""
        self._version += 1
        await self._tell(
            Change(self._version, "BOOKMARK", plural, {"metadata": {"resourceVersion": str(self._version)}})
        )

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        """The object as it is."""
        return self._objects.get((plural, namespace, name))

    def count(self, method: str, part: str) -> int:
        """How many requests of a method had this in their path."""
        return sum(one == method and part in path for one, path in self.requests)

    # --- the server

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeApiServer"]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            await self.cut_watches()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        for fault in self.faults:
            if fault.fits(request):
                fault.times -= 1
                await asyncio.sleep(fault.delay_s)
                if fault.status:
                    return _status(fault.status, "a fault was asked for", fault.headers)
        plural, namespace, name, subresource = _parse(request.path)
        if request.method == "GET" and not name:
            listing = self._watch if request.query.get("watch") else self._list
            return await listing(request, plural, namespace)
        verbs: dict[str, Callable[..., Any]] = {
            "GET": self._get,
            "POST": self._create,
            "PUT": self._replace,
            "PATCH": self._merge if "merge-patch" in request.content_type else self._apply,
            "DELETE": self._delete,
        }
        body = await request.json() if request.can_read_body else {}
        answer: web.StreamResponse = await verbs[request.method]((plural, namespace, name), subresource, body)
        return answer

    async def _list(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        items = [copy.deepcopy(body) for place, body in sorted(self._objects.items()) if _in(place, plural, namespace)]
        items = [item for item in items if _selected(item, request.query.get("labelSelector", ""))]
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or len(items) + 1)
        meta = {"resourceVersion": str(self._version)}
        if start + limit < len(items):
            meta["continue"] = str(start + limit)
        return web.json_response({"metadata": meta, "items": items[start : start + limit]})

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        seen, cut = int(request.query["resourceVersion"]), self._cut
        if seen < self._compacted:
            await response.write(_line("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"}))
            return response
        while cut == self._cut:
            for change in [one for one in self._history if one.version > seen]:
                seen = change.version
                if _watched(change, plural, namespace, request.query.get("labelSelector", "")):
                    await response.write(_line(change.type, change.body))
            async with self._news:
                if self._version <= seen and cut == self._cut:
                    await self._news.wait()
        return response

    async def _get(self, place: Place, _subresource: str, _body: Object) -> web.StreamResponse:
        body = self._objects.get(place)
        return _status(404, f"{place[0]} {place[2]} not found") if body is None else web.json_response(body)

    async def _create(self, place: Place, subresource: str, body: Object) -> web.StreamResponse:
        if subresource == "token":
            audience = body["spec"]["audiences"][0]
            return web.json_response({"status": {"token": f"token-for-{audience}"}}, status=201)
        place = (place[0], place[1], body["metadata"]["name"])
        if place in self._objects:
            return _status(409, f"{place[2]} already exists")
        return web.json_response(await self._store(place, body), status=201)

    async def _replace(self, place: Place, _subresource: str, body: Object) -> web.StreamResponse:
        old = self._objects.get(place)
        if old is None:
            return _status(404, f"{place[2]} not found")
        if body["metadata"].get("resourceVersion", "") not in {"", old["metadata"]["resourceVersion"]}:
            return _status(409, "the object has been modified; apply your changes to the latest version")
        return web.json_response(await self._store(place, body))

    async def _merge(self, place: Place, _subresource: str, body: Object) -> web.StreamResponse:
        """JSON merge patch: ``null`` takes a member away."""
        old = self._objects.get(place)
        if old is None:
            return _status(404, f"{place[2]} not found")
        return web.json_response(await self._store(place, _merge_patched(old, body)))

    async def _apply(self, place: Place, subresource: str, body: Object) -> web.StreamResponse:
        old = self._objects.get(place)
        if old is None and subresource:
            return _status(404, f"{place[2]} not found")
        uid = body["metadata"].get("uid")
        if uid and old is not None and uid != old["metadata"]["uid"]:
            return _status(409, "Precondition failed: UID in precondition does not match")
        if subresource == "status" and old is not None:
            new = {**old, "status": body.get("status", {})}
        else:
            body = {key: value for key, value in body.items() if key != "status"}
            new = _merged(_without_dropped(old or {}, self._applied.get(place, {}), body), body)
            self._applied[place] = copy.deepcopy(body)
        if old is not None and _bare(new) == _bare(old):
            return web.json_response(old)
        stored = await self._store(place, new)
        if place[0] == "deployments":
            await self._keep_template(stored)
        return web.json_response(stored)

    async def _keep_template(self, deployment: Object) -> None:
        """What the Deployment controller does: it looks, and the ReplicaSet of the template gets the annotations."""
        deployment.setdefault("status", {})["observedGeneration"] = deployment["metadata"]["generation"]
        meta, template = deployment["metadata"], deployment["spec"].get("template") or {}
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        place = ("replicasets", meta.get("namespace", ""), f"{meta['name']}-{digest}")
        labels = {**((template.get("metadata") or {}).get("labels") or {}), "pod-template-hash": digest}
        old = self._objects.get(place, {"metadata": {}})
        notes = {**(old["metadata"].get("annotations") or {}), **(meta.get("annotations") or {})}
        await self._store(place, {**old, "metadata": {**old["metadata"], "labels": labels, "annotations": notes}})

    async def _delete(self, place: Place, _subresource: str, body: Object) -> web.StreamResponse:
        old = self._objects.get(place)
        if old is None:
            return _status(404, f"{place[2]} not found")
        wanted = body.get("preconditions", {}).get("uid", old["metadata"]["uid"])
        if wanted != old["metadata"]["uid"]:
            return _status(409, "Precondition failed: UID in precondition does not match")
        await self.remove(*place)
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _store(self, place: Place, body: Object) -> Object:
        old = self._objects.get(place)
        meta = {**body["metadata"], "name": place[2]}
        if place[1]:
            meta["namespace"] = place[1]
        before = (old or {}).get("metadata", {})
        meta["uid"] = before.get("uid") or meta.get("uid") or f"uid-{self._version + 1}"
        meta.setdefault("creationTimestamp", "2026-11-20T11:00:00Z")
        changed = old is None or old.get("spec") != body.get("spec")
        meta["generation"] = int(before.get("generation", 0)) + changed
        self._version += 1
        meta["resourceVersion"] = str(self._version)
        stored = {**body, "metadata": meta}
        self._objects[place] = stored
        await self._tell(Change(self._version, "ADDED" if old is None else "MODIFIED", place[0], copy.deepcopy(stored)))
        return stored

    async def _record(self, kind: str, plural: str, body: Object) -> None:
        self._version += 1
        gone = copy.deepcopy(body)
        gone["metadata"]["resourceVersion"] = str(self._version)
        await self._tell(Change(self._version, kind, plural, gone))

    async def _tell(self, change: Change) -> None:
        self._history.append(change)
        async with self._news:
            self._news.notify_all()


def _parse(path: str) -> tuple[str, str, str, str]:
    """(plural, namespace, name, subresource) of a path of the API."""
    parts = path.strip("/").split("/")
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource, *_ = [*rest, "", ""]
    return plural, namespace, name, subresource


def _in(place: Place, plural: str, namespace: str) -> bool:
    return place[0] == plural and (not namespace or plural in CLUSTER_WIDE or place[1] == namespace)


def _selected(body: Object, selector: str) -> bool:
    labels = body["metadata"].get("labels") or {}
    pairs = [part.partition("=") for part in selector.split(",") if part]
    return all(labels.get(key) == value for key, _, value in pairs)


def _watched(change: Change, plural: str, namespace: str, selector: str) -> bool:
    if change.plural != plural:
        return False
    if change.type == "BOOKMARK":
        return True
    inside = not namespace or change.body["metadata"].get("namespace") == namespace
    return inside and _selected(change.body, selector)


def _merged(old: Object, new: Object) -> Object:
    """Deep merge: the part of server-side apply that these tests need."""
    merged = copy.deepcopy(old)
    for key, value in new.items():
        merged[key] = _merged(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
    return merged


def _merge_patched(old: Object, patch: Object) -> Object:
    merged = {key: value for key, value in old.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, dict):
            merged[key] = _merge_patched(merged[key] if isinstance(merged.get(key), dict) else {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _without_dropped(old: Object, last: Object, new: Object) -> Object:
    """What is left when the fields go that were applied the last time and are not any more."""
    kept = {}
    for key, value in old.items():
        if isinstance(value, dict) and isinstance(last.get(key), dict):
            kept[key] = _without_dropped(value, last[key], new[key] if isinstance(new.get(key), dict) else {})
        elif key not in last or key in new:
            kept[key] = value
    return kept


def _bare(body: Object) -> Object:
    changing = {"resourceVersion", "generation"}
    return {**body, "metadata": {key: value for key, value in body["metadata"].items() if key not in changing}}


def _line(kind: str, body: Object) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def _status(code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    return web.json_response(body, status=code, headers=headers)
