"""The operator's HTTP: configuration for routers, probes, metrics. Every replica serves it, leading or not."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fairlead_operator.config_feed import ConfigFeed, Have
from fairlead_operator.tokens import KeysUnavailableError, TokenError, Verifier, bearer
from fairlead_router.contract import AUDIENCE_CONTROL

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60
VERSION_CHARS = 128
WAITING_AT_ONCE = 5000
"""Long polls that one replica keeps open; more routers than that get 503 and ask the other replica."""
WAITING_EACH = 4
"""Of one pod; a router needs one, and one more while it connects anew. Nobody may take the places of all others."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether this replica can answer, and what keeps it."""

    ready: bool
    reasons: tuple[str, ...] = ()


class ConfigServer:
    """The routes and what they need."""

    def __init__(
        self, feed: ConfigFeed, verifier: Verifier, readiness: Callable[[], Readiness], metrics: CollectorRegistry
    ) -> None:
        self._feed = feed
        self._verifier = verifier
        self._readiness = readiness
        self._metrics = metrics
        self._waiting: Counter[str] = Counter()

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/config", self.config),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
            ]
        )

    async def config(self, request: Request) -> Response:
        """``GET /v1/config?have=&endpoints=&wait=``: answers as soon as a part differs from what the router has."""
        try:
            who = await self._verifier.identify(bearer(request.headers.get("authorization", "")), AUDIENCE_CONTROL)
        except TokenError as error:
            return _refusal(401, str(error))
        except KeysUnavailableError as error:
            return _refusal(503, str(error))
        if not self._feed.published.is_set():
            return _refusal(503, "the configuration is not compiled yet: the cluster is still being listed")
        have = Have(_text(request, "have"), _text(request, "endpoints"), f"{who.namespace}/{who.pod}")
        if self._waiting[have.router] >= WAITING_EACH:
            return _refusal(429, f"{WAITING_EACH} requests of {have.router} wait here already; ask one at a time")
        if self._waiting.total() >= WAITING_AT_ONCE:
            return _refusal(503, f"{WAITING_AT_ONCE} routers wait here already")
        self._waiting[have.router] += 1
        try:
            answer = await self._feed.answer(who.namespace, have, _seconds(request))
        finally:
            self._waiting[have.router] -= 1
            self._waiting += Counter()  # drops those that wait no longer
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def healthz(self, _: Request) -> Response:
        """The event loop runs."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        """200 when this replica can serve configuration; else 503 with the reasons."""
        state = self._readiness()
        body = "ok\n" if state.ready and not state.reasons else "".join(f"{reason}\n" for reason in state.reasons)
        return PlainTextResponse(body, status_code=200 if state.ready else 503)

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(self._metrics), media_type=CONTENT_TYPE_LATEST)


async def serve(app: Starlette, host: str, port: int) -> None:
    """Serve until cancelled; then answers in flight have a moment to end."""
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    running = asyncio.ensure_future(server._serve())  # noqa: SLF001 - serve() would take the signals from this process
    try:
        await asyncio.shield(running)
    finally:
        server.should_exit = True
        await asyncio.wait([running], timeout=3)


def _refusal(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status, headers={"Retry-After": "1"} if status >= 500 else {})  # noqa: PLR2004


def _text(request: Request, name: str) -> str:
    return request.query_params.get(name, "")[:VERSION_CHARS]


def _seconds(request: Request) -> float:
    text = request.query_params.get("wait", "0")
    return float(min(int(text), LONGEST_WAIT_S)) if text.isdecimal() and len(text) < 10 else 0.0  # noqa: PLR2004
