"""The callers of the soak: each asks, compares the mark in its answer with its own, and says what happened."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tests.builders.router import Answer, Wire, chat, post, token
from tests.soak.control import TENANTS

REFUSALS: Final = frozenset({"queue_full", "pool_waking"})
"""What a router may say when a change of the configuration takes the replicas away."""
_LIMIT: Final = 1 << 20
BROKEN: Final = (OSError, asyncio.IncompleteReadError, ValueError)
"""What reading an answer raises that ends in the middle; ValueError: where a chunk's size would be."""


@dataclass(slots=True)
class Seen:
    """What all callers saw. ``kills`` are when an engine died and when it had been back for a while."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: list[tuple[float, float]] = field(default_factory=list)

    def killed_since(self, begin: float) -> bool:
        """Whether an engine was dead at some time since then."""
        return any(back >= begin for _, back in self.kills)

    def judge(self, kind: str, begin: float, mark: str, answer: Answer | None) -> None:
        """Count one request; what must not happen is kept."""
        status = "broken" if answer is None else str(answer.status)
        self.outcomes[f"{kind} {status}"] += 1
        if answer is None or answer.status == 502:
            if not self.killed_since(begin):
                self.wrong.append(f"{kind}: {status} while all engines lived: {answer and answer.body[:300]!r}")
        elif answer.status == 200:
            marks = answer.body.count(b"mark-")
            if not marks or answer.body.count(mark.encode()) != marks:
                self.wrong.append(f"{kind}: an answer without its mark {mark}: {answer.body[:300]!r}")
        elif answer.code not in REFUSALS:
            self.wrong.append(f"{kind}: {answer.status} {answer.body[:300]!r}")


@dataclass(slots=True)
class Caller:
    """One caller of many kinds."""

    port: int
    pick: random.Random
    seen: Seen
    tokens: dict[str, str] = field(
        default_factory=lambda: {name: token(name, "soak", exp=4_000_000_000) for name in TENANTS}
    )
    wires: list[Wire] = field(default_factory=list)

    async def run(self, until: float) -> None:
        """Ask until the time is over."""
        kinds: list[tuple[str, Callable[[Wire], Awaitable[None]]]] = [
            ("small", self._small), ("small", self._small), ("large", self._large), ("medium", self._medium),
            ("stream", self._stream), ("stream", self._stream), ("slow", self._slow), ("vanish", self._vanish),
            ("pipeline", self._pipeline), ("stranger", self._stranger),
        ]  # fmt: skip
        while time.monotonic() < until:
            _, ask = self.pick.choice(kinds)
            try:
                wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=_LIMIT))
            except OSError as error:
                self.seen.wrong.append(f"no connection: {error}")
                continue
            try:
                await ask(wire)
            finally:
                wire.close()

    def _request(self, size: int, **members: object) -> tuple[str, bytes]:
        mark = f"mark-{self.pick.getrandbits(64):016x}"
        body = chat(mark + "x" * size, user="wide" if members.pop("wide", False) else "narrow", **members)
        return mark, post(body, bearer=self.tokens[self.pick.choice(TENANTS)])

    async def _ask(self, wire: Wire, kind: str, size: int, count: int = 1, **members: object) -> None:
        for _ in range(count):
            begin, (mark, data) = time.monotonic(), self._request(size, **members)
            try:
                await wire.send(data)
                answer: Answer | None = await wire.answer()
            except BROKEN:
                answer = None
            except TimeoutError:
                answer = None
                self.seen.wrong.append(f"{kind}: no answer within 10s")
            self.seen.judge(kind, begin, mark, answer)
            if answer is None or answer.headers.get("connection") == "close":
                return

    async def _small(self, wire: Wire) -> None:
        await self._ask(wire, "small", 900, count=20)

    async def _medium(self, wire: Wire) -> None:
        await self._ask(wire, "medium", 64_000, count=4)

    async def _large(self, wire: Wire) -> None:
        await self._ask(wire, "large", 400_000, count=2)

    async def _stream(self, wire: Wire) -> None:
        await self._ask(wire, "stream", 900, count=3, stream=True)

    async def _pipeline(self, wire: Wire) -> None:
        """Several requests before the first answer."""
        begin, asked = time.monotonic(), [self._request(500, **({"stream": True} if n % 2 else {})) for n in range(4)]
        try:
            await wire.send(b"".join(data for _, data in asked))
            for mark, _ in asked:
                self.seen.judge("pipeline", begin, mark, await wire.answer())
        except BROKEN:
            self.seen.judge("pipeline", begin, "", None)

    async def _slow(self, wire: Wire) -> None:
        """Reads a wide stream a little at a time, then the rest."""
        begin, (mark, data) = time.monotonic(), self._request(900, stream=True, wide=True)
        wire.writer.transport.get_extra_info("socket").setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF
        try:
            await wire.send(data)
            await asyncio.sleep(self.pick.random() * 2)
            answer: Answer | None = await wire.answer()
        except BROKEN:
            answer = None
        self.seen.judge("slow", begin, mark, answer)

    async def _vanish(self, wire: Wire) -> None:
        """Leaves in the middle of the request or of the answer."""
        _, data = self._request(self.pick.choice((10, 64_000)), stream=True, wide=bool(self.pick.randrange(2)))
        cut = len(data) if self.pick.randrange(3) else self.pick.randrange(len(data))
        try:
            await wire.send(data[:cut])
            await asyncio.sleep(self.pick.random() * 0.2)
        except OSError:
            pass
        self.seen.outcomes["vanish"] += 1

    async def _stranger(self, wire: Wire) -> None:
        """Sends what is refused."""
        await wire.send(
            self.pick.choice((b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x00", post(b"{}", bearer="no")))
        )
        if self.pick.randrange(2):
            self.seen.outcomes[f"stranger {(await wire.answer()).status}"] += 1
