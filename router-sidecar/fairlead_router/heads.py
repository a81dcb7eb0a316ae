"""Heads that repeat. Clients and engines send the same head again and again on a connection, but for a few values.

A template is such a head cut open at the values that change: content-length, date, traceparent, x-request-id,
x-fairlead-load. A head that equals a template outside of those cuts says the same as the one that was parsed, so it is
recognised with a few comparisons instead of being parsed again. Whatever does not fit exactly goes to the parser.
"""

import re
from collections.abc import Collection
from typing import Final

_CRLF: Final = b"\r\n"
_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length"
_MAX_DIGITS: Final = 9
MAX_HEAD: Final = 8 * 1024
"""Bytes of a head that is remembered at most."""
TRACEPARENT: Final = b"traceparent"
REQUEST_ID: Final = b"x-request-id"
_TRACE: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Template:
    """A head to compare others with. ``names`` are the values' names, in the order of the cuts."""

    __slots__ = (
        "_latest", "_latest_at", "_latest_values", "_rest", "_start", "id_at", "key", "length", "length_at", "names",
        "sized", "trace_at",
    )  # fmt: skip

    def __init__(self, names: tuple[bytes, ...], segments: tuple[bytes, ...]) -> None:
        self.names = names
        self.key = (names, segments)
        self._start, *rest = segments
        self._rest = tuple((segment, len(segment)) for segment in rest)
        self.length_at = names.index(_LENGTH) if _LENGTH in names else -1
        self.trace_at = names.index(TRACEPARENT) if TRACEPARENT in names else -1
        self.id_at = names.index(REQUEST_ID) if REQUEST_ID in names else -1
        self.sized = self.length_at >= 0
        self.length = 0
        """Of the body that the latest match announced."""
        # The latest match, whole, as the values repeat more often than not.
        self._latest = b""
        self._latest_at = 0
        self._latest_values: list[bytes] = []

    def match(self, data: bytes) -> tuple[list[bytes], int] | None:
        """The values, and where the body begins; nothing if the bytes are not exactly such a head."""
        at = self._latest_at
        # A slice costs compiled code less than a call of startswith.
        if at and data[:at] == self._latest:
            return self._latest_values, at
        if not data.startswith(self._start):
            return None
        at = len(self._start)
        values = []
        for segment, size in self._rest:
            end = data.find(_CRLF, at)
            if end < 0 or not data.startswith(segment, end):
                return None
            values.append(data[at:end])
            at = end + size
        if self.trace_at >= 0 and _TRACE.fullmatch(values[self.trace_at]) is None:
            return None
        if self.sized:
            digits = values[self.length_at]
            if not digits.isdigit() or len(digits) > _MAX_DIGITS:
                return None
            self.length = int(digits)
        self._latest, self._latest_at, self._latest_values = data[:at], at, values
        return values, at


def template(head: bytes, changing: Collection[bytes]) -> Template | None:
    """The template of a head that was parsed: bytes up to and with the empty line. ``changing``: lower-case names."""
    if len(head) > MAX_HEAD or not head.endswith(_END):
        return None
    names: list[bytes] = []
    segments: list[bytes] = []
    last = 0
    at = head.find(_CRLF) + len(_CRLF)
    while at < len(head) - len(_CRLF):
        end = head.find(_CRLF, at)
        colon = head.find(b":", at, end)
        name = head[at:colon].lower()
        if name in changing:
            begin = colon + 1 + (head[colon + 1 : colon + 2] == b" ")
            names.append(name)
            segments.append(head[last:begin])
            last = end
        at = end + len(_CRLF)
    segments.append(head[last:])
    return Template(tuple(names), tuple(segments)) if len(set(names)) == len(names) else None
