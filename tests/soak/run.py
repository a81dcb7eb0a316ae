"""``make soak-router``: a router process under mixed load while engines are killed and its configuration changes.

Afterwards nothing may be left: no request, no reservation, no connection, no file descriptor. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from tests.builders.router import Wire
from tests.ports import free_ports
from tests.soak import engine
from tests.soak.clients import Caller, Seen
from tests.soak.control import Control

ROOT: Final = Path(__file__).parents[2]
ENGINES: Final = 4
CALLERS: Final = 24
_QUIET_S: Final = 8.0
"""Longer than idle connections to engines are kept."""
_AFTER_KILL_S: Final = 1.5
GAUGES: Final = re.compile(
    r"^(fairlead_requests_(?:running|waiting)|fairlead_connections|fairlead_bodies_bytes)"
    r"({[^}]*})? (\S+)$",
    re.MULTILINE,
)


@dataclass(slots=True)
class Processes:
    """The engines, and what happens to them."""

    ports: list[int]
    seen: Seen
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, port: int) -> None:
        """Start an engine."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.running[port] = subprocess.Popen([sys.executable, engine.__file__, str(port)], env=environment)

    async def kill(self, port: int, down_s: float) -> None:
        """Kill an engine and start it again after a while."""
        begin = time.monotonic()
        self.seen.kills.append((begin, float("inf")))
        process = self.running.pop(port)
        process.kill()
        await asyncio.to_thread(process.wait)
        await asyncio.sleep(down_s)
        self.start(port)
        await listening(port)
        self.seen.kills.remove((begin, float("inf")))
        self.seen.kills.append((begin, time.monotonic() + _AFTER_KILL_S))

    def stop(self) -> None:
        """Stop all."""
        for process in self.running.values():
            process.kill()
            process.wait()


async def listening(port: int) -> None:
    """Wait until somebody listens on a port."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            Wire(*await asyncio.open_connection("127.0.0.1", port)).close()
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")


@dataclass(slots=True)
class Subject:
    """The router process."""

    process: subprocess.Popen[bytes]
    port: int
    admin: int
    log: Path

    async def ready(self) -> None:
        """Wait until it has a configuration."""
        await listening(self.admin)
        while await self._get("/-/ready") != "ready\n":  # noqa: ASYNC110 - a process does not tell otherwise
            await asyncio.sleep(0.02)

    async def gauges(self) -> dict[str, float]:
        """The gauges that must return to 0, by name and labels."""
        text = await self._get("/metrics")
        return {name + labels: float(value) for name, labels, value in GAUGES.findall(text)}

    async def _get(self, path: str) -> str:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.admin, limit=1 << 22))
        await wire.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        text = (await wire.answer()).body.decode()
        wire.close()
        return text

    def descriptors(self) -> int:
        """Open file descriptors, but for those of the journal: it opens a few files when it first needs them."""
        found = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return sum("/journal/" not in str(one.readlink()) for one in found)

    def rss_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)

    def complaints(self) -> list[str]:
        """Lines of the log that tell of an exception or an error."""
        lines = self.log.read_text().splitlines()
        return [
            line[:600] for line in lines if '"exception"' in line or '"level": "error"' in line or "Traceback" in line
        ]


def start_router(folder: Path, operator: str, ledger: str) -> Subject:
    """Start the router."""
    port, admin = free_ports(2)
    command = [sys.executable, "-m", "fairlead_router.main", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--admin-port", str(admin), "--operator", operator, "--ledger", ledger]
    log = folder / "router.log"
    environment = {**os.environ, "FAIRLEAD_STATE_DIR": str(folder)}
    with log.open("wb") as out:
        return Subject(subprocess.Popen(command, stderr=out, env=environment), port, admin, log)


async def soak(seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Load, kill, change; then see what is left."""
    pick, seen = random.Random(seed), Seen()  # noqa: S311 - choices that can be repeated
    ports = list(free_ports(ENGINES))
    engines, control = Processes(ports, seen), Control(pick, ports)
    control.change()
    subject = start_router(folder, *await control.listen())
    try:
        for port in ports:
            engines.start(port)
        for port in ports:
            await listening(port)
        await subject.ready()
        found = await _load(subject, engines, control, seconds)
        found |= await _afterwards(subject, control)
    finally:
        engines.stop()
        subject.process.kill()
        subject.process.wait()
        control.close()
    found |= {
        "outcomes": dict(sorted(seen.outcomes.items())),
        "wrong": seen.wrong[:20],
        "complaints": subject.complaints()[:20],
    }
    return found


async def _load(subject: Subject, engines: Processes, control: Control, seconds: float) -> dict[str, Any]:
    seen, pick = engines.seen, control.pick
    warm = time.monotonic() + min(10.0, seconds / 6)
    await _callers(subject, seen, pick, warm)
    await asyncio.sleep(_QUIET_S)
    before = {"descriptors": subject.descriptors(), "rss_mib": subject.rss_mib()}
    until = time.monotonic() + seconds
    trouble = asyncio.create_task(_trouble(engines, control, until))
    await _callers(subject, seen, pick, until)
    await trouble
    return {
        "seconds": seconds, "requests": sum(seen.outcomes.values()), "kills": len(seen.kills),
        "configurations": control.changes, "before": before, "rss_mib_under_load": subject.rss_mib(),
    }  # fmt: skip


async def _callers(subject: Subject, seen: Seen, pick: random.Random, until: float) -> None:
    seeds = [pick.getrandbits(32) for _ in range(CALLERS)]
    callers = [Caller(subject.port, random.Random(seed), seen) for seed in seeds]  # noqa: S311 - as above
    await asyncio.gather(*(caller.run(until) for caller in callers))


async def _trouble(engines: Processes, control: Control, until: float) -> None:
    """Now and then an engine dies, the configuration changes, or both."""
    pick = control.pick
    while time.monotonic() < until - 3:
        await asyncio.sleep(pick.random() * 3)
        if pick.randrange(2):
            control.change()
        if pick.randrange(2):
            await engines.kill(pick.choice(engines.ports), pick.random() * 2)


async def _afterwards(subject: Subject, control: Control) -> dict[str, Any]:
    """What is left after a quiet while, and what the ledger was told at the end."""
    await asyncio.sleep(_QUIET_S)
    gauges = await subject.gauges()
    await asyncio.sleep(0.2)
    found: dict[str, Any] = {
        "gauges": gauges,
        "after": {"descriptors": subject.descriptors(), "rss_mib": subject.rss_mib()},
    }
    told = control.holdings()
    found["reserved"] = sum(holding.reserved for holding in told)
    subject.process.send_signal(signal.SIGTERM)
    found["exit"] = await asyncio.to_thread(subject.process.wait, 20)
    told = control.holdings()
    found["charged"] = sum(holding.charged for holding in told)
    found["ledger_told_at_end"] = control.closed
    found["owed"] = sum(min(0, one.granted - one.returned - one.charged + one.unbacked) for one in told)
    return found


def failures(found: Mapping[str, Any]) -> list[str]:
    """What must not be."""
    problems = [f"gauge {name} is {value}" for name, value in found["gauges"].items() if value]
    if found["after"]["descriptors"] > found["before"]["descriptors"]:
        problems.append(f"descriptors: {found['before']['descriptors']} before, {found['after']['descriptors']} after")
    problems += [f"{name} is {found[name]}" for name in ("reserved", "owed", "exit") if found[name]]
    problems += [f"{name}: {text}" for name in ("wrong", "complaints") for text in found[name]]
    if not found["ledger_told_at_end"]:
        problems.append("the router did not end its session with the ledger")
    return problems if found["requests"] else [*problems, "no request was made"]


def main() -> None:
    """Run, print, and fail if something is left."""
    parser = argparse.ArgumentParser(prog="tests.soak.run", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(soak(options.seconds, options.seed, Path(folder)))
    problems = failures(found)
    for problem in problems:
        sys.stdout.write(f"FAILED {problem}\n")
    sys.stdout.write(json.dumps({"ok": not problems, **found}) + "\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
