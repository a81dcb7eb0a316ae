"""The program itself: its ports, its configuration from an operator and from disk, draining, and its end."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import fairlead_router
from fairlead_router import main
from fairlead_router.contract import (
    AUDIENCE_ROUTER,
    AUDIENCE_SIGNALS,
    ConfigAnswer,
    DrainReport,
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
    api_key,
    budget,
    chat,
    configuration,
    endpoints,
    policy,
    post,
    station,
    token,
    until,
    until_async,
)
from tests.fakes.engine import Behaviour, FakeEngine
from tests.ports import free_ports

PACKAGES = str(Path(fairlead_router.__file__).parents[1])
"""Where the package lies that these tests run on: its sources, or those and what was compiled of them."""


@dataclass
class Program:
    """A router process."""

    process: asyncio.subprocess.Process
    port: int
    admin: int
    log: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """Its standard output."""
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
    port, admin = free_ports(2)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fairlead_router.main", "--listen", "127.0.0.1", "--port", str(port),
        "--admin-port", str(admin), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES, **environment},
    )  # fmt: skip
    found = Program(process, port, admin)
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.gather(_read(process.stdout, found.said), _read(process.stderr, found.log))
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


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        lines.append(line.decode())  # noqa: PERF401 - each as soon as it comes


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
        full = await router.ask(b"GET /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx", router.admin)
        assert (full.status, "takes no bodies" in full.body.decode()) == (413, True)
        assert await router.stop() == 0
    assert not [line for line in router.log if "exception" in line]
    (first,) = [line for line in map(json.loads, router.log) if line.get("event") == "Listening"]
    assert first["compiled"] is (os.environ.get("FAIRLEAD_COMPILED") == "1")


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


async def test_a_client_on_an_idle_connection_is_answered_and_told_to_close_after_sigterm(
    engine: FakeEngine, tmp_path: Path
) -> None:
    config = write(tmp_path / "config.json", configuration())
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    async with program("--config", config, "--endpoints", found) as router:
        wire, silent = await router.wire(), await router.wire()
        for one in (wire, silent):
            await one.send(post(chat()))
            assert "connection" not in (await one.answer()).headers
        router.process.send_signal(signal.SIGTERM)
        await until_async(lambda: closes(router), "an answer that closes its connection")
        await wire.send(post(chat()))
        assert (await wire.answer()).headers["connection"] == "close"
        assert await silent.closed() == b""
        async with asyncio.timeout(10):
            assert await router.process.wait() == 0


async def closes(router: Program) -> bool:
    return (await router.ask(post(chat()))).headers.get("connection") == "close"


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
        "FAIRLEAD_TERMINATION_LOG": str(folder / "last-words"),
        **more,
    }


async def test_a_sidecar_reports_its_engines_health_and_context(
    engine: FakeEngine, tmp_path: Path, run_folder: Path
) -> None:
    config = write(tmp_path / "config.json", configuration(platform_namespaces=("ai-platform",)))
    async with program("--config", config, **sidecar(run_folder)) as router:
        assert (await router.get("/-/ready")).status == 200
        assert (await router.get("/-/engine/health")).status == 503
        assert (await router.get("/-/engine/ready")).body == b"the engine has not opened its socket yet\n"
        engine.warm_up.append((500, b'{"error": {"message": "no kernel image is available"}}'))
        await engine.start(str(run_folder / "engine.sock"))
        assert (await router.get("/-/engine/health")).status == 200
        await until_async(lambda: says_why(router, b"answered 500: no kernel image is available"), "the reason")
        await router.becomes("/-/engine/ready", 200)
        assert f'fairlead_engine_ready{{pool="{POOL}"}} 1.0' in (await router.get("/metrics")).body.decode()
        await until_async(lambda: told_context(router, engine.max_model_len), "the context's arrival", 20)


async def says_why(router: Program, words: bytes) -> bool:
    answer = await router.get("/-/engine/ready")
    return answer.status == 503 and words in answer.body


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
        assert refused.headers["connection"] == "close", "clients must look for another replica"
        gate.set()
        assert (await wire.answer()).status == 200
        async with asyncio.timeout(5):
            assert await reader.read() == b"drained 1\n"
        writer.close()
        told = msgspec.json.decode((run_folder / "last-words").read_bytes(), type=DrainReport)
        assert (told.requests, told.left, told.timeout_s) == (1, 0, 5.0)
        assert 0 < told.took_s < 5
        await engine.stop()
        await asyncio.sleep(1.5)  # a kubelet takes longer to restart a container; the router looks twice a second
        await engine.start(str(run_folder / "engine.sock"))
        await router.becomes("/-/ready", 200)
        assert (run_folder / "last-words").read_bytes() == b"", "the pod stays"
        assert "connection" not in (await router.ask(post(chat()))).headers


@pytest.mark.parametrize("dies", [False, True], ids=["it goes on", "it dies"])
async def test_a_drain_that_requests_outlast_says_how_many_and_of_an_engine_that_died_nothing_is_said(
    engine: FakeEngine, tmp_path: Path, run_folder: Path, *, dies: bool
) -> None:
    engine.behaviour = Behaviour(hold=asyncio.Event())
    await engine.start(str(run_folder / "engine.sock"))
    config = write(tmp_path / "config.json", configuration(platform_namespaces=("ai-platform",)))
    own = Endpoint(pod="ai-platform/p0", address="10.0.0.1", variant="h100")
    found = write(tmp_path / "endpoints.json", Endpoints(pools=(PoolEndpoints(pool=POOL, endpoints=(own,)),)))
    seconds = "30" if dies else "1"
    variables = sidecar(run_folder, FAIRLEAD_DRAIN_TIMEOUT=seconds)
    async with program("--config", config, "--endpoints", found, **variables) as router:
        wires = [await router.wire() for _ in range(2)]
        for wire in wires:
            await wire.send(post(chat()))
        await until(lambda: engine.running == 2, "the requests")
        hooks = [await asyncio.open_unix_connection(str(run_folder / "drain.sock")) for _ in range(2)]
        await router.becomes("/-/ready", 503)
        if dies:
            await engine.stop()
        async with asyncio.timeout(20):
            said = [await reader.read() for reader, _ in hooks]
        assert said == [b"drained 2\n" if dies else b"drained 0\n"] * 2
        words = (run_folder / "last-words").read_bytes() if (run_folder / "last-words").exists() else b""
        if not dies:
            report = msgspec.json.decode(words, type=DrainReport)
            assert (report.requests, report.left, report.timeout_s) == (2, 2, 1.0)
        assert bool(words) is not dies
        for _, writer in hooks:
            writer.close()
        if not dies:
            await engine.stop()


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
        metrics = (await router.get("/metrics")).body.decode()
        assert 'fairlead_config_rejected_total{reason="invalid"} 1.0' in metrics
        assert 'fairlead_config_info{endpoints_version="1",version="c"} 1' in metrics
        assert await router.stop() == 0
    assert [path for path in operator.asked if "have=b" in path] == []
    server.close()
    await operator.stop()
    async with program(**state) as again:
        assert (await again.get("/-/ready")).status == 200
        assert (await again.ask(post(chat(model="renamed")))).status == 200


async def test_an_outage_of_the_ledger_is_in_the_log_as_one_line_with_the_refusals(
    engine: FakeEngine, tmp_path: Path
) -> None:
    config = write(tmp_path / "config.json", configuration(budgets=(budget(),)))
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    (closed,) = free_ports(1)
    async with program("--config", config, "--endpoints", found, "--ledger", f"http://127.0.0.1:{closed}") as router:
        assert (await router.ask(post(chat()))).code == "ledger_unreachable"
        await until(lambda: any("OutageBegan" in line for line in router.log), "the line of the log")
        assert (await router.ask(post(chat()))).code == "ledger_unreachable"
        assert await router.stop() == 0
    (line,) = [line for line in map(json.loads, router.log) if line.get("event", "").startswith("Outage")]
    assert (line["level"], line["code"], line["message"].partition(" (")[0]) == (
        "warning", "ledger_unreachable", f"The ledger at 127.0.0.1:{closed} does not answer",
    )  # fmt: skip
    assert not [line for line in router.log if token().rpartition(".")[2] in line]


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


async def ended(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """How a router that cannot start ends, and what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fairlead_router.main", "--listen", "127.0.0.1", "--port", "0", "--admin-port", "0",
        *arguments, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES, **environment},
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, said.decode()


async def test_a_setting_that_is_no_share_is_named_and_ends_the_router() -> None:
    code, said = await ended(FAIRLEAD_ACCESS_LOG="abc")
    assert code == 2
    assert "FAIRLEAD_ACCESS_LOG" in said
    assert "Traceback" not in said


async def test_files_that_cannot_be_used_are_named_and_end_the_router(tmp_path: Path) -> None:
    good = write(tmp_path / "config.json", configuration())
    broken = write(tmp_path / "broken.json", configuration(pools=()))
    (tmp_path / "text").write_text("{")
    for arguments, environment, word in (
        (("--config", broken), {}, "broken.json"),
        (("--config", str(tmp_path / "text")), {}, "text"),
        (("--config", str(tmp_path / "none")), {}, "none"),
        (("--config", good), {"FAIRLEAD_TLS_CERT": str(tmp_path / "tls.crt")}, "FAIRLEAD_TLS_CERT"),
    ):
        code, said = await ended(*arguments, **environment)
        assert (code, word in said, "Traceback" in said) == (2, True, False), said


async def test_a_kept_configuration_that_does_not_hold_is_left_for_the_operators(
    engine: FakeEngine, tmp_path: Path
) -> None:
    kept = ConfigAnswer(version="x", endpoints_version="1", config=configuration(pools=()))
    write(tmp_path / "configuration.json", kept)
    where = endpoints({POOL: (await engine.start(),)})
    operator = FakeOperator([ConfigAnswer(version="a", endpoints_version="1", config=configuration(), endpoints=where)])
    server = await asyncio.start_server(operator.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with program(FAIRLEAD_OPERATOR_URL=url, FAIRLEAD_STATE_DIR=str(tmp_path)) as router:
        await router.becomes("/-/ready", 200)
        assert (await router.ask(post(chat()))).status == 200
        assert (await router.get("/-/config")).json()["version"] == "a"
    server.close()
    await operator.stop()


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_access_log_tells_what_was_asked_and_nothing_secret(engine: FakeEngine, tmp_path: Path) -> None:
    config = write(tmp_path / "config.json", configuration(keys=(api_key("fl-secret-key"),)))
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    bearer = token()
    async with program("--config", config, "--endpoints", found, FAIRLEAD_ACCESS_LOG="1") as router:
        served = await router.ask(post(chat("my diary"), bearer=bearer, traceparent=TRACE, x_fairlead_feature="mail"))
        refused = await router.ask(
            post(chat("my diary", model="nope"), bearer="fl-secret-key", traceparent="00-xyz-01")
        )
        await until(lambda: len(router.said) == 2, "two lines")
    first, second = (json.loads(line) for line in router.said)
    assert first | {
        "event": "Request", "request": served.headers["x-request-id"], "outcome": "ok", "status": 200,
        "path": "/v1/chat/completions", "tenant": "support", "caller": "sa:web", "feature": "mail", "model": "chat",
        "pool": POOL, "replica": "ai-platform/p0", "route": "all", "priority": "Standard", "prompt": 10, "output": 4,
        "usd": "0.000001", "bytes_in": len(chat("my diary")), "bytes_out": len(served.body),
        "trace_id": TRACE.split("-")[1],
    } == first  # fmt: skip
    assert first["engine_ms"] > 0
    assert (second["request"], second["outcome"]) == (refused.headers["x-request-id"], "model_not_found")
    assert (second["status"], second["caller"], second.get("pool", "")) == (404, "key:ticket-worker", "")
    assert "trace_id" not in second
    for secret in ("diary", "fl-secret-key", bearer):
        assert secret not in "".join([*router.said, *router.log])
    assert engine.receipts[0].headers["traceparent"] == TRACE


async def test_a_malformed_trace_context_does_not_reach_the_engine(engine: FakeEngine, tmp_path: Path) -> None:
    config = write(tmp_path / "config.json", configuration())
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    async with program("--config", config, "--endpoints", found) as router:
        for trace in ("00-xyz-01", TRACE.upper(), TRACE + "-more", TRACE):
            assert (await router.ask(post(chat(), traceparent=trace, tracestate="a=b"))).status == 200
    sent = [(one.headers.get("traceparent"), one.headers.get("tracestate")) for one in engine.receipts]
    assert sent == [(None, None)] * 3 + [(TRACE, "a=b")]


def self_signed(folder: Path) -> dict[str, str]:
    """A certificate for 127.0.0.1, as the router's settings name it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"FAIRLEAD_TLS_CERT": str(folder / "tls.crt"), "FAIRLEAD_TLS_KEY": str(folder / "tls.key")}


async def test_requests_come_over_tls_and_only_over_tls_where_a_certificate_is_given(
    engine: FakeEngine, tmp_path: Path
) -> None:
    config = write(tmp_path / "config.json", configuration())
    found = write(tmp_path / "endpoints.json", endpoints({POOL: (await engine.start(),)}))
    tls = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=tls["FAIRLEAD_TLS_CERT"])
    async with program("--config", config, "--endpoints", found, **tls) as router:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", router.port, ssl=trusting))
        for stream in (False, True):
            await wire.send(post(chat("x" * 200_000 if stream else "hi", model="chat", stream=stream, max_tokens=1)))
            answer = await wire.answer()
            assert answer.status == (400 if stream else 200)
        await wire.send(post(chat(stream=True)))
        assert (await wire.answer()).body.endswith(b"data: [DONE]\n\n")
        plain = await router.wire()
        await plain.send(post(chat()))
        assert b"HTTP/1.1 200" not in await plain.closed()
        engine.behaviour = Behaviour(hold=asyncio.Event())
        count = len(engine.receipts)
        await wire.send(post(chat(stream=True)))
        await until(lambda: len(engine.receipts) > count, "the request")
        wire.writer.close()
        await until(lambda: engine.receipts[-1].aborted, "the engine's abort")
    assert not [line for line in router.log if "exception" in line]


async def shaken(port: int, trusting: ssl.SSLContext) -> bool:
    """Whether a new connection is served with a certificate that is trusted here."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    except ssl.SSLCertVerificationError:
        return False
    writer.close()
    return True


async def test_a_renewed_certificate_serves_new_connections_and_a_broken_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main, "_RENEW_S", 0.02)
    caplog.set_level(logging.INFO, "fairlead_router.main")
    tls = self_signed(tmp_path)
    settings = read_settings((), tls)
    cert = tmp_path / "tls.crt"
    certified_at = main._changed_at(cert)
    context = main.tls_context(settings)
    assert context is not None
    old = ssl.create_default_context(cafile=cert)
    renewing = asyncio.create_task(main._renew(context, settings, certified_at))
    loop = asyncio.get_running_loop()
    async with await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        assert await shaken(port, old)
        cert.write_text("not yet whole", encoding="utf-8")
        os.utime(cert, (1, 1))
        await until(lambda: "cannot be used, the old one stays" in caplog.text, "the complaint")
        assert await shaken(port, old)
        cert.unlink()
        await asyncio.sleep(0.1)
        assert await shaken(port, old)
        assert not renewing.done()
        self_signed(tmp_path)
        os.utime(cert, (2, 2))
        new = ssl.create_default_context(cafile=cert)
        await until(lambda: "certificate renewed" in caplog.text, "the renewal")
        assert await shaken(port, new)
        assert not await shaken(port, old)
        assert caplog.text.count("certificate renewed") == 1
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)


# --- doors that are open, and those that say why they are not ---


async def test_a_key_may_come_as_anthropics_clients_send_it(engine: FakeEngine) -> None:
    config = configuration(keys=(api_key("fl-key"),))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        for lines, status in (
            (b"x-api-key: fl-key\r\n", 200),
            (b"X-API-Key:  fl-key \r\n", 200),
            (b"x-api-key: fl-other\r\n", 401),
            (b"authorization: Bearer nothing\r\nx-api-key: fl-key\r\n", 401),
            (b"", 401),
        ):
            wire = await at.connect()
            start, rest = b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\n", chat()
            await wire.send(b"%b%bcontent-length: %d\r\n\r\n%b" % (start, lines, len(rest), rest))
            assert (await wire.answer()).status == status, lines
    assert not [one for one in engine.receipts if "x-api-key" in one.headers]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow", "words"),
    [
        ("GET", "/v1/chat/completions", 405, "POST", "Use POST."),
        ("DELETE", "/v1/models", 405, "GET", "Use GET."),
        ("POST", "/v1/audio/transcriptions", 404, None, "its cost has no bound"),
        ("POST", "/v1/load_lora_adapter", 404, None, "declared in the ModelPool"),
        ("GET", "/v1/responses/resp_1", 404, None, "Answers are not stored"),
        ("POST", "/sleep", 404, None, "POST /sleep is not served here."),
    ],
)
async def test_a_closed_door_says_what_to_use_instead(
    method: str, path: str, status: int, allow: str | None, words: str
) -> None:
    async with station() as at:
        wire = await at.connect()
        await wire.send(post(b"", path).replace(b"POST", method.encode(), 1))
        answer = await wire.answer()
    assert (answer.status, answer.headers.get("allow")) == (status, allow)
    assert words in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
