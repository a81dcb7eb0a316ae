"""Bytes that servers read in different ways: refused with the connection closed, or passed on with one reading only.

Classes: RFC 9112 §11.1 and §11.2, the desynchronisation classes published on CL.TE, TE.CL, TE.TE, CL.0, 0.CL, chunk
extensions and chunk line ends, and what advisories of HTTP parsers were about. Each case is sent at once, byte by byte,
and behind a request with the same head, with a good request behind it; the engine reads strictly.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.builders.router import POOL, Answer, Station, Wire, chat, configuration, policy, station, token
from tests.fuzz import strict
from tests.fuzz.world import answer_to, echo

AUTH: Final = b"authorization: Bearer " + token().encode()
LINE: Final = b"POST /v1/chat/completions HTTP/1.1"
HOST: Final = b"host: x"
JSON: Final = b"content-type: application/json"
EMPTY: Final = b"0\r\n\r\n"


@dataclass
class StrictEngine:
    """Answers what is exactly one request at a time with its body's mark; everything else is a violation."""

    requests: list[strict.Message] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        data = b""
        with contextlib.suppress(OSError, strict.BadError):
            while piece := await reader.read(1 << 16):
                data = self._take(data + piece, writer)
        writer.close()

    def _take(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        try:
            found = strict.one_request(data)
        except strict.BadError as error:
            self.violations.append(str(error))
            raise
        if found is None:
            return data
        request, rest = found
        if rest:
            self.violations.append(f"two requests at once: {data!r}")
        self.requests.append(request)
        writer.write(answer_to(request))
        return rest


@pytest.fixture
async def strict_engine() -> AsyncIterator[StrictEngine]:
    found = StrictEngine()
    yield found
    await found.stop()
    assert not found.violations


@pytest.fixture
async def at(strict_engine: StrictEngine) -> AsyncIterator[Station]:
    async with station(addresses={POOL: (await strict_engine.start(),)}) as found:
        yield found


def head(*headers: bytes, line: bytes = LINE) -> bytes:
    return b"\r\n".join([line, HOST, AUTH, *headers, b"", b""])


def good(text: str, *headers: bytes) -> bytes:
    body = chat(text)
    return head(*headers, b"content-length: %d" % len(body)) + body


def mark(text: str) -> bytes:
    return echo(json.loads(chat(text))).encode()


BODY: Final = chat("smuggled")
SIZE: Final = len(BODY)


def sized(*values: bytes) -> bytes:
    return head(*(b"content-length: " + value for value in values)) + BODY


def coded(*values: bytes) -> bytes:
    return head(*(b"transfer-encoding: " + value for value in values)) + b"%x\r\n%b\r\n" % (SIZE, BODY) + EMPTY


def offered(data: bytes) -> bytes:
    """The same, with an offer to upgrade: a parser may stop at the end of the head."""
    return data.replace(HOST, HOST + b"\r\nconnection: upgrade\r\nupgrade: h2c", 1)


def chunked(data: bytes) -> bytes:
    return head(b"transfer-encoding: chunked") + data


def with_line(line: bytes) -> bytes:
    return head(b"content-length: %d" % SIZE, line=line) + BODY


def with_header(header: bytes) -> bytes:
    return head(header, b"content-length: %d" % SIZE) + BODY


N: Final = b"%d" % SIZE
CHUNK: Final = b"%x" % SIZE
REST: Final = b"\r\n%b\r\n" % BODY + EMPTY

LENGTHS: Final = {
    "twice the same": (N, N),
    "twice different": (N, b"%d" % (SIZE + 1)),
    "three times": (N, N, N),
    "a list": (N + b", " + N,),
    "a list without space": (N + b"," + N,),
    "a trailing comma": (N + b",",),
    "a plus": (b"+" + N,),
    "a minus": (b"-" + N,),
    "minus zero": (b"-0",),
    "hexadecimal": (b"0x%x" % SIZE,),
    "an inner space": (N[:1] + b" " + N[1:],),
    "an inner tab": (N[:1] + b"\t" + N[1:],),
    "a vertical tab": (b"\x0b" + N,),
    "empty": (b"",),
    "only spaces": (b"   ",),
    "2^64 and more": (b"%d" % ((1 << 64) + SIZE),),
    "2^64": (b"%d" % (1 << 64),),
    "many digits": (b"9" * 400,),
    "an exponent": (b"1e2",),
    "a point": (N + b".0",),
    "an underscore": (N[:1] + b"_" + N[1:],),
    "digits of another script": ("٢".encode(),),
    "superscript digits": (b"\xb2",),
    "a semicolon": (N + b";",),
    "quotes": (b'"' + N + b'"',),
    "a NUL behind": (N + b"\x00",),
}

CODINGS: Final = {
    "chunked twice in one": (b"chunked, chunked",),
    "chunked twice": (b"chunked", b"chunked"),
    "xchunked": (b"xchunked",),
    "chunkedx": (b"chunkedx",),
    "chunked and identity": (b"chunked, identity",),
    "identity and chunked": (b"identity, chunked",),
    "identity": (b"identity",),
    "gzip and chunked": (b"gzip, chunked",),
    "gzip behind chunked": (b"chunked, gzip",),
    "two headers": (b"chunked", b"identity"),
    "two headers, chunked last": (b"identity", b"chunked"),
    "a parameter": (b"chunked;q=1",),
    "quotes": (b'"chunked"',),
    "a trailing comma": (b"chunked,",),
    "a leading comma": (b",chunked",),
    "a vertical tab": (b"\x0bchunked",),
    "a form feed behind": (b"chunked\x0c",),
    "an inner space": (b"chun ked",),
    "empty": (b"",),
    "cow": (b"cow",),
    "a NUL behind": (b"chunked\x00",),
    "a high byte": (b"chunked\xa0",),
}

HEADERS: Final = {
    "folded with a space": b"x: a\r\n b",
    "folded with a tab": b"x: a\r\n\tb",
    "folded transfer-encoding": b"transfer-encoding:\r\n chunked",
    "folded content-length": b"content-length:\r\n 3",
    "a fold before the first colon": b" x: a",
    "space before the colon": b"x : a",
    "tab before the colon": b"x\t: a",
    "no colon": b"xa",
    "an empty name": b": a",
    "a NUL in the name": b"x\x00: a",
    "a NUL in the value": b"x: a\x00b",
    "a bare LF in the value": b"x: a\ny: b",
    "a bare LF and a length": b"x: a\ncontent-length: 3",
    "a bare CR in the value": b"x: a\ry: b",
    "a bare CR before CRLF": b"x: a\r\r\ny: b",
    "a control byte": b"x: \x01",
    "DEL": b"x: \x7f",
    "parentheses in the name": b"x(y): a",
    "a high byte in the name": b"x\xe9: a",
    "a second host": b"host: y",
    "a second host in other case": b"HOST: x",
    "a second authorization": AUTH,
    "chunked beside a length": b"transfer-encoding: chunked",
    "identity beside a length": b"transfer-encoding: identity",
    "space in content-length": b"content-length : 3",
    "CR in accept": b"accept: a\rb",
    "LF in user-agent": b"user-agent: a\nx: b",
    "CR in content-type": b"content-type: a\rx: b",
    "NUL in tracestate": b"tracestate: a\x00",
}

LINES: Final = {
    "a tab": b"POST\t/v1/chat/completions HTTP/1.1",
    "a tab before the version": b"POST /v1/chat/completions\tHTTP/1.1",
    "a space behind": b"POST /v1/chat/completions HTTP/1.1 ",
    "a space in front": b" POST /v1/chat/completions HTTP/1.1",
    "a lower-case method": b"post /v1/chat/completions HTTP/1.1",
    "an unknown method": b"BREW /v1/chat/completions HTTP/1.1",
    "no version": b"POST /v1/chat/completions",
    "HTTP/0.9": b"POST /v1/chat/completions HTTP/0.9",
    "HTTP/1.10": b"POST /v1/chat/completions HTTP/1.10",
    "HTTP/1.2": b"POST /v1/chat/completions HTTP/1.2",
    "HTTP/2.0": b"POST /v1/chat/completions HTTP/2.0",
    "HTTP/3": b"POST /v1/chat/completions HTTP/3",
    "http in lower case": b"POST /v1/chat/completions http/1.1",
    "a comma in the version": b"POST /v1/chat/completions HTTP/1,1",
    "a NUL in the target": b"POST /v1/chat\x00/completions HTTP/1.1",
    "a control byte in the target": b"POST /v1/chat/completions?\x01 HTTP/1.1",
    "a space in the target": b"POST /v1/chat/ completions HTTP/1.1",
    "a CR in the target": b"POST /v1/chat/completions?\rx HTTP/1.1",
    "an LF in the target": b"POST /v1/chat/completions?\nx HTTP/1.1",
    "no target": b"POST HTTP/1.1",
    "a target without a slash": b"POST v1/chat/completions HTTP/1.1",
    "CONNECT": b"CONNECT x:80 HTTP/1.1",
    "the preface of HTTP/2": b"PRI * HTTP/2.0",
    "an answer": b"HTTP/1.1 200 OK",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

CHUNKS: Final = {
    "a plus": b"+" + CHUNK + REST,
    "a minus": b"-" + CHUNK + REST,
    "0x": b"0x" + CHUNK + REST,
    "a space in front": b" " + CHUNK + REST,
    "a space behind": CHUNK + b" " + REST,
    "no digits": REST,
    "no hexadecimal digit": b"g\r\n",
    "an underscore": CHUNK[:1] + b"_" + CHUNK[1:] + REST,
    "2^64 and more": b"1%016x" % SIZE + REST,
    "many digits": b"f" * 40 + REST,
    "only an extension": b";a=b" + REST,
    "an LF in the extension": CHUNK + b";\n" + REST,
    "an LF behind the extension": CHUNK + b";a\n\r\n" + BODY,
    "a CR in the extension": CHUNK + b";a\rb" + REST,
    "a NUL in the extension": CHUNK + b";\x00" + REST,
    "an LF ends the size": CHUNK + b"\n" + BODY + b"\r\n" + EMPTY,
    "a CR ends the size": CHUNK + b"\r" + BODY + b"\r\n" + EMPTY,
    "an LF ends the chunk": CHUNK + b"\r\n" + BODY + b"\n" + EMPTY,
    "nothing ends the chunk": CHUNK + b"\r\n" + BODY + EMPTY,
    "two other bytes end the chunk": CHUNK + b"\r\n" + BODY + b"XX" + EMPTY,
    "a CR and another byte end the chunk": CHUNK + b"\r\n" + BODY + b"\rX" + EMPTY,
    "the last chunk ends with LF": CHUNK + b"\r\n" + BODY + b"\r\n0\n\n",
    "a bare LF in the trailers": CHUNK + b"\r\n" + BODY + b"\r\n0\r\nx: a\n\r\n",
    "a folded trailer": CHUNK + b"\r\n" + BODY + b"\r\n0\r\nx: a\r\n b\r\n\r\n",
    "a trailer without colon": CHUNK + b"\r\n" + BODY + b"\r\n0\r\nxa\r\n\r\n",
    "a length in the trailers": CHUNK + b"\r\n" + BODY + b"\r\n0\r\ncontent-length: 5\r\n\r\n",
}

FRAMED: Final = head(b"content-length: %d" % SIZE)

REFUSED: Final = {
    **{f"length: {name}": sized(*values) for name, values in LENGTHS.items()},
    **{f"coding: {name}": coded(*values) for name, values in CODINGS.items()},
    **{f"header: {name}": with_header(header) for name, header in HEADERS.items()},
    **{f"line: {name}": with_line(line) for name, line in LINES.items()},
    **{f"chunk: {name}": chunked(data) for name, data in CHUNKS.items()},
    **{f"offer, length: {name}": offered(sized(*values)) for name, values in LENGTHS.items()},
    **{f"offer, coding: {name}": offered(coded(*values)) for name, values in CODINGS.items()},
    "offer, length and chunked": offered(head(b"content-length: 5", b"transfer-encoding: chunked") + EMPTY),
    "offer, chunked and length": offered(head(b"transfer-encoding: chunked", b"content-length: 5") + EMPTY),
    "CONNECT without a length": head(line=b"CONNECT x:80 HTTP/1.1"),
    "length and chunked": head(b"content-length: 5", b"transfer-encoding: chunked") + EMPTY,
    "chunked and length": head(b"transfer-encoding: chunked", b"content-length: 5") + EMPTY,
    "chunked and no length": head(b"transfer-encoding: chunked", b"content-length: 0") + EMPTY,
    "chunked in HTTP/1.0": head(b"transfer-encoding: chunked", line=LINE[:-1] + b"0") + EMPTY,
    "no host": FRAMED.replace(HOST + b"\r\n", b"") + BODY,
    "LF ends all lines": FRAMED.replace(b"\r\n", b"\n") + BODY,
    "LF ends the head": FRAMED[:-2] + b"\n" + BODY,
    "CR ends all lines": FRAMED.replace(b"\r\n", b"\r") + b"\n\n" + BODY,
    "CR LF CR and another byte end the head": FRAMED[:-1] + b"X" + BODY,
}


OTHER_VERSIONS: Final = {"line: no version", "line: HTTP/0.9", "line: HTTP/2.0"}


async def _send(wire: Wire, data: bytes, way: str) -> None:
    """At once, or in bytes that the router reads one by one, as far as the loop lets it."""
    with contextlib.suppress(OSError):
        if way != "bytes":
            await wire.send(data)
            return
        for at in range(len(data)):
            if wire.writer.is_closing():
                return
            wire.writer.write(data[at : at + 1])
            if at % 8 == 0:
                await asyncio.sleep(0)


async def _warm(wire: Wire) -> None:
    """Two requests with one head: the second is recognised."""
    for text in ("warm", "arms"):
        await wire.send(good(text))
        assert mark(text) in (await wire.answer()).body


async def _sent(at: Station, engine: StrictEngine, data: bytes, way: str) -> tuple[Wire, int]:
    """A connection on which this was sent, and how many requests the engine had before."""
    wire = await at.connect()
    if way == "warm":
        await _warm(wire)
    before = len(engine.requests)
    await _send(wire, data, way)
    return wire, before


@pytest.mark.parametrize("way", ["whole", "bytes", "warm"])
@pytest.mark.parametrize("name", REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused_once_and_the_connection_closed(
    at: Station, strict_engine: StrictEngine, name: str, way: str
) -> None:
    wire, before = await _sent(at, strict_engine, REFUSED[name] + good("behind"), way)
    answer = await wire.answer()
    assert answer.status == (505 if name in OTHER_VERSIONS else 400)
    assert answer.headers["connection"] == "close"
    assert await wire.closed() == b""
    assert len(strict_engine.requests) == before


ACCEPTED: Final = {
    "leading zeros": head(b"content-length: 000%d" % SIZE) + BODY,
    "spaces around the length": head(b"content-length: \t %d \t" % SIZE) + BODY,
    "no space before the length": head(b"content-length:%d" % SIZE) + BODY,
    "other case": head(b"CONTENT-Length: %d" % SIZE) + BODY,
    "an underscore is another header": head(b"content_length: 3", b"content-length: %d" % SIZE) + BODY,
    "a header that ends with the name": head(b"x-content-length: 3", b"content-length: %d" % SIZE) + BODY,
    "a value with the name": head(b"x: content-length: 3", b"content-length: %d" % SIZE) + BODY,
    "Chunked": head(b"Transfer-Encoding: Chunked") + CHUNK + REST,
    "more spaces in the request line": head(b"content-length: %d" % SIZE, line=LINE.replace(b" ", b"  ")) + BODY,
    "spaces before chunked": head(b"transfer-encoding: \t chunked") + CHUNK + REST,
    "capital hexadecimal digits": head(b"transfer-encoding: chunked") + CHUNK.upper() + REST,
    "leading zeros of a chunk": head(b"transfer-encoding: chunked") + b"000" + CHUNK + REST,
    "an extension": head(b"transfer-encoding: chunked") + CHUNK + b";a=b;c" + REST,
    "trailers that would matter": head(b"transfer-encoding: chunked") + CHUNK + REST[:-2]
    + b"host: evil\r\nauthorization: Bearer x\r\nx-fairlead-feature: late\r\n\r\n",
    "empty lines in front": b"\r\n\r\n" + head(b"content-length: %d" % SIZE) + BODY,
    "an empty header": head(b"x:", b"content-length: %d" % SIZE) + BODY,
    "an offer of h2c and chunks": offered(chunked(CHUNK + REST)),
    "an offer of h2c": head(b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"content-length: " + N) + BODY,
    "an offer of websocket": head(b"connection: upgrade", b"upgrade: websocket", b"content-length: %d" % SIZE) + BODY,
    "keep-alive": head(b"connection: keep-alive", b"keep-alive: timeout=5", b"content-length: %d" % SIZE) + BODY,
    "a connection header that names the length": head(b"connection: content-length", b"content-length: " + N) + BODY,
    "a query": head(b"content-length: %d" % SIZE, line=b"POST /v1/chat/completions?a=%0d%0ab HTTP/1.1") + BODY,
    "a host with an at sign": FRAMED.replace(HOST, b"host: a@b") + BODY,
}  # fmt: skip


@pytest.mark.parametrize("way", ["whole", "bytes", "warm"])
@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_has_one_reading_reaches_the_engine_once_and_the_next_request_gets_its_own_answer(
    at: Station, strict_engine: StrictEngine, name: str, way: str
) -> None:
    wire, before = await _sent(at, strict_engine, ACCEPTED[name] + good("behind"), way)
    for text in ("smuggled", "behind"):
        answer = await wire.answer()
        assert answer.status == 200
        assert mark(text) in answer.body
    assert [echo(json.loads(request.body)).encode() for request in strict_engine.requests[before:]] == [
        mark("smuggled"),
        mark("behind"),
    ]


OTHERWISE: Final = {
    "an expectation that is not met": (head(b"expect: 200-ok", b"content-length: %d" % SIZE) + BODY, 417),
    "an expectation in disguise": (head(b"expect: y 100-continue", b"content-length: %d" % SIZE) + BODY, 417),
    "another host in the target": (with_line(b"POST http://evil/v1/chat/completions HTTP/1.1"), 404),
    "%00 in the target": (with_line(b"POST /v1/chat/completions%00 HTTP/1.1"), 404),
    "two slashes": (with_line(b"POST //v1/chat/completions HTTP/1.1"), 404),
    "dots in the target": (with_line(b"POST /v1/../v1/chat/completions HTTP/1.1"), 404),
    "%2f in the target": (with_line(b"POST /v1%2fchat/completions HTTP/1.1"), 404),
    "a fragment": (with_line(b"POST /v1/chat/completions#x HTTP/1.1"), 404),
    "another method": (with_line(b"PUT /v1/chat/completions HTTP/1.1"), 405),
    "a body with GET": (with_line(b"GET /v1/chat/completions HTTP/1.1"), 405),
    "many headers": (head(*(b"x%d: 1" % index for index in range(101))), 431),
    "a long header": (head(b"x: " + b"a" * 70_000), 431),
    "a long name": (head(b"x" * 70_000 + b": a"), 431),
    "a long target": (with_line(b"POST /v1/chat/completions?" + b"q" * 70_000 + b" HTTP/1.1"), 431),
    "a large length": (head(b"content-length: 9223372036854775807") + BODY, 413),
    "a large chunk": (chunked(b"7fffffffffffffff\r\n"), 413),
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", OTHERWISE)
async def test_what_is_refused_for_another_reason_is_not_read_as_the_next_request(
    at: Station, strict_engine: StrictEngine, name: str, warm: bool
) -> None:
    data, status = OTHERWISE[name]
    wire = await at.connect()
    if warm:
        await _warm(wire)
    before = len(strict_engine.requests)
    await _send(wire, data + (b"" if status == 413 else good("behind")), "whole")
    answer = await _past_large_chunk(wire) if status == 413 and b"chunked" in data else await wire.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert await wire.closed() == b""
    assert len(strict_engine.requests) == before


async def _past_large_chunk(wire: Wire) -> Answer:
    """A chunk counts as it comes: its size alone refuses nothing."""
    asked = asyncio.create_task(wire.answer())
    with contextlib.suppress(OSError):
        while not asked.done():
            await wire.send(b"x" * (1 << 20))
            await asyncio.sleep(0)
    return await asked


async def test_the_answer_to_head_has_no_body(at: Station) -> None:
    wire = await at.connect()
    await wire.send(head(line=b"HEAD /v1/models HTTP/1.1"))
    status, _ = await wire.head()
    assert status == 405
    await _send(wire, good("behind"), "whole")
    rest = await _until_end_or(wire, b"mark-")
    assert rest == b"" or rest.startswith(b"HTTP/1.1 200 ")


async def _until_end_or(wire: Wire, seen: bytes) -> bytes:
    data = b""
    with contextlib.suppress(OSError):
        while seen not in data and (piece := await asyncio.wait_for(wire.reader.read(1 << 16), 5)):
            data += piece
    return data


async def test_a_head_is_remembered_with_its_own_judgement_only(at: Station, strict_engine: StrictEngine) -> None:
    body = chat("again")
    anonymous = b"\r\n".join([LINE, HOST, JSON, b"content-length: %d", b"", b""])
    wire = await at.connect()
    await wire.send(anonymous % 0 + good("first"))
    assert (await wire.answer()).status == 401
    assert mark("first") in (await wire.answer()).body
    await wire.send(anonymous % len(body) + body)
    assert (await wire.answer()).status == 401
    assert len(strict_engine.requests) == 1


async def test_a_head_that_differs_in_one_byte_is_judged_anew(at: Station, strict_engine: StrictEngine) -> None:
    usual = good("usual", b"x-fairlead-feature: f1")
    end = usual.find(b"\r\n\r\n")
    for place in range(0, end, 7):
        wire = await at.connect()
        await wire.send(usual)
        assert (await wire.answer()).status == 200
        before = len(strict_engine.requests)
        changed = usual[:place] + (b"\x00" if usual[place] != 0 else b"x") + usual[place + 1 :]
        await _send(wire, changed, "whole")
        assert (await wire.answer()).status == 400
        assert len(strict_engine.requests) == before
        wire.close()


@pytest.mark.parametrize("header", [b"traceparent", b"accept", b"user-agent", b"content-type", b"tracestate"])
async def test_high_bytes_in_headers_that_pass_on_stay_inside_of_their_header(
    at: Station, strict_engine: StrictEngine, header: bytes
) -> None:
    wire = await at.connect()
    await wire.send(good("high", header + b": a\xe2\x80\xa8\xff\tb"))
    assert mark("high") in (await wire.answer()).body
    (request,) = strict_engine.requests
    assert request.get(header) in {None, b"a\xe2\x80\xa8\xff\tb"}
    assert request.get(b"host") is not None


SPLITTING: Final = ("chat\r\nx-evil: 1\r\n\r\n", "chat\nx-evil: 1", "chat\0", "chat\u2028x", "../chat", "chat\r")


@pytest.mark.parametrize("model", SPLITTING)
async def test_a_model_name_cannot_add_headers(at: Station, strict_engine: StrictEngine, model: str) -> None:
    wire = await at.connect()
    body = chat(model=model)
    await wire.send(head(b"content-length: %d" % len(body)) + body)
    answer = await wire.answer()
    assert answer.status in {400, 404}
    assert "x-evil" not in answer.headers
    assert not strict_engine.requests


async def test_names_of_models_with_any_character_stay_inside_of_the_body() -> None:
    engine = StrictEngine()
    odd = policy(models=(SPLITTING[0],))
    async with station(configuration(policies=(odd,)), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        body = chat("hi", model=SPLITTING[0])
        await wire.send(head(b"content-length: %d" % len(body)) + body)
        answer = await wire.answer()
        assert answer.status == 200
        assert "x-evil" not in answer.headers
        await wire.send(head(line=b"GET /v1/models HTTP/1.1"))
        assert SPLITTING[0] in {model["id"] for model in (await wire.answer()).json()["data"]}
    await engine.stop()
    assert not engine.violations


async def test_a_request_id_of_the_client_is_not_passed_on_nor_sent_back(
    at: Station, strict_engine: StrictEngine
) -> None:
    wire = await at.connect()
    await wire.send(good("mine", b"x-request-id: mine\xff"))
    answer = await wire.answer()
    (request,) = strict_engine.requests
    assert request.get(b"x-request-id") == answer.headers["x-request-id"].encode()
    assert re.fullmatch("[a-z0-9-]+", answer.headers["x-request-id"])


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close", b"close, keep-alive", b"x, close"])
async def test_a_client_that_asks_to_close_is_answered_once(
    at: Station, strict_engine: StrictEngine, value: bytes
) -> None:
    wire = await at.connect()
    await wire.send(good("last", b"connection: " + value) + good("behind"))
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert mark("last") in answer.body
    assert await wire.closed() == b""
    assert len(strict_engine.requests) == 1
