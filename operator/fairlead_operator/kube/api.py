"""The API server's verbs over one aiohttp session: time-outs on every call, errors as one tree.

Objects are plain dicts: what they mean is read where they are used. ``force`` is set on every apply, because the
operator is the owner of what it renders; who else writes those fields loses, and shows up as a condition.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from fairlead_operator.errors import ApiError, GoneError, UnreachableError, api_error
from fairlead_operator.kube.resources import FIELD_MANAGER, PODS, SERVICE_ACCOUNTS, Resource

Object = dict[str, Any]

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
WATCH_SECONDS = 290
"""The server ends a watch first; QUIET_SECONDS without a byte, bookmarks included, mean that the line is dead."""
QUIET_SECONDS = 120
PAGE = 500
GONE = 410
LOG_LIMIT = 256 * 1024
LINE_LIMIT = 8 * 1024 * 1024
"""etcd takes 1.5 MiB an object; more than this in one line of a watch is not an object."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a list, and the version to watch from."""

    items: list[Object]
    version: str


@dataclass(frozen=True, slots=True)
class _Call:
    """One HTTP call, and how errors name it."""

    method: str
    path: str
    verb: str
    what: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Object | None
    limit: aiohttp.ClientTimeout


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Object


class Api:
    """One API server."""

    def __init__(self, session: aiohttp.ClientSession, server: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._session = session
        self._server = server
        self._timeout_s = timeout_s

    async def list(self, resource: Resource, *, namespace: str = "", labels: str = "") -> Listing:
        """Every object, read in pages. A page that expires (410) is raised as GoneError: start over."""
        items: list[Object] = []
        query = {"limit": str(PAGE), **({"labelSelector": labels} if labels else {})}
        while True:
            page = await self.request("GET", resource.path(namespace), query=query, what=resource.title, verb="list")
            items += page.get("items") or []
            meta = page.get("metadata", {})
            if not meta.get("continue"):
                return Listing(items, meta.get("resourceVersion", ""))
            query["continue"] = meta["continue"]

    async def watch(
        self, resource: Resource, version: str, *, namespace: str = "", labels: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after ``version`` until the server ends the watch; GoneError means: list again."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
            **({"labelSelector": labels} if labels else {}),
        }
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=QUIET_SECONDS)
        call = _Call("GET", resource.path(namespace), "watch", resource.title, query, {}, None, patience)
        async with self._send(call) as r:
            async for line in _lines(r):
                yield _event(line, resource)

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """One object."""
        return await self.request("GET", resource.path(namespace, name), what=_what(resource, namespace, name))

    async def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Create; ConflictError if the name is taken."""
        path, what = resource.path(namespace), _what(resource, namespace)
        return await self.request("POST", path, body=body, what=what, verb="create")

    async def replace(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Write the whole object; ConflictError if its resourceVersion is not the newest."""
        path, what = resource.path(namespace, name), _what(resource, namespace, name)
        return await self.request("PUT", path, body=body, what=what, verb="update")

    async def apply(self, resource: Resource, body: Object, *, dry_run: bool = False, status: bool = False) -> Object:
        """Server-side apply of the fields in ``body``; with ``status`` of the status subresource."""
        meta = body["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        path = resource.path(namespace, name, "status" if status else "")
        what = _what(resource, namespace, name) + ("/status" if status else "")
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return await self.request("PATCH", path, query=query, body=body, headers=headers, what=what, verb="patch")

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete this very object; its children go after it."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        path, what = resource.path(namespace, name), _what(resource, namespace, name)
        await self.request("DELETE", path, body=body, what=what, verb="delete")

    async def log(self, namespace: str, pod: str, container: str, *, lines: int, seconds: float) -> str:
        """The last lines of what a container wrote before it ended last; it must have been started again or wait to be.

        A kubelet that does not answer within ``seconds`` is UnreachableError.
        """
        query = {"container": container, "previous": "true", "tailLines": str(lines), "limitBytes": str(LOG_LIMIT)}
        limit = aiohttp.ClientTimeout(total=seconds)
        call = _Call("GET", PODS.path(namespace, pod, "log"), "get", f"{namespace}/{pod}/log", query, {}, None, limit)
        async with self._send(call) as response:
            return (await response.read()).decode("utf-8", "replace")

    async def request_token(self, namespace: str, account: str, audience: str, seconds: int) -> str:
        """A token of a ServiceAccount for one audience."""
        body = {"spec": {"audiences": [audience], "expirationSeconds": seconds}}
        path = SERVICE_ACCOUNTS.path(namespace, account, "token")
        answer = await self.request("POST", path, body=body, what=f"{namespace}/{account}/token", verb="create")
        return str(answer["status"]["token"])

    async def request(
        self,
        method: str,
        path: str,
        *,
        what: str,
        verb: str = "get",
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        """One call with its answer as JSON."""
        limit = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        call = _Call(method, path, verb, what, query or {}, headers or {}, body, limit)
        async with self._send(call) as response:
            return _decoded(await response.read(), verb, what)

    @asynccontextmanager
    async def _send(self, call: _Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send, translate what goes wrong, and close."""
        data = None if call.body is None else json.dumps(call.body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json, */*;q=0.5", **call.headers}
        try:
            async with self._session.request(
                call.method, self._server + call.path, params=call.query, data=data, headers=headers, timeout=call.limit
            ) as response:
                if response.status >= 400:  # noqa: PLR2004 - HTTP's own border
                    raise await _refusal(response, call.verb, call.what)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            message = f"no answer from {self._server} ({type(error).__name__} {error})"
            raise UnreachableError(0, call.verb, call.what, message) from error


def _what(resource: Resource, namespace: str, name: str = "") -> str:
    place = "/".join(part for part in (namespace, name) if part)
    return f"{resource.title} {place}".strip()


async def _refusal(response: aiohttp.ClientResponse, verb: str, what: str) -> ApiError:
    """The error of an answer; the server's own sentence if there is one."""
    text = (await response.read()).decode(errors="replace")
    try:
        message = str(json.loads(text).get("message") or text)
    except (ValueError, AttributeError):
        message = text
    after = response.headers.get("Retry-After", "")
    return api_error(response.status, verb, what, message[:1000], float(after) if after.isdecimal() else 0.0)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of a stream of any length up to LINE_LIMIT; a torn last line is dropped."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_LIMIT:
            raise UnreachableError(0, "watch", str(response.url.path), f"a line of more than {LINE_LIMIT} bytes")
        for line in lines:
            if line:
                yield line


def _decoded(text: bytes, verb: str, what: str) -> Object:
    try:
        answer: Object = json.loads(text)
    except ValueError as error:
        raise UnreachableError(0, verb, what, f"the answer is not JSON: {error}") from error
    return answer


def _event(line: bytes, resource: Resource) -> WatchEvent:
    data = _decoded(line, "watch", resource.title)
    if data["type"] == "ERROR":
        status = data["object"]
        if status.get("code") == GONE:
            raise GoneError(GONE, "watch", resource.title, str(status.get("message", "")))
        raise api_error(int(status.get("code", 500)), "watch", resource.title, str(status.get("message", "")))
    return WatchEvent(data["type"], data["object"])
