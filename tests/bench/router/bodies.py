"""What the load sends: chat requests of an exact size, and their heads."""

import random
from collections.abc import Mapping
from typing import Final

PATH: Final = "/v1/chat/completions"
_WORDS: Final = (
    "answer",
    "batch",
    "budget",
    "cache",
    "chunk",
    "decode",
    "engine",
    "model",
    "prefix",
    "prompt",
    "token",
)
_GROUPS: Final = 8
_SHARED: Final = 0.4
_FNV_OFFSET: Final = 14695981039346656037
_FNV_PRIME: Final = 1099511628211


def text(seed: str, length: int) -> str:
    """Words, always the same for a seed; no character of it needs an escape in JSON."""
    source, out = random.Random(seed), []  # noqa: S311 - a prompt, not a secret
    have = 0
    while have < length:
        out.append(source.choice(_WORDS))
        have += len(out[-1]) + 1
    return " ".join(out).ljust(length)[:length]


def body(size: int, number: int, *, stream: bool = False, tokens: int = 128) -> bytes:
    """A chat request of exactly ``size`` bytes. Requests of a group share a system prompt, 40 % of the text."""
    more = ',"stream":true,"stream_options":{"include_usage":true}' if stream else ""
    system, middle = '{"model":"mock-model","messages":[{"role":"system","content":"', '"},{"role":"user","content":"'
    tail = f'"}}],"max_tokens":{tokens}{more}}}'
    room = size - len(system) - len(middle) - len(tail)
    if room < 1:
        raise ValueError(f"a request of {size} bytes has no room for a prompt")
    shared = int(room * _SHARED)
    prompt = text(f"user {number}", room - shared)
    return f"{system}{text(f'group {number % _GROUPS}', shared)}{middle}{prompt}{tail}".encode()


def digest(request: bytes) -> str:
    """The digest of all contents of a request, as the engine computes it."""
    value = _FNV_OFFSET
    for part in request.split(b'"content":"')[1:]:
        for byte in part[: part.index(b'"')]:
            value = (value ^ byte) * _FNV_PRIME & 0xFFFF_FFFF_FFFF_FFFF
    return f"{value:016x}"


def headers(extra: str, engines: tuple[str, str]) -> dict[str, str]:
    """The headers of every request: the usual ones and a target's own, one a line.

    A target's own header replaces a usual one of the same name. ``{B1}`` and ``{B2}`` stand for the engines' URLs.
    """
    found = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    for line in extra.replace("{B1}", engines[0]).replace("{B2}", engines[1]).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found = {known: kept for known, kept in found.items() if known.lower() != name.strip().lower()}
            found[name.strip()] = value.strip()
    return found


def request(fields: Mapping[str, str], content: bytes) -> bytes:
    """A whole request as it goes over the wire."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {PATH} HTTP/1.1\r\nHost: bench\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content
