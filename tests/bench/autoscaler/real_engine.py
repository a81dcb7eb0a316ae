"""The performance model against a real engine: vLLM's CPU build with a small random model, on this machine.

Each load runs in pairs. From the first runs the step's time is fitted, as in the operator, from the engine's own
metrics; each second run is replayed in the simulated replica with the step as known by then, and what its requests saw
is compared. What the client sees beside the engine's steps is one constant, taken from the first runs. A machine that
does other work meanwhile shows it in the figures. The last line is one JSON object.

usage: python -m tests.bench.autoscaler.real_engine
"""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from fairlead_operator.performance import fit
from fairlead_operator.performance.replica import Replica, Request
from fairlead_operator.performance.step import Engine, StepTime
from hack.models.__main__ import make
from hack.vllm import environment

MODEL: Final = "small"
KV_TOKENS: Final = 16_384
BLOCK: Final = 32
TOKEN_BUDGET: Final = 512
SEQUENCES: Final = 64
LONGEST: Final = 1024
VOCABULARY: Final = 1000
FLAGS: Final = (
    *("--enforce-eager", "--dtype", "float32", "--block-size", str(BLOCK), "--served-model-name", "chat"),
    *("--num-gpu-blocks-override", str(KV_TOKENS // BLOCK), "--kv-cache-memory-bytes", "256M"),
    *("--max-model-len", str(LONGEST), "--no-enable-prefix-caching", "--max-num-seqs", str(SEQUENCES)),
    *("--max-num-batched-tokens", str(TOKEN_BUDGET), "--no-enable-log-requests"),
)
LOADS: Final = (2, 6, 16)
"""Requests at once: each that ends begins another, so the load fits the machine whatever else it does."""
PAIRS: Final = 4
SECONDS: Final = 6.0
SCRAPE_SECONDS: Final = 1.0
START_SECONDS: Final = 240.0
STOP_SECONDS: Final = 30.0
PROMPTS: Final = (16, 400)
OUTPUTS: Final = (8, 96)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the client saw it: when it was sent (of its run), its lengths and latencies, in seconds."""

    sent: float
    prompt: int
    output: int
    ttft: float
    tpot: float


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A running engine, asked over a Unix socket."""
    vllm, path, log = environment.install(), folder / "engine.sock", folder / "engine.log"
    cache = shutil.copytree(vllm.warm, folder / "cache")
    serve = [str(vllm.python), "-m", "vllm.entrypoints.cli.main", "serve", str(make() / MODEL), "--uds", str(path)]
    settings = {**os.environ, **environment.ENGINE_SETTINGS, "VLLM_CACHE_ROOT": str(cache), "HOME": str(folder)}
    transport = httpx.AsyncHTTPTransport(uds=str(path), limits=httpx.Limits(max_connections=None))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - one call before anything else runs
            [*serve, *FLAGS], env=settings, stdout=output, stderr=output, start_new_session=True
        )
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=120) as client:
                await _await_health(client, process, log)
                yield client
        finally:
            _stop(process)


async def _await_health(client: httpx.AsyncClient, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if (await client.get("/health")).is_success:
                return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"vLLM did not start:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8")[-2000:]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def request(client: httpx.AsyncClient, begin: float, prompt: int, output: int) -> Seen:
    """Send one; random token ids, so that nothing is tokenised."""
    chance = random.Random(prompt * 1009 + output)  # noqa: S311 - any tokens
    body = {
        "model": "chat",
        "prompt": [chance.randrange(5, VOCABULARY) for _ in range(prompt)],
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    sent, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter()
    last = time.perf_counter()
    return Seen(sent - begin, prompt, output, first - sent, (last - first) / (output - 1))


async def run(client: httpx.AsyncClient, load: int, seed: int, learn: Callable[[fit.Round, float], None]) -> list[Seen]:
    """So many requests at once for a while; ``learn`` gets what the engine's metrics show meanwhile."""
    watching = asyncio.create_task(_watch(client, learn))
    begin = time.perf_counter()
    try:
        each = await asyncio.gather(*(_caller(client, begin, seed * 100 + at) for at in range(load)))
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return sorted((one for seen in each for one in seen), key=lambda one: one.sent)


async def _caller(client: httpx.AsyncClient, begin: float, seed: int) -> list[Seen]:
    chance = random.Random(seed)  # noqa: S311 - lengths
    seen = []
    while time.perf_counter() < begin + SECONDS:
        seen.append(await request(client, begin, chance.randint(*PROMPTS), chance.randint(*OUTPUTS)))
    return seen


async def _watch(client: httpx.AsyncClient, learn: Callable[[fit.Round, float], None]) -> None:
    before, since = await sample(client), time.perf_counter()
    while True:
        await asyncio.sleep(SCRAPE_SECONDS)
        after, now = await sample(client), time.perf_counter()
        shown = fit.round_between(before, after, now - since)
        if shown is not None:
            learn(shown, now - since)
        before, since = after, now


async def sample(client: httpx.AsyncClient) -> fit.Sample:
    """What the operator reads of an engine."""
    text = (await client.get("/metrics")).text
    return fit.Sample(
        inter_token_sum=_metric(text, "inter_token_latency_seconds_sum"),
        inter_token_count=_metric(text, "inter_token_latency_seconds_count"),
        prompt_tokens=_metric(text, "prompt_tokens_total"),
        running=_metric(text, "num_requests_running"),
        kv_tokens=_metric(text, "kv_cache_usage_perc") * KV_TOKENS,
    )


def _metric(text: str, name: str) -> float:
    found = re.search(rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"vLLM shows no vllm:{name}")
    return float(found.group(1))


def replay(step: StepTime, requests: Sequence[Seen]) -> list[Request]:
    """The same requests in the simulated replica, in the order in which they came."""
    replica = Replica(Engine(step, KV_TOKENS, TOKEN_BUDGET, SEQUENCES))
    copies = []
    for number, one in enumerate(requests):
        replica.advance(one.sent)
        copies.append(Request(number, one.sent, one.prompt, one.output))
        replica.push(copies[-1], one.sent)
    replica.advance(float("inf"))
    return copies


@dataclass(frozen=True, slots=True)
class Line:
    """Means of one run in ms, measured and replayed."""

    load: int
    requests: int
    ttft: tuple[float, float]
    tpot: tuple[float, float]

    @property
    def errors(self) -> tuple[float, float]:
        """Relative, of TTFT and TPOT."""
        return abs(self.ttft[1] / self.ttft[0] - 1), abs(self.tpot[1] / self.tpot[0] - 1)


def compared(step: StepTime, load: int, seen: Sequence[Seen], added: float) -> Line:
    """Measured against replayed."""
    copies = replay(step, seen)
    mean = statistics.fmean
    return Line(
        load,
        len(seen),
        (1e3 * mean(one.ttft for one in seen), 1e3 * (added + mean(one.ttft for one in copies))),
        (1e3 * mean(one.tpot for one in seen), 1e3 * mean(one.tpot for one in copies)),
    )


async def measure(client: httpx.AsyncClient) -> tuple[fit.Fit, float, list[Line]]:
    """The fit at the end, what the client sees beside the steps, and each second run against its replay."""
    memory = fit.start(None)

    def learn(shown: fit.Round, seconds: float) -> None:
        nonlocal memory
        memory = fit.observe(memory, [shown], seconds)

    def ignore(_: fit.Round, __: float) -> None:
        pass

    lines, rest = [], []
    await run(client, max(LOADS), 0, ignore)
    for at in range(PAIRS * len(LOADS)):
        load = LOADS[at % len(LOADS)]
        first = await run(client, load, at + 1, learn)
        second = await run(client, load, at + 101, ignore)
        step = fit.fitted(memory).step
        if step is None:
            raise ValueError(fit.fitted(memory).reason)
        rest += [one.ttft - copy.ttft for one, copy in zip(first, replay(step, first), strict=True)]
        lines.append(compared(step, load, second, max(0.0, statistics.median(rest))))
    return fit.fitted(memory), max(0.0, statistics.median(rest)), lines


async def main() -> int:
    """Print everything."""
    out = sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        async with engine(Path(folder)) as client:
            found, added, lines = await measure(client)
    print(f"{found.reason}; {found.step}; the client sees {added * 1e3:.1f} ms beside the steps", file=out)
    print("at once  requests  TTFT ms measured replayed        TPOT ms measured replayed", file=out)
    for line in lines:
        print(
            f"{line.load:7d} {line.requests:9d} {line.ttft[0]:17.1f} {line.ttft[1]:8.1f} ({line.errors[0]:4.0%})"
            f" {line.tpot[0]:11.2f} {line.tpot[1]:8.2f} ({line.errors[1]:4.0%})",
            file=out,
        )
    ttft, tpot = (statistics.median(line.errors[at] for line in lines) for at in (0, 1))
    print(json.dumps({"median_ttft_error": round(ttft, 3), "median_tpot_error": round(tpot, 3)}), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
