"""What clients send: whole requests, and requests with something wrong, made from a source of random choices.

A request is made as lines and pieces, so that what is wrong sits where servers disagree: in framing, in the ends of
lines, in the names that mean something. After that its bytes may be changed anywhere.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from tests.builders.router import token

BEARER: Final = token(exp=4_000_000_000).encode()
LINE: Final = b"POST /v1/chat/completions HTTP/1.1"
HOST: Final = b"host: fuzz"
AUTH: Final = b"authorization: Bearer " + BEARER
JSON: Final = b"content-type: application/json"


@dataclass(slots=True)
class Draft:
    """A request before it is bytes. ``body`` is already framed; ``length`` is its content-length header, if any."""

    line: bytes = LINE
    headers: list[bytes] = field(default_factory=list)
    body: bytes = b""
    end: bytes = b"\r\n"

    def data(self) -> bytes:
        """The bytes."""
        return self.end.join([self.line, *self.headers, b"", b""]) + self.body


def chat_body(pick: random.Random, nonce: str) -> bytes:
    """A body that a router admits, with a mark that no other has."""
    text = nonce + "é\\u00e9 " * pick.randrange(3) + "x" * pick.choice((0, 0, 7, 90, 900))
    if not pick.randrange(200):
        text += "y" * pick.choice((70_000, 200_000))
    members: dict[str, object] = {"model": "chat", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    if not pick.randrange(3):
        members["stream"] = True
    if not pick.randrange(6):
        members = dict(pick.sample(sorted(members.items()), len(members)))
    return json.dumps(members, separators=pick.choice(((",", ":"), (", ", ": "))), ensure_ascii=False).encode()


def chunked(pick: random.Random, body: bytes) -> bytes:
    """A body in chunks, with all that RFC 9112 allows there."""
    out, at, most = b"", 0, pick.choice((1, 4, 40))
    while at < len(body):
        most -= 1
        size = min(len(body) - at, pick.choice((1, 5, 16, 300, 4096, len(body)))) if most else len(body) - at
        written = pick.choice((b"%x", b"%X", b"0%x", b"%x;a=b", b'%x;n="q;\\" "', b"%x ; a")) % size
        out += written + b"\r\n" + body[at : at + size] + b"\r\n"
        at += size
    trailers = pick.choice((b"", b"", b"x-a: b\r\n", b"x-fairlead-feature: late\r\n", b"authorization: Bearer x\r\n"))
    return out + pick.choice((b"0", b"000", b"0;end")) + b"\r\n" + trailers + b"\r\n"


@dataclass(slots=True)
class Author:
    """Writes the requests of one connection. A head that was sent once is often sent again, as clients do."""

    pick: random.Random
    name: str
    count: int = 0
    kept: list[bytes] = field(default_factory=list)

    def request(self) -> Draft:
        """A whole request that nothing is wrong with, though it may be refused."""
        self.count += 1
        nonce = f"{self.name}-{self.count}-"
        pick = self.pick
        kind = pick.randrange(20)
        if kind == 0:
            return Draft(pick.choice((b"GET", b"HEAD", b"OPTIONS")) + b" /v1/models HTTP/1.1", [HOST, AUTH])
        if kind == 1:
            return Draft(b"GET /nope HTTP/1.1", [HOST, pick.choice((AUTH, b"x-a: b", b"content-length: 0"))])
        body = chat_body(pick, nonce)
        line = LINE
        if kind == 2:
            line = b"POST /v1/completions HTTP/1.1"
            body = json.dumps({"model": "chat", "prompt": nonce, "max_tokens": 4}).encode()
        elif kind == 3:
            line = b"POST /v1/embeddings?a=b HTTP/1.1"
            body = json.dumps({"model": "chat", "input": nonce}).encode()
        elif kind == 4:
            line = LINE[:-1] + b"0"
        draft = self._framed(line, body)
        return self._nobody(draft) if kind > 16 else draft

    def _nobody(self, draft: Draft) -> Draft:
        """The same head from nobody, with a body or with none: what is known of one must not count for the other."""
        draft.headers = [header for header in draft.headers if header is not AUTH]
        if self.pick.randrange(2):
            draft.headers, draft.body = [*draft.headers[:-1], b"content-length: 0"], b""
        return draft

    def _framed(self, line: bytes, body: bytes) -> Draft:
        pick = self.pick
        if not self.kept or not pick.randrange(8):
            self.kept = [HOST, AUTH, *pick.sample(EXTRAS, pick.randrange(4))]
            pick.shuffle(self.kept)
        headers = list(self.kept)
        if line is LINE and not pick.randrange(6):
            headers.insert(
                pick.randrange(len(headers) + 1), b"Transfer-Encoding: " + pick.choice((b"chunked", b"Chunked"))
            )
            return Draft(line, headers, chunked(pick, body))
        length = b"%d" % len(body) if pick.randrange(12) else b"%08d" % len(body)
        headers.append(pick.choice((b"content-length: %b", b"Content-Length:%b", b"content-length: %b ")) % length)
        return Draft(line, headers, body)


EXTRAS: Final = [
    JSON,
    b"accept: */*",
    b"user-agent: fuzz/1.0",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"x-fairlead-feature: f1",
    b"x-fairlead-workflow: w-7",
    b"x-empty:",
    b"x-long: " + b"v" * 300,
    b"expect: 100-continue",
    b"connection: keep-alive",
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c",
    b"x-content-length: 5",
    b"content-lengthy: 17",
    b"accept-encoding: gzip, br",
    b"x-request-id: mine",
    b"connection: close",
    b"te: trailers",
    b"tracestate: a=1,b=2",
    b"cookie: a=b",
    b"accept: text/event-stream",
    b"x-high: \xe9\xff",
]

LENGTHS: Final = (
    b"+%d",
    b"-%d",
    b"0x%x",
    b"%d, %d",
    b"%d,",
    b"%d %d",
    b"",
    b" ",
    b"%d\x0b",
    b"184467440737095516%d",
    b"%d.0",
    b"%de0",
    b"\x00%d",
    b"%d;",
    b"9223372036854775808%d",
    b"_%d",
    b"%d_0",
    b"\xc2\xb2%d",
    b"%d\xa0",
)

CODINGS: Final = (
    b"chunked, chunked",
    b"xchunked",
    b"chunked, identity",
    b"identity",
    b"gzip, chunked",
    b"chunked;q=1",
    b"\tchunked",
    b"chunked\x0b",
    b'"chunked"',
    b"chunked,",
    b",chunked",
    b"",
    b"chun ked",
    b"cow",
    b"chunked\r\n , x",
    b"\x0bchunked",
    b"chunked\x00",
    b"deflate",
    b"chunked, gzip",
)

ODD_LINES: Final = (
    b"x: a\r\n b",
    b"x: a\r\n\tb",
    b" x: a",
    b"x : a",
    b"x\t: a",
    b": a",
    b"xa",
    b"x\x00: a",
    b"x: a\x00b",
    b"x: a\nhost: b",
    b"x: a\rhost: b",
    b"x: a\r\r\nb: c",
    b"host: other",
    b"Host: fuzz",
    b"host:",
    b"content-length: 0",
    b"Content-Length: 5",
    b"transfer-encoding: chunked",
    b"Transfer-Encoding: identity",
    b"transfer-encoding:\r\n chunked",
    b"x(y: a",
    b"x\xe9: a",
    b"x: \x7f",
    b"x: \x01",
    b"authorization: Bearer x",
    b"x-fairlead-hop: fl-1;ai-platform/chat-8b",
    b"x-fairlead-router-token: abc",
    b"expect: 200-ok",
    b"expect: y 100-continue",
    b"connection: content-length",
    b"connection: transfer-encoding",
    b"connection: upgrade\r\nupgrade: websocket",
    b"x" * 70_000 + b": a",
    b"\r\n",
    b"content_length: 5",
    b"content-length\xa0: 5",
    b"content-length: 5\r\n 6",
    b"x: a\r\nx: b\r\nx: c",
    b"proxy-connection: close",
    b"keep-alive: timeout=5",
    b"upgrade: h2c",
    b"http2-settings: AAM",
    b"x:\x0bchunked",
    b"user-agent: a\r\n\r\nGET /v1/models HTTP/1.1",
    b"accept: \xff\xfe",
    b"traceparent: a\rb",
)

ODD_REQUESTS: Final = (
    b"POST  /v1/chat/completions   HTTP/1.1",
    b"POST\t/v1/chat/completions HTTP/1.1",
    b"post /v1/chat/completions HTTP/1.1",
    b"POST /v1/chat/completions",
    b"POST /v1/chat/completions HTTP/0.9",
    b"POST /v1/chat/completions HTTP/1.10",
    b"POST /v1/chat/completions HTTP/2.0",
    b"POST /v1/chat/completions http/1.1",
    b"POST /v1/chat/completions HTTP/1.1 ",
    b" POST /v1/chat/completions HTTP/1.1",
    b"POST /v1/chat\x00/completions HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"POST /v1/chat/completions%00 HTTP/1.1",
    b"POST http://other/v1/chat/completions HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"POST v1 HTTP/1.1",
    b"POST /v1/chat/completions?" + b"q" * 70_000 + b" HTTP/1.1",
    b"BREW / HTTP/1.1",
    b"POST /v1/chat/completions#a HTTP/1.1",
    b"POST /v1/chat/completions\xff HTTP/1.1",
    b"POST /v1/chat/completions HTTP/1,1",
    b"POST //v1/chat/completions HTTP/1.1",
    b"POST /v1/../v1/chat/completions HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01",
    b"SOURCE /v1/chat/completions ICE/1.0",
    b"POST /v1/chat/completions RTSP/1.0",
    b"HTTP/1.1 200 OK",
    b"POST /v1/chat/completions?\r HTTP/1.1",
    b"PUT /v1/chat/completions HTTP/1.1",
    b"DELETE /v1/models HTTP/1.1",
)

CHUNK_LINES: Final = (
    b"-5\r\n",
    b"+5\r\n",
    b"0x5\r\n",
    b" 5\r\n",
    b"5 \r\n",
    b"5\n",
    b"5\r",
    b"\r\n",
    b"g\r\n",
    b"ffffffffffffffff1\r\n",
    b"5;\n\r\n",
    b"5;a\rb\r\n",
    b"5;a\nb\r\n",
    b"5_0\r\n",
    b"5" + b";e" * 40_000 + b"\r\n",
    b"10000000000000005\r\n",
    b"7fffffffffffffff\r\n",
    b"5;\x00\r\n",
    b"5\t\r\n",
    b"00000000000000000005\r\n",
)


def wrong(pick: random.Random, draft: Draft) -> Draft:
    """One thing wrong."""
    return pick.choice(_WRONGS)(pick, draft)


def _length(pick: random.Random, draft: Draft) -> Draft:
    size = len(draft.body)
    form = pick.choice(LENGTHS)
    value = form.replace(b"%d", b"%d" % size).replace(b"%x", b"%x" % size)
    kept = [header for header in draft.headers if not header.lower().startswith(b"content-length")]
    return replace(draft, headers=[*kept, b"content-length: " + value])


def _off_length(pick: random.Random, draft: Draft) -> Draft:
    kept = [header for header in draft.headers if not header.lower().startswith(b"content-length")]
    size = max(0, len(draft.body) + pick.choice((-1, 1, 2, -7, 40, -len(draft.body))))
    return replace(draft, headers=[*kept, b"content-length: %d" % size])


def _coding(pick: random.Random, draft: Draft) -> Draft:
    name = pick.choice((b"transfer-encoding: ", b"Transfer-Encoding:", b"transfer-encoding : ", b"transfer_encoding: "))
    kept = draft.headers if pick.randrange(2) else [one for one in draft.headers if b"-length" not in one.lower()]
    body = draft.body if pick.randrange(2) else chunked(pick, draft.body)
    return replace(draft, headers=[*kept, name + pick.choice(CODINGS)], body=body)


def _both_framings(pick: random.Random, draft: Draft) -> Draft:
    extra = [b"content-length: %d" % pick.choice((0, 3, len(draft.body))), b"transfer-encoding: chunked"]
    pick.shuffle(extra)
    return replace(draft, headers=[*draft.headers, *extra[: pick.randrange(1, 3)]])


def _odd_line(pick: random.Random, draft: Draft) -> Draft:
    headers = list(draft.headers)
    headers.insert(pick.randrange(len(headers) + 1), pick.choice(ODD_LINES))
    return replace(draft, headers=headers)


def _odd_request(pick: random.Random, draft: Draft) -> Draft:
    return replace(draft, line=pick.choice(ODD_REQUESTS))


def _line_ends(pick: random.Random, draft: Draft) -> Draft:
    return replace(draft, end=pick.choice((b"\n", b"\r", b"\r\r\n", b"\r\n\r", b"\n\r")))


def _chunk_line(pick: random.Random, draft: Draft) -> Draft:
    kept = [
        header for header in draft.headers if b"-length" not in header.lower() and b"-encoding" not in header.lower()
    ]
    body = pick.choice(CHUNK_LINES) + b"hello" + pick.choice((b"\r\n", b"", b"\n", b"xy", b"\r", b"\r\nX")) + b"0\r\n"
    body += pick.choice(
        (b"", b"content-length: 5\r\n", b"host: x\r\n", b"transfer-encoding: chunked\r\n", b"x\r\n", b" y\r\n")
    )
    return replace(draft, headers=[*kept, b"transfer-encoding: chunked"], body=body + b"\r\n")


def _lost_header(pick: random.Random, draft: Draft) -> Draft:
    headers = list(draft.headers)
    del headers[pick.randrange(len(headers))]
    return replace(draft, headers=headers)


def _twice(pick: random.Random, draft: Draft) -> Draft:
    headers = list(draft.headers)
    headers.insert(pick.randrange(len(headers) + 1), pick.choice(headers))
    return replace(draft, headers=headers)


def _body_json(pick: random.Random, draft: Draft) -> Draft:
    """Break the body and keep the framing."""
    if not any(header.lower().startswith(b"content-length") for header in draft.headers):
        return draft
    body = scramble(pick, draft.body)
    kept = [header for header in draft.headers if not header.lower().startswith(b"content-length")]
    return replace(draft, headers=[*kept, b"content-length: %d" % len(body)], body=body)


_WRONGS: Final[tuple[Callable[[random.Random, Draft], Draft], ...]] = (
    _length,
    _off_length,
    _coding,
    _both_framings,
    _odd_line,
    _odd_line,
    _odd_request,
    _line_ends,
    _chunk_line,
    _lost_header,
    _twice,
    _body_json,
    _body_json,
)

_SPLICES: Final = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"0",
    b"9",
    b"\r\n\r\n",
    b"content-length: 3\r\n",
    b"\xff",
    b";",
    b",",
    b'"',
    b"{",
    b"}",
    b'"n":2,',
    b'"stream":true,',
    b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\n",
    b"transfer-encoding: chunked\r\n",
    b'"model":"chat",',
    b"\\u0000",
    b"[" * 2000,
    b"1" * 400,
)


def scramble(pick: random.Random, data: bytes) -> bytes:
    """Change some bytes anywhere."""
    for _ in range(pick.choice((1, 1, 2, 4))):
        at = pick.randrange(len(data) + 1)
        to = min(len(data), at + pick.choice((0, 1, 1, 2, 9, 60)))
        how = pick.randrange(5)
        if how == 0:
            data = data[:at] + data[to:]
        elif how == 1:
            data = data[:at] + pick.choice(_SPLICES) + data[at:]
        elif how == 2:
            data = data[:at] + bytes([pick.randrange(256)]) + data[at + 1 :]
        elif how == 3:
            data = data[:to] + data[at:to] + data[to:]
        else:
            data = data[:at] + pick.choice(_SPLICES) + data[to:]
    return data
