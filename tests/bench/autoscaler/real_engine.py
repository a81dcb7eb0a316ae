"""The performance model against a real engine: vLLM's CPU build with a small random model, on this machine.

The step's time is fitted, as in the operator, from the engine's own metrics while callers keep some numbers of requests
running. Then other runs are recorded that the fit never saw: other numbers of callers, and arrivals at random at a rate
of their own. Each is replayed in the simulated replica and what its requests saw is compared. Callers are replayed as
what they are, each sending its next request when the last has ended. What a client sees beside the engine's steps is
one constant, of the fitted runs. The engine has a CPU of its own where there are two: its client and its HTTP server
take turns on another. A machine that does other work meanwhile shows it in the figures.

``--record FILE`` keeps what was recorded, ``--from FILE`` compares a record without an engine. The last line is one
JSON object.

usage: python -m tests.bench.autoscaler.real_engine [--record FILE | --from FILE]
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx

from fairlead_operator.performance import fit
from hack.models.__main__ import make
from hack.vllm import environment
from tests.bench.autoscaler.real_runs import Record, Report, Run, Seen, Shown, read, report, write

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
FITTED: Final = (1, 3, 8)
"""Callers of the runs that the step's time is fitted to."""
JUDGED: Final = (2, 5)
"""Callers of runs that it is not."""
PARTS: Final = (0.35, 0.6)
"""Rates of arrivals at random, as parts of what the most of the fitted callers were served."""
ROUNDS: Final = 2
CALLERS_SECONDS: Final = 12.0
ARRIVALS_SECONDS: Final = 20.0
SCRAPE_SECONDS: Final = 1.0
LEAST_CPUS: Final = 2
START_SECONDS: Final = 240.0
STOP_SECONDS: Final = 30.0
PROMPTS: Final = (16, 400)
OUTPUTS: Final = (8, 96)


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
                apart(process.pid)
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


def apart(server: int) -> None:
    """Give the engine, which is the server's child, the first CPU, and everything else of this program the rest."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < LEAST_CPUS:
        return
    tasks = Path(f"/proc/{server}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text(encoding="ascii").split()]
    for process, own in ((os.getpid(), cpus[1:]), (server, cpus[1:]), *((child, cpus[:1]) for child in children)):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), own)


async def request(client: httpx.AsyncClient, begin: float, caller: int, prompt: int, output: int) -> Seen:
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
    return Seen(caller, sent - begin, prompt, output, first - sent, (last - first) / (output - 1))


async def called(client: httpx.AsyncClient, callers: int, seed: int, *, fitted: bool) -> Run:
    """So many requests at once for a while: each that ends begins another."""
    return await recorded(
        client,
        Run(callers=callers, fitted=fitted),
        lambda begin: [_caller(client, begin, at, seed * 100 + at) for at in range(callers)],
    )


async def arriving(client: httpx.AsyncClient, rate: float, seed: int) -> Run:
    """Requests that arrive at random, whatever became of those before."""
    chance, sends, at = random.Random(seed), [], 0.0  # noqa: S311 - arrivals
    while (at := at + chance.expovariate(rate)) < ARRIVALS_SECONDS:
        sends.append((at, *lengths(chance)))
    return await recorded(
        client,
        Run(rate=rate),
        lambda begin: [_arrival(client, begin, number, *send) for number, send in enumerate(sends)],
    )


async def recorded(
    client: httpx.AsyncClient, run: Run, work: Callable[[float], list[Coroutine[Any, Any, list[Seen]]]]
) -> Run:
    """The run with what was seen."""
    shown: list[Shown] = []
    begin = time.perf_counter()
    watching = asyncio.create_task(_watch(client, begin, shown))
    try:
        each = await asyncio.gather(*work(begin))
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    seen = sorted((one for found in each for one in found), key=lambda one: one.sent)
    return Run(callers=run.callers, rate=run.rate, fitted=run.fitted, shown=tuple(shown), requests=tuple(seen))


async def _caller(client: httpx.AsyncClient, begin: float, caller: int, seed: int) -> list[Seen]:
    chance = random.Random(seed)  # noqa: S311 - lengths
    seen = []
    while time.perf_counter() < begin + CALLERS_SECONDS:
        seen.append(await request(client, begin, caller, *lengths(chance)))
    return seen


async def _arrival(  # noqa: PLR0917 - who, when and what
    client: httpx.AsyncClient, begin: float, number: int, at: float, prompt: int, output: int
) -> list[Seen]:
    await asyncio.sleep(begin + at - time.perf_counter())
    return [await request(client, begin, number, prompt, output)]


def lengths(chance: random.Random) -> tuple[int, int]:
    """Of a request."""
    return chance.randint(*PROMPTS), chance.randint(*OUTPUTS)


async def _watch(client: httpx.AsyncClient, begin: float, shown: list[Shown]) -> None:
    while True:
        found = await sample(client)
        shown.append(Shown(time.perf_counter() - begin, found))
        await asyncio.sleep(SCRAPE_SECONDS)


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


async def measure(client: httpx.AsyncClient) -> Record:
    """All runs. The first warms up and is not kept."""
    await called(client, max(FITTED), 0, fitted=False)
    runs: list[Run] = []
    for turn in range(1, ROUNDS + 1):
        runs += [await called(client, callers, 10 * turn + callers, fitted=True) for callers in FITTED]
        most = len(runs[-1].requests) / CALLERS_SECONDS
        runs += [await called(client, callers, 10 * turn + callers, fitted=False) for callers in JUDGED]
        runs += [await arriving(client, part * most, 1000 * turn + at) for at, part in enumerate(PARTS)]
    return Record(KV_TOKENS, TOKEN_BUDGET, SEQUENCES, tuple(runs))


def show(found: Report) -> None:
    """The figures for people, and for programs."""
    out = sys.stdout
    print(
        f"{found.fit.reason}; {found.fit.step}; the client sees {found.added * 1e3:.1f} ms beside the steps", file=out
    )
    print("        run  requests  TTFT ms measured replayed        TPOT ms measured replayed", file=out)
    for line in found.lines:
        print(
            f"{line.name:>11} {line.requests:9d} {line.ttft[0]:17.1f} {line.ttft[1]:8.1f} ({line.errors[0]:4.0%})"
            f" {line.tpot[0]:11.2f} {line.tpot[1]:8.2f} ({line.errors[1]:4.0%})",
            file=out,
        )
    print(json.dumps(found.figures), file=out)


async def on_engine() -> Record:
    """Start one and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        async with engine(Path(folder)) as client:
            return await measure(client)


def main() -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--record", type=Path, help="keep what was recorded")
    which.add_argument("--from", type=Path, dest="kept", help="compare what was recorded before")
    given = parser.parse_args()
    record = read(given.kept) if given.kept else asyncio.run(on_engine())
    if given.record:
        write(given.record, record)
    show(report(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
