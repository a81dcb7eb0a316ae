"""One case of the benchmark, run once and then kept: by a hash of the code and of the data that decide its outcome."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from fairlead_operator.performance.concurrency import concurrency
from fairlead_operator.performance.step import Objectives
from fairlead_operator.simulate.baselines import BASELINES, Profile
from fairlead_operator.simulate.clairvoyant import (
    TABLE_SECONDS,
    Reference,
    Table,
    clairvoyant,
    demand,
    fluid,
    tabulate,
)
from fairlead_operator.simulate.fairlead import Fairlead
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Result, Variant, Workload
from fairlead_operator.simulate.policy import Policy
from fairlead_operator.simulate.workloads import between
from hack.cluster.layout import cache_root
from tests.bench.autoscaler.scenarios import DATA, SCENARIOS, Scenario, workload

Kind = TypeVar("Kind")
OURS: Final = "fairlead"
CLAIRVOYANT: Final = "clairvoyant"
SOURCES: Final = Path(__file__).resolve().parents[3] / "operator" / "fairlead_operator"
SIMULATOR: Final = (
    "performance/step.py", "performance/replica.py", "performance/routing.py", "performance/concurrency.py",
    "simulate/fleet.py", "simulate/model.py", "simulate/policy.py",
    "simulate/workloads.py",
)  # fmt: skip
LAWS: Final = {
    OURS: ("performance/curve.py", "simulate/fairlead.py", "decide/autoscale/*.py"),
    CLAIRVOYANT: ("simulate/clairvoyant.py",),
}
BASELINE: Final = ("simulate/baselines.py", "simulate/clairvoyant.py")
SLICE: Final = (66_000.0, 73_200.0)
"""Of a day: on the fifth of S3 demand doubles and falls back in these two hours."""
SLICE_COUNTED: Final = 600.0
SLICE_TABLE: Final = 600.0
KEPT: Final = 4000
MIXED: Final = 512
"""Requests that stand for all of a workload."""
ZERO_AFTER: Final = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """A policy on a scenario's workload. ``rate_scale`` multiplies its mean; a slice is two hours of its day."""

    scenario: str
    policy: str
    cold_start: float
    seed: int = 1
    day: int | None = None
    rate_scale: float = 1.0
    slice: bool = False
    plain: bool = False
    """The router sends everything on, instead of at most what still meets the objectives."""

    @property
    def defined(self) -> Scenario:
        """The scenario."""
        return SCENARIOS[self.scenario]

    @property
    def sliced(self) -> bool:
        """Whether the workload is cut; those of less than three hours never are."""
        return self.slice and self.scenario not in {"S7", "S8"}

    @property
    def count_from(self) -> float:
        """When the accounts open."""
        return SLICE_COUNTED if self.sliced else self.defined.count_from

    @property
    def variant(self) -> Variant:
        """What serves it; a slice begins with what the demand at its beginning may need."""
        variant = replace(self.defined.variants(self.cold_start)[0], slots=None if self.plain else slots(self.scenario))
        return replace(variant, initial=max(4, variant.minimum)) if self.sliced else variant

    @property
    def objectives(self) -> Objectives:
        """What is promised."""
        return self.defined.objectives

    @property
    def workload_seconds(self) -> float:
        """When the accounts close."""
        return SLICE[1] - SLICE[0] if self.sliced else self.defined.seconds

    def workload(self) -> Workload:
        """The requests."""
        return _workload(self.scenario, self.seed, self.day, self.rate_scale, self.sliced)


@cache
def slots(scenario: str) -> int:
    """Requests that a replica should run at once, by the scenario's own requests."""
    defined, asked = SCENARIOS[scenario], _workload(scenario, 1, None, 1.0, False)
    mix = tuple(zip(asked.prompt_tokens[:MIXED], asked.output_tokens[:MIXED], strict=True))
    return concurrency(defined.engine, mix, defined.objectives)


@lru_cache(maxsize=2)
def _workload(scenario: str, seed: int, day: int | None, rate_scale: float, sliced: bool) -> Workload:
    defined = SCENARIOS[scenario]
    whole = workload(defined, seed, day=day, mean=defined.mean * rate_scale)
    return between(whole, *SLICE) if sliced else whole


# --- what is kept


def kept(folder: str, key: object, kind: type[Kind], make: Callable[[], Kind]) -> Kind:
    """What was made of this key before, or is now."""
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    path = cache_root() / "autoscaler" / folder / f"{name}.json"
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=kind)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{hashlib.sha256(repr((key, id(made))).encode()).hexdigest()[:8]}")
    fresh.write_bytes(msgspec.json.encode(made))
    fresh.replace(path)
    for old in sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return made


@cache
def code(*patterns: str) -> str:
    """A hash of the simulator, the scenarios, their data, and the sources named."""
    found = hashlib.sha256()
    files = [path for pattern in (*SIMULATOR, *patterns) for path in sorted(SOURCES.glob(pattern))]
    for path in [*files, Path(__file__).with_name("scenarios.py"), *sorted(DATA.iterdir())]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


# --- what is run


def table(case: Case) -> Table:
    """What share meets the objectives by load, for the scenario's requests of the first seed."""
    first = replace(case, policy=CLAIRVOYANT, cold_start=0.0, seed=1)
    key = (first, code(*LAWS[CLAIRVOYANT]))
    seconds = SLICE_TABLE if first.slice else TABLE_SECONDS

    def made() -> Table:
        return tabulate(first.workload(), first.variant, first.objectives, seconds=seconds)

    return kept("tables", key, Table, made)


def profile(case: Case) -> Profile:
    """What a user would measure for the laws that need it."""
    measured, rates = table(case), sorted(demand(case.workload()))
    goal = case.objectives.attainment
    peak = rates[int(0.999 * (len(rates) - 1))]
    engine = case.defined.engine
    return Profile(engine, case.objectives, measured.capacity(goal), measured.concurrency(goal), peak)


def reference(case: Case) -> Reference:
    """The clairvoyant schedule. Those of other seeds and cold starts begin from the share that the first's ended at."""
    case = replace(case, policy=CLAIRVOYANT)
    return kept("references", (case, code(*LAWS[CLAIRVOYANT])), Reference, lambda: _reference(case))


def origin(case: Case) -> Case:
    """Whose schedule the others of the same workload begin from."""
    return replace(case, policy=CLAIRVOYANT, cold_start=case.defined.cold_start, seed=1)


def _reference(case: Case) -> Reference:
    return clairvoyant(
        case.workload(),
        table(case),
        case.variant,
        case.objectives,
        count_from=case.count_from,
        asked=None if case == origin(case) else reference(origin(case)).asked,
    )


def fluid_hours(case: Case) -> float:
    """Replica-hours if replicas came in fractions and at once."""
    capacity = table(case).capacity(case.objectives.attainment, pool=-1)
    key = (case, capacity, code(*LAWS[CLAIRVOYANT]))
    return kept("fluid", key, float, lambda: fluid(demand(case.workload()), capacity, case.variant.minimum) / 3600)


def result(case: Case) -> Result:
    """What the case came to."""
    if case.policy == CLAIRVOYANT:
        return reference(case).result
    return kept("results", (case, code(*LAWS.get(case.policy, BASELINE))), Result, lambda: _result(case))


def _result(case: Case) -> Result:
    return run(
        case.workload(), (case.variant,), case.objectives, policy(case), count_from=case.count_from, seed=case.seed
    )


def policy(case: Case) -> Policy:
    """A fresh one."""
    if case.policy == OURS:
        return Fairlead((case.variant,), case.objectives, ZERO_AFTER if case.defined.minimum == 0 else None)
    return BASELINES[case.policy](profile(case))
