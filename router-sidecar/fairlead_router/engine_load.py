"""What this pod's engine says of its load, for the routers that send requests here.

The engine's gauges are read from its ``/metrics`` over its socket about once a second, and only while there is
something to know: requests run, or did a few seconds ago. What cannot be read is unknown, never zero: then answers say
nothing of the load, and other routers count what they sent.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from fairlead_router.gauges import Peaks
from fairlead_router.replicas import Load
from fairlead_router.upstream import Pool, fetch, request_head

EVERY_S: Final = 1.0
LINGERS: Final = 5
"""Readings without a request until the engine is left alone."""
_TIMEOUT_S: Final = 1.0
_OK: Final = 200
_MOST: Final = 9_999_999
_PERMILLE: Final = 1000
_READER: Final = "engine-load"
_HEAD: Final = request_head("GET", "/metrics", "engine", (), 0)
# Label values may hold any character but a line's end, so the last brace of the line closes the labels.
_SAMPLE: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{.*\})? +(\S+)", re.MULTILINE
)


def read_load(metrics: bytes) -> Load | None:
    """The load in an exposition of vLLM's metrics, over all its engines (data parallel ranks).

    Running and waiting are sums, the KV cache's use is the mean. ``None`` if one of the three is missing or no number.
    """
    samples: dict[bytes, list[float]] = {}
    for name, text in _SAMPLE.findall(metrics):
        try:
            samples.setdefault(name, []).append(float(text))
        except ValueError:
            return None
    running, waiting = samples.get(b"num_requests_running"), samples.get(b"num_requests_waiting")
    use = samples.get(b"kv_cache_usage_perc")
    if not (running and waiting and use) or not isfinite(sum(running) + sum(waiting) + sum(use)):
        return None
    return Load(_bounded(sum(running)), _bounded(sum(waiting)), _bounded(_PERMILLE * sum(use) / len(use), _PERMILLE))


def _bounded(value: float, most: int = _MOST) -> int:
    return round(max(0.0, min(value, most)))


@dataclass(slots=True, eq=False)
class EngineLoad:
    """The engine's load. ``running``: this router's own count of requests at its engine."""

    running: Peaks = field(default_factory=Peaks)
    _load: Load | None = None
    _beyond: int = 0
    """What the engine counted at the latest reading beyond this router's count: requests may have several prompts."""

    def header(self) -> bytes:
        """The value of ``x-fairlead-load``; empty while unknown.

        All requests reach the engine through this router, whose count is right now, while the engine's is as old as its
        reading: so the total follows the count, and only what waits and the KV cache's use are as they were read.
        """
        load = self._load
        if load is None:
            return b""
        running = max(0, self.running.value + self._beyond - load.waiting)
        return b"%d,%d,%d" % (running, load.waiting, load.kv_permille)

    async def follow(self, pool: Callable[[], Pool], every_s: float = EVERY_S) -> None:
        """Read the engine's gauges until cancelled. ``pool`` gives the connections to the engine."""
        idle = LINGERS
        while True:
            idle = 0 if self.running.read(_READER) else idle + 1
            self._take(await _read(pool()) if idle < LINGERS else None)
            await asyncio.sleep(every_s)

    def _take(self, load: Load | None) -> None:
        self._load = load
        self._beyond = max(0, load.running + load.waiting - self.running.value) if load is not None else 0


async def _read(pool: Pool) -> Load | None:
    with contextlib.suppress(OSError, TimeoutError):
        reply = await fetch(pool, _HEAD, b"", _TIMEOUT_S)
        return read_load(reply.body) if reply.status == _OK else None
    return None
