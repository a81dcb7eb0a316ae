"""OpenCost's prices through Prometheus: a real one where it is installed, and one that answers in every wrong way."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fairlead_operator.decide.node_prices import GPU_METRIC, TOTAL_METRIC, NodePrice, OpenCostSource, query
from fairlead_operator.prices import prometheus as module
from fairlead_operator.prices.book import Prices
from fairlead_operator.prices.prometheus import Prometheus, PrometheusError
from tests.builders.decisions import NOW, USD
from tests.fakes.clock import FakeClock

METRICS = """\
# HELP node_total_hourly_cost node_total_hourly_cost Total node cost per hour
# TYPE node_total_hourly_cost gauge
node_total_hourly_cost{arch="amd64",instance="gpu-1",instance_type="p",node="gpu-1",provider_id="aws",region="r"} 40.5
node_total_hourly_cost{arch="amd64",instance="cpu-1",instance_type="m",node="cpu-1",provider_id="aws",region="r"} 0.192
# TYPE node_gpu_hourly_cost gauge
node_gpu_hourly_cost{arch="amd64",instance="gpu-1",instance_type="p",node="gpu-1",provider_id="aws",region="r"} 4.2
node_gpu_hourly_cost{arch="amd64",instance="cpu-1",instance_type="m",node="cpu-1",provider_id="aws",region="r"} 0
"""
CONFIG = """\
global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: opencost
  honor_labels: true
  static_configs: [{{targets: ['127.0.0.1:{port}'], labels: {{cluster: prod}}}}]
"""
READY_S = 60.0

Reply = Callable[[BaseHTTPRequestHandler], None]


class Answers:
    """An HTTP server whose next answers a test writes."""

    def __init__(self) -> None:
        self.reply: Reply = vector()
        self.asked: list[tuple[str, dict[str, str]]] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers.asked.append((self.path, dict(self.headers)))
                answers.reply(self)

            def log_message(self, *_: object) -> None:
                """Nothing is logged."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.source = OpenCostSource(f"http://127.0.0.1:{self.server.server_address[1]}")
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def text(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def vector(**nodes: str) -> Reply:
    """The same amounts for every query."""
    result = [{"metric": {"node": name}, "value": [1, usd]} for name, usd in nodes.items()]
    return text(json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode())


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.fixture
def answers() -> Iterator[Answers]:
    server = Answers()
    yield server
    server.stop()


async def ask(source: OpenCostSource, timeout_s: float = 5.0) -> list[Any]:
    return await Prometheus(timeout_s).ask(source, ["one", "two"])


def prices_at(folder: Path, source: OpenCostSource, clock: FakeClock, **fields: Any) -> Prices:
    path = folder / "prices.yaml"
    path.write_text(json.dumps({"openCost": {"url": source.url, "keepMinutes": 60, **fields}}), encoding="utf-8")
    return Prices(path, clock)


async def test_each_query_is_asked_with_a_time_limit_and_its_result_returned(answers: Answers) -> None:
    answers.reply = vector(a="1.5")
    result = [{"metric": {"node": "a"}, "value": [1, "1.5"]}]
    assert await ask(answers.source) == [result, result]
    assert [path for path, _ in answers.asked] == [
        "/api/v1/query?query=one&timeout=7s",
        "/api/v1/query?query=two&timeout=7s",
    ]


async def test_headers_are_the_files_of_the_secret_as_they_are_now(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "Authorization").write_text("Bearer one\n")
    source = OpenCostSource(answers.source.url, headers_dir=str(tmp_path))
    await ask(source)
    (tmp_path / "Authorization").write_text("Bearer two\n")
    await ask(source)
    assert [headers["Authorization"] for _, headers in answers.asked[::2]] == ["Bearer one", "Bearer two"]


async def test_a_header_that_cannot_be_sent_is_not_told_to_the_log(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "Authorization").write_text("Bearer one\nX: two")
    with pytest.raises(PrometheusError, match="no header") as caught:
        await ask(OpenCostSource(answers.source.url, headers_dir=str(tmp_path)))
    assert "one" not in str(caught.value)


async def test_nothing_is_taken_from_the_environment(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    await ask(answers.source)
    assert "Authorization" not in answers.asked[0][1]


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (text(b"no", 500), "500"),
        (text(b"", 302, {"Location": "http://127.0.0.1:1/"}), "302"),
        (text(b"<html>"), "no result of a query"),
        (text(b"[]"), "no result of a query"),
        (text(b'{"status": "error"}'), "no result of a query"),
        (text(b"[" * 100_000), "no result of a query"),
        (text(b" " * (module.MAX_BYTES + 1)), "longer than"),
        (endless, "does not end|no answer within"),
    ],
)
async def test_what_is_no_answer_is_one_error_that_says_so(answers: Answers, reply: Reply, part: str) -> None:
    answers.reply = reply
    with pytest.raises(PrometheusError, match=part):
        await ask(answers.source, 1.0)


async def test_a_closed_port_is_one_error_without_an_address_of_memory() -> None:
    with pytest.raises(PrometheusError, match="refused") as error:
        await ask(OpenCostSource("http://127.0.0.1:1"))
    assert "0x" not in str(error.value)


async def test_authorities_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrometheusError, match="CA"):
        await ask(OpenCostSource("https://127.0.0.1:1", ca_file=str(tmp_path / "absent")))
    with pytest.raises(PrometheusError, match="absent"):
        await ask(OpenCostSource("http://127.0.0.1:1", headers_dir=str(tmp_path / "absent")))


async def test_a_question_that_hangs_keeps_nobody_waiting_and_none_is_asked_beside_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        source, client = OpenCostSource(f"http://127.0.0.1:{deaf.getsockname()[1]}"), Prometheus(0.2)
        with pytest.raises(PrometheusError, match=r"no answer within 0\.2 s|timed out"):
            await client.ask(source, ["one"])
        client._asking = True
        with pytest.raises(PrometheusError, match="has not ended"):
            await client.ask(source, ["one"])


async def test_prices_hold_for_their_time_while_open_cost_is_away_and_then_no_longer(
    answers: Answers, tmp_path: Path
) -> None:
    clock = FakeClock(NOW)
    prices = prices_at(tmp_path, answers.source, clock)
    assert prices.read().node_prices.pending
    answers.reply = vector(a="2")
    await prices.refresh()
    known = prices.read().node_prices
    assert known.nodes == {"a": NodePrice(2 * USD, 2 * USD, NOW, NOW)}
    assert (known.pending, known.state) == (False, "OpenCost has no price for it")
    answers.reply = text(b"", 503)
    for minute in range(1, 61):
        await clock.advance(60)
        await prices.refresh()
        assert bool(prices.read().node_prices.nodes) == (minute < 60)
    away = prices.read().node_prices
    assert away.state == "OpenCost has given no prices since 11:00:00Z (the operator's log says why)"
    assert not away.pending
    answers.reply = vector(a="3")
    await clock.advance(60)
    await prices.refresh()
    assert prices.read().node_prices.nodes["a"].whole == 3 * USD


async def test_it_is_asked_once_a_minute_and_at_once_when_it_changes(answers: Answers, tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    prices = prices_at(tmp_path, answers.source, clock)
    answers.reply = vector(a="2")
    for _ in range(3):
        await prices.refresh()
    assert len(answers.asked) == 2
    prices_at(tmp_path, answers.source, clock, matchers={"cluster": "b"})
    answers.reply = vector()
    await prices.refresh()
    assert len(answers.asked) == 4
    assert "cluster" in answers.asked[-1][0]
    assert prices.read().node_prices.nodes == {}, "another cluster's nodes are forgotten"
    (tmp_path / "prices.yaml").write_text("{}")
    await clock.advance(120)
    await prices.refresh()
    assert len(answers.asked) == 4
    assert prices.read().node_prices.state == "OpenCost is not configured"


@pytest.mark.parametrize("reply", [vector(), text(json.dumps({"data": {"result": [7]}}).encode())])
async def test_a_prometheus_without_open_costs_series_has_not_answered(
    answers: Answers, tmp_path: Path, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    answers.reply, clock = reply, FakeClock(NOW)
    prices = prices_at(tmp_path, answers.source, clock)
    for _ in range(3):
        await prices.refresh()
        await clock.advance(60)
    known = prices.read().node_prices
    assert known.pending
    assert known.state == "OpenCost has given no prices yet (the operator's log says why)"
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1, "told once, not each minute"
    await clock.advance(3600)
    assert not prices.read().node_prices.pending


async def test_it_is_asked_until_cancelled(answers: Answers, tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    prices = prices_at(tmp_path, answers.source, clock)
    task = asyncio.create_task(prices.run())
    async with asyncio.timeout(10):
        while not clock.sleeping:  # noqa: ASYNC110 - the answer comes from a thread
            await asyncio.sleep(0.005)
    task.cancel()
    assert len(answers.asked) == 2


@pytest.fixture
def real(tmp_path: Path) -> Iterator[OpenCostSource]:
    """A Prometheus that scrapes what OpenCost would serve."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("NOT TESTED with a real Prometheus: Debian's package prometheus is not installed")
    exporter = Answers()
    exporter.reply = text(METRICS.encode(), headers={"Content-Type": "text/plain; version=0.0.4"})
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(port=exporter.server.server_address[1]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *[program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"],
        *[f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"],
    ]
    process = subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, stderr=subprocess.DEVNULL)
    try:
        yield OpenCostSource(f"http://127.0.0.1:{port}", (("cluster", "prod"),))
    finally:
        process.terminate()
        process.wait(30)
        exporter.stop()


async def test_a_real_prometheus_gives_open_costs_prices(real: OpenCostSource, tmp_path: Path) -> None:
    await scraped(real)
    clock = FakeClock(NOW)
    prices = prices_at(tmp_path, real, clock, matchers=dict(real.matchers))
    await prices.refresh()
    assert prices.read().node_prices.nodes == {
        "gpu-1": NodePrice(40_500_000_000, 4_200_000_000, NOW, NOW),
        "cpu-1": NodePrice(192_000_000, 0, NOW, NOW),
    }
    elsewhere = OpenCostSource(real.url, (("cluster", 'a"}'),))
    queries = [query(TOTAL_METRIC, elsewhere), query(GPU_METRIC, elsewhere)]
    assert await Prometheus().ask(elsewhere, queries) == [[], []], "the matcher is quoted as Prometheus wants it"
    with pytest.raises(PrometheusError, match="400"):
        await Prometheus().ask(real, ["max by ("])


async def scraped(source: OpenCostSource) -> None:
    """Wait until both metrics are there."""
    async with asyncio.timeout(READY_S), aiohttp.ClientSession() as session:
        while True:
            for metric in (TOTAL_METRIC, GPU_METRIC):
                try:
                    async with session.get(f"{source.url}/api/v1/query", params={"query": metric}) as response:
                        found = (await response.json())["data"]["result"] if response.status == 200 else []
                except aiohttp.ClientError:
                    found = []
                if not found:
                    break
            else:
                return
            await asyncio.sleep(0.1)
