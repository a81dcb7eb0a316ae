"""The program itself: its ports, its configuration from an operator and from disk, draining, and its end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead_router.contract import (
    AUDIENCE_ROUTER,
    AUDIENCE_SIGNALS,
    ConfigAnswer,
    Endpoint,
    Endpoints,
    PoolEndpoints,
    Signals,
)
from fairlead_router.settings import read_settings
from tests.builders.router import (
    POOL,
    Answer,
    Wire,
    chat,
    configuration,
    endpoints,
    policy,
    post,
    token,
    until,
    until_async,
)
from tests.fakes.engine import Behaviour, FakeEngine

ROOT = Path(__file__).parents[2]


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@dataclass
class Program:
    """A router process."""

    process: asyncio.subprocess.Process
    port: int
    admin: int
    log: list[str] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)

    async def wire(self, port: int | None = None) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", port or self.port))
        self.wires.append(wire)
        return wire

    async def ask(self, data: bytes, port: int | None = None) -> Answer:
        wire = await self.wire(port)
        await wire.send(data)
        answer = await wire.answer()
        wire.close()
        return answer

    async def get(self, path: str, bearer: str = "") -> Answer:
        head = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n\r\n"
        return await self.ask(head.encode(), self.admin)

    async def becomes(self, path: str, status: int) -> None:
        async def does() -> bool:
            with contextlib.suppress(OSError):
                return (await self.get(path)).status == status
            return False

        await until_async(does, f"{path} answering {status}")

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def program(*arguments: str, **environment: str) -> AsyncIterator[Program]:
    """Start the router; its log is kept for a failing test."""
    port, admin = free_ports()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fairlead_router.main", "--listen", "127.0.0.1", "--port", str(port),
        "--admin-port", str(admin), *arguments, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "router-sidecar"), **environment},
    )  # fmt: skip
    found = Program(process, port, admin)
    reading = asyncio.create_task(_read(process, found.log))
    try:
        await found.becomes("/-/config", 200)
        yield found
    finally:
        for wire in found.wires:
            wire.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
        sys.stderr.write("".join(found.log))


async def _read(process: asyncio.subprocess.Process, log: list[str]) -> None:
    assert process.stderr is not None
    log.extend([line.decode() async for line in process.stderr])


def write(path: Path, value: Any) -> str:
    path.write_bytes(msgspec.json.encode(value))
    return str(path)


async def test_a_router_runs_from_files_alone(engine: FakeEngine, tmp_path: Path) -> None:
    config = write(tmp_path / "config.json", configuration())
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    async with program("--config", config, "--endpoints", found, "--ledger", "off") as router:
        assert (await router.get("/-/ready")).body == b"ready\n"
        assert (await router.ask(post(chat()))).status == 200
        metrics = (await router.get("/metrics")).body.decode()
        assert f'fairlead_requests_total{{outcome="ok",pool="{POOL}",route="all",tenant="support"}} 1.0' in metrics
        assert f'fairlead_tokens_total{{kind="output",pool="{POOL}",tenant="support"}} 4.0' in metrics
        assert "fairlead_request_cost_usd_bucket" in metrics
        assert (await router.get("/nope")).status == 404
        assert (await router.ask(b"POST /metrics HTTP/1.1\r\nhost: x\r\n\r\n", router.admin)).status == 404
        assert await router.stop() == 0
    assert not [line for line in router.log if "exception" in line]


async def test_only_the_operator_reads_signals(engine: FakeEngine, tmp_path: Path) -> None:
    config = write(tmp_path / "config.json", configuration())
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    async with program("--config", config, "--endpoints", found, FAIRLEAD_POD_NAME="gw-1") as router:
        await router.ask(post(chat()))
        for bearer in (
            "",
            token("fairlead", "fairlead-operator"),
            token("fairlead", "web", AUDIENCE_SIGNALS),
            token("support", "fairlead-operator", AUDIENCE_SIGNALS),
        ):
            assert (await router.get("/-/signals", bearer)).status == 401
        answer = await router.get("/-/signals", token("fairlead", "fairlead-operator", AUDIENCE_SIGNALS, pod="op-1"))
        signals = msgspec.json.decode(answer.body, type=Signals)
        assert signals.router == "local/gw-1"
        (pool,) = signals.pools
        assert (pool.requests_total, pool.prompt_tokens_total, pool.output_tokens_total) == (1, 10, 4)
        assert pool.charged_nano_usd_total == 704
        assert pool.last_request_ms > 0


async def test_a_request_under_way_is_answered_before_the_router_ends(engine: FakeEngine, tmp_path: Path) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    config = write(tmp_path / "config.json", configuration())
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    async with program("--config", config, "--endpoints", found) as router:
        wire = await router.wire()
        await wire.send(post(chat()))
        await until(lambda: engine.running == 1, "the request")
        router.process.send_signal(signal.SIGTERM)
        await until_async(lambda: refuses(router), "the end of listening")
        gate.set()
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        async with asyncio.timeout(10):
            assert await router.process.wait() == 0


async def refuses(router: Program) -> bool:
    try:
        await router.wire()
    except OSError:
        return True
    return False


@pytest.fixture
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")


def sidecar(folder: Path, **more: str) -> dict[str, str]:
    return {
        "FAIRLEAD_NAMESPACE": "ai-platform",
        "FAIRLEAD_POD_NAME": "p0",
        "FAIRLEAD_POOL": POOL,
        "FAIRLEAD_ENGINE_SOCKET": str(folder / "engine.sock"),
        "FAIRLEAD_DRAIN_SOCKET": str(folder / "drain.sock"),
        "FAIRLEAD_DRAIN_TIMEOUT": "5",
        **more,
    }


async def test_a_sidecar_reports_its_engines_health_and_context(
    engine: FakeEngine, tmp_path: Path, run_folder: Path
) -> None:
    config = write(tmp_path / "config.json", configuration(platform_namespaces=("ai-platform",)))
    async with program("--config", config, **sidecar(run_folder)) as router:
        assert (await router.get("/-/ready")).status == 200
        assert (await router.get("/-/engine/health")).status == 503
        await engine.start(str(run_folder / "engine.sock"))
        assert (await router.get("/-/engine/health")).status == 200
        await until_async(lambda: told_context(router, engine.max_model_len), "the context's arrival", 20)


async def told_context(router: Program, context: int) -> bool:
    bearer = token("fairlead", "fairlead-operator", AUDIENCE_SIGNALS)
    answer = await router.get("/-/signals", bearer)
    return msgspec.json.decode(answer.body, type=Signals).max_context_tokens == context


async def test_a_drain_waits_for_the_engines_requests_and_takes_no_more(
    engine: FakeEngine, tmp_path: Path, run_folder: Path
) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    await engine.start(str(run_folder / "engine.sock"))
    config = write(tmp_path / "config.json", configuration(platform_namespaces=("ai-platform",)))
    own = Endpoint(pod="ai-platform/p0", address="10.0.0.1", variant="h100")
    found = write(tmp_path / "endpoints.json", Endpoints(pools=(PoolEndpoints(pool=POOL, endpoints=(own,)),)))
    async with program("--config", config, "--endpoints", found, **sidecar(run_folder)) as router:
        wire = await router.wire()
        await wire.send(post(chat()))
        await until(lambda: engine.running == 1, "the request")
        reader, writer = await asyncio.open_unix_connection(str(run_folder / "drain.sock"))
        await router.becomes("/-/ready", 503)
        hop = post(
            chat(), x_fairlead_hop=f"fl-1;{POOL}", x_fairlead_router_token=token("fairlead", "g", AUDIENCE_ROUTER)
        )
        refused = await router.ask(hop)
        assert (refused.status, refused.headers["x-fairlead-retry"]) == (503, "draining")
        gate.set()
        assert (await wire.answer()).status == 200
        async with asyncio.timeout(5):
            assert await reader.read() == b"drained 1\n"
        writer.close()
        await engine.stop()
        await asyncio.sleep(1.5)  # a kubelet takes longer to restart a container; the router looks twice a second
        await engine.start(str(run_folder / "engine.sock"))
        await router.becomes("/-/ready", 200)


async def serves(router: Program, model: str) -> bool:
    return (await router.ask(post(chat(model=model)))).status == 200


@dataclass
class FakeOperator:
    """Serves one configuration after the other to a long poll."""

    answers: list[ConfigAnswer | bytes]
    asked: list[str] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def stop(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.tasks.extend(filter(None, [asyncio.current_task()]))
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.asked.append(head.split(" ")[1])
                if not self.answers:
                    await self.ready.wait()
                    self.ready.clear()
                answer = self.answers.pop(0)
                body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        writer.close()


async def test_the_configuration_follows_the_operator_and_survives_its_absence(
    engine: FakeEngine, tmp_path: Path
) -> None:
    where = endpoints({POOL: (await engine.start(),)})
    operator = FakeOperator([ConfigAnswer(version="a", endpoints_version="1", config=configuration(), endpoints=where)])
    server = await asyncio.start_server(operator.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    state = {"FAIRLEAD_OPERATOR_URL": url, "FAIRLEAD_STATE_DIR": str(tmp_path)}
    async with program(**state) as router:
        await router.becomes("/-/ready", 200)
        assert (await router.ask(post(chat()))).status == 200
        changed = configuration(policies=(policy(models=("renamed",)),))
        broken = configuration(pools=())
        operator.answers += [
            ConfigAnswer(version="b", endpoints_version="1", config=broken),
            ConfigAnswer(version="c", endpoints_version="1", config=changed),
        ]
        operator.ready.set()
        await until_async(lambda: serves(router, "renamed"), "the new configuration")
        assert (await router.get("/-/config")).json() == {"version": "c", "endpointsVersion": "1"}
        assert await router.stop() == 0
    assert [path for path in operator.asked if "have=b" in path] == []
    server.close()
    await operator.stop()
    async with program(**state) as again:
        assert (await again.get("/-/ready")).status == 200
        assert (await again.ask(post(chat(model="renamed")))).status == 200


async def test_a_router_that_never_had_a_configuration_is_not_ready() -> None:
    async with program() as router:
        assert (await router.get("/-/ready")).status == 503


def test_flags_win_over_the_environment() -> None:
    patient = read_settings([], {})
    assert (patient.first_byte_s, patient.between_bytes_s) == (600, 300)
    settings = read_settings(
        ["--ledger", "off", "--port", "1"], {"FAIRLEAD_LEDGER_URL": "http://l", "FAIRLEAD_POOL": ""}
    )
    assert (settings.ledger, settings.port, settings.engine) == ("", 1, "")
