"""Whether this pod's engine may take requests: it is well, its adapters were tried, and it answered a request sanely.

All of that is of one start of the engine. A start is known by the socket that it made: a restarted engine has another
one, and everything begins anew. The warm-up is nobody's request: no caller is charged, nothing counts it. When only the
router was restarted, it meets an engine that has nothing else to do, as all requests came through the router.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Final

import msgspec

from fairlead_router.adapters import Adapters
from fairlead_router.contract import AdapterConfig
from fairlead_router.upstream import Pool, Reply, fetch, request_head
from fairlead_router.warm_up import COMPLETIONS, POOLING, question, trouble

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""Between two looks at the socket, and at an engine that is not ready."""
LIST_S: Final = 10.0
"""Between two looks at the adapters of one that is."""
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0
"""After a warm-up that failed: it may cost an engine much, and the probe decides when to give up."""
HEALTH_S: Final = 5.0
WARM_UP_S: Final = 60.0
WARM_UP_ID: Final = "fairlead-warm-up"
_OK: Final = 200
_NOT_FOUND: Final = 404
_NO_SOCKET: Final = "the engine has not opened its socket yet"

Born = tuple[int, int]
"""What tells one start of an engine from another: inode and time of its socket."""


class _Model(msgspec.Struct):
    id: str = ""
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


_models: Final = msgspec.json.Decoder(_Models)


def born(path: str) -> Born | None:
    """The start that the socket is of; ``None``: there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a pod's tmpfs: it takes microseconds
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


class EngineWatch:
    """Looks after the engine behind a socket; without a path there is none. ``pool`` gives the connections to it."""

    def __init__(self, path: str, pool: Callable[[], Pool], now: Callable[[], float]) -> None:
        self.max_context_tokens = 0
        """What the engine reports; it stays when the engine is started anew. 0 = unknown."""
        self.adapters = Adapters(pool, now)
        self._path = path
        self._pool = pool
        self._now = now
        self._born: Born | None = None
        self._warm = False
        self._trouble = _NO_SOCKET
        self._failures = 0
        self._due = 0.0
        self._kick = asyncio.Event()

    def want(self, adapters: tuple[AdapterConfig, ...]) -> None:
        """The configuration names these adapters."""
        self.adapters.want(adapters)
        self._due = 0.0
        self._kick.set()

    def trouble(self) -> str:
        """Why the engine may not take requests yet; empty when it may."""
        if not self._path:
            return ""
        now = born(self._path)
        if now is None:
            return _NO_SOCKET
        return "the engine was just started" if now != self._born else self._trouble

    async def health(self) -> Reply:
        """What the engine says of itself. Raises OSError or TimeoutError."""
        return await self._get("/health")

    async def ready(self) -> bool:
        """Whether it may take requests, and says that it is well."""
        if self.trouble():
            return False
        try:
            return (await self.health()).status == _OK
        except (OSError, TimeoutError):
            return False

    async def dead(self) -> bool:
        """Whether it is gone or says that it is not well; one that does not answer in time may only be busy."""
        try:
            return (await self.health()).status != _OK
        except TimeoutError:
            return False
        except OSError:
            return True

    async def follow(self) -> None:
        """Look after it until cancelled."""
        while True:
            try:
                await self._look()
            except (OSError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError) as error:
                self._not_ready(f"the engine does not answer: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._kick.wait()
            self._kick.clear()

    async def _look(self) -> None:
        now = born(self._path)
        if now != self._born:
            self._begin(now)
        if now is None or self._now() < self._due:
            return
        if not self._warm:
            health = await self.health()
            if health.status != _OK:
                self._not_ready(f"the engine's health is {health.status}")
                return
        if not self._warm or self.adapters.concerned():
            model = await self._read_models()
            await self.adapters.catch_up()
            if not self._warm:
                await self._warm_up(model)
        if self._warm:
            self._due = self._now() + LIST_S

    def _begin(self, now: Born | None) -> None:
        """Another start, or none."""
        self._born, self._warm, self._failures, self._due = now, False, 0, 0.0
        self._trouble = _NO_SOCKET if now is None else "the engine was just started"
        self.adapters.forget()

    async def _read_models(self) -> str:
        """Take what the engine lists; returns its own name for the bare model."""
        models = _models.decode((await self._get("/v1/models")).body).data
        self.adapters.told({model.id: model.root or "" for model in models if model.parent is not None})
        bare = [model for model in models if model.parent is None]
        told = max((model.max_model_len or 0 for model in bare), default=0)
        self.max_context_tokens = told or self.max_context_tokens
        return bare[0].id if bare else ""

    async def _warm_up(self, model: str) -> None:
        try:
            found = await self._answered(model)
        except TimeoutError:
            found = f"the warm-up was not answered within {WARM_UP_S:.0f}s"
        if not found:
            self._warm, self._trouble = True, ""
            log.info("engine ready", extra={"event": "EngineReady", "model": model})
            return
        self._due = self._now() + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self._not_ready(found)

    async def _answered(self, model: str) -> str:
        """What is wrong with the answer to the warm-up."""
        reply, path = await self._ask(COMPLETIONS, model), COMPLETIONS
        if reply.status == _NOT_FOUND:  # it generates nothing
            reply, path = await self._ask(POOLING, model), POOLING
        return trouble(reply.status, reply.body, path)

    def _not_ready(self, reason: str) -> None:
        """Say it once. A ready engine that does not answer stays ready: its probes and its requests decide."""
        if not self._warm and reason != self._trouble:
            self._trouble = reason
            log.warning("engine not ready: %s", reason, extra={"event": "EngineNotReady"})

    async def _ask(self, path: str, model: str) -> Reply:
        body = question(model, path)
        headers = (("content-type", "application/json"), ("x-request-id", WARM_UP_ID))
        return await fetch(self._pool(), request_head("POST", path, "engine", headers, len(body)), body, WARM_UP_S)

    async def _get(self, path: str) -> Reply:
        return await fetch(self._pool(), request_head("GET", path, "engine", (), 0), b"", HEALTH_S)
