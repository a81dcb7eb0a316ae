"""The benchmark's scenarios: recorded rates and lengths, made into requests that a seed decides.

Lengths are pairs drawn with replacement from a recorded hour; arrivals are Poisson within windows of recorded rates,
scaled to a mean. Other days, seeds and means give other workloads of the same kind.
"""

import csv
import gzip
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from fairlead_operator.performance.step import Engine, Objectives, StepTime
from fairlead_operator.simulate.model import Variant, Workload
from fairlead_operator.simulate.workloads import (
    Lengths,
    Window,
    between,
    histogram,
    paired,
    poisson,
    read_workload,
    repeated,
    scaled,
)

DATA: Final = Path(__file__).parent.parent / "data"
DAY: Final = 86_400.0
MINUTE: Final = 60.0
TEN_MINUTES: Final = 600.0
RAMP: Final = ((330.0, 2.0), (360.0, 4.0), (360.0, 6.0), (360.0, 8.0), (360.0, 10.0), (360.0, 4.0), (300.0, 1.0))
"""Seconds and requests/s of the stages that llm-d publishes."""
SPARSE_CLIENTS: Final = (67, 36, 14)
LENGTHS_WINDOW: Final = 21_600

H100_FLOPS: Final = 1978e12
H100_BANDWIDTH: Final = 3.35e12
LLAMA: Final = Engine(
    StepTime(
        base=6.2e-3 + 70.6e9 / (4 * H100_BANDWIDTH * 0.97),
        per_context_token=163_840 / (4 * H100_BANDWIDTH * 0.97),
        per_token=2 * 70.6e9 / (4 * H100_FLOPS * 0.62),
    ),
    kv_tokens=int((4 * 80e9 * 0.9 - 84.6e9) / 163_840),
)
"""Llama-3.1-70B in FP8 on four H100."""
QWEN: Final = Engine(
    StepTime(
        base=64 * 65e-6 + 1.04e-3 + 65.6e9 / (2 * H100_BANDWIDTH * 0.975),
        per_context_token=262_144 / (2 * H100_BANDWIDTH * 0.975),
        per_token=60.9e-6,
    ),
    kv_tokens=350_000,
    token_budget=8192,
)
"""Qwen3-32B on two H100, as llm-d's published ramp has it."""

CHAT: Final = Objectives(ttft=2.0, tpot=0.05)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload and what serves it. ``build`` takes the day, the seed and the mean rate (requests/s)."""

    name: str
    about: str
    build: Callable[[int, int, float], Workload]
    day: int = 0
    mean: float = 0.0
    engine: Engine = LLAMA
    objectives: Objectives = CHAT
    price_per_hour: float = 27.52
    cold_start: float = 120.0
    minimum: int = 1
    maximum: int = 90
    count_from: float = 900.0
    seconds: float = DAY
    hold: bool = False

    def variants(self, cold_start: float | None = None) -> tuple[Variant, ...]:
        """What serves it, with another cold start if one is given."""
        cold = self.cold_start if cold_start is None else cold_start
        return (Variant(self.engine, self.price_per_hour, cold, self.minimum, self.maximum),)


# --- recorded rates and lengths


def _table(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _random(what: str) -> random.Random:
    """The same choices for the same words."""
    return random.Random(what)  # noqa: S311 - choices that can be repeated


@cache
def lengths(kind: str) -> list[Lengths]:
    """(prompt, output) of the recorded hour of ``code`` or ``conv``."""
    recorded = read_workload(DATA / f"azure2023_{kind}.csv.gz")
    return list(zip(recorded.prompt_tokens, recorded.output_tokens, strict=True))


@cache
def _band(trace: str) -> list[tuple[float, float, float]]:
    """Minute of the week, and the least and the greatest requests a minute that the figure shows there."""
    rows = (row for row in _table("azure2024_week_rates_digitised.csv.gz") if row["trace"] == trace)
    return [
        (float(row["minute_from_start"]), float(row["req_per_min_lo"]), float(row["req_per_min_hi"])) for row in rows
    ]


def week_windows(trace: str, day: int, rng: random.Random) -> list[Window]:
    """The minutes of a day, each rate drawn from the figure's band: Beta(2, 2) between its edges."""
    band, at, windows = _band(trace), 0, []
    for minute in range(day * 1440, (day + 1) * 1440):
        while at + 2 < len(band) and band[at + 1][0] <= minute:
            at += 1
        (left, low0, high0), (right, low1, high1) = band[at], band[at + 1]
        part = min(1.0, max(0.0, (minute - left) / (right - left)))
        low, high = low0 + part * (low1 - low0), high0 + part * (high1 - high0)
        start = (minute - day * 1440) * MINUTE
        windows.append((start, start + MINUTE, (low + (high - low) * rng.betavariate(2.0, 2.0)) / MINUTE))
    return windows


@cache
def _clients(service: str) -> dict[float, dict[int, float]]:
    """Rates (requests/s) by the window's start and the client."""
    rates: dict[float, dict[int, float]] = defaultdict(dict)
    for row in _table(f"servegen_{service}_rates.csv.gz"):
        rates[float(row["t_s"])][int(row["client"])] = float(row["rate_rps"])
    return rates


def client_windows(service: str, day: int, chosen: Callable[[int], bool]) -> list[Window]:
    """The ten-minute windows of a day, with the summed rate of the clients chosen."""
    rates = _clients(service)
    starts = [at * TEN_MINUTES for at in range(int(DAY / TEN_MINUTES))]
    summed = (sum(rate for one, rate in rates.get(day * DAY + at, {}).items() if chosen(one)) for at in starts)
    return [(at, at + TEN_MINUTES, rate) for at, rate in zip(starts, summed, strict=True)]


# --- the workloads


def week_day(trace: str) -> Callable[[int, int, float], Workload]:
    """A day of the week of 2024, with lengths of the same kind."""

    def build(day: int, seed: int, mean: float) -> Workload:
        rng = _random(f"{trace}/{day}/{seed}")
        return paired(poisson(scaled(week_windows(trace, day, rng), mean), rng), DAY, lengths(trace), rng)

    return build


def steps(day: int, seed: int, mean: float) -> Workload:
    """All clients of a chat service, whose sum jumps every ten minutes."""
    rng = _random(f"steps/{day}/{seed}")
    windows = scaled(client_windows("m-large", day, lambda _client: True), mean)
    return paired(poisson(windows, rng), DAY, lengths("conv"), rng)


def sparse(day: int, seed: int, _mean: float) -> Workload:
    """Three clients that are silent for most of the day, at their own rates."""
    rng = _random(f"sparse/{day}/{seed}")
    return paired(poisson(client_windows("m-large", day, SPARSE_CLIENTS.__contains__), rng), DAY, lengths("conv"), rng)


def recorded(name: str, turns: int) -> Callable[[int, int, float], Workload]:
    """A recorded hour several times. A seed other than 1 begins elsewhere in the hour."""

    def build(_day: int, seed: int, _mean: float) -> Workload:
        hour = between(read_workload(DATA / name), 0.0, 3600.0)
        turned = (seed - 1) * 947.0 % 3600.0
        return between(repeated(hour, turns + 1), turned, turned + turns * 3600.0)

    return build


def reasoning(day: int, seed: int, mean: float) -> Workload:
    """Clients with lengths of their own, by client and quarter of the day."""
    rng = _random(f"reasoning/{day}/{seed}")
    rates = _clients("deepseek-r1")
    factor = mean / (sum(sum(one.values()) for one in rates.values()) * TEN_MINUTES / DAY)
    draws = {key: histogram(bins, rng) for key, bins in _histograms().items()}
    rows: list[tuple[float, int, int]] = []
    for start, clients in sorted(rates.items()):
        for client, rate in sorted(clients.items()):
            prompt, output = (_draw(draws, client, start, kind) for kind in ("in", "out"))
            arrivals = poisson([(start, start + TEN_MINUTES, rate * factor)], rng)
            rows.extend((at, prompt(), output()) for at in arrivals)
    rows.sort()
    prompts = array("i", [row[1] for row in rows])
    return Workload(array("d", [row[0] for row in rows]), prompts, array("i", [row[2] for row in rows]), DAY)


def _draw(
    draws: dict[tuple[int, float, str], Callable[[], int]], client: int, start: float, kind: str
) -> Callable[[], int]:
    """The client's histogram of that quarter of a day, else of its nearest, else of any client then."""
    quarter = start // LENGTHS_WINDOW * LENGTHS_WINDOW
    known = [key for key in draws if key[2] == kind]
    return draws[min(known, key=lambda key: (key[0] != client, abs(key[1] - quarter), key[0]))]


@cache
def _histograms() -> dict[tuple[int, float, str], list[tuple[int, float]]]:
    """(least length, weight) by client, window and kind."""
    found = {}
    for row in _table("servegen_deepseek-r1_lengths.csv.gz"):
        bins = [part.split(":") for part in row["bin_lo:prob_per_mille;..."].split(";") if part]
        key = (int(row["client"]), float(row["window_start_s"]), row["kind"])
        if bins:
            found[key] = [(int(low), float(weight)) for low, weight in bins]
    return found


def ramp(_day: int, seed: int, mean: float) -> Workload:
    """llm-d's stages; ``mean`` is a factor of their rates."""
    rng = _random(f"ramp/{seed}")
    at, windows = 0.0, []
    for seconds, rate in RAMP:
        windows.append((at, at + seconds, rate * mean))
        at += seconds
    arrivals = poisson(windows, rng)
    prompts = array("i", [_clipped(rng, 4000.0, 300.0, 500.0) for _ in arrivals])
    return Workload(arrivals, prompts, array("i", [_clipped(rng, 1000.0, 80.0, 100.0) for _ in arrivals]), at)


def _clipped(rng: random.Random, mean: float, deviation: float, most: float) -> int:
    return round(min(mean + most, max(mean - most, rng.gauss(mean, deviation))))


SCENARIOS: Final = {
    one.name: one
    for one in (
        Scenario("S1", "code completion, an 11-fold day", week_day("code"), day=4, mean=14.0),
        Scenario("S2", "chat, a flat day", week_day("conv"), day=2, mean=60.0),
        Scenario("S3", "chat, steps of clients", steps, day=5, mean=60.0),
        Scenario("S4", "sparse clients, to zero and back", sparse, day=5, minimum=0, maximum=4, hold=True),
        Scenario(
            "S5",
            "long prompts with shared prefixes",
            recorded("mooncake_conversation_trace.jsonl.gz", 4),
            engine=replace(LLAMA, token_budget=8192),
            objectives=Objectives(ttft=10.0, tpot=0.05),
            seconds=4 * 3600.0,
        ),
        Scenario("S6", "long outputs", reasoning, mean=6.0, objectives=Objectives(ttft=5.0, tpot=0.05)),
        Scenario("S7", "bursts of seconds", recorded("azure2023_code.csv.gz", 6), seconds=6 * 3600.0),
        Scenario("S7L", "the same for thirty hours", recorded("azure2023_code.csv.gz", 30), seconds=30 * 3600.0),
        Scenario(
            "S8",
            "llm-d's published ramp",
            ramp,
            mean=1.0,
            engine=QWEN,
            objectives=Objectives(ttft=3.0, tpot=0.1),
            price_per_hour=13.76,
            cold_start=100.0,
            minimum=3,
            maximum=8,
            count_from=0.0,
            seconds=sum(seconds for seconds, _rate in RAMP),
        ),
    )
}


def workload(scenario: Scenario, seed: int = 1, *, day: int | None = None, mean: float | None = None) -> Workload:
    """The scenario's requests."""
    return scenario.build(scenario.day if day is None else day, seed, scenario.mean if mean is None else mean)
