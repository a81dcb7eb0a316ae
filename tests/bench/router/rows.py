"""The rows: how each figure is measured on a running target."""

import asyncio
import gc
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import uvloop

from tests.bench.router import bodies, procfs
from tests.bench.router.load import Record, Streams, Timetable, quantile, timetable
from tests.bench.router.stage import DIRECT, Stage, Target

Figures = dict[str, float]
T = TypeVar("T")
CHUNKS: Final = 128
_LEAVE_LIMIT_S: Final = 5.0
_LEAVE_AFTER_S: Final = 0.02
_LOST: Final = 3
_LONG_US: Final = 10_000_000
_SPREAD_S: Final = CHUNKS * 0.01
_WARM_S: Final = 1.5
_ANSWER_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How long the window of a closed loop is, and of all others; how often a caller leaves; the open loop's rate."""

    seconds: float = 6.0
    open_seconds: float = 8.0
    leaves: int = 100
    rate: float = 50.0


@dataclass(frozen=True, slots=True)
class Row:
    """What a row measured."""

    figures: Figures
    foreign_percent: float
    faults: str = ""
    """What the errors were."""


def _closed(row: str, size: int, count: int, connections: int, mode: str) -> Callable[[Stage, Target, Effort], Row]:
    def measure(stage: Stage, target: Target, effort: Effort) -> Row:
        variables = {"BENCH_MODE": mode, "BENCH_BODIES": stage.bodies(size, count)}
        stage.wrk(target, connections, 1, **variables)
        with stage.metered(target, row) as meter:
            found = stage.wrk(target, connections, effort.seconds, **variables)
            used = meter.read()
        return Row(_closed_figures(found, used), used.foreign_percent)

    return measure


def _closed_figures(found: Figures, used: procfs.Used) -> Figures:
    return {
        "requests_per_s": round(found["requests"] / found["seconds"], 1),
        "cpu_us": round(used.router_s / max(1, found["requests"]) * 1e6, 2),
        "core_percent": round(100 * used.router_s / used.seconds, 1),
        "load_core_percent": round(100 * (used.load_s + used.engines_s) / used.seconds, 1),
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "errors": found["errors"],
    }


def _latency(stage: Stage, target: Target, effort: Effort) -> Row:
    """An open loop at a low rate, in turn straight to an engine and through the router."""
    requests = [bodies.request(target.headers, bodies.body(1024, number)) for number in range(64)]
    # Measured against itself, direct uses the other engine, so that both have a connection of their own.
    port = stage.engines[1].port if target.name == DIRECT else target.port
    direct, routed = (Record(float("inf"), 0.0) for _ in range(2))
    tables = [Timetable(stage.engines[0].port, requests, direct), Timetable(port, requests, routed)]

    async def run() -> tuple[list[float], procfs.Used]:
        since = time.perf_counter() + _WARM_S
        for record in (direct, routed):
            record.since, record.until = since, since + effort.open_seconds
        with stage.metered(target, "lat1k") as meter:
            late = await timetable(tables, effort.rate, direct.until)
            return late, meter.read()

    late, used = _run(run)
    p50, p99 = (quantile(routed.totals, share) - quantile(direct.totals, share) for share in (0.5, 0.99))
    figures = {
        "added_p50_ms": round(p50, 4),
        "added_p99_ms": round(p99, 4),
        "direct_p50_ms": quantile(direct.totals, 0.5),
        "direct_p99_ms": quantile(direct.totals, 0.99),
        "late_p99_ms": quantile(late, 0.99),
        "errors": float(sum((direct.errors + routed.errors).values())),
    }
    return Row(figures, used.foreign_percent, _faults(direct, routed))


def _faults(*records: Record) -> str:
    counts = sum((record.errors for record in records), Counter[str]())
    return ", ".join(f"{count} x {what}" for what, count in counts.most_common(3))


def _streams(row: str, count: int) -> Callable[[Stage, Target, Effort], Row]:
    def measure(stage: Stage, target: Target, effort: Effort) -> Row:
        request = bodies.request(target.headers, bodies.body(1024, 0, stream=True, tokens=CHUNKS))
        record = Record(float("inf"), 0.0)

        load = Streams(target.port, request, record)

        async def run() -> procfs.Used:
            record.since = time.perf_counter() + 2 * _SPREAD_S
            record.until = record.since + effort.open_seconds
            await load.open(count, _SPREAD_S)
            await asyncio.sleep(record.since - time.perf_counter())
            with stage.metered(target, row) as meter:
                await asyncio.sleep(record.until - time.perf_counter())
                used = meter.read()
            await load.end(_ANSWER_S)
            return used

        used = _run(run)
        return Row(_stream_figures(record, used), used.foreign_percent, _faults(record))

    return measure


def _stream_figures(record: Record, used: procfs.Used) -> Figures:
    return {
        "chunks_per_s": round(record.chunks / (record.until - record.since), 1),
        "cpu_s_per_100k": round(used.router_s / max(1, record.chunks) * 1e5, 3),
        "ttft_p50_ms": quantile(record.firsts, 0.5),
        "ttft_p99_ms": quantile(record.firsts, 0.99),
        "gap_p50_ms": quantile(record.gaps, 0.5),
        "gap_p99_ms": quantile(record.gaps, 0.99),
        "load_core_percent": round(100 * (used.load_s + used.engines_s) / used.seconds, 1),
        "rss_mb": round(used.router_rss_mb, 1),
        "errors": float(sum(record.errors.values())),
    }


def _run(measure: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on a fresh loop, without collections of garbage in between."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(measure())
    finally:
        gc.enable()


def _leave(stage: Stage, target: Target, effort: Effort) -> Row:
    """How long after a caller has closed its connection the engine sees its own closed."""
    figures: Figures = {}
    unseen = 0
    with stage.metered(target, "leave") as meter:
        for name, stream, settings in (
            ("stream", True, {}),
            ("unstarted", True, {"first_us": _LONG_US}),
            ("whole", False, {"whole_us": _LONG_US}),
        ):
            stage.set(**settings)
            content = bodies.body(1024, 0, stream=stream, tokens=2000)
            request = bodies.request(target.headers, content)
            seen, lost = _leave_often(stage, target.port, request, effort.leaves, begun=name == "stream")
            unseen += lost
            figures |= {f"{name}_p50_ms": quantile(seen, 0.5), f"{name}_p99_ms": quantile(seen, 0.99)}
            stage.set(first_us=0, whole_us=0)
        used = meter.read()
    return Row({**figures, "unseen": float(unseen)}, used.foreign_percent)


def _leave_often(stage: Stage, port: int, request: bytes, tries: int, *, begun: bool) -> tuple[list[float], int]:
    """The times of those that were seen, and how many were not; a router that shows nothing is not tried on."""
    seen: list[float] = []
    lost = 0
    while len(seen) + lost < tries and lost < _LOST:
        took = _leave_once(stage, port, request, begun=begun)
        if took is None:
            lost += 1
        else:
            seen.append(took)
    return seen, lost


def _leave_once(stage: Stage, port: int, request: bytes, *, begun: bool) -> float | None:
    """Ask, wait until an engine works on it (``begun``: until the first bytes came), and close; the time in seconds."""
    before = _stats(stage)
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(request)
        if begun:
            select.select([caller], [], [], _LEAVE_LIMIT_S)
            time.sleep(_LEAVE_AFTER_S)
            caller.recv(1 << 20)
        else:
            _until(lambda: any(now["running"] > was["running"] for now, was in zip(_stats(stage), before, strict=True)))
        closed_ns = time.monotonic_ns()
    _until(lambda: any(now["cancelled"] > was["cancelled"] for now, was in zip(_stats(stage), before, strict=True)))
    for now, was in zip(_stats(stage), before, strict=True):
        if now["cancelled"] > was["cancelled"]:
            return max(0.0, (now["left_ns"] - closed_ns) / 1e9)
    return None


def _stats(stage: Stage) -> list[dict[str, int]]:
    return [engine.get("/bench/stats") for engine in stage.engines]


def _until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, up to the limit."""
    end = time.monotonic() + _LEAVE_LIMIT_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def _idle(_stage: Stage, target: Target, _effort: Effort) -> Row:
    """Memory of a router that has answered a few requests."""
    return Row({"rss_mb": round(procfs.rss_mb(procfs.tree(target.pid)), 1)}, 0.0)


ROWS: Final[dict[str, Callable[[Stage, Target, Effort], Row]]] = {
    "idle": _idle,
    "rps1k": _closed("rps1k", 1024, 256, 64, "same"),
    "rps1k-trace": _closed("rps1k-trace", 1024, 256, 64, "trace"),
    "rps400k": _closed("rps400k", 409_600, 16, 8, "same"),
    "lat1k": _latency,
    "stream64": _streams("stream64", 64),
    "stream512": _streams("stream512", 512),
    "leave": _leave,
}
"""By the names that ``--rows`` takes, in the order in which they run."""
