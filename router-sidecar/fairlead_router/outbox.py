"""What is written in one turn of the event loop leaves together at its end, while there is much to write.

A write that wakes its receiver costs several times one whose receiver is awake, so under load writes in a row are
cheaper than the same writes spread over a turn. With few writes in a turn there is nothing to gain, and putting them
off costs a turn more: then they leave at once, and now and then it is tried whether that is still so.
"""

import asyncio
from typing import Final

LARGEST: Final = 64 * 1024
"""Bytes from which on a write is neither copied nor put off, so that its receiver's slowness shows at once."""
FEW: Final = 2
"""Writes in a turn that are not worth putting off."""
_CALM_TURNS: Final = 4
_AT_ONCE: Final = 256
"""Writes that leave at once after some calm turns: so many that trying anew stays out of the 99th percentile."""


class Outbox:
    """The writes of one event loop's turn."""

    __slots__ = ("_at_once", "_calm", "_loop", "_pending")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[asyncio.Transport, bytes] = {}
        self._calm = 0
        self._at_once = 0

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send these bytes in this turn or when it ends, after those that the connection was given before."""
        pending = self._pending
        if transport in pending or len(data) >= LARGEST or self._at_once <= 0:
            self.hold(transport, data)
        else:
            self._at_once -= 1
            transport.write(data)

    def hold(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send these bytes when the turn ends: more will follow at once, as a body follows its head."""
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
        self._calm = self._calm + 1 if len(pending) <= FEW else 0
        if self._calm >= _CALM_TURNS:
            self._at_once = _AT_ONCE
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
