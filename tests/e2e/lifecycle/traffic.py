"""Clients of one pool for the length of a run, by the gateway and by the pool's own Service, streams and whole answers.

It runs in the cluster's namespaces and ends with SIGTERM, after the requests in flight; a crowd of long streams instead
ends when all were answered. Prints a JSON line (see ``record``) for each request that is over. The API key is read from
FAIRLEAD_KEY.

usage: traffic.py MODEL GATEWAY_URL POOL_URL [crowd]
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import httpx

PATH: Final = "/v1/chat/completions"
PAUSE_S: Final = 0.8
"""Between two requests of a client, so that engines that start get a share of the machine."""
PATIENCE_S: Final = 120.0
OK: Final = 200


@dataclass(frozen=True, slots=True)
class Client:
    """What one client asks for, over and over. ``fresh``: each request has a connection of its own."""

    path: str
    stream: bool
    tokens: int
    fresh: bool = False


CLIENTS: Final = (
    Client("gateway", stream=True, tokens=256),
    Client("gateway", stream=True, tokens=32),
    Client("gateway", stream=False, tokens=32),
    Client("gateway", stream=False, tokens=32, fresh=True),
    Client("pool", stream=True, tokens=128),
    Client("pool", stream=False, tokens=32),
)
CROWD: Final = (Client("gateway", stream=True, tokens=600),) * 20
"""More than two replicas run at a time, and each takes seconds: for a while both are full of them."""


@dataclass(slots=True)
class Seen:
    """What has come of an answer. Times are seconds since the epoch; ``first_s`` is 0 without a token.

    ``role`` is who speaks in the answer: an engine argument sets it, so it tells which revision answered.
    """

    status: int = 0
    first_s: float = 0.0
    tokens: int = 0
    role: str = ""
    finish: str = ""
    whole: bool = False


def record(client: Client, began_s: float, seen: Seen, error: str) -> dict[str, Any]:
    """One request that is over. ``whole``: the answer has all tokens that were asked for, and its end."""
    whole = seen.whole and seen.tokens == client.tokens and seen.finish == "length"
    about = {"path": client.path, "stream": client.stream, "began_s": began_s, "ended_s": time.time()}
    return {**about, **asdict(seen), "whole": whole, "error": error}


async def ask(http: httpx.AsyncClient, client: Client, model: str) -> dict[str, Any]:
    """Send one request and read its answer to the end, whatever that is."""
    began_s, seen, error = time.time(), Seen(), ""
    messages = [{"role": "user", "content": f"{time.monotonic_ns()} tell me of the sea"}]
    body = {"model": model, "messages": messages, "max_tokens": client.tokens, "ignore_eos": True}
    if client.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async with http.stream("POST", PATH, json=body) as answer:
            seen.status = answer.status_code
            await (read_stream if client.stream and answer.status_code == OK else read_whole)(answer, seen)
            error = "" if answer.status_code == OK else answer.text[:300]
    except httpx.HTTPError as broken:
        error = f"{type(broken).__name__}: {broken}"
    return record(client, began_s, seen, error)


async def read_stream(answer: httpx.Response, seen: Seen) -> None:
    """Chunks up to ``[DONE]``."""
    async for text in events(answer):
        if text == "[DONE]":
            seen.whole = True
            return
        chunk = json.loads(text)
        seen.tokens = (chunk.get("usage") or {}).get("completion_tokens", seen.tokens)
        for choice in chunk.get("choices") or ():
            seen.role = choice["delta"].get("role") or seen.role
            seen.finish = choice.get("finish_reason") or seen.finish
            seen.first_s = seen.first_s or (time.time() if choice["delta"].get("content") else 0.0)


async def events(answer: httpx.Response) -> AsyncIterator[str]:
    """The data of each event. httpx's own lines also end at U+2028 and its like, which JSON may hold as they are."""
    rest = b""
    async for some in answer.aiter_bytes():
        *lines, rest = (rest + some).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").decode()


async def read_whole(answer: httpx.Response, seen: Seen) -> None:
    """An answer in one piece; an error's text is left to the caller."""
    await answer.aread()
    if answer.status_code == OK:
        body = answer.json()
        choice = body["choices"][0]
        seen.role, seen.finish = choice["message"]["role"], choice["finish_reason"] or ""
        seen.tokens, seen.whole, seen.first_s = body["usage"]["completion_tokens"], True, time.time()


async def work(client: Client, model: str, url: str, key: str, over: asyncio.Event) -> None:
    """Ask, and again until it is over."""
    limits = httpx.Limits(max_keepalive_connections=0 if client.fresh else 1)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=PATIENCE_S) as http:
        while True:
            sys.stdout.write(json.dumps(await ask(http, client, model)) + "\n")
            sys.stdout.flush()
            if over.is_set():
                return
            await asyncio.sleep(PAUSE_S)


async def run(model: str, urls: dict[str, str], key: str, *, crowd: bool) -> None:
    """All clients, until SIGTERM; or the crowd, each once."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    if crowd:
        over.set()
    async with asyncio.TaskGroup() as group:
        for client in CROWD if crowd else CLIENTS:
            group.create_task(work(client, model, urls[client.path], key, over))


if __name__ == "__main__":
    where = {"gateway": sys.argv[2], "pool": sys.argv[3]}
    asyncio.run(run(sys.argv[1], where, os.environ["FAIRLEAD_KEY"], crowd=sys.argv[4:] == ["crowd"]))
