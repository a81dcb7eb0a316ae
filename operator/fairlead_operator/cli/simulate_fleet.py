"""``fairlead simulate fleet``: what a fleet would have done with a workload, under Fairlead's law and others."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from fairlead_operator.cli.ask import UsageError
from fairlead_operator.performance.concurrency import concurrency
from fairlead_operator.performance.step import Engine, Objectives, StepTime
from fairlead_operator.simulate.baselines import BASELINES, Profile
from fairlead_operator.simulate.clairvoyant import Table, clairvoyant, demand, fluid, tabulate
from fairlead_operator.simulate.fairlead import Fairlead
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Result, Variant, Workload
from fairlead_operator.simulate.plots import Panel, svg
from fairlead_operator.simulate.policy import Policy
from fairlead_operator.simulate.report import CAVEATS, record, row, table
from fairlead_operator.simulate.workloads import WorkloadError, read_workload

OURS = "fairlead"
CLAIRVOYANT = "clairvoyant"
DEFAULT = f"{CLAIRVOYANT},{OURS},fixed,slo-aware"
PEAK_SHARE = 0.999
MINUTE = 60.0
TABLE_SECONDS = 1200.0
MIXED = 512
"""Requests that stand for all of a workload."""

Above = Annotated[float, msgspec.Meta(gt=0)]
Whole = Annotated[int, msgspec.Meta(ge=1)]


class StepSeconds(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Coefficients of a step's time, in seconds."""

    base: float
    per_context_token: float
    per_token: float


class Promised(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Objectives, in seconds and percent."""

    time_to_first_token: Above | None = None
    time_per_output_token: Above | None = None
    attainment_percent: Annotated[float, msgspec.Meta(ge=50, le=99.99)] = 99.0


class Bounds(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Least and most replicas."""

    min: Annotated[int, msgspec.Meta(ge=0)] = 1
    max: Whole = 100


class EngineFile(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What serves the workload. ``coldStart`` is in seconds, ``pricePerHour`` in USD for a replica."""

    step_seconds: StepSeconds
    kv_tokens: Whole
    price_per_hour: Above
    objectives: Promised
    token_budget: Whole = 2048
    max_sequences: Whole = 256
    cold_start: Annotated[float, msgspec.Meta(ge=0)] = 120.0
    replicas: Bounds = Bounds()


@dataclass(frozen=True, slots=True)
class Task:
    """A workload, what serves it, and what is promised."""

    workload: Workload
    variant: Variant
    objectives: Objectives
    count_from: float
    seed: int


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command line."""
    text = (
        "Simulates vLLM replicas under a workload, step by step, and compares Fairlead's law with a clairvoyant "
        "schedule and with other autoscalers. Asks nothing of a cluster."
    )
    parser = actions.add_parser("fleet", help="a fleet under a workload, by policy", description=text)
    columns = "arrival_s,prompt_tokens,output_tokens[,prefix_id], or the Azure or Mooncake traces; gzipped or not"
    parser.add_argument("workload", type=Path, help=f"CSV or JSON lines with columns {columns}")
    parser.add_argument("--engine", type=Path, required=True, help="the engine, its price and the objectives, YAML")
    parser.add_argument("--policies", default=DEFAULT, help=f"some of {', '.join(policies())} (default {DEFAULT})")
    parser.add_argument("--count-from", type=float, default=0.0, help="seconds at the beginning that do not count")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default 1)")
    parser.add_argument("--plots", type=Path, help="write an SVG plot for each policy into this folder")
    parser.add_argument("--schedule", type=Path, help="write the replicas of each minute as CSV into this file")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="table, or JSON lines")


def policies() -> tuple[str, ...]:
    """Names that ``--policies`` knows."""
    return (CLAIRVOYANT, OURS, *BASELINES)


def simulate_fleet(options: argparse.Namespace) -> str:
    """What to print. Raises UsageError."""
    names = [name.strip() for name in options.policies.split(",") if name.strip()]
    unknown = [name for name in names if name not in policies()]
    if unknown or not names:
        raise UsageError(f"--policies {options.policies}: give some of {', '.join(policies())}")
    task = read_task(options)
    measured = tabulate(task.workload, task.variant, task.objectives, seconds=TABLE_SECONDS)
    results = {name: _result(name, task, measured) for name in names}
    try:
        _write(options, task, results)
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return _text(options, task, measured, results)


def read_task(options: argparse.Namespace) -> Task:
    """The files. Raises UsageError: says which one, where, and what to give."""
    try:
        described = msgspec.convert(yaml.safe_load(options.engine.read_text("utf-8")), EngineFile, strict=False)
        variant, objectives = _serving(described)
        workload = read_workload(options.workload)
    except WorkloadError as error:
        raise UsageError(str(error)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--engine {options.engine}: {error}") from error
    if not len(workload.arrivals):
        raise UsageError(f"{options.workload}: has no requests")
    if not 0.0 <= options.count_from < workload.duration:
        raise UsageError(f"--count-from {options.count_from:g}: give seconds from 0 to below {workload.duration:g}")
    mix = tuple(zip(workload.prompt_tokens[:MIXED], workload.output_tokens[:MIXED], strict=True))
    variant = replace(variant, slots=concurrency(variant.engine, mix, objectives))
    return Task(workload, variant, objectives, options.count_from, options.seed)


def _serving(described: EngineFile) -> tuple[Variant, Objectives]:
    """Raises ValueError."""
    step, bounds, promised = described.step_seconds, described.replicas, described.objectives
    if bounds.min > bounds.max:
        raise ValueError(f"replicas: min {bounds.min} is above max {bounds.max}")
    if promised.time_to_first_token is None and promised.time_per_output_token is None:
        raise ValueError("objectives: give timeToFirstToken, timePerOutputToken or both")
    engine = Engine(
        StepTime(step.base, step.per_context_token, step.per_token),
        described.kv_tokens,
        described.token_budget,
        described.max_sequences,
    )
    if step.base <= 0:
        raise ValueError("stepSeconds: give a base above 0")
    variant = Variant(engine, described.price_per_hour, described.cold_start, bounds.min, bounds.max)
    share = promised.attainment_percent / 100
    return variant, Objectives(promised.time_to_first_token, promised.time_per_output_token, share)


# --- running


def _result(name: str, task: Task, measured: Table) -> Result:
    if name == CLAIRVOYANT:
        found = clairvoyant(task.workload, measured, task.variant, task.objectives, count_from=task.count_from)
        return found.result
    policy = _policy(name, task, measured)
    return run(task.workload, (task.variant,), task.objectives, policy, count_from=task.count_from, seed=task.seed)


def _policy(name: str, task: Task, measured: Table) -> Policy:
    if name == OURS:
        return Fairlead((task.variant,), task.objectives)
    rates, goal = sorted(demand(task.workload)), task.objectives.attainment
    peak = rates[int(PEAK_SHARE * (len(rates) - 1))]
    capacity, concurrency = measured.capacity(goal), max(1.0, measured.concurrency(goal))
    return BASELINES[name](Profile(task.variant.engine, task.objectives, capacity, concurrency, peak))


# --- what is printed and written


def _text(options: argparse.Namespace, task: Task, measured: Table, results: dict[str, Result]) -> str:
    schedule = results.get(CLAIRVOYANT)
    rows = [
        row(
            options.workload.name.partition(".")[0],
            name,
            one,
            cold_start=task.variant.cold_start,
            seed=task.seed,
            seconds=task.workload.duration - task.count_from,
            reference=schedule.dollars if schedule and name != CLAIRVOYANT else None,
        )
        for name, one in results.items()
    ]
    if options.output == "json":
        return "\n".join(msgspec.json.encode(record(one)).decode() for one in rows)
    goal = task.objectives.attainment
    hours = fluid(demand(task.workload), measured.capacity(goal, pool=-1), task.variant.minimum) / 3600
    lines = [
        table(rows),
        f"One replica takes {measured.capacity(goal):.2f} requests/s at the objectives, in a pool of four.",
        f"Fluid bound: {hours:.1f} replica-hours over the whole workload (fractions of replicas, no start-up).",
        *(f"- {line}" for line in CAVEATS),
    ]
    return "\n".join(lines)


def _write(options: argparse.Namespace, task: Task, results: dict[str, Result]) -> None:
    """The plots and the schedule. Raises OSError."""
    if options.schedule:
        options.schedule.write_text(schedule_csv(results), encoding="utf-8")
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        for name, one in results.items():
            plot = svg(f"{options.workload.name}, {name}", task.workload.duration, panels(one, results))
            (options.plots / f"{name}.svg").write_text(plot, encoding="utf-8")


def panels(one: Result, results: dict[str, Result]) -> Sequence[Panel]:
    """Demand, replicas beside the clairvoyant schedule's, and misses."""
    replicas = {"ready": [minute.ready for minute in one.minutes], "wanted": [minute.wanted for minute in one.minutes]}
    if CLAIRVOYANT in results:
        replicas[CLAIRVOYANT] = [minute.ready for minute in results[CLAIRVOYANT].minutes]
    return (
        Panel("requests/s", {"demand": [minute.arrivals / MINUTE for minute in one.minutes]}),
        Panel("replicas", replicas),
        Panel("requests that missed an objective, per minute", {"missed": [minute.missed for minute in one.minutes]}),
    )


def schedule_csv(results: dict[str, Result]) -> str:
    """Replicas ready at the end of each minute, a column for each policy."""
    series = [[minute.ready for minute in one.minutes] for one in results.values()]
    most = max(map(len, series))
    lines = [",".join(("minute", *results))]
    for minute in range(most):
        cells = (str(one[minute]) if minute < len(one) else "" for one in series)
        lines.append(",".join((str(minute), *cells)))
    return "\n".join(lines) + "\n"
