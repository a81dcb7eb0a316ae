"""An engine process for the soak: answers each request with the mark that it carries, whole or as a stream."""

import asyncio
import re
import sys
from typing import Final, cast

import uvloop

_MARK: Final = re.compile(rb"mark-[0-9a-f]{16}")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_GAP_S: Final = 0.005
_EVENTS: Final = 20


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is under way."""
        del exc
        self._transport = None
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer a request once it is whole."""
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        length = _LENGTH.search(self._data, 0, end + 2) if end >= 0 else None
        if length is None or len(self._data) < end + 4 + int(length[1]):
            return
        body, self._data = self._data[end + 4 :], b""
        mark = _MARK.search(body)
        task = asyncio.get_running_loop().create_task(self._answer(mark[0] if mark else b"none", body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, mark: bytes, body: bytes) -> None:
        padding = b"p" * (20_000 if b'"wide"' in body[:400] else 10)
        if b'"stream":true' not in body:
            await asyncio.sleep(0.002)
            usage = b'"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}'
            content = b'{"choices":[{"index":0,"message":{"content":"%b%b"}}],%b}' % (mark, padding, usage)
            self._write(_HEAD % len(content) + content)
            return
        self._write(_STREAM)
        for _ in range(_EVENTS):
            await asyncio.sleep(_GAP_S)
            self._event(b'{"choices":[{"index":0,"delta":{"content":"%b%b"}}]}' % (mark, padding))
        self._event(b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":20,"total_tokens":29}}')
        self._event(b"[DONE]")
        self._write(b"0\r\n\r\n")

    def _event(self, content: bytes) -> None:
        self._write(b"%x\r\ndata: %b\n\n\r\n" % (len(content) + 8, content))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
