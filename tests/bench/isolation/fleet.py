"""Engines and the router of a run, each a process of its own."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead_router.contract import (
    NANO_PER_USD,
    ApiKey,
    BudgetConfig,
    Card,
    Endpoint,
    Endpoints,
    PolicyConfig,
    PoolConfig,
    PoolEndpoints,
    RouteConfig,
    RouterConfig,
    WeightedPool,
)
from hack.models import __main__ as models
from hack.vllm import environment
from tests.bench.isolation.load import API_KEY, MODEL
from tests.ports import free_ports

ROUTER: Final = Path(sys.executable).with_name("fairlead-router")
LONG_POOL: Final = "chat-long"
"""Routers ask engines for the model by its pool's name; the other pool of a run is called as the model is."""
READY_S: Final = 180.0
STOP_S: Final = 20.0
_CARD: Final = Card(version=1, prompt_pico=32_000, cached_pico=3_200, output_pico=96_000)
_VLLM: Final = (
    "--enforce-eager --dtype float32 --block-size 32 --kv-cache-memory-bytes 256M --max-model-len 8192 "
    "--max-num-batched-tokens 128 --max-num-seqs 64 --no-enable-prefix-caching"
)


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of a run: the engines in it, by number, and the most tokens of a request that it gets."""

    name: str
    engines: tuple[int, ...]
    context: int


def model_engine(port: int, cap: int, _: Path) -> tuple[list[str], Mapping[str, str]]:
    """Command and environment of an engine that computes nothing."""
    return [sys.executable, "-m", "tests.bench.isolation.engine", str(port), str(cap)], os.environ


def vllm_engine(port: int, cap: int, work: Path) -> tuple[list[str], Mapping[str, str]]:
    """Command and environment of vLLM's CPU build with a small random model."""
    home, folder = environment.install(), models.make() / "small"
    cache = work / f"vllm-{port}"
    shutil.copytree(home.warm, cache)
    command = [str(home.python), "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--host", "127.0.0.1"]
    cap_flag = ["--long-prefill-token-threshold", str(cap)] if cap else []
    command += ["--port", str(port), "--served-model-name", MODEL, LONG_POOL, *_VLLM.split(), *cap_flag]
    return command, {**os.environ, **environment.ENGINE_SETTINGS, "VLLM_CACHE_ROOT": str(cache)}


ENGINES: Final = {"model": model_engine, "vllm": vllm_engine}


@contextmanager
def engines(kind: str, cap: int, work: Path) -> Iterator[list[int]]:
    """Two engines that take requests; gives their ports."""
    with ExitStack() as stack:
        ports = list(free_ports(2))
        for port in ports:
            command, variables = ENGINES[kind](port, cap, work)
            stack.enter_context(running(command, variables, work / f"engine-{port}.log"))
        for port in ports:
            wait_for(port, "/health", work / f"engine-{port}.log")
        yield ports


@contextmanager
def router(pools: Sequence[Pool], ports: Sequence[int], work: Path) -> Iterator[int]:
    """The router with a route for each pool, an API key, two budgets on a local lease, metering; gives its port."""
    files = {
        "config": msgspec.json.encode(configuration(pools)),
        "endpoints": msgspec.json.encode(endpoints(pools, ports)),
        "local-lease": json.dumps({f"bench/{name}": 10**9 * NANO_PER_USD for name in ("all", "features")}).encode(),
    }
    port, admin = free_ports(2)
    command = [str(ROUTER), "--listen", "127.0.0.1", "--port", str(port), "--admin-port", str(admin)]
    for name, content in files.items():
        (work / name).write_bytes(content)
        command += [f"--{name}", str(work / name)]
    log = work / f"router-{port}.log"
    with running(command, os.environ, log):
        wait_for(admin, "/-/ready", log)
        yield port


def configuration(pools: Sequence[Pool]) -> RouterConfig:
    """One model whose routes lead to the pools by size."""
    routes = [
        RouteConfig(name=pool.name, max_context_tokens=pool.context, pools=(WeightedPool(pool=f"bench/{pool.name}"),))
        for pool in sorted(pools, key=lambda pool: pool.context)
    ]
    return RouterConfig(
        pools=tuple(
            PoolConfig(pool=f"bench/{pool.name}", max_context_tokens=pool.context, card=_CARD) for pool in pools
        ),
        policies=(PolicyConfig(namespace="bench", name="chat", models=(MODEL,), routes=tuple(routes)),),
        budgets=(
            BudgetConfig(namespace="bench", name="all", unit="USD", per="Namespace", namespaces=("bench",)),
            BudgetConfig(namespace="bench", name="features", unit="USD", per="Feature", namespaces=("bench",)),
        ),
        keys=(ApiKey(hash=hashlib.sha256(API_KEY.encode()).hexdigest(), namespace="bench", name="load"),),
    )


def endpoints(pools: Sequence[Pool], ports: Sequence[int]) -> Endpoints:
    """Each pool's engines."""

    def of(pool: Pool) -> tuple[Endpoint, ...]:
        return tuple(
            Endpoint(pod=f"bench/{pool.name}-{index}", address=f"127.0.0.1:{ports[index]}", variant="default")
            for index in pool.engines
        )

    return Endpoints(pools=tuple(PoolEndpoints(pool=f"bench/{pool.name}", endpoints=of(pool)) for pool in pools))


@contextmanager
def running(command: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[int]:
    """A process and all that it starts, from here to the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables, start_new_session=True)
        try:
            yield process.pid
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # The whole session: vLLM's server leaves its engine behind if it is killed alone.
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        process.wait()


def wait_for(port: int, path: str, log: Path) -> None:
    """Until it answers 200.

    Raises:
        TimeoutError: it does not; the text has the end of the log.
    """
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        with suppress(OSError, http.client.HTTPException):
            if _answer(port, path)[0] == HTTPStatus.OK:
                return
        time.sleep(0.2)
    raise TimeoutError(f"port {port} does not answer {path}:\n" + log.read_text(errors="replace")[-2000:])


def ask(port: int, path: str, content: bytes | None = None) -> Any:
    """The JSON that an engine answers, asked past the router."""
    return json.loads(_answer(port, path, content)[1])


def _answer(port: int, path: str, content: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST" if content else "GET", path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
