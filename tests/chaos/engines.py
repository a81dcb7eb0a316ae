"""Engines that keep a receipt of what they ran, in a process that nobody kills."""

import asyncio
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from fairlead_router.contract import charge_nano
from tests.chaos.truth import Receipt
from tests.chaos.world import CARD

_MARK: Final = re.compile(rb"mark-(\d{9})")
_CAP: Final = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_USAGE: Final = (
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d}}'
)
_EVENTS: Final = 4
_SHORT_S: Final = 0.1
_LONG_S: Final = 4.0
_LONG_SHARE: Final = 0.02


@dataclass(slots=True)
class Receipts:
    """What ran, by the number in the request's body. ``twice`` are numbers that ran more than once."""

    seed: int
    kept: dict[int, Receipt] = field(default_factory=dict)
    twice: list[int] = field(default_factory=list)

    def begin(self, body: bytes) -> tuple[Receipt, float]:
        """A request begins to run: its receipt as if it ran to the end, and for how long it runs."""
        mark, cap = _MARK.search(body), _CAP.search(body)
        if mark is None or cap is None:
            raise ValueError(f"a request without a mark or a cap: {body[:200]!r}")
        number = int(mark[1])
        pick = random.Random(self.seed << 32 | number)  # noqa: S311 - the same for the same run
        prompt = pick.randrange(20, len(body) // 2)
        cached = pick.randrange(prompt) if pick.random() < 0.3 else 0
        output = pick.randrange(1, int(cap[1]) + 1)
        long = pick.random() < _LONG_SHARE
        if number in self.kept:
            self.twice.append(number)
        receipt = Receipt(time.time(), prompt, cached, output, charge_nano(CARD, prompt, cached, output))
        self.kept[number] = receipt
        return receipt, _LONG_S * pick.random() if long else _SHORT_S * pick.random()


class Engine(asyncio.Protocol):
    """One connection of a router."""

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The router is gone: stop what is under way."""
        del exc
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Run a request once it is whole."""
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        length = _LENGTH.search(self._data, 0, end + 2) if end >= 0 else None
        if length is None or len(self._data) < end + 4 + int(length[1]):
            return
        body, self._data = self._data[end + 4 :], b""
        self._task = asyncio.get_running_loop().create_task(self._run(body))

    async def _run(self, body: bytes) -> None:
        receipt, run_s = self._receipts.begin(body)
        usage = _USAGE % (receipt.prompt, receipt.output, receipt.prompt + receipt.output, receipt.cached)
        if b'"stream":true' in body or b'"stream": true' in body:
            await self._stream(receipt, run_s, usage)
        else:
            await asyncio.sleep(run_s)
            content = b'{"choices":[{"index":0,"message":{"content":"x"}}],%b}' % usage
            self._write(_HEAD % len(content) + content)
        receipt.ended = time.time()

    async def _stream(self, receipt: Receipt, run_s: float, usage: bytes) -> None:
        """A stream that is cut ran only as far as it came."""
        whole = receipt.output, receipt.nano
        self._write(_STREAM)
        for event in range(_EVENTS):
            receipt.output = max(1, whole[0] * event // _EVENTS)
            receipt.nano = charge_nano(CARD, receipt.prompt, receipt.cached, receipt.output)
            await asyncio.sleep(run_s / _EVENTS)
            self._event(b'{"choices":[{"index":0,"delta":{"content":"x"}}]}')
        receipt.output, receipt.nano = whole
        self._event(b'{"choices":[],%b}' % usage)
        self._event(b"[DONE]")
        self._write(b"0\r\n\r\n")

    def _event(self, content: bytes) -> None:
        self._write(b"%x\r\ndata: %b\n\n\r\n" % (len(content) + 8, content))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def listen(receipts: Receipts, count: int) -> tuple[list[asyncio.Server], tuple[str, ...]]:
    """Start engines; their addresses."""
    loop = asyncio.get_running_loop()
    make: Callable[[], Engine] = lambda: Engine(receipts)  # noqa: E731 - a factory
    servers = [await loop.create_server(make, "127.0.0.1", 0, backlog=1024) for _ in range(count)]
    return servers, tuple(f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
