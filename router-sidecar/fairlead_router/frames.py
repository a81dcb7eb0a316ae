"""The chunked framing of a stream that passes: cut, checked and passed on without taking the framing off.

Engines send one event to a chunk. As long as every chunk that came is whole and ends with an event, the bytes can pass
to the client as they are. Anything else, such as a chunk in two reads, is taken apart here; what is not strictly what
engines send (extensions, trailers, sizes with more than hexadecimal digits) is for the parser.
"""

import re
from typing import Final

_CRLF: Final = b"\r\n"
_LAST: Final = b"0\r\n\r\n"
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,7}")
_MAX_SIZE_LINE: Final = 9
_MAX_SIZES: Final = 8_192
MAX_FRAME: Final = 64 * 1024
"""Bytes of a chunk that is waited for; a larger one is for the parser, which does not wait."""
_sizes: dict[bytes, int] = {}


class FramingError(Exception):
    """These bytes are for the parser."""


def _size(digits: bytes) -> int:
    if _SIZE.fullmatch(digits) is None:
        raise FramingError
    if len(_sizes) >= _MAX_SIZES:
        _sizes.clear()
    size = _sizes[digits] = int(digits, 16)
    return size


class Cut:
    """What one read brought. ``frames``: whole chunks as they came, the last chunk not among them."""

    __slots__ = ("complete", "frames", "rest", "spans")

    def __init__(self, frames: bytes, spans: list[tuple[int, int]], rest: bytes, *, complete: bool) -> None:
        self.frames = frames
        self.spans = spans
        self.rest = rest
        self.complete = complete

    def whole_events(self) -> bool:
        """Whether each chunk ends with an event's blank line."""
        frames = self.frames
        return all(frames[end - 2 : end] == b"\n\n" for _, end in self.spans)

    def payload(self) -> bytes:
        """The chunks' contents."""
        frames = self.frames
        return b"".join([frames[begin:end] for begin, end in self.spans])


def single(data: bytes) -> bool:
    """Whether the bytes are one whole chunk that ends an event: what nearly every read of a stream is."""
    line = data.find(_CRLF, 0, _MAX_SIZE_LINE)
    digits = data[:line] if line > 0 else b""
    size = _sizes.get(digits, 0)
    return size > 0 and line + size + 4 == len(data) and data.endswith(b"\n\n\r\n")


def cut(data: bytes) -> Cut:
    """Take chunks apart. Raises FramingError for bytes that are for the parser."""
    spans: list[tuple[int, int]] = []
    at, length = 0, len(data)
    while at < length:
        line = data.find(_CRLF, at, at + _MAX_SIZE_LINE)
        if line < 0:
            if length - at >= _MAX_SIZE_LINE:
                raise FramingError
            break
        digits = data[at:line]
        size = _sizes.get(digits) or _size(digits)
        if size == 0:
            return _last(data, spans, at)
        end = line + 2 + size
        if end + 2 > length:
            if size > MAX_FRAME:
                raise FramingError
            break
        if data[end : end + 2] != _CRLF:
            raise FramingError
        spans.append((line + 2, end))
        at = end + 2
    return Cut(data[:at], spans, data[at:], complete=False)


def _last(data: bytes, spans: list[tuple[int, int]], at: int) -> Cut:
    tail = data[at:]
    if tail == _LAST:
        return Cut(data[:at], spans, b"", complete=True)
    if _LAST.startswith(tail):
        return Cut(data[:at], spans, tail, complete=False)
    raise FramingError
