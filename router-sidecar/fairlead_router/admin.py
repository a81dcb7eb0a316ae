"""Port 9090: metrics, readiness, the configuration in use, signals for the operator, and the engine's health."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fairlead_router.answers import Refusal, answer
from fairlead_router.app import Router
from fairlead_router.config import Configuration
from fairlead_router.contract import AUDIENCE_SIGNALS
from fairlead_router.identity import Verifier
from fairlead_router.server import Client, Head, Request

OPERATOR: Final = "fairlead-operator"


class Admin:
    """Answers the admin port. Everything but signals is open: it names no tenant's prompts, keys or tokens."""

    def __init__(
        self,
        router: Router,
        configuration: Configuration,
        verifier: Verifier,
        registry: CollectorRegistry,
        started: float,
    ) -> None:
        self._router = router
        self._configuration = configuration
        self._verifier = verifier
        self._registry = registry
        self._started = started
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = 0
        self._paths: dict[bytes, Callable[[Request], Awaitable[bytes]]] = {
            b"/metrics": self._metrics,
            b"/-/ready": self._ready,
            b"/-/config": self._config,
            b"/-/signals": self._signals,
            b"/-/engine/health": self._engine_health,
            b"/-/engine/ready": self._engine_ready,
        }

    def judge(self, head: Head) -> Refusal | None:
        """Only GET, only what exists, without a body."""
        head.path = head.path.partition(b"?")[0]
        if head.method != b"GET" or head.path not in self._paths:
            return Refusal(
                404,
                "unknown_url",
                "The admin port has /metrics and /-/ready, config, signals, engine/health, engine/ready.",
            )
        return None

    def too_large(self, head: Head) -> Refusal:
        """Nothing here takes a body."""
        del head
        return Refusal(413, "body_too_large", "The admin port takes no bodies. Ask without one.")

    def holds(self, head: Head, now: float) -> bool:
        """Every head is looked at."""
        del head, now
        return False

    def start(self, client: Client, request: Request) -> None:
        """Answer in a task of its own: this port is not on a request's way."""
        task = asyncio.get_running_loop().create_task(self._answer(client, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def new_request_id(self) -> bytes:
        """An id."""
        self._ids += 1
        return b"admin-%x" % self._ids

    async def _answer(self, client: Client, request: Request) -> None:
        client.send(await self._paths[request.head.path](request))

    async def _metrics(self, request: Request) -> bytes:
        del request
        parts = [generate_latest(self._registry)]
        for part in self._router.telemetry.render():
            parts.append(part)
            await asyncio.sleep(0)  # requests go on between two metrics
        return answer(200, b"".join(parts), media=CONTENT_TYPE_LATEST)

    async def _ready(self, request: Request) -> bytes:
        del request
        if not self._router.configured:
            return answer(503, b"no configuration yet\n", media="text/plain")
        if self._router.draining:
            return answer(503, b"draining\n", media="text/plain")
        return answer(200, b"ready\n", media="text/plain")

    async def _config(self, request: Request) -> bytes:
        del request
        used = {"version": self._configuration.version, "endpointsVersion": self._configuration.endpoints_version}
        return answer(200, msgspec.json.encode(used))

    async def _signals(self, request: Request) -> bytes:
        token = request.head.headers.get(b"authorization", b"").removeprefix(b"Bearer ").decode("latin-1")
        identity = self._verifier.verify(token, AUDIENCE_SIGNALS)
        release = self._router.index.config.release_namespace
        if identity is None or identity.subject != f"system:serviceaccount:{release}:{OPERATOR}":
            return answer(401, b'{"error":"only the operator reads signals"}')
        versions = (self._configuration.version, self._configuration.endpoints_version)
        uptime = int(self._router.now() - self._started)
        return answer(200, msgspec.json.encode(self._router.signals(identity.pod or identity.name, versions, uptime)))

    async def _engine_health(self, request: Request) -> bytes:
        del request
        if not self._router.place.engine:
            return answer(404, b"a gateway has no engine\n", media="text/plain")
        try:
            reply = await self._router.engine_watch.health()
        except (OSError, TimeoutError) as error:
            return answer(503, f"{error}\n".encode(), media="text/plain")
        return answer(reply.status, reply.body, media="text/plain")

    async def _engine_ready(self, request: Request) -> bytes:
        """Well, and warm since its last start."""
        trouble = self._router.engine_watch.trouble()
        if self._router.place.engine and trouble:
            return answer(503, f"{trouble}\n".encode(), media="text/plain")
        return await self._engine_health(request)
