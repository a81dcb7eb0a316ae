"""The network between a router and the ledger: late, repeated, lost or cut, as a seed says."""

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_SESSION: Final = re.compile(rb'"session":"([^"]{1,64})"')
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_BROKEN: Final = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
_LATEST_S: Final = 10.0
_ANSWER_S: Final = 20.0
_SLOW_S: Final = 0.3
_DELAY_S: Final = 0.4
_LIMIT: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Odds:
    """How often one message meets each kind of trouble, in the bad times of the network and in the good ones.

    Good and bad times alternate; both are of random length, with these means in seconds.
    """

    good_s: float = 20.0
    bad_s: float = 3.0
    delayed: float = 0.3
    repeated: float = 0.2
    repeated_late: float = 0.1
    request_lost: float = 0.1
    answer_lost: float = 0.1
    repeated_in_good: float = 0.02


@dataclass(slots=True)
class Proxy:
    """One router's way to the ledger. While ``cut``, nothing passes in either direction.

    ``sessions`` are those that were ever named on the way, ``latest`` the one that spoke last for itself; ``fates``
    counts what happened to messages. ``slow`` is told from when until when the router heard nothing, if that was long.
    """

    ledgers: tuple[int, ...]
    pick: random.Random
    odds: Odds
    slow: Callable[[float, float], None]
    cut: bool = False
    sessions: set[str] = field(default_factory=set)
    latest: str = ""
    fates: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    """Seconds of each answer of a ledger."""
    _bad: bool = True
    _turns_at: float = 0.0
    _unheard: float = 0.0
    _late: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def listen(self) -> str:
        """The URL that the router is given."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_LIMIT)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Stop."""
        for task in self._late:
            task.cancel()
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*_BROKEN, asyncio.CancelledError):
            while True:
                message = await read_message(reader)
                self._unheard = self._unheard or time.time()
                answer = await self._carry(message)
                if answer is None:
                    break
                self.heard()
                writer.write(answer)
                await writer.drain()
        writer.transport.abort()

    async def _carry(self, message: bytes) -> bytes | None:
        """The answer to a message; nothing if it or its answer got lost."""
        named = _SESSION.search(message)
        if named is not None:
            self.sessions.add(named[1].decode())
            if b'"replay":true' not in message:
                self.latest = named[1].decode()
        pick, odds, bad = self.pick, self.odds, self._is_bad()
        if bad and pick.random() < odds.delayed:
            self.fates["delayed"] += 1
            await asyncio.sleep(pick.expovariate(1 / _DELAY_S))
        if self._loses(odds.request_lost if bad else 0.0):
            self.fates["request lost"] += 1
            return None
        answer = await self._deliver(message, bad=bad)
        if self._loses(odds.answer_lost if bad else 0.0):
            self.fates["answer lost"] += 1
            return None
        self.fates["passed"] += 1
        return answer

    async def _deliver(self, message: bytes, *, bad: bool) -> bytes:
        """Once, twice at once, or once now and once later."""
        pick, odds = self.pick, self.odds
        if pick.random() < (odds.repeated_late if bad else odds.repeated_in_good):
            self._later(message)
        if pick.random() < (odds.repeated if bad else odds.repeated_in_good):
            self.fates["repeated"] += 1
            await self._ask(message)
        return await self._ask(message)

    def _loses(self, share: float) -> bool:
        return self.cut or self.pick.random() < share

    def _is_bad(self) -> bool:
        now = time.monotonic()
        while now >= self._turns_at:
            self._bad = not self._bad
            mean = self.odds.bad_s if self._bad else self.odds.good_s
            self._turns_at = max(now - mean, self._turns_at) + self.pick.expovariate(1 / mean)
        return self._bad

    def heard(self) -> None:
        """The router is answered, or dead: what it heard nothing of is over."""
        begun, self._unheard = self._unheard, 0.0
        if begun and time.time() - begun > _SLOW_S:
            self.slow(begun, time.time())

    def _later(self, message: bytes) -> None:
        """The same bytes arrive again, after later messages."""

        async def again() -> None:
            await asyncio.sleep(self.pick.random() * _LATEST_S)
            with contextlib.suppress(*_BROKEN, TimeoutError):
                await self._ask(message)

        self.fates["repeated late"] += 1
        task = asyncio.create_task(again())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _ask(self, message: bytes) -> bytes:
        port, begun = self.pick.choice(self.ledgers), time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT)
        try:
            writer.write(message)
            async with asyncio.timeout(_ANSWER_S):
                answer = await read_message(reader)
            self.took.append(time.monotonic() - begun)
            return answer
        finally:
            writer.transport.abort()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with a sized body, as bytes."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head + (await reader.readexactly(int(length[1])) if length is not None else b"")
