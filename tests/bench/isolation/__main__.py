"""What separate routes buy: time to first token of short chats, alone, beside long prompts, and apart from them.

usage: python -m tests.bench.isolation [--engines model|vllm|both] [--seconds S] [--seeds N]

Always the same two engines behind one router process. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

import uvloop

from tests.bench.isolation import engine, fleet, load
from tests.bench.isolation.fleet import LONG_POOL, Pool
from tests.bench.quantiles import quantile

WARM_UP_S: Final = 5.0
VLLM_SCALE: Final = 12
"""Lengths of chats are divided by it for vLLM on a CPU."""
ROUTES: Final = {"model": (8192, 131_072), "vllm": (1024, 8192)}
"""The most tokens of a short request and of a long one."""
CAPS: Final = {"model": 512, "vllm": 32}
"""A quarter of the tokens of a step."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Which engines serve what. ``capped``: the engine itself limits a long prompt's share of a step."""

    name: str
    pools: tuple[Pool, ...]
    long: bool = True
    capped: bool = False


@dataclass(slots=True)
class Outcome:
    """What all callers of a scenario saw, by seed."""

    runs: list[list[load.Seen]] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)

    def values(self, kind: str, what: str) -> list[list[float]]:
        """Milliseconds by seed, of what was answered."""
        return [[1000 * getattr(one, what) for one in run if one.kind == kind and not one.error] for run in self.runs]

    @property
    def crossed(self) -> int:
        """Short requests that were taken for long ones."""
        return sum(one.kind == "short" and one.pool == LONG_POOL for run in self.runs for one in run)

    @property
    def errors(self) -> list[str]:
        """What went wrong."""
        return [one.error for run in self.runs for one in run if one.error]


def scenarios(short: int, long: int) -> tuple[Scenario, ...]:
    """``short`` and ``long``: the most tokens of a request of each."""
    both, first = (0, 1), (0,)
    return (
        Scenario("short alone, two engines", (Pool("chat", both, long),), long=False),
        Scenario("short alone, one engine", (Pool("chat", first, long),), long=False),
        Scenario("one pool of two", (Pool("chat", both, long),)),
        Scenario("one pool of two, engine capped", (Pool("chat", both, long),), capped=True),
        Scenario("a route and an engine each", (Pool("chat", first, short), Pool(LONG_POOL, (1,), long))),
    )


def traffic(kind: str, ports: Sequence[int]) -> load.Traffic:
    """What is asked of such engines."""
    if kind == "model":
        pairs = load.conversations(8192 - 256)
        return load.Traffic(8.0, 0.15, pairs, (100_000, 200), engine.BYTES_PER_TOKEN)
    pairs = [
        (max(8, prompt // VLLM_SCALE), max(2, output // VLLM_SCALE)) for prompt, output in load.conversations(8192)
    ]
    return load.Traffic(4.0, 0.12, pairs, (4_200, 16), bytes_per_token(ports[0]))


def bytes_per_token(port: int) -> float:
    """Of the words that prompts are made of, by the engine's own count."""
    size = 4000
    asked = json.loads(load.body(load.prompt_text(size, random.Random(0)), 1)) | {"stream": False}  # noqa: S311 - text
    usage = fleet.ask(port, "/v1/chat/completions", json.dumps(asked).encode())["usage"]
    return size / float(usage["prompt_tokens"])


def measure(kind: str, seeds: int, seconds: float, work: Path) -> dict[str, Outcome]:
    """All scenarios, one after another for each seed."""
    found: dict[str, Outcome] = {}
    for capped in (False, True):
        with fleet.engines(kind, CAPS[kind] if capped else 0, work) as ports:
            asked = traffic(kind, ports)
            for seed in range(1, seeds + 1):
                for scenario in [one for one in scenarios(*ROUTES[kind]) if one.capped == capped]:
                    outcome = found.setdefault(scenario.name, Outcome())
                    outcome.runs.append(once(scenario, asked, ports, (seed, seconds), work))
                    if kind == "model":
                        outcome.late_ms += [fleet.ask(port, "/bench/late")["late_p99_ms"] for port in ports]
                    say_run(scenario, seed, outcome)
    return {one.name: found[one.name] for one in scenarios(*ROUTES[kind])}


def once(
    scenario: Scenario, asked: load.Traffic, ports: Sequence[int], run: tuple[int, float], work: Path
) -> list[load.Seen]:
    """One run: what its callers saw after the warm-up."""
    seed, seconds = run
    planned = load.calls(asked, WARM_UP_S + seconds, seed, long=scenario.long)
    with fleet.router(scenario.pools, ports, work) as port:
        seen = uvloop.run(load.run(port, planned))
    return [one for one in seen if one.at >= WARM_UP_S]


def figures(outcome: Outcome) -> dict[str, Any]:
    """Of each figure the quantile over all seeds, and the least and most of a seed; milliseconds."""
    result: dict[str, Any] = {"errors": len(outcome.errors), "short_in_long_pool": outcome.crossed}
    for (kind, what), percent in product((("short", "ttft"), ("short", "tpot"), ("long", "ttft")), (50, 99)):
        by_seed = outcome.values(kind, what)
        seeds = [quantile(values, percent) for values in by_seed]
        whole = quantile([value for values in by_seed for value in values], percent)
        result[f"{kind}_{what}_p{percent}_ms"] = [round(value, 1) for value in (whole, min(seeds), max(seeds))]
        result[f"{kind}_requests"] = sum(map(len, by_seed))
    if outcome.late_ms:
        result["engine_late_p99_ms"] = max(outcome.late_ms)
    return result


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_run(scenario: Scenario, seed: int, outcome: Outcome) -> None:
    """How far it is, on stderr."""
    short = [1000 * one.ttft for one in outcome.runs[-1] if one.kind == "short" and not one.error]
    sys.stderr.write(f"seed {seed}, {scenario.name}: short p99 {quantile(short, 99):.0f} ms; {outcome.errors[:1]}\n")


def table(results: dict[str, dict[str, Any]]) -> None:
    """Milliseconds: over all seeds [least to most of a seed]."""
    columns = {
        "short: TTFT p50": "short_ttft_p50_ms", "TTFT p99": "short_ttft_p99_ms", "TPOT p50": "short_tpot_p50_ms",
        "TPOT p99": "short_tpot_p99_ms", "long: TTFT p50": "long_ttft_p50_ms", "long: TTFT p99": "long_ttft_p99_ms",
    }  # fmt: skip
    say("| ms | " + " | ".join(columns) + " | requests |")
    say("|" + "---|" * (len(columns) + 2))
    for name, got in results.items():
        triples = [got[column] for column in columns.values()]
        cells = [f"{whole:,.0f} [{low:,.0f}-{high:,.0f}]" if whole else "" for whole, low, high in triples]
        say(f"| {name} | " + " | ".join(cells) + f" | {got['short_requests']} + {got['long_requests']} |")


def main(arguments: Sequence[str]) -> int:
    """Measure, print; 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engines", choices=["model", "vllm", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run, after 5 s of warm-up")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the engines are stopped
    kinds = ["model", "vllm"] if given.engines == "both" else [given.engines]
    report: dict[str, Any] = {"load_1m": os.getloadavg()[0], "seconds": given.seconds, "seeds": given.seeds}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fairlead-isolation-") as folder:
        for kind in kinds:
            outcomes = measure(kind, given.seeds, given.seconds, Path(folder))
            report[kind] = {name: figures(outcome) for name, outcome in outcomes.items()}
            failed += sum(len(outcome.errors) for outcome in outcomes.values())
            say(f"\nEngines: {kind}")
            table(report[kind])
    say(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
