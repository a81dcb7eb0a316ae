"""Connections to endpoints: none is kept that nobody needs, and an answer's end is told from the connection's."""

import asyncio
import socket
import struct

import pytest

from fairlead_router.upstream import Connection, Head, Patience, Pool, Upstreams, fetch, request_head, target_of
from tests.builders.router import chat, until
from tests.fakes.engine import Behaviour, FakeEngine


async def test_a_connection_to_an_endpoint_that_is_gone_is_closed_after_its_last_answer(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    upstreams = Upstreams(asyncio.get_running_loop().time, Patience())
    pool = upstreams.pool(target_of(await engine.start()))
    body = chat()
    head = request_head("POST", "/v1/chat/completions", "engine", (), len(body))
    answer = asyncio.create_task(fetch(pool, head, body, 5.0))
    await until(lambda: engine.running, "the request")
    upstreams.keep_only(set())
    gate.set()
    assert (await answer).status == 200
    await until(pool.over, "its end")
    upstreams.check()
    assert not upstreams._everything()


# --- answers that end with the connection ---

UNSIZED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + b'{"usage":'


class Told:
    """A sink that notes what it is told."""

    def __init__(self) -> None:
        self.data = b""
        self.end = ""

    def upstream_load(self, load: bytes) -> None:
        raise AssertionError(load)

    def upstream_whole(self, head: Head, body: bytes) -> None:
        raise AssertionError(head.status, body)

    def upstream_frames(self, frames: bytes) -> None:
        raise AssertionError(frames)

    def upstream_head(self, head: Head) -> None:
        assert head.length is None

    def upstream_data(self, data: bytes) -> None:
        self.data += data

    def upstream_end(self) -> None:
        self.end += "whole"

    def upstream_failed(self, reason: str, *, stale: bool, late: bool = False) -> None:
        self.end += f"{reason} {stale} {late}"


class Wire(asyncio.Transport):
    """A transport that only closes."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


@pytest.mark.parametrize(
    ("ended", "error", "expected"),
    [
        (True, None, "whole"),
        (False, None, "h:1 closed the connection before the answer was complete False False"),
        (True, ConnectionResetError(), "h:1 closed the connection before the answer was complete False False"),
        (False, ConnectionResetError(), "h:1 closed the connection before the answer was complete False False"),
    ],
)
async def test_an_answer_without_a_length_ends_only_where_its_sender_ended_it(
    ended: bool, error: Exception | None, expected: str
) -> None:
    pool, told = Pool(target_of("h:1"), asyncio.get_running_loop().time), Told()
    connection = Connection(pool)
    connection.connection_made(Wire())
    connection.start(told, b"GET / HTTP/1.1\r\n\r\n", ())
    connection.data_received(UNSIZED)
    if ended:
        assert not connection.eof_received()
    assert (told.data, told.end) == (b'{"usage":', "")
    connection.connection_lost(error)
    assert told.end == expected


@pytest.mark.parametrize("reset", [False, True])
async def test_a_reset_is_no_end_of_an_answer(reset: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UNSIZED)
        await writer.drain()
        if reset:
            found: socket.socket = writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        upstreams = Upstreams(asyncio.get_running_loop().time, Patience())
        pool = upstreams.pool(target_of(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        reply = fetch(pool, request_head("GET", "/v1/models", "engine", (), 0), b"", 5.0)
        if reset:
            with pytest.raises(OSError, match=r"closed the connection before the answer was complete"):
                await reply
        else:
            assert (await reply).body == b'{"usage":'
        await until(pool.over, "its end")
