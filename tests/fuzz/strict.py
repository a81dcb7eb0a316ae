"""Reference readers of HTTP/1.1 (RFC 9112), stricter than any server needs to be: a message has one reading or none.

They are written to be compared with, not to be fast: what they refuse nobody else may take, and what they take must be
read in the same way by everybody.
"""

import re
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_SPACES: Final = re.compile(rb"^([^ ]+) +([^ ]+) +(?=H)")
_DIGITS: Final = re.compile(rb"[0-9]+")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]+)((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_MOST: Final = 1 << 63
OTHER_PROTOCOLS: Final = frozenset({b"RTSP/1.0", b"ICE/1.0"})
"""llhttp takes these in place of HTTP/1.0 and does not tell; their framing is the same."""
_NO_BODY: Final = frozenset({204, 304})
_FIRST_FINAL: Final = 200


class BadError(Exception):
    """These bytes are no message."""


class ShortError(Exception):
    """These bytes are the beginning of a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer. Header names are in lower case; ``start`` is the request line's parts or the status."""

    start: tuple[bytes, ...]
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def get(self, name: bytes) -> bytes | None:
        """The value of a header, if it came."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start[0])


@dataclass(slots=True)
class Reading:
    """What a stream of bytes says: whole messages, then ``end``: ``whole``, ``short`` or ``bad`` because of ``why``."""

    messages: list[Message] = field(default_factory=list)
    end: str = "whole"
    why: str = ""
    rest: bytes = b""


def read_requests(data: bytes) -> Reading:
    """The requests in what a client sent."""
    found, at = Reading(), _skip_empty_lines(data, 0)
    while at < len(data):
        try:
            message, at = _request(data, at)
        except (BadError, ShortError) as error:
            found.end, found.why = ("bad" if isinstance(error, BadError) else "short"), str(error)
            break
        found.messages.append(message)
        at = _skip_empty_lines(data, at)
    found.rest = data[at:]
    return found


def read_answers(data: bytes, methods: list[bytes], *, closed: bool) -> Reading:
    """The final answers in what a server sent to requests of these methods; interim ones are left out."""
    found, at = Reading(), 0
    while at < len(data):
        asked = methods[len(found.messages)] if len(found.messages) < len(methods) else b"GET"
        try:
            message, at = _answer(data, at, asked, closed=closed)
        except (BadError, ShortError) as error:
            found.end, found.why = ("bad" if isinstance(error, BadError) else "short"), str(error)
            break
        if message.status >= _FIRST_FINAL:
            found.messages.append(message)
    found.rest = data[at:]
    return found


def one_request(data: bytes) -> tuple[Message, bytes] | None:
    """The first request, and what comes after it; nothing while it is not whole. Raises BadError."""
    try:
        message, at = _request(data, 0)
    except ShortError:
        return None
    return message, data[at:]


def _request(data: bytes, at: int) -> tuple[Message, int]:
    line, at = _line(data, at)
    # More than one space around the target is read by all in one way (RFC 9112, 3).
    start = tuple(_SPACES.sub(rb"\1 \2 ", line).split(b" "))
    if len(start) != 3 or not _TOKEN.fullmatch(start[0]) or not _TARGET.fullmatch(start[1]):
        raise BadError(f"request line {line[:80]!r}")
    if start[2] in OTHER_PROTOCOLS:
        start = (*start[:2], b"HTTP/1.0")
    if start[2] not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise BadError(f"version {start[2]!r}")
    headers, at = _headers(data, at)
    old = start[2] == b"HTTP/1.0"
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        raise BadError(f"{len(hosts)} Host headers")
    coding, length = _framing(headers)
    if start[0] == b"CONNECT" or (coding and old):
        raise BadError("framing of an upgrade or of HTTP/1.0")
    body, at = _chunked(data, at) if coding else _sized(data, at, length or 0)
    return Message(start, headers, body), at


def _answer(data: bytes, at: int, asked: bytes, *, closed: bool) -> tuple[Message, int]:
    line, at = _line(data, at)
    status = _STATUS.fullmatch(line)
    if status is None:
        raise BadError(f"status line {line[:80]!r}")
    headers, at = _headers(data, at)
    coding, length = _framing(headers)
    body = b""
    if asked == b"HEAD" or int(status[1]) < _FIRST_FINAL or int(status[1]) in _NO_BODY:
        pass
    elif coding:
        body, at = _chunked(data, at)
    elif length is not None:
        body, at = _sized(data, at, length)
    elif closed:
        body, at = data[at:], len(data)
    else:
        raise ShortError("an answer that ends with the connection")
    return Message((status[1],), headers, body), at


def _framing(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bool, int | None]:
    """Whether the body is chunked, and its length."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(codings) + len(lengths) > 1:
        raise BadError("more than one framing")
    if codings and codings[0].lower() != b"chunked":
        raise BadError(f"transfer-encoding {codings[0]!r}")
    if lengths and (not _DIGITS.fullmatch(lengths[0]) or int(lengths[0]) >= _MOST):
        raise BadError(f"content-length {lengths[0][:40]!r}")
    return bool(codings), int(lengths[0]) if lengths else None


def _headers(data: bytes, at: int) -> tuple[tuple[tuple[bytes, bytes], ...], int]:
    found: list[tuple[bytes, bytes]] = []
    while True:
        line, at = _line(data, at)
        if not line:
            return tuple(found), at
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadError(f"header {line[:80]!r}")
        found.append((name.lower(), value.strip(b" \t")))


def _sized(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if len(data) < at + length:
        raise ShortError("in a sized body")
    return data[at : at + length], at + length


def _chunked(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    while True:
        line, at = _line(data, at)
        size = _CHUNK.fullmatch(line)
        if size is None or int(size[1], 16) >= _MOST:
            raise BadError(f"chunk size {line[:80]!r}")
        piece, at = _sized(data, at, int(size[1], 16))
        if not piece:
            return body, _headers(data, at)[1]
        body += piece
        end = data[at : at + 2]
        if not b"\r\n".startswith(end):
            raise BadError(f"after a chunk {end!r}")
        if len(end) < 2:
            raise ShortError("after a chunk")
        at += 2


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    """A line that ends with CR LF and holds neither. A lone CR, LF or NUL is bad as soon as it is seen."""
    end = data.find(b"\r\n", at)
    line = data[at:] if end < 0 else data[at:end]
    known = line.removesuffix(b"\r") if end < 0 else line
    if b"\n" in known or b"\r" in known or b"\0" in known:
        raise BadError(f"line {line[:80]!r}")
    if end < 0:
        raise ShortError("in a line")
    return line, end + 2


def _skip_empty_lines(data: bytes, at: int) -> int:
    """Servers ignore empty lines before a request; how these end changes nothing."""
    while data[at : at + 1] in {b"\r", b"\n"}:
        at += 1
    return at
