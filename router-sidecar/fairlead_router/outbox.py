"""What is written in one turn of the event loop leaves together at its end, one write for each connection.

A write that wakes its receiver costs several times one whose receiver is awake, so writes in a row are cheaper than the
same writes spread over a turn; and the head of an answer leaves with the first bytes of its body.
"""

import asyncio
from typing import Final

LARGEST: Final = 64 * 1024
"""Bytes from which on a write is neither copied nor put off, so that its receiver's slowness shows at once."""


class Outbox:
    """The writes of one event loop's turn."""

    __slots__ = ("_loop", "_pending")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[asyncio.Transport, bytes] = {}

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send these bytes when the turn ends, after those that the connection was given before."""
        pending = self._pending
        if len(data) >= LARGEST:
            transport.write(pending.pop(transport, b""))
            transport.write(data)
            return
        if transport in pending:
            pending[transport] += data
            return
        if not pending:
            self._wake()
        pending[transport] = data

    def flush(self) -> None:
        """Send now: a connection is about to be closed, or the turn ends."""
        pending, self._pending = self._pending, {}
        for transport, data in pending.items():
            if not transport.is_closing():
                transport.write(data)

    def forget(self, transport: asyncio.Transport) -> None:
        """The connection is broken off: nothing more is sent."""
        self._pending.pop(transport, None)

    def _wake(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self.flush)
