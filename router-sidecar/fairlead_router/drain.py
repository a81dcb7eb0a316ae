"""The drain socket: the engine's preStop hook connects, and hears when nothing is in flight any more."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fairlead_router.contract import DrainReport

_POLL_S: Final = 0.05
_ENGINE_POLL_S: Final = 0.5


class Drain:
    """Drains on the first connection. ``begin`` stops new requests, ``running`` counts those at the engine.

    The kubelet also runs the hook before it restarts an engine whose liveness failed. The pod then stays, so once the
    engine was ``dead`` and another is ``ready``, ``end`` takes requests anew. ``report`` is told how a drain went, and
    ``None`` once the pod stays after all.
    """

    def __init__(
        self,
        *,
        begin: Callable[[], None],
        end: Callable[[], None],
        running: Callable[[], int],
        dead: Callable[[], Awaitable[bool]],
        ready: Callable[[], Awaitable[bool]],
        timeout_s: float,
        now: Callable[[], float],
        report: Callable[[DrainReport | None], None],
    ) -> None:
        self._begin = begin
        self._end = end
        self._running = running
        self._dead = dead
        self._ready = ready
        self._timeout_s = timeout_s
        self._now = now
        self._report = report
        self._first: tuple[float, int] | None = None
        """When this drain began, and how many requests the engine ran then: the kubelet may repeat its hook."""

    async def listen(self, path: str) -> asyncio.Server:
        """Serve the socket; a stale one of an earlier process is removed."""
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(Path(path).unlink)
        return await asyncio.start_unix_server(self._drain, path)

    async def _drain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer ``drained N``: how many requests ended while we waited; those cut are the rest."""
        del reader
        self._begin()
        self._first = self._first or (self._now(), self._running())
        began, before = self._first
        deadline = self._now() + self._timeout_s
        while self._running() > 0 and self._now() < deadline:  # noqa: ASYNC110 - as in main
            await asyncio.sleep(_POLL_S)
        left = min(self._running(), before)
        if left or not await self._dead():  # an engine that died has cut what it ran
            took = round(self._now() - began, 3)
            self._report(DrainReport(requests=before, left=left, took_s=took, timeout_s=self._timeout_s))
        with contextlib.suppress(OSError):
            writer.write(f"drained {before - left}\n".encode())
            await writer.drain()
        writer.close()
        for happened in (self._dead, self._ready):
            while not await happened():  # noqa: ASYNC110 - nobody tells us of the engine
                await asyncio.sleep(_ENGINE_POLL_S)
        self._first = None
        self._report(None)
        self._end()
