"""How true the performance model is: what it says of published measurements of vLLM, before it has seen any engine.

Open loop: 50 runs on H100 PCIe (models of 1.5 to 70 billion parameters, 1 to 32 requests/s), through the simulated
replica. Closed loop: 318 runs of dense models on H100, H200 and B200, and with constants fitted to the other models and
accelerators only. Ranking: the cheapest of the measured configurations, by objective and price book. The last line is
one JSON object; the status is 1 if a gate is missed.

The open-loop runs sent the same prompts at 32, 16, 8, 4 and 1 requests/s, in this order, to one server that keeps
prefixes (its default), so the prompts of all runs but the first are cached where the KV cache holds them. Their client
saw what the engine's steps do not contain, parsing, tokenising and the way back: one constant, fitted to other models.
"""

import csv
import json
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Final, TypeVar

from fairlead_operator.performance.model_config import model_from_name
from fairlead_operator.performance.replica import Replica, Request
from fairlead_operator.performance.seeds import (
    QUANTIZATIONS,
    Constants,
    HardwareFacts,
    ModelFacts,
    Seed,
    Unknown,
    engine_of,
    hardware_named,
)
from fairlead_operator.performance.step import Engine

DATA: Final = Path(__file__).resolve().parents[1] / "data"
OPEN_LOOP: Final = DATA / "iog_vllm_h100_open_loop.csv"
CLOSED_LOOP: Final = DATA / "aiconfigurator_vllm_dense.csv"

OPEN_TPOT_GATE: Final = 0.13
OPEN_TTFT_GATE: Final = 0.16
CLOSED_TPOT_GATE: Final = 0.10
RANKING_GATE: Final = 0.90

SHARE_OF_MEMORY: Final = 0.9
"""vLLM's default at the time of the runs."""
H100_BYTES: Final = 80 * 2**30
ACTIVATION_BYTES: Final = 2e9
CACHE_BLOCK: Final = 16
PROMPT_SIGMA: Final = 1.15
OUTPUT_SIGMA: Final = 0.95
LONGEST: Final = 1024
"""Lengths are log-normal with these widths, cut to 4 .. 1024: ShareGPT as vLLM's client filters it."""
FIRST_RATE: Final = 32.0
SEEDS: Final = (1, 2, 3)
GENERATIONS: Final = 10
"""Requests for each concurrent one in a closed loop, as the clients of the measurements send."""
TOKEN_BUDGET: Final = 2048
SEQUENCES: Final = 1024
NEAR: Final = 1.05
"""A choice is right whose measured price is within this of the least: measurements repeat no better."""
TPOT_OBJECTIVES_MS: Final = (10, 12, 15, 20, 25, 30, 40, 50, 75, 100)
PRICES: Final[Mapping[str, Mapping[str, float]]] = {
    "AWS us-east-1, 2026-07-20": {"H100-SXM": 6.88, "H200": 7.912, "B200": 14.242},
    "Verda, 2026-07": {"H100-SXM": 2.29, "H200": 3.39, "B200": 4.89},
}
"""USD for an accelerator-hour, on demand."""
LEAST_RESIDUAL: Final = 0.03
REWEIGHTINGS: Final = 20
Run = TypeVar("Run")
Fact = TypeVar("Fact")
TERMS: Final = ("step", "layer", "bandwidth", "flops", "link")


@dataclass(frozen=True, slots=True)
class Latencies:
    """Means in seconds."""

    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A measured open-loop run."""

    model: str
    accelerators: int
    rate: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    measured: Latencies


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """A measured closed-loop run; every request has these lengths."""

    model: str
    accelerator: str
    quantization: str
    accelerators: int
    prompt: int
    output: int
    concurrency: int
    measured: Latencies

    @property
    def configuration(self) -> tuple[str, int, str]:
        """What has a price."""
        return self.accelerator, self.accelerators, self.quantization


def read(path: Path, make: Callable[[Mapping[str, str]], Run]) -> list[Run]:
    """The runs of a table."""
    with path.open(encoding="utf-8", newline="") as lines:
        return [make(row) for row in csv.DictReader(lines)]


def open_run(row: Mapping[str, str]) -> OpenRun:
    """A row of the open-loop table."""
    measured = Latencies(float(row["mean_ttft_ms"]) / 1e3, float(row["mean_tpot_ms"]) / 1e3)
    count = int(row["n"])
    return OpenRun(
        model=row["model"],
        accelerators=int(row["n_gpu"]),
        rate=float(row["qps"]),
        requests=count,
        prompt_tokens=int(row["in_tok"]),
        output_tokens=int(row["out_tok"]),
        measured=measured,
    )


def closed_run(row: Mapping[str, str]) -> ClosedRun:
    """A row of the closed-loop table."""
    return ClosedRun(
        model=row["model"],
        accelerator=row["accelerator"],
        quantization=row["quantization"],
        accelerators=int(row["accelerators"]),
        prompt=int(row["isl"]),
        output=int(row["osl"]),
        concurrency=int(row["concurrency"]),
        measured=Latencies(float(row["ttft_ms"]) / 1e3, float(row["tpot_ms"]) / 1e3),
    )


def known(fact: Fact | Unknown) -> Fact:
    """The fact; ValueError if it is none."""
    if isinstance(fact, Unknown):
        raise ValueError(fact.reason)  # noqa: TRY004 - a fact that lacks, not a wrong type
    return fact


ALIASES: Final = {"AceMath-7B-Instruct": "Qwen2.5-7B"}
"""Models that are another one, trained further."""


def open_engine(run: OpenRun) -> Engine:
    """The engine of an open-loop run, before it was measured."""
    quantization = "fp8" if "FP8" in run.model else "none"
    model = known(model_from_name(ALIASES.get(run.model, run.model), quantization=quantization))
    room = run.accelerators * (SHARE_OF_MEMORY * H100_BYTES - ACTIVATION_BYTES) - model.weight_bytes
    pool = int(room / model.kv_bytes(run.accelerators))
    hardware = known(hardware_named("NVIDIA-H100-PCIe"))
    return known(engine_of(model, hardware, accelerators=run.accelerators, kv_tokens=pool)).engine


def closed_engine(run: ClosedRun, constants: Constants | None = None) -> Engine:
    """The engine of a closed-loop run, before it was measured."""
    model: ModelFacts = known(model_from_name(run.model, quantization=QUANTIZATIONS[run.quantization].name))
    hardware: HardwareFacts = known(hardware_named(run.accelerator))
    seed: Seed = known(
        engine_of(
            model,
            hardware,
            accelerators=run.accelerators,
            token_budget=TOKEN_BUDGET,
            max_sequences=SEQUENCES,
            constants=constants or Constants(),
        )
    )
    return seed.engine


def spread(count: int, mean: float, sigma: float) -> list[int]:
    """So many lengths of a cut log-normal distribution with this mean, at its quantiles."""
    scores = [NormalDist().inv_cdf((at + 0.5) / count) for at in range(count)]
    low, high = 0.0, 12.0
    lengths: list[int] = []
    for _ in range(40):
        middle = (low + high) / 2
        lengths = [round(min(LONGEST, max(4.0, math.exp(middle + sigma * score)))) for score in scores]
        low, high = (middle, high) if sum(lengths) < mean * count else (low, middle)
    return lengths


def open_loop(run: OpenRun, engine: Engine, seed: int) -> Latencies:
    """What the model says of an open-loop run."""
    chance = random.Random(seed)  # noqa: S311 - arrivals
    prompts = spread(run.requests, run.prompt_tokens / run.requests, PROMPT_SIGMA)
    outputs = spread(run.requests, run.output_tokens / run.requests, OUTPUT_SIGMA)
    chance.shuffle(prompts)
    chance.shuffle(outputs)
    cached = run.rate < FIRST_RATE and engine.kv_tokens > run.prompt_tokens + run.output_tokens
    replica, now = Replica(engine), 0.0
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        replica.advance(now)
        hit = (prompt - 1) // CACHE_BLOCK * CACHE_BLOCK if cached else 0
        request = Request(number, now, prompt, output)
        request.cached = hit
        replica.push(request, now)
        now += chance.expovariate(run.rate)
    replica.advance(math.inf)
    return _means(replica.finished)


def closed_loop(run: ClosedRun, engine: Engine) -> Latencies:
    """What the model says of a closed-loop run: each request that ends begins another."""
    replica, total = Replica(engine), run.concurrency * GENERATIONS
    for sent in range(run.concurrency):
        replica.push(Request(sent, 0.0, run.prompt, run.output), 0.0)
    sent, ended = run.concurrency, 0
    while ended < total:
        replica.advance(math.nextafter(replica.end, math.inf))
        for _ in range(min(len(replica.finished) - ended, total - sent)):
            replica.push(Request(sent, replica.clock, run.prompt, run.output), replica.clock)
            sent += 1
        ended = len(replica.finished)
    return _means(replica.finished)


def _means(requests: Sequence[Request]) -> Latencies:
    return Latencies(statistics.fmean(one.ttft for one in requests), statistics.fmean(one.tpot for one in requests))


def steady_tpot(run: ClosedRun, engine: Engine) -> float:
    """The same in closed form, linear in the step's coefficients: the mean step's share of prompts and contexts."""
    room = engine.kv_tokens / (run.prompt + run.output / 2)
    sequences = max(1.0, min(run.concurrency, room))
    prompts = (sequences - 1) * run.prompt / run.output
    return engine.step.step(sequences, prompts, sequences * (run.prompt + run.output / 2))


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of a set of runs."""

    ttft: Sequence[float]
    tpot: Sequence[float]

    def line(self, name: str) -> str:
        """For people."""
        mean, middle = statistics.fmean, statistics.median
        return f"{name:<58} {len(self.tpot):4d}  {mean(self.tpot):6.1%} {middle(self.tpot):6.1%}" + (
            f"  {mean(self.ttft):6.1%} {middle(self.ttft):6.1%}" if self.ttft else ""
        )


def open_errors(runs: Sequence[OpenRun]) -> tuple[Errors, Errors]:
    """Errors as the engine sees it, and with what the client adds, as it was with the other models."""
    said = [_over_seeds(run) for run in runs]
    rest = [run.measured.ttft - one.ttft for run, one in zip(runs, said, strict=True)]
    added = [
        statistics.median(other for one, other in zip(runs, rest, strict=True) if one.model != run.model)
        for run in runs
    ]
    tpot = [off(one.tpot, run.measured.tpot) for run, one in zip(runs, said, strict=True)]
    bare = [off(one.ttft, run.measured.ttft) for run, one in zip(runs, said, strict=True)]
    whole = [off(one.ttft + more, run.measured.ttft) for run, one, more in zip(runs, said, added, strict=True)]
    return Errors(bare, tpot), Errors(whole, tpot)


def _over_seeds(run: OpenRun) -> Latencies:
    each = [open_loop(run, open_engine(run), seed) for seed in SEEDS]
    return Latencies(statistics.fmean(one.ttft for one in each), statistics.fmean(one.tpot for one in each))


def off(said: float, measured: float) -> float:
    """The relative error."""
    return abs(said / measured - 1)


def closed_errors(runs: Sequence[ClosedRun], said: Sequence[Latencies]) -> Errors:
    """Errors of what the simulated replica said."""
    both = list(zip(runs, said, strict=True))
    return Errors(
        [off(one.ttft, run.measured.ttft) for run, one in both], [off(one.tpot, run.measured.tpot) for run, one in both]
    )


def left_out(runs: Sequence[ClosedRun]) -> dict[str, Errors]:
    """Errors in closed form for each model and accelerator with constants fitted to all others."""
    groups: dict[str, list[ClosedRun]] = defaultdict(list)
    for run in runs:
        groups[f"{run.model} on {run.accelerator}"].append(run)
    found = {}
    for name, held in groups.items():
        constants = fit_constants([run for run in runs if run not in held])
        errors = [off(steady_tpot(run, closed_engine(run, constants)), run.measured.tpot) for run in held]
        found[name] = Errors([], errors)
    return found


def fit_constants(runs: Sequence[ClosedRun]) -> Constants:
    """Those that minimise the mean relative error: least squares, reweighted by the inverse of each run's error."""
    rows = [[_part(run, term) / run.measured.tpot for term in TERMS] for run in runs]
    begin = Constants()
    values = [begin.step, begin.layer, 1 / begin.bandwidth, 1 / begin.flops, 1 / begin.link]
    for _ in range(REWEIGHTINGS):
        weights = [1 / max(LEAST_RESIDUAL, abs(_dot(row, values) - 1)) for row in rows]
        values = [max(1e-9, value) for value in least_squares(rows, weights, values)]
    return Constants(values[0], values[1], 1 / values[2], 1 / values[3], 1 / values[4])


def _part(run: ClosedRun, term: str) -> float:
    """The part of a run's time that one constant (or its inverse) scales, for the constant 1."""
    none = {"step": 0.0, "layer": 0.0, "bandwidth": math.inf, "flops": math.inf, "link": math.inf}
    return steady_tpot(run, closed_engine(run, Constants(**{**none, term: 1.0})))


def least_squares(rows: Sequence[Sequence[float]], weights: Sequence[float], near: Sequence[float]) -> list[float]:
    """The values whose weighted sums over each row are nearest to 1, drawn a little to ``near``."""
    size = len(near)
    pull = [1e-3 * len(rows) / value**2 for value in near]
    matrix = [
        [
            *(sum(w * row[i] * row[j] for w, row in zip(weights, rows, strict=True)) + pull[i] * (i == j)
            for j in range(size)),
            sum(w * row[i] for w, row in zip(weights, rows, strict=True)) + pull[i] * near[i],
        ]
        for i in range(size)
    ]  # fmt: skip
    for i in range(size):
        for j in range(size):
            if j != i:
                factor = matrix[j][i] / matrix[i][i]
                matrix[j] = [one - factor * other for one, other in zip(matrix[j], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class Choice:
    """One case of the ranking: what the model chose costs ``ratio`` times the least measured price."""

    case: str
    chosen: str
    best: str
    ratio: float


def choices(runs: Sequence[ClosedRun], said: Sequence[Latencies]) -> list[Choice]:
    """All cases in which more than one configuration meets the objective."""
    cases: dict[tuple[str, int, int], dict[tuple[str, int, str], list[tuple[ClosedRun, Latencies]]]] = {}
    for run, one in zip(runs, said, strict=True):
        case = cases.setdefault((run.model, run.prompt, run.output), {})
        case.setdefault(run.configuration, []).append((run, one))
    found = []
    for book, prices in PRICES.items():
        for (model, prompt, output), case in cases.items():
            for objective in TPOT_OBJECTIVES_MS:
                measured = _costs(case, objective / 1e3, prices, lambda pair: pair[0].measured)
                foretold = _costs(case, objective / 1e3, prices, lambda pair: pair[1])
                if len(measured) > 1:
                    name = f"{book}: {model} {prompt}/{output} at {objective} ms"
                    found.append(_choice(name, measured, foretold))
    return found


def _choice(
    name: str, measured: Mapping[tuple[str, int, str], float], foretold: Mapping[tuple[str, int, str], float]
) -> Choice:
    best = min(measured, key=lambda one: measured[one])
    chosen = min(foretold, key=lambda one: foretold[one]) if foretold else None
    ratio = measured.get(chosen, math.inf) / measured[best] if chosen is not None else math.inf
    return Choice(name, str(chosen), str(best), ratio)


def _costs(
    case: Mapping[tuple[str, int, str], Sequence[tuple[ClosedRun, Latencies]]],
    objective: float,
    prices: Mapping[str, float],
    latencies: Callable[[tuple[ClosedRun, Latencies]], Latencies],
) -> dict[tuple[str, int, str], float]:
    """The least price of an output token under the objective, by configuration that can meet it."""
    costs = {}
    for configuration, pairs in case.items():
        points = sorted(
            (run.concurrency, latencies((run, one)).tpot, _rate(run, latencies((run, one)))) for run, one in pairs
        )
        rate = _best_rate(points, objective)
        if rate > 0:
            costs[configuration] = prices[configuration[0]] * configuration[1] / rate
    return costs


def _rate(run: ClosedRun, latencies: Latencies) -> float:
    """Output tokens a second."""
    return run.concurrency * run.output / (latencies.ttft + run.output * latencies.tpot)


def _best_rate(points: Iterable[tuple[int, float, float]], objective: float) -> float:
    """The highest rate at a TPOT within the objective, between the points, too."""
    listed = list(points)
    rates = [rate for _, tpot, rate in listed if tpot <= objective]
    for (_, low, slow), (_, high, fast) in pairwise(listed):
        if low <= objective < high:
            rates.append(slow + (fast - slow) * (objective - low) / (high - low))
    return max(rates, default=0.0)


def main() -> int:
    """Print everything; 1 if a gate is missed."""
    open_runs, closed_runs = read(OPEN_LOOP, open_run), read(CLOSED_LOOP, closed_run)
    said = [closed_loop(run, closed_engine(run)) for run in closed_runs]
    bare, whole = open_errors(open_runs)
    closed = closed_errors(closed_runs, said)
    ranked = choices(closed_runs, said)
    right = sum(one.ratio <= NEAR for one in ranked) / len(ranked)
    out = sys.stdout
    print(f"{'':<58} runs  TPOT mean median  TTFT mean median", file=out)
    print(bare.line("open loop, the engine alone"), file=out)
    print(whole.line("open loop, with what clients saw added of other models"), file=out)
    print(closed.line("closed loop, simulated"), file=out)
    for name, errors in left_out(closed_runs).items():
        print(errors.line(f"  left out: {name}"), file=out)
    first = sum(one.ratio == 1 for one in ranked) / len(ranked)
    print(
        f"cheapest within {NEAR - 1:.0%}: {right:.1%} of {len(ranked)} cases; the very cheapest: {first:.1%}", file=out
    )
    for one in ranked:
        if one.ratio > NEAR:
            print(f"  {one.case}: {one.chosen} costs {one.ratio:.2f} times {one.best}", file=out)
    gates = {
        "open_tpot": (statistics.fmean(whole.tpot), OPEN_TPOT_GATE),
        "open_ttft": (statistics.median(whole.ttft), OPEN_TTFT_GATE),
        "closed_tpot": (statistics.fmean(closed.tpot), CLOSED_TPOT_GATE),
        "ranking_wrong": (1 - right, 1 - RANKING_GATE),
    }
    print(json.dumps({name: round(value, 4) for name, (value, _) in gates.items()}), file=out)
    return 0 if all(value <= gate for value, gate in gates.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
