"""Memory of our router under many callers and many different prompts."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.router import install, procfs
from tests.bench.router.report import OURS, Sample
from tests.bench.router.stage import BenchError, Stage

CALLERS: Final = 10_000
PREFIXES: Final = 100_000
_LEG_S: Final = 10.0
_SETTLE_S: Final = 2.0


def key(number: int) -> str:
    """The API key of a caller, as wrk.lua sends it."""
    return f"sk-bench-{number:05d}"


def config(text: str, callers: int) -> str:
    """The bench's configuration with so many more API keys."""
    found = json.loads(text)
    found["keys"] = found.get("keys", []) + [
        {"hash": hashlib.sha256(key(number).encode()).hexdigest(), "namespace": "bench", "name": f"load-{number}"}
        for number in range(callers)
    ]
    return json.dumps(found)


def measure(stage: Stage, requests: int) -> Iterator[Sample]:
    """Idle, and after so many requests of all callers with all prefixes.

    ``growth_mb`` is the difference, less ``mapped_growth_mb``: pages of the journal's file.
    """
    own = stage.work / "config.json"
    own.write_text(config((install.HERE / "config.json").read_text(), CALLERS))
    with stage.running(OURS, {"FAIRLEAD_BENCH_CONFIG": str(own)}) as target:
        time.sleep(_SETTLE_S)
        idle, mapped = _rss(target.pid), _shared(target.pid)
        begun = stage.requests()
        errors, course = 0.0, [idle]
        with stage.metered(target, "memory") as meter:
            while (done := stage.requests() - begun) < requests:
                variables = {
                    "BENCH_MODE": "spread", "BENCH_FROM": str(done), "BENCH_BODIES": stage.bodies(1024, 256),
                    "BENCH_CALLERS": str(CALLERS), "BENCH_PREFIXES": str(PREFIXES),
                }  # fmt: skip
                errors += stage.wrk(target, 64, _LEG_S, **variables)["errors"]
                course.append(_rss(target.pid))
                if stage.requests() - begun == done:
                    raise BenchError(f"{target.name} answers no caller with a key of its own; see {own}")
            used = meter.read()
        time.sleep(_SETTLE_S)
        after, mapped = _rss(target.pid), round(_shared(target.pid) - mapped, 1)
    figures = {
        "idle_mb": idle, "after_mb": after, "most_mb": max(course), "growth_mb": round(after - idle - mapped, 1),
        "mapped_growth_mb": mapped,
        "first_leg_growth_mb": round(course[1] - idle, 1), "requests": float(done), "callers": float(CALLERS),
        "prefixes": float(PREFIXES), "errors": errors,
    }  # fmt: skip
    yield Sample(1, OURS, "memory", figures, used.foreign_percent)


def _rss(pid: int) -> float:
    return round(procfs.rss_mb(procfs.tree(pid)), 1)


def _shared(pid: int) -> float:
    return round(procfs.shared_mb(procfs.tree(pid)), 1)
