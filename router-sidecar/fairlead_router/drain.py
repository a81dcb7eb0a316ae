"""The drain socket: the engine's preStop hook connects, and hears when nothing is in flight any more."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.05
_ENGINE_POLL_S: Final = 0.5


class Drain:
    """Drains on the first connection. ``begin`` stops new requests, ``running`` counts those at the engine.

    The kubelet also runs the hook before it restarts an engine whose liveness failed. The pod then stays, so once the
    engine is ``alive`` again after it was gone, ``end`` takes requests anew.
    """

    def __init__(
        self,
        *,
        begin: Callable[[], None],
        end: Callable[[], None],
        running: Callable[[], int],
        alive: Callable[[], Awaitable[bool]],
        timeout_s: float,
        now: Callable[[], float],
    ) -> None:
        self._begin = begin
        self._end = end
        self._running = running
        self._alive = alive
        self._timeout_s = timeout_s
        self._now = now

    async def listen(self, path: str) -> asyncio.Server:
        """Serve the socket; a stale one of an earlier process is removed."""
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(Path(path).unlink)
        return await asyncio.start_unix_server(self._drain, path)

    async def _drain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer ``drained N``: how many requests ended while we waited; those cut are the rest."""
        del reader
        self._begin()
        before = self._running()
        deadline = self._now() + self._timeout_s
        while self._running() > 0 and self._now() < deadline:  # noqa: ASYNC110 - as in main
            await asyncio.sleep(_POLL_S)
        with contextlib.suppress(OSError):
            writer.write(f"drained {before - self._running()}\n".encode())
            await writer.drain()
        writer.close()
        for wanted in (False, True):
            while await self._alive() is not wanted:  # noqa: ASYNC110 - nobody tells us of the engine
                await asyncio.sleep(_ENGINE_POLL_S)
        self._end()
