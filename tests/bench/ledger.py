"""Figures of the ledger: a real process, spoken to over HTTP, standalone. The last line is one JSON object.

Two loads: a storm (every message asks for one request, as at the end of a budget) and a fleet (50 routers that each
say 100 holdings and 100 usage lines a second; here as fast as the ledger answers).
"""

import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from fairlead_router.contract import Ask, Holding, PutBudgets, SyncAnswer, SyncRequest, UsageLine
from tests.builders.ledger import ISSUER, budget, jwks, line, token

ROUTERS = 50
LINES = 100
SECONDS = 5.0
PACED_SECONDS = 5.0
START_S = 20.0
LIMIT = 1 << 50


class Router:
    """A session on one connection that is kept open."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.who = token(pod=name)
        self.seq = 0
        self.took: list[float] = []

    async def connect(self, host: str, port: int) -> None:
        self.reader, self.writer = await asyncio.open_connection(host, port)

    async def say(self, method: str = "POST", path: str = "/v1/sync", **message: Any) -> SyncAnswer:
        self.seq += 1
        body = msgspec.json.encode(SyncRequest(session=self.name, seq=self.seq, **message))
        started = time.perf_counter()
        answer = await self.exchange(method, path, body)
        self.took.append(time.perf_counter() - started)
        return msgspec.json.decode(answer, type=SyncAnswer)

    async def exchange(self, method: str, path: str, body: bytes) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: ledger\r\nauthorization: Bearer {self.who}\r\n"
        self.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", answer)
        content = await self.reader.readexactly(int(length[1]) if length else 0)
        if " 200 " not in answer.splitlines()[0]:
            raise RuntimeError(f"{answer.splitlines()[0]}: {content.decode()}")
        return content


Load = Callable[[Router, float], Awaitable[None]]


async def storm(router: Router, until: float) -> None:
    """Ask for the money of single requests, report three holdings and three lines."""
    first = await router.say(asks=tuple(asks("small", 3)))
    ids = [account.account for account in first.accounts]
    granted = {account.account: account.granted for account in first.accounts}
    while time.perf_counter() < until:
        holdings = tuple(told(id_, granted[id_], need=10) for id_ in ids)
        answer = await router.say(holdings=holdings, usage=usage_lines(3))
        granted = {account.account: account.granted for account in answer.accounts}


async def fleet(router: Router, until: float, every: float = 0.0) -> None:
    """Report a hundred holdings and a hundred lines with each message."""
    first = await router.say(asks=tuple(asks("large", LINES)))
    granted = {account.account: account.granted for account in first.accounts}
    lines = usage_lines(LINES)
    await asyncio.sleep(every * (int(router.name.rpartition("-")[2]) % ROUTERS) / ROUTERS)
    while (started := time.perf_counter()) < until:
        holdings = tuple(told(id_, amount, want=1_000) for id_, amount in granted.items())
        answer = await router.say(holdings=holdings, usage=lines)
        granted = {account.account: account.granted for account in answer.accounts}
        await asyncio.sleep(max(0.0, started + every - time.perf_counter()))


def asks(name: str, count: int) -> list[Ask]:
    return [
        Ask(budget=f"team-a/{name}", namespace="team-a", key=f"caller-{number}", want=1_000, need=10, first=10)
        for number in range(count)
    ]


def told(account: int, granted: int, **demand: Any) -> Holding:
    return Holding(account=account, granted=granted, charged=granted * 9 // 10, first=min(demand.values()), **demand)


def usage_lines(count: int) -> tuple[UsageLine, ...]:
    now = int(time.time() * 1000)
    return tuple(line(bucket=now, caller=f"caller-{number}") for number in range(count))


class Process:
    """The ledger as its users start it, on a free port."""

    def __init__(self, folder: Path) -> None:
        (folder / "jwks.json").write_text(jwks())
        arguments = ["--database", "ledger.db", "--listen", "127.0.0.1:0", "--jwks", "jwks.json", "--issuer", ISSUER]
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fairlead_operator.ledger.main", *arguments], cwd=folder, stderr=log
            )
        self.port = self._port(folder / "log")

    def _port(self, log: Path) -> int:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if found := re.search(r"listens on http://127.0.0.1:(\d+),", log.read_text()):
                return int(found[1])
            time.sleep(0.02)
        raise RuntimeError(log.read_text())

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(START_S)


async def measure(process: Process, name: str, load: Load, seconds: float) -> dict[str, float]:
    """Run a load with all routers and return its figures."""
    routers = [Router(f"{name}-{number}") for number in range(ROUTERS)]
    for router in routers:
        await router.connect("127.0.0.1", process.port)
    cpu, started = process.cpu_s(), time.perf_counter()
    await asyncio.gather(*(load(router, started + seconds) for router in routers))
    elapsed = time.perf_counter() - started
    took = sorted(value for router in routers for value in router.took[1:])
    figures = {
        "syncs_per_s": round(len(took) / elapsed, 1),
        "median_ms": round(statistics.median(took) * 1000, 2),
        "p99_ms": round(took[len(took) * 99 // 100] * 1000, 2),
        "cpu_percent_of_a_core": round((process.cpu_s() - cpu) / elapsed * 100, 1),
    }
    print(f"{name:>8}: {figures}")  # noqa: T201 - a benchmark's output
    for router in routers:
        router.writer.close()
    return figures


async def run(folder: Path) -> dict[str, dict[str, float]]:
    """All loads, on one database."""
    process = Process(folder)
    try:
        operator = Router("operator")
        operator.who = token("fairlead-operator", pod="operator")
        await operator.connect("127.0.0.1", process.port)
        budgets = tuple(budget(name, per="Caller", period="Year", limit=LIMIT) for name in ("small", "large"))
        await operator.exchange("PUT", "/v1/budgets", msgspec.json.encode(PutBudgets(version=(1, 1), budgets=budgets)))
        operator.writer.close()
        return {
            "storm": await measure(process, "storm", storm, SECONDS),
            "fleet": await measure(process, "fleet", fleet, SECONDS),
            "paced": await measure(process, "paced", lambda router, until: fleet(router, until, 1.0), PACED_SECONDS),
        }
    finally:
        process.stop()


def main() -> None:
    """Print the figures."""
    with TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder)))
    print(msgspec.json.encode(figures).decode())  # noqa: T201 - a benchmark's output


if __name__ == "__main__":
    main()
