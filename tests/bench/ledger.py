"""Figures of the ledger, standalone: real ledger processes, compiled as in the image, spoken to over HTTP.

The last line is one JSON object.

``fleet``  50 routers that each tell 100 holdings and 100 usage lines once a second: the ledger's share of a core.
``ask``    the same beside one router whose requests wait for money: how long that one waits.
``storm``  50 routers that ask for the money of single requests (3 holdings, 3 lines) as fast as it is granted.
``growth`` what the usage of a million requests adds to the database, at 1,000 requests a second and router.
``pg``     two ledgers on one PostgreSQL, 16 routers as fast as they are answered, with 5 accounts common to all.
``router`` what a router spends on one request: reserve and settle, against 0, 2 and 6 budgets, and the journal.

Tokens are verified as in a cluster; PostgreSQL and SQLite wait for the disk at each commit. The clients are one
process beside the ledgers: where there are two cores it keeps one of them busy.
"""

import asyncio
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import uvloop

from fairlead_router.budget import Claim
from fairlead_router.contract import (
    BUCKET_MS,
    AccountAnswer,
    Ask,
    Holding,
    PutBudgets,
    SyncAnswer,
    SyncRequest,
    UsageLine,
    Window,
)
from hack.compile import LEDGER, PACKAGE
from tests.builders import postgres
from tests.builders.ledger import ISSUER, budget, jwks, line, token
from tests.builders.router import Process as RouterProcess
from tests.builders.router import budget as router_budget

ROUTERS = 50
LINES = 100
SECONDS = 10.0
WARM_SECONDS = 3.0
PG_ROUTERS = 16
HOT = 5
ASK_S = 0.2
BUCKETS = 40
REQUESTS_PER_S = 50_000
REQUESTS = 20_000
START_S = 30.0
PYTHON = "/usr/bin/python3.11" if Path("/usr/bin/python3.11").exists() else sys.executable
"""What the image runs: Debian's, built with profile-guided optimisation; other builds are a third slower."""
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1 << 50


@cache
def sources() -> str:
    """The PYTHONPATH of what the image runs: compiled for its Python, which happens once for the same sources."""
    command = [sys.executable, "-m", "hack.compile", "--python", PYTHON, "--package", str(LEDGER)]
    compiled = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return os.pathsep.join((compiled, str(PACKAGE.parent), sysconfig.get_path("purelib")))


class Router:
    """A session on one connection that is kept open."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = int(name.rpartition("-")[2]) if name[-1].isdecimal() else 0
        self.head = f"host: ledger\r\nauthorization: Bearer {token(pod=name)}\r\n"
        self.seq = 0
        self.took: list[float] = []

    async def connect(self, port: int) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)

    async def say(self, **message: Any) -> SyncAnswer:
        self.seq += 1
        body = msgspec.json.encode(SyncRequest(session=self.name, seq=self.seq, **message))
        started = time.perf_counter()
        answer = await self.exchange("POST", "/v1/sync", body)
        self.took.append(time.perf_counter() - started)
        return msgspec.json.decode(answer, type=SyncAnswer)

    async def exchange(self, method: str, path: str, body: bytes) -> bytes:
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{self.head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", answer)
        content = await self.reader.readexactly(int(length[1]) if length else 0)
        if " 200 " not in answer.splitlines()[0]:
            raise RuntimeError(f"{answer.splitlines()[0]}: {content.decode()}")
        return content


Load = Callable[[Router, SyncAnswer, float], Awaitable[None]]


async def storm(router: Router, first: SyncAnswer, until: float, every: float = 0.0) -> None:
    """Ask for the money of single requests."""
    answer, lines = first, usage_lines(3)
    while time.perf_counter() < until:
        holdings = tuple(told(account.account, account.granted, need=10) for account in answer.accounts)
        answer = await router.say(holdings=holdings, usage=lines)
        await asyncio.sleep(every)


async def fleet(router: Router, first: SyncAnswer, until: float, every: float = 1.0, need: int = 0) -> None:
    """Tell all holdings and lines, once in a while."""
    answer, lines = first, usage_lines(LINES)
    await asyncio.sleep(every * (router.number % ROUTERS) / ROUTERS)
    while (started := time.perf_counter()) < until:
        holdings = tuple(told(account.account, account.granted, want=1_000, need=need) for account in answer.accounts)
        answer = await router.say(holdings=holdings, usage=lines)
        await asyncio.sleep(max(0.0, started + every - time.perf_counter()))


async def crowd(router: Router, first: SyncAnswer, until: float) -> None:
    """As the fleet, without a pause, because requests wait for money."""
    await fleet(router, first, until, 0.0, need=1_000)


async def beside(router: Router, first: SyncAnswer, until: float) -> None:
    """The fleet, but its first router has requests that wait for money."""
    await (fleet(router, first, until) if router.number else storm(router, first, until, ASK_S))


def asks(name: str, keys: Sequence[str]) -> tuple[Ask, ...]:
    return tuple(
        Ask(budget=f"team-a/{name}", namespace="team-a", key=key, want=1_000, need=10, first=10) for key in keys
    )


def callers(count: int) -> list[str]:
    return [f"caller-{number}" for number in range(count)]


def told(account: int, granted: int, want: int = 0, need: int = 0) -> Holding:
    charged = granted * 9 // 10
    return Holding(account=account, granted=granted, charged=charged, want=want, need=need, first=need)


def usage_lines(count: int, buckets_ago: int = 0) -> tuple[UsageLine, ...]:
    bucket = int(time.time() * 1000) - buckets_ago * BUCKET_MS
    return tuple(line(bucket=bucket, caller=name, requests=10, bins={"27": 6, "30": 4}) for name in callers(count))


class Process:
    """The ledger as its users start it, on a free port."""

    def __init__(self, folder: Path, name: str, database: str) -> None:
        (folder / "jwks.json").write_text(jwks())
        arguments = ["--database", database, "--listen", "127.0.0.1:0", "--jwks", "jwks.json", "--issuer", ISSUER]
        with (folder / name).open("w") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "fairlead_operator.ledger.main", *arguments],
                cwd=folder,
                stderr=log,
                env=os.environ | {"PYTHONPATH": sources()},
            )
        self.port = self._port(folder / name)

    def _port(self, log: Path) -> int:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
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


@contextmanager
def ledgers(database: str, count: int = 1) -> Iterator[list[Process]]:
    """Ledger processes on one database."""
    with TemporaryDirectory() as folder:
        where = database or str(Path(folder) / "ledger.db")
        processes = [Process(Path(folder), f"log-{number}", where) for number in range(count)]
        try:
            yield processes
        finally:
            for process in processes:
                process.stop()


async def ready(process: Process) -> None:
    """Wait until a ledger takes messages: it listens before it has read the keys that tokens are verified with."""
    asking = Router("operator")
    await asking.connect(process.port)
    async with asyncio.timeout(START_S):
        while True:
            with suppress(RuntimeError):
                await asking.exchange("GET", "/readyz", b"")
                break
            await asyncio.sleep(0.02)
    asking.writer.close()


async def prepare(processes: list[Process]) -> None:
    """The budgets of all loads, once all ledgers take them."""
    for process in processes:
        await ready(process)
    operator = Router("operator")
    operator.head = f"host: ledger\r\nauthorization: Bearer {token('fairlead-operator', pod='operator')}\r\n"
    await operator.connect(processes[0].port)
    budgets = tuple(budget(name, per="Caller", period="Year", limit=LIMIT) for name in ("small", "large"))
    await operator.exchange("PUT", "/v1/budgets", msgspec.json.encode(PutBudgets(version=(1, 1), budgets=budgets)))
    operator.writer.close()


async def measure(
    processes: list[Process],
    name: str,
    load: Load,
    count: int,
    wanted: Callable[[int], tuple[Ask, ...]],
    *,
    watched: int | None = None,
) -> dict[str, float]:
    """Run a load with all routers, a while to warm up and then the measured time.

    Times to an answer are those of the first ``watched`` routers, or of all.
    """
    routers = [Router(f"{name}-{number}") for number in range(count)]
    firsts = []
    for router in routers:
        await router.connect(processes[router.number % len(processes)].port)
        firsts.append(await router.say(asks=wanted(router.number)))
    begun = time.perf_counter() + WARM_SECONDS
    running = asyncio.gather(
        *(load(router, first, begun + SECONDS) for router, first in zip(routers, firsts, strict=True))
    )
    await asyncio.sleep(WARM_SECONDS)
    before = [len(router.took) for router in routers]
    cpu, started = sum(process.cpu_s() for process in processes), time.perf_counter()
    await asyncio.sleep(begun + SECONDS - time.perf_counter())
    used, elapsed = sum(process.cpu_s() for process in processes) - cpu, time.perf_counter() - started
    spans = [router.took[skip:] for router, skip in zip(routers, before, strict=True)]
    took, syncs = sorted(chain.from_iterable(spans[:watched])), sum(map(len, spans))
    await running
    for router in routers:
        router.writer.close()
    figures = {
        "syncs_per_second": round(syncs / elapsed, 1),
        "p50_ms": round(statistics.median(took) * 1000, 2),
        "p99_ms": round(took[len(took) * 99 // 100] * 1000, 2),
        "core_percent": round(used / elapsed * 100, 1),
        "cpu_ms_per_sync": round(used / syncs * 1000, 3),
    }
    print(f"{name:>8}: {figures}", flush=True)
    return figures


async def growth(process: Process, file: Path) -> float:
    """Bytes of the database for a million requests, when each of 100 dimensions has some in each quarter hour."""
    router = Router("growth-0")
    await router.connect(process.port)
    await router.say(usage=usage_lines(LINES))
    before = size(file)
    for ago in range(1, BUCKETS + 1):
        await router.say(usage=usage_lines(LINES, ago))
    router.writer.close()
    bucket = (size(file) - before) / BUCKETS
    return bucket / (REQUESTS_PER_S * BUCKET_MS / 1000 / 1_000_000)


def size(file: Path) -> int:
    """Bytes that the database uses, without what is free in it or still in its log."""
    with closing(sqlite3.connect(file)) as connection:
        pages, free = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return int(connection.execute("PRAGMA page_size").fetchone()[0]) * int(pages - free)


async def on_sqlite() -> dict[str, Any]:
    """All loads on a file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        with ledgers(str(file)) as processes:
            await prepare(processes)
            large, small = callers(LINES), callers(3)
            return {
                "fleet": await measure(processes, "fleet", fleet, ROUTERS, lambda _: asks("large", large)),
                "ask": await measure(processes, "ask", beside, ROUTERS, lambda _: asks("large", large), watched=1),
                "storm": await measure(processes, "storm", storm, ROUTERS, lambda _: asks("small", small)),
                "growth_bytes_per_million_requests": round(await growth(processes[0], file)),
            }


async def on_postgres() -> dict[str, Any]:
    """Two ledgers: large messages of which 5 holdings are common to all, then small ones of only those."""
    url = postgres.fresh_url()
    with ledgers(url, 2) as processes:
        await prepare(processes)

        def keys(number: int) -> list[str]:
            return callers(HOT) + [f"own-{number}-{index}" for index in range(LINES - HOT)]

        return {
            "large": await measure(processes, "pg-large", crowd, PG_ROUTERS, lambda n: asks("large", keys(n))),
            "small": await measure(processes, "pg-small", storm, PG_ROUTERS, lambda _: asks("small", callers(HOT))),
        }


# --- the router's side


class Generous:
    """A ledger that grants all that is asked for."""

    def __init__(self) -> None:
        self.accounts: dict[str, AccountAnswer] = {}

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        message = msgspec.json.decode(body, type=SyncRequest)
        now = int(time.time() * 1000)
        window = Window(id=1, start=now - 1_000, end=now + 86_400_000)
        for ask in message.asks:
            number = len(self.accounts) + 1
            self.accounts[ask.budget] = AccountAnswer(
                account=number,
                budget=ask.budget,
                namespace=ask.namespace,
                window=window,
                granted=LIMIT,
                verdict="Granted",
                available=LIMIT,
                holders=1,
                limit=LIMIT,
            )
        answer = SyncAnswer(epoch="e", seq=message.seq, now=now, ttl_ms=300_000, accounts=tuple(self.accounts.values()))
        return 200, msgspec.json.encode(answer)


async def reserve_settle_us(folder: Path, budgets: int, *, journal: bool) -> float:
    """Microseconds to reserve for and settle one request, the usage book included; the median of five rounds."""
    router = RouterProcess(folder, Generous(), segment=16 << 20)
    claims = [
        Claim(router.wallet.purse(router_budget(name=f"b{number}"), "support", ""), 1_000) for number in range(budgets)
    ]
    if claims:
        router.settle(await router.fetch(claims), *[0] * budgets)
    if not journal:
        router.journal.close()
        router.session.journal = None
    charges = [250] * max(1, budgets)
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(REQUESTS // 5):
            router.settle(router.reserve(claims) if claims else None, *charges)
        rounds.append((time.perf_counter() - started) / (REQUESTS // 5) * 1e6)
    if journal:
        router.journal.close()
    return round(statistics.median(rounds), 2)


async def on_router() -> dict[str, float]:
    """The router's cost of one request."""
    figures = {}
    for journal in (False, True):
        for budgets in (0, 2, 6):
            with TemporaryDirectory() as folder:
                name = f"{budgets}_budgets" + ("_with_journal" if journal else "")
                figures[name] = await reserve_settle_us(Path(folder), budgets, journal=journal)
    print(f"  router: {figures} us", flush=True)
    return figures


async def run() -> dict[str, Any]:
    """Everything, one after the other."""
    router, sqlite, postgresql = await on_router(), await on_sqlite(), await on_postgres()
    return {
        "core_percent_at_50k": sqlite["fleet"]["core_percent"],
        "storm_syncs_per_second": sqlite["storm"]["syncs_per_second"],
        "pg_syncs_per_second": postgresql["large"]["syncs_per_second"],
        "reserve_settle_us": router["2_budgets_with_journal"],
        "router": router,
        "sqlite": sqlite,
        "postgresql": postgresql,
    }


def main() -> None:
    """Print the figures."""
    print(msgspec.json.encode(uvloop.run(run())).decode())


if __name__ == "__main__":
    main()
