"""Clients that send a recorded hour of a chat service in minutes: fewer requests, shorter prompts, the same rhythm.

It runs in the cluster's network; arrivals do not wait for answers. Prints a line of JSON for each request that is over.
The API key is read from FAIRLEAD_KEY.

usage: python -m tests.bench.operator.recorded MODEL GATEWAY_URL SECONDS
"""

import asyncio
import csv
import gzip
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx

from tests.bench.isolation.load import prompt_text
from tests.e2e.lifecycle.traffic import PATH, Seen, read_stream

TRACE: Final = Path(__file__).parents[1] / "data" / "azure2023_conv.csv.gz"
HOUR_S: Final = 3600.0
RATE: Final = 1.5
"""Requests/s in the mean; the trace's own are 5.4."""
SHORTER: Final = 4
"""By what the recorded prompts are divided."""
MOST_PROMPT: Final = 1200
MOST_OUTPUT: Final = 500
BYTES_PER_TOKEN: Final = 2
"""Of the words that prompts are made of, in the small models' vocabulary; their own prefix is in it."""
PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request: when, after the beginning, and its tokens."""

    at: float
    prompt: int
    output: int


def recorded() -> list[Call]:
    """The hour as it was recorded."""
    with gzip.open(TRACE, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    return [
        Call(at - times[0], int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for at, row in zip(times, rows, strict=True)
    ]


def calls(hour: Sequence[Call], seconds: float, seed: int = 1) -> list[Call]:
    """Those of the hour that are sent, in so many seconds."""
    chance = random.Random(seed)  # noqa: S311 - the same in each run
    share = min(1.0, RATE * seconds / len(hour))
    return [_smaller(one, seconds / HOUR_S) for one in hour if chance.random() < share]


def _smaller(one: Call, faster: float) -> Call:
    return Call(one.at * faster, _bounded(one.prompt // SHORTER, MOST_PROMPT), _bounded(one.output, MOST_OUTPUT))


def _bounded(tokens: int, most: int) -> int:
    return max(2, min(most, tokens))


async def ask(http: httpx.AsyncClient, model: str, call: Call, number: int) -> dict[str, Any]:
    """Send one request and read its answer to the end."""
    text = prompt_text(call.prompt * BYTES_PER_TOKEN, random.Random(number))  # noqa: S311 - text
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": call.output,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, seen, error = time.time(), Seen(), ""
    try:
        async with http.stream("POST", PATH, json=body) as answer:
            seen.status = answer.status_code
            if answer.status_code == httpx.codes.OK:
                await read_stream(answer, seen)
            else:
                await answer.aread()
                error = answer.text[:300]
    except httpx.HTTPError as broken:
        error = f"{type(broken).__name__}: {broken}"
    return outcome(call, began, time.time(), seen, error)


def outcome(call: Call, began: float, ended: float, seen: Seen, error: str) -> dict[str, Any]:
    """A request that is over; ``ttft`` and ``tpot`` in seconds, ``None`` without a whole answer."""
    whole = seen.whole and seen.first_s > 0
    tokens = max(1, call.output - 1)
    return {
        "at": call.at,
        "status": seen.status,
        "ttft": seen.first_s - began if whole else None,
        "tpot": (ended - seen.first_s) / tokens if whole else None,
        "error": error,
    }


async def run(model: str, url: str, key: str, planned: Sequence[Call]) -> None:
    """Send all at their times."""
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    began = time.monotonic()
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=PATIENCE_S) as http,
        asyncio.TaskGroup() as group,
    ):
        for number, call in enumerate(planned):
            await asyncio.sleep(max(0.0, began + call.at - time.monotonic()))
            group.create_task(_tell(http, model, call, number))


async def _tell(http: httpx.AsyncClient, model: str, call: Call, number: int) -> None:
    sys.stdout.write(json.dumps(await ask(http, model, call, number)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], os.environ["FAIRLEAD_KEY"], calls(recorded(), float(sys.argv[3]))))
