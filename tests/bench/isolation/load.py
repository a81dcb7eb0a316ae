"""The requests of a run, and what their callers see. Arrivals are Poisson and do not wait for answers."""

import asyncio
import contextlib
import csv
import gzip
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

TRACE: Final = Path(__file__).parents[1] / "data" / "azure2023_conv.csv.gz"
MODEL: Final = "chat"
API_KEY: Final = "sk-bench"
ANSWER_S: Final = 300.0
_WORDS: Final = "a as at be by do go he if in is it me my no of on or so to up us we the and for are but not you"

Kind = Literal["short", "long"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked: requests a second, and the (prompt, output) tokens of each; ``bytes_per_token`` of its text."""

    short_rate: float
    long_rate: float
    short: Sequence[tuple[int, int]]
    long: tuple[int, int]
    bytes_per_token: float


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a run."""

    kind: Kind
    at: float
    body: bytes


@dataclass(slots=True)
class Seen:
    """What one caller saw, in seconds."""

    kind: Kind
    at: float
    ttft: float = 0.0
    tpot: float = 0.0
    pool: str = ""
    error: str = ""


@dataclass(slots=True)
class _Answer:
    status: bytes = b""
    pool: str = ""
    tokens: list[float] = field(default_factory=list)
    text: bytes = b""


def conversations(most: int) -> list[tuple[int, int]]:
    """(prompt, output) tokens of an hour of chat, those of at most ``most`` in all (one in 20,000 is longer)."""
    with gzip.open(TRACE, "rt", newline="") as file:
        rows = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
    return [(prompt, max(2, output)) for prompt, output in rows if prompt > 0 and prompt + output <= most]


def calls(traffic: Traffic, seconds: float, seed: int, *, long: bool) -> list[Call]:
    """The requests of a run. The short ones of a seed are the same with and without the long ones."""
    rng = random.Random(seed)  # noqa: S311 - the same in each run
    shorts = [
        _call("short", at, rng.choice(traffic.short), traffic, rng)
        for at in _arrivals(traffic.short_rate, seconds, rng)
    ]
    if not long:
        return shorts
    longs = [_call("long", at, traffic.long, traffic, rng) for at in _arrivals(traffic.long_rate, seconds, rng)]
    return sorted([*shorts, *longs], key=lambda call: call.at)


def _arrivals(rate: float, seconds: float, rng: random.Random) -> list[float]:
    found, at = [], rng.expovariate(rate)
    while at < seconds:
        found.append(at)
        at += rng.expovariate(rate)
    return found


def _call(kind: Kind, at: float, tokens: tuple[int, int], traffic: Traffic, rng: random.Random) -> Call:
    prompt, output = tokens
    return Call(kind, at, body(prompt_text(int(prompt * traffic.bytes_per_token), rng), output))


def prompt_text(size: int, rng: random.Random) -> str:
    """Words, so many bytes of them; no two begin alike."""
    text = " ".join([f"{rng.getrandbits(48):x}", *rng.choices(_WORDS.split(), k=size // 2)])
    return text[: max(1, size)]


def body(text: str, output: int) -> bytes:
    """A chat completion as a stream that writes exactly ``output`` tokens."""
    return msgspec.json.encode(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    )


async def run(port: int, planned: Sequence[Call]) -> list[Seen]:
    """Send each call when it is due; returns when all are answered."""
    began = time.perf_counter()
    return await asyncio.gather(*(_send(port, call, began) for call in planned))


async def _send(port: int, call: Call, began: float) -> Seen:
    await asyncio.sleep(max(0.0, began + call.at - time.perf_counter()))
    sent, answer, seen = time.perf_counter(), _Answer(), Seen(call.kind, call.at)
    try:
        async with asyncio.timeout(ANSWER_S):
            await _exchange(port, call.body, answer)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        seen.error = repr(error)
    if not answer.tokens:
        seen.error = seen.error or (answer.status + b" " + answer.text).decode(errors="replace")[:300]
        return seen
    seen.ttft, seen.pool = answer.tokens[0] - sent, answer.pool
    seen.tpot = (answer.tokens[-1] - answer.tokens[0]) / max(1, len(answer.tokens) - 1)
    return seen


async def _exchange(port: int, content: bytes, answer: _Answer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {API_KEY}\r\n"
        head += "x-fairlead-feature: bench\r\nconnection: close\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer.status = (await reader.readline()).strip()
        async for line in reader:
            # One event is one token, also if its text is empty; vLLM sends one more, with the role, beside the first.
            if line.startswith(b"data: {") and b'"content":"' in line and b'"role"' not in line:
                answer.tokens.append(time.perf_counter())
            elif line.startswith(b"x-fairlead-pool:"):
                answer.pool = line.partition(b":")[2].strip().decode()
            elif line.startswith(b"data: [DONE]"):
                return
            elif b" 200 " not in answer.status:
                answer.text += line
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
