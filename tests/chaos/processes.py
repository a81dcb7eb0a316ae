"""The processes of a run: routers that come back with or without their volume, ledgers whose clock may be wrong."""

import asyncio
import contextlib
import glob
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from tests.chaos import tokens
from tests.chaos.clients import Door
from tests.chaos.proxy import Proxy
from tests.chaos.truth import ClockSpan, Fate, Span

_FAKETIME: Final = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_PORTS: Final = (10_000 + os.getpid() % 100 * 200, 32_000)
"""Below the range from which Linux takes ports for outgoing connections."""
_START_S: Final = 180.0
_STOP_S: Final = 40.0
_POLL_S: Final = 0.05


class CannotStartError(RuntimeError):
    """A process did not begin to serve; the text says which, and the end of its log."""


def faketime() -> str:
    """The library that makes a process see another time (Debian's package libfaketime); empty if there is none."""
    return next(iter(sorted(glob.glob(_FAKETIME))), "")  # noqa: PTH207 - the pattern is absolute


def skewed(offset: float) -> dict[str, str]:
    """The environment of a process whose wall clock is so many seconds ahead. Clocks that only count are left alone."""
    if not offset:
        return {}
    return {
        "LD_PRELOAD": faketime(),
        "FAKETIME": f"{offset:+.0f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


_ports: Final = itertools.cycle(range(*_PORTS))


def own_ports(count: int) -> tuple[int, ...]:
    """Ports of 127.0.0.1 on which nobody listens, and that no connection of this machine is given by chance."""
    found: list[int] = []
    for port in itertools.islice(_ports, _PORTS[1] - _PORTS[0]):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return tuple(found)
    raise CannotStartError(f"no {count} ports are free between {_PORTS[0]} and {_PORTS[1]}")


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start one of our programs."""
    with log.open("ab") as out:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})


async def serving(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a process says that it is ready."""
    deadline = time.monotonic() + _START_S
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url, timeout=5)).status_code == 200:
                    return
            await asyncio.sleep(_POLL_S)
    tail = await asyncio.to_thread(lambda: log.read_bytes()[-2_000:].decode(errors="replace"))
    raise CannotStartError(f"{url} did not answer 200 within {_START_S:g} s; exit {process.poll()}; its log: {tail}")


async def kill(process: subprocess.Popen[bytes]) -> None:
    """End it as kill -9 does."""
    process.kill()
    await asyncio.to_thread(process.wait)
    _tidy(process)


async def metric(url: str, name: str) -> float:
    """The sum of a metric's series at a process; it must have one."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics", timeout=10)).text
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    )


def _tidy(process: subprocess.Popen[bytes]) -> None:
    """Remove the shared memory that libfaketime leaves of a process that was killed."""
    for left in Path("/dev/shm").glob(f"*faketime_*_{process.pid}"):
        left.unlink(missing_ok=True)


# --- the ledger


@dataclass(slots=True)
class Ledger:
    """A ledger's process, started again on the same database and port. ``spans`` are its lives.

    Without ``own_clock`` its process's clock decides nothing.
    """

    database: str
    folder: Path
    own_clock: bool = True
    port: int = field(default_factory=lambda: own_ports(1)[0])
    spans: list[ClockSpan] = field(default_factory=list)
    kills: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _offset: float = 0.0
    _since: float = 0.0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, offset: float = 0.0) -> None:
        """Start it with a clock that is so many seconds ahead."""
        self.folder.mkdir(exist_ok=True)
        jwks, log = self.folder / "jwks.json", self.folder / "ledger.log"
        jwks.write_text(tokens.jwks(), encoding="utf-8")
        arguments = ["--database", self.database, "--listen", f"127.0.0.1:{self.port}", "--jwks", str(jwks)]
        arguments += ["--issuer", tokens.ISSUER]
        self._offset, self._since = offset, time.time()
        environment = {"FAIRLEAD_NAMESPACE": "fairlead", **skewed(offset)}
        self._process = start("fairlead_operator.ledger.main", arguments, environment, log)
        await serving(self._process, f"{self.url}/readyz", log)

    async def kill(self) -> None:
        """End it as kill -9 does."""
        assert self._process is not None
        await kill(self._process)
        self.kills += 1
        self._ended()

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self._process.wait, _STOP_S)
        self._ended()
        return status

    def _ended(self) -> None:
        self.spans.append(ClockSpan(self._since, time.time(), self._offset if self.own_clock else 0.0))

    def rss_mib(self) -> float:
        """Resident memory."""
        return _rss_mib(self._process)

    async def put(self, path: str, content: bytes) -> httpx.Response:
        """A call of the operator, past the proxies."""
        bearer = tokens.token("fairlead-operator", "operator-1")
        async with httpx.AsyncClient() as client:
            headers = {"authorization": f"Bearer {bearer}", "content-type": "application/json"}
            return await client.put(f"{self.url}{path}", content=content, headers=headers, timeout=10)

    def abandon(self) -> None:
        """Leave no process behind."""
        _abandon(self._process)


# --- routers


@dataclass(slots=True)
class Place:
    """A place of a router: one pod after another, one process after another.

    ``names`` are all incarnations that used the present volume; ``busy`` while something is done to it.
    """

    index: int
    folder: Path
    fates: dict[str, Fate]
    excuses: list[Span]
    unheard: list[Span]
    operator: str
    proxy: Proxy = field(init=False)
    url: str = ""
    pods: int = 0
    volumes: int = 0
    lives: int = 0
    skew: float = 0.0
    door: Door | None = None
    since: float = 0.0
    frozen: bool = False
    busy: bool = False
    process: subprocess.Popen[bytes] | None = None
    names: list[str] = field(default_factory=list)
    admin: int = 0

    @property
    def name(self) -> str:
        """The incarnation that runs now."""
        return f"r{self.index:02d}.{self.lives}"

    @property
    def admin_url(self) -> str:
        """Where its process tells of itself."""
        return f"http://127.0.0.1:{self.admin}"

    @property
    def log(self) -> Path:
        """What its processes wrote."""
        return self.folder / "router.log"

    async def start(self) -> None:
        """Start a process in the present pod on the present volume, and open the door once it is ready."""
        self.lives += 1
        port, self.admin = own_ports(2)
        begun = time.time()
        arguments = ["--listen", "127.0.0.1", "--port", str(port), "--admin-port", str(self.admin)]
        arguments += ["--operator", self.operator, "--ledger", self.url]
        self.process = start("fairlead_router.main", arguments, {**self._environment(), **skewed(self.skew)}, self.log)
        await serving(self.process, f"{self.admin_url}/-/ready", self.log)
        self.names.append(self.name)
        self.excuses.append(Span(begun, time.time(), self.name))
        self.door, self.since = Door(self.name, port), time.time()

    def _environment(self) -> dict[str, str]:
        volume, mounted = self.folder / f"volume-{self.volumes}", self.folder / f"pod-{self.pods}"
        pod = f"router-{self.index}-{self.pods}"
        volume.mkdir(parents=True, exist_ok=True)
        mounted.mkdir(exist_ok=True)
        for name in ("ledger", "control"):
            (mounted / name).write_text(tokens.token("fairlead-gateway", pod), encoding="ascii")
        names = {"FAIRLEAD_NAMESPACE": "fairlead", "FAIRLEAD_POD_NAME": pod}
        return names | {"FAIRLEAD_STATE_DIR": str(volume), "FAIRLEAD_TOKENS_DIR": str(mounted)}

    async def kill(self) -> None:
        """End it as kill -9 does."""
        assert self.process is not None
        self.fates[self.name] = "Killed"
        self.door = None
        await kill(self.process)
        self.proxy.heard()

    def lose_volume(self) -> None:
        """Another pod with an empty volume takes the place; nobody will tell what its predecessors did."""
        for name in self.names:
            self.fates[name] = "VolumeLost"
        self.names.clear()
        self.volumes += 1
        self.pods += 1

    async def stop(self) -> int:
        """SIGTERM; its exit status. Negative: it did not end and was killed."""
        assert self.process is not None
        self.door = None
        self.process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.to_thread(self.process.wait, _STOP_S)
        except subprocess.TimeoutExpired:
            await kill(self.process)
            return -signal.SIGKILL
        self.fates[self.name] = "Stopped"
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def waited(self, begun: float, ended: float) -> None:
        """The router heard nothing of the ledger in this time."""
        self.unheard.append(Span(begun, ended, self.name))

    def stuck_sessions(self) -> set[str]:
        """Sessions whose money nobody can spend now."""
        reachable = self.door is not None and not self.proxy.cut and not self.frozen
        return self.proxy.sessions - ({self.proxy.latest} if reachable else set())

    def rss_mib(self) -> float:
        """Resident memory."""
        return _rss_mib(self.process)

    def abandon(self) -> None:
        """Leave no process behind."""
        _abandon(self.process)


def _rss_mib(process: subprocess.Popen[bytes] | None) -> float:
    if process is None or process.poll() is not None:
        return 0.0
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def _abandon(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()
        _tidy(process)
