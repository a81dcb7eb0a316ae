"""Prefix affinity: which replicas a prompt's beginning belongs to. Pure, and the same in every router and process.

An engine keeps the keys and values of prompts that it has seen, and a prompt that begins alike skips that part of the
prefill. So requests that share a beginning should meet at one replica. Real beginnings are a system prompt that all
callers of a feature share, and behind it a conversation that grows. The system prompt is soon cached everywhere,
whoever gets it; what is worth keeping together is the conversation. The key therefore reaches to the end of the first
user message, at most ``REACH`` bytes into it: later turns have the same key, another conversation has another one.
A prompt of less than ``SHORTEST`` bytes has no key: its prefill is over sooner than a place behind others is free.

The key names a place on a consistent hash ring, so no router remembers anything, all routers agree, and a replica that
comes or goes moves only its own share of the keys. A replica that already has more than ``bound`` requests is passed
over and the next on the ring is taken (consistent hashing with bounded loads, Mirrokni et al., 2018). What was measured
against this, and why it lost, is in docs/concepts/routing.md.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final
from zlib import crc32

Key = int
"""A prompt's beginning: 1 to 2**32 - 1, or ``NO_PREFIX``. Callers only pass it on."""

NO_PREFIX: Final = 0
"""No beginning that is worth meeting again: any replica will do."""

SHORTEST: Final = 2048
"""Bytes of a prompt from which on it has a key: about 500 tokens, a hundredth of a second of prefill."""
REACH: Final = 1024
"""Bytes that count of the system prompt's beginning and of the first user message: about 250 tokens each."""
PLAIN_REACH: Final = 4096
"""Bytes that count of a prompt without messages: about a thousand tokens."""
_SEARCHED: Final = 64 * 1024
"""Where the first user message must begin to be found."""
_MOST_MESSAGES: Final = 4
_MOST_BRACES: Final = 16
"""Closing braces looked at for the end of one message: prompts may be full of code."""
_ROLE_WITHIN: Final = 32
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_LIST: Final = ord("[")

POINTS: Final = 128
"""Places of each replica on the ring."""
SUCCESSORS: Final = 8
"""How many replicas are kept in order for each place; whoever finds all of them busy looks at the whole pool."""
_POINT_BYTES: Final = 4


def prefix_key(prompt: bytes | memoryview) -> Key:
    """The key of a prompt: the JSON value of ``messages``, ``prompt`` or ``input`` as the client sent it.

    Two prompts with messages have one key if their system prompts agree in length and in the first ``REACH`` bytes, and
    their first user messages agree to their end or in the first ``REACH`` bytes. Other prompts have one key if they
    agree in the first ``PLAIN_REACH`` bytes. Any bytes are taken.
    """
    if len(prompt) < SHORTEST:
        return NO_PREFIX
    lead = bytes(prompt[:_SEARCHED])  # copies only a view, 2 us at most
    start, end = _first_user_message(lead) if lead[0] == _LIST else (0, 0)
    if not end:
        return crc32(lead[:PLAIN_REACH]) or 1
    return crc32(lead[start:end], crc32(lead[: min(start, REACH)], start)) or 1


def _first_user_message(lead: bytes) -> tuple[int, int]:
    """Where it begins, and where it ends or has gone on for ``REACH`` bytes; (0, 0): not found."""
    start = 1
    for _ in range(_MOST_MESSAGES):
        if lead.find(b'"user"', start, start + _ROLE_WITHIN) >= 0:
            return start, _message_end(lead, start, start + REACH) or start + REACH
        end = _message_end(lead, start, len(lead))
        if not end:
            break
        if lead.endswith(b'"user"', start, end):  # the content came before the role
            return start, min(end, start + REACH)
        start = end + 1
    return 0, 0


def _message_end(lead: bytes, start: int, stop: int) -> int:
    """Where a string ends an object: inside a string the quote would be escaped. 0: not found.

    A search for one byte runs at the speed of memory, which one for more bytes does not.
    """
    brace = start
    for _ in range(_MOST_BRACES):
        brace = lead.find(b"}", brace + 1, stop)
        if brace < 0:
            break
        if lead[brace - 1] == _QUOTE and (lead[brace - 2] != _BACKSLASH or _ends_in_pairs(lead[start : brace - 1])):
            return brace
    return 0


def _ends_in_pairs(text: bytes) -> bool:
    """Whether the backslashes at the end escape each other, so that a quote after them is none of the text."""
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 0


def bound(running: int, replicas: int) -> int:
    """How many requests a replica may have, the next one included: 1.25 of the mean, rounded up, and one to spare.

    Without the spare one, rounding alone turns away much of a conversation while replicas have two or three requests
    each, though an engine hardly notices one more; with many requests it does not matter.
    """
    return -(-5 * (running + 1) // (4 * replicas)) + 1


def ring(names: Sequence[str]) -> tuple[list[int], list[tuple[int, ...]]]:
    """The places on the ring, ascending, and whom a key meets there: indexes into ``names``, nearest first.

    The entry for a key is ``orders[bisect(places, key)]``. Each holds all replicas, or the first ``SUCCESSORS``.
    """
    places = sorted((point, name, index) for index, name in enumerate(names) for point in _points(name))
    order: list[int] = []
    orders: list[tuple[int, ...]] = []
    for _, _, index in reversed(places * 2):  # the second time round all that follow are known
        order = [index, *[other for other in order if other != index][: SUCCESSORS - 1]]
        orders.append(tuple(order))
    orders = orders[: len(places) - 1 : -1] if places else []
    return [point for point, _, _ in places], orders + orders[:1]


def _points(name: str) -> list[int]:
    """Even by a cryptographic hash: names of replicas differ in a few letters only."""
    each = blake2b().digest_size // _POINT_BYTES
    digests = (blake2b(f"{part}/{name}".encode()).digest() for part in range(POINTS // each))
    return [
        int.from_bytes(digest[at : at + _POINT_BYTES])
        for digest in digests
        for at in range(0, len(digest), _POINT_BYTES)
    ]
