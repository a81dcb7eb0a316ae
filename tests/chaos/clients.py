"""The callers: each request goes to some router's process, and what came of it is written down."""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Final

import msgspec

from tests.builders.router import post, token
from tests.chaos.truth import Asked
from tests.chaos.world import Demand, Wanted, zipf

_TICK_S: Final = 0.01
_SHIFT_S: Final = 30.0
_ANSWER_S: Final = 60.0
_MOST_OPEN: Final = 3_000
_LIMIT: Final = 1 << 18
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_BROKEN: Final = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Door:
    """Where a living router takes requests, and connections that are open and idle."""

    router: str
    port: int
    idle: list[Connection] = field(default_factory=list)


@cache
def _bearer(namespace: str, caller: str) -> str:
    return token(namespace, caller, exp=4_000_000_000)


@dataclass(slots=True)
class Load:
    """Asks for what the demand wants, at a steady rate, of routers that are more or less loved.

    ``doors`` gives for each place of a router where it takes requests now, or nothing while it is down.
    """

    demand: Demand
    pick: random.Random
    doors: Callable[[], Sequence[Door | None]]
    asked: list[Asked] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    _open: set[asyncio.Task[None]] = field(default_factory=set)
    _weights: Sequence[float] = ()
    _shift_at: float = 0.0

    async def run(self, count: int, rate: float, until: float) -> None:
        """Ask so many times, at most so many a second, and until then (seconds of the loop's clock) at the latest."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while len(self.asked) < count and loop.time() < until:
            due = min(count, int((loop.time() - begin) * rate))
            doors = self._doors()
            while len(self.asked) < due and len(self._open) < _MOST_OPEN and doors[0]:
                self._begin(self.pick.choices(*doors)[0])
            await asyncio.sleep(_TICK_S)
        if self._open:
            await asyncio.wait(self._open, timeout=_ANSWER_S + 5)

    def _begin(self, door: Door) -> None:
        number = len(self.asked)
        wanted = self.demand.next(number)
        asked = wanted.asked(door.router, time.time())
        self.asked.append(asked)
        task = asyncio.get_running_loop().create_task(self._ask(door, wanted, asked))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    def _doors(self) -> tuple[list[Door], list[float]]:
        """The doors that are open, and how loved they are."""
        doors, now = self.doors(), time.monotonic()
        if now >= self._shift_at:
            self._weights, self._shift_at = zipf(len(doors), self.pick), now + _SHIFT_S
        found = [(door, weight) for door, weight in zip(doors, self._weights, strict=True) if door is not None]
        return [door for door, _ in found], [weight for _, weight in found]

    async def _ask(self, door: Door, wanted: Wanted, asked: Asked) -> None:
        headers = {"x_fairlead_feature": door.router}
        if wanted.workflow:
            headers["x_fairlead_workflow"] = wanted.workflow
        data = post(wanted.body, bearer=_bearer(wanted.namespace, wanted.caller), **headers)
        with contextlib.suppress(*_BROKEN, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                await _exchange(door, data, asked)
        asked.done = time.time()


async def _exchange(door: Door, data: bytes, asked: Asked) -> None:
    """One request and its answer; the connection is kept if it may be."""
    reader, writer = await _connection(door)
    kept = False
    try:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is not None:
            body = await reader.readexactly(int(length[1]))
        else:
            body = await _chunks(reader)
        asked.status = int(head[9:12])
        if asked.status != 200:
            _note(asked, body)
        kept = b"\r\nconnection: close\r\n" not in head
    finally:
        if kept:
            door.idle.append((reader, writer))
        else:
            writer.transport.abort()


async def _connection(door: Door) -> Connection:
    """One that is open, else a new one: routers close what is idle for long."""
    while door.idle:
        reader, writer = door.idle.pop()
        if not reader.at_eof() and not writer.is_closing():
            return reader, writer
        writer.transport.abort()
    return await asyncio.open_connection("127.0.0.1", door.port, limit=_LIMIT)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    if b"[DONE]" not in body:
        raise ValueError("the stream ended before its end")
    return body


def _note(asked: Asked, body: bytes) -> None:
    error: dict[str, Any] = msgspec.json.decode(body).get("error", {})
    facts = error.get("fairlead", {})
    asked.code, asked.budget = str(error.get("code")), str(facts.get("budget", ""))
    if "opens" in facts:
        asked.opens = datetime.fromisoformat(facts["opens"]).timestamp()
