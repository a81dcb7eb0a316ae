"""What this pod's engine says of its load, for the routers that send requests here and for the autoscaler.

The engine's gauges are read from its ``/metrics`` over its socket about once a second, and only while there is
something to know: requests run, or did a few seconds ago. What cannot be read is unknown, never zero: then answers say
nothing of the load, and other routers count what they sent.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Final

from fairlead_router.contract import EngineSignals
from fairlead_router.drafting import Drafting
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
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|spec_decode_num_drafts_total"
    rb"|spec_decode_num_draft_tokens_total|spec_decode_num_accepted_tokens_total|inter_token_latency_seconds_sum"
    rb"|inter_token_latency_seconds_count|prompt_tokens_total)(?:\{.*\})? +(\S+)",
    re.MULTILINE,
)
_COMPUTED: Final = re.compile(
    rb'^vllm:prompt_tokens_by_source_total\{(?:.*,)?source="local_compute".*\} +([0-9.e+]{1,30})$', re.MULTILINE
)
_ACCEPTED_AT: Final = re.compile(
    rb'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{(?:.*,)?position="(\d{1,2})".*\} +([0-9.e+]{1,30})$',
    re.MULTILINE,
)
_MOST_DRAFTED: Final = 32
"""Tokens of a draft, as the field of ModelPool bounds them."""
_MICRO: Final = 1e6
_CACHE: Final = re.compile(rb"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_CACHE_SIZE: Final = re.compile(rb'(?:^|,)(num_gpu_blocks|block_size|kv_cache_size_tokens)="(\d{1,12})"')
_MOST_TOKENS: Final = 10**12
_MOST_US: Final = 10**15
_UNKNOWN: Final = -1


def read_engine(metrics: bytes) -> EngineSignals:
    """What an exposition of vLLM's metrics says for the autoscaler, over all its engines; what it lacks is -1."""
    samples = _samples(metrics)
    use = samples.get(b"kv_cache_usage_perc", [])
    return EngineSignals(
        kv_tokens=_kv_tokens(metrics),
        kv_permille=_bounded(_PERMILLE * sum(use) / len(use), _PERMILLE) if use and isfinite(sum(use)) else _UNKNOWN,
        running=_total(samples.get(b"num_requests_running", [])),
        waiting=_total(samples.get(b"num_requests_waiting", [])),
        drafts_total=_total(samples.get(b"spec_decode_num_drafts_total", []), _MOST_TOKENS),
        accepted_total=_total(samples.get(b"spec_decode_num_accepted_tokens_total", []), _MOST_TOKENS),
        draft_tokens_total=_total(samples.get(b"spec_decode_num_draft_tokens_total", []), _MOST_TOKENS),
        accepted_by_position=_accepted_by_position(metrics),
        gaps_total=_total(samples.get(b"inter_token_latency_seconds_count", []), _MOST_TOKENS),
        gaps_us_total=_total(
            [_MICRO * seconds for seconds in samples.get(b"inter_token_latency_seconds_sum", [])], _MOST_US
        ),
        computed_total=_total(_computed(metrics) or samples.get(b"prompt_tokens_total", []), _MOST_TOKENS),
    )


def _computed(metrics: bytes) -> list[float]:
    """Prompt tokens by their source are told by newer engines only; the others have a total alone."""
    with contextlib.suppress(ValueError):
        return [float(text) for text in _COMPUTED.findall(metrics)]
    return []


def _accepted_by_position(metrics: bytes) -> tuple[int, ...]:
    """Drafted tokens that were kept, by place, up to the first place that is not told."""
    found: dict[int, float] = {}
    try:
        for place, text in _ACCEPTED_AT.findall(metrics):
            found[int(place)] = found.get(int(place), 0.0) + float(text)
    except ValueError:
        return ()
    told = itertools.takewhile(lambda place: isfinite(found.get(place, inf)), range(_MOST_DRAFTED))
    return tuple(_bounded(found[place], _MOST_TOKENS) for place in told)


def _kv_tokens(metrics: bytes) -> int:
    """Tokens that the KV caches hold: told as such, or by older engines as blocks and their size."""
    total = 0
    for labels in _CACHE.findall(metrics):
        told = {name: int(text) for name, text in _CACHE_SIZE.findall(labels)}
        total += told.get(b"kv_cache_size_tokens") or told.get(b"num_gpu_blocks", 0) * told.get(b"block_size", 0)
    return min(total, _MOST_TOKENS) or _UNKNOWN


def _total(values: list[float], most: int = _MOST) -> int:
    return _bounded(sum(values), most) if values and isfinite(sum(values)) else _UNKNOWN


def read_load(metrics: bytes) -> Load | None:
    """The load in an exposition of vLLM's metrics, over all its engines (data parallel ranks).

    Running and waiting are sums, the KV cache's use is the mean. ``None`` if one of the three is missing or no number.
    """
    samples = _samples(metrics)
    running, waiting = samples.get(b"num_requests_running"), samples.get(b"num_requests_waiting")
    use = samples.get(b"kv_cache_usage_perc")
    if not (running and waiting and use) or not isfinite(sum(running) + sum(waiting) + sum(use)):
        return None
    return Load(_bounded(sum(running)), _bounded(sum(waiting)), _bounded(_PERMILLE * sum(use) / len(use), _PERMILLE))


def _samples(metrics: bytes) -> dict[bytes, list[float]]:
    """Values by name; a name with one that is no number has none."""
    samples: dict[bytes, list[float]] = {}
    broken = set()
    for name, text in _SAMPLE.findall(metrics):
        try:
            samples.setdefault(name, []).append(float(text))
        except ValueError:
            broken.add(name)
    return {name: values for name, values in samples.items() if name not in broken}


def _bounded(value: float, most: int = _MOST) -> int:
    return round(max(0.0, min(value, most)))


@dataclass(slots=True, eq=False)
class EngineLoad:
    """The engine's load. ``running``: this router's own count of requests at its engine."""

    running: Peaks = field(default_factory=Peaks)
    drafting: Drafting = field(default_factory=Drafting)
    told: EngineSignals | None = None
    """The latest reading; it stays while the engine is left alone, and goes when it cannot be read."""
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
            metrics = await _read(pool()) if idle < LINGERS else None
            if idle < LINGERS:
                self.told = read_engine(metrics) if metrics is not None else None
                self.drafting.note(self.told)
            self._take(read_load(metrics) if metrics is not None else None)
            await asyncio.sleep(every_s)

    def _take(self, load: Load | None) -> None:
        self._load = load
        self._beyond = max(0, load.running + load.waiting - self.running.value) if load is not None else 0


async def _read(pool: Pool) -> bytes | None:
    with contextlib.suppress(OSError, TimeoutError):
        reply = await fetch(pool, _HEAD, b"", _TIMEOUT_S)
        return reply.body if reply.status == _OK else None
    return None
