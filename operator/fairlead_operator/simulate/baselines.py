"""Other autoscalers' published laws, to compare with: each from its formula, for one variant of replicas.

A law sees what its own metrics would show it, every 15 s unless it has a cycle of its own. None is tuned: thresholds
are the published defaults, but for those that a user has to measure, which ``Profile`` holds.
"""
# ruff: noqa: PLR2004 - the numbers of a law are those of its published formula

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeVar

from fairlead_operator.performance.step import Engine, Objectives
from fairlead_operator.simulate.policy import Policy, View, mean

Number = TypeVar("Number", int, float)
TICK: Final = 15.0
INTAKE: Final = 5
"""Requests waiting in an engine beyond which llm-d's endpoint picker holds them back, here by replica."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user would have to measure of a workload before some laws can be set up.

    ``capacity`` is requests/s of one replica at the objectives, ``concurrency`` its running requests then, ``peak`` the
    99.9th percentile of the pool's requests/s by minute.
    """

    engine: Engine
    objectives: Objectives
    capacity: float
    concurrency: float
    peak: float

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens/s of a replica that does nothing else."""
        budget = self.engine.token_budget
        return budget / self.engine.step.step(0, budget, budget)


def ready(view: View) -> int:
    """Replicas that serve."""
    return sum(view.ready)


def provisioned(view: View) -> int:
    """Replicas that serve or start."""
    return sum(view.ready) + sum(view.starting)


def up(value: float) -> int:
    """The next whole number, or the number itself if only rounding of floats is between them."""
    return math.ceil(value - 1e-9)


# --- how the horizontal autoscaler of Kubernetes acts on a wish


@dataclass(frozen=True, slots=True)
class Behaviour:
    """``spec.behavior``: windows in seconds, and what a period may add (the more of percent and pods) and remove."""

    up_window: float = 0.0
    down_window: float = 300.0
    add_percent: float = 100.0
    add_pods: int = 4
    add_period: float = 15.0
    remove_pods: int | None = None
    remove_period: float = 15.0


@dataclass(slots=True)
class Horizontal:
    """Its memory: wishes and changes within the longest window or period."""

    behaviour: Behaviour
    wishes: deque[tuple[float, int]] = field(default_factory=deque)
    changes: deque[tuple[float, int]] = field(default_factory=deque)

    def settle(self, now: float, current: int, wish: int) -> int:
        """Replicas after the windows and the rates."""
        rules = self.behaviour
        self.wishes.append((now, wish))
        _forget(self.wishes, now - max(rules.up_window, rules.down_window))
        _forget(self.changes, now - max(rules.add_period, rules.remove_period))
        settled = max(current, min(n for at, n in self.wishes if at >= now - rules.up_window))
        settled = min(settled, max(n for at, n in self.wishes if at >= now - rules.down_window))
        settled = max(self._least(now, current), min(self._most(now, current), settled))
        if settled != current:
            self.changes.append((now, settled - current))
        return settled

    def _most(self, now: float, current: int) -> int:
        since = now - self.behaviour.add_period
        before = current - sum(n for at, n in self.changes if n > 0 and at > since)
        return max(up(before * (1 + self.behaviour.add_percent / 100)), before + self.behaviour.add_pods, current)

    def _least(self, now: float, current: int) -> int:
        if self.behaviour.remove_pods is None:
            return 0
        since = now - self.behaviour.remove_period
        before = current - sum(n for at, n in self.changes if n < 0 and at > since)
        return min(current, before - self.behaviour.remove_pods)


def _forget(entries: deque[tuple[float, Number]], before: float) -> None:
    while entries and entries[0][0] < before:
        entries.popleft()


@dataclass(slots=True)
class Window:
    """The mean of what was seen in the last so many seconds."""

    seconds: float
    seen: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, now: float, value: float) -> float:
        """The mean with this one."""
        self.seen.append((now, value))
        _forget(self.seen, now - self.seconds + 1e-9)
        return mean([value for _at, value in self.seen])


# --- metrics


def active(view: View) -> float:
    """Requests that are anywhere."""
    return view.running + view.waiting + view.held


def queued(view: View) -> float:
    """Requests that llm-d's endpoint picker would hold."""
    return sum(max(0, waiting - INTAKE) for waiting in view.waiting_by) + view.held


# --- laws


@dataclass(slots=True)
class Fixed:
    """Enough for the peak at all times: ceil(1.1 · p99.9(λ) / μ)."""

    profile: Profile
    interval: float = 60.0

    def desired(self, _view: View) -> Sequence[int]:
        """Replicas."""
        return (up(1.1 * self.profile.peak / self.profile.capacity),)


@dataclass(slots=True)
class Hpa:
    """HorizontalPodAutoscaler on mean KV use 0.7 and mean queue 2: ceil(ready · ratio) unless within 10 % of it."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    kv: float = 0.7
    queue: float = 2.0
    interval: float = TICK
    _acts: Horizontal = field(init=False)

    def __post_init__(self) -> None:
        self._acts = Horizontal(self.behaviour)

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        current = provisioned(view)
        if not view.ready[0]:
            return (self._acts.settle(view.now, current, max(1, current)),)
        metrics = ((mean(view.kv_use), self.kv), (mean(view.waiting_by), self.queue))
        wish = max(self._wish(view, value / target) for value, target in metrics)
        return (self._acts.settle(view.now, current, wish),)

    def _wish(self, view: View, ratio: float) -> int:
        current = provisioned(view)
        if abs(ratio - 1.0) <= 0.1:
            return current
        wish = up(ready(view) * ratio)
        return max(wish, current) if ratio > 1.0 else wish


@dataclass(slots=True)
class Keda:
    """KEDA on a total by a threshold, through a HorizontalPodAutoscaler: ceil(total / threshold), polled each 30 s."""

    metric: Callable[[View], float]
    threshold: float
    interval: float = 30.0
    _acts: Horizontal = field(default_factory=lambda: Horizontal(Behaviour()))

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        current = provisioned(view)
        ratio = self.metric(view) / self.threshold / max(1, current)
        wish = current if abs(ratio - 1.0) <= 0.1 else max(1, up(current * ratio))
        return (self._acts.settle(view.now, current, wish),)


@dataclass(slots=True)
class Knative:
    """Knative's autoscaler on concurrency: a stable window of 60 s, and panic on one of 6 s."""

    target: float = 70.0
    interval: float = TICK
    _stable: Window = field(default_factory=lambda: Window(60.0))
    _panic: Window = field(default_factory=lambda: Window(6.0))
    _panicked: float = -math.inf
    _most: int = 0

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        now, replicas = view.now, max(1, ready(view))
        stable, panic = self._stable.add(now, active(view)), self._panic.add(now, active(view))
        if up(panic / self.target) / replicas >= 2.0:
            self._panicked = now
        if now - self._panicked > self._stable.seconds:
            self._most = 0
            return (self._clamped(stable, replicas),)
        self._most = max(self._most, self._clamped(panic, replicas), replicas)
        return (self._most,)

    def _clamped(self, concurrency: float, replicas: int) -> int:
        return max(replicas // 2, min(1000 * replicas, up(concurrency / self.target)))


@dataclass(slots=True)
class Apa:
    """AIBrix's: the mean of a metric over 180 s by its target, acted upon beyond 10 %; down at the most of 300 s."""

    metric: Callable[[View], float]
    target: float
    interval: float = TICK
    _seen: Window = field(default_factory=lambda: Window(180.0))
    _acts: Horizontal = field(default_factory=lambda: Horizontal(Behaviour(add_pods=1_000_000)))

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        current, wish = provisioned(view), provisioned(view)
        load = self._seen.add(view.now, self.metric(view)) / self.target
        if load > 1.1:
            wish = min(up(current * load), 2 * current)
        elif load < 0.9:
            wish = max(up(current * load), current // 2)
        return (self._acts.settle(view.now, current, max(1, wish)),)


@dataclass(slots=True)
class KubeAi:
    """KubeAI's: active requests of ten minutes by a target; fewer replicas once it has said so for 30 s."""

    target: float = 100.0
    interval: float = TICK
    _seen: Window = field(default_factory=lambda: Window(600.0))
    _fewer_since: float | None = None

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        current, wish = provisioned(view), max(1, up(self._seen.add(view.now, active(view)) / self.target))
        if wish >= current:
            self._fewer_since = None
            return (wish,)
        if self._fewer_since is None:
            self._fewer_since = view.now
        return (wish if view.now - self._fewer_since >= 30.0 else current,)


@dataclass(slots=True)
class WvaSaturation:
    """llm-d's variant autoscaler, first version: one more or one less by spare KV cache and spare queue."""

    interval: float = TICK
    _seen: deque[tuple[tuple[float, ...], tuple[int, ...]]] = field(default_factory=lambda: deque(maxlen=4))
    _wish: int = 0
    _cycle: float = 0.0
    _acts: Horizontal = field(default_factory=lambda: Horizontal(Behaviour(down_window=240.0)))

    def desired(self, view: View) -> Sequence[int]:
        """Replicas. A replica's saturation is its greatest of a minute, forgotten when replicas come or go."""
        if self._seen and len(self._seen[-1][0]) != len(view.kv_use):
            self._seen.clear()
        self._seen.append((view.kv_use, view.waiting_by))
        current = provisioned(view)
        if view.now >= self._cycle:
            self._cycle = view.now + 60.0
            self._wish = current + self._step(sum(view.starting) > 0)
        return (self._acts.settle(view.now, current, max(1, self._wish)),)

    def _step(self, pending: bool) -> int:
        kv = [max(values) for values in zip(*(one[0] for one in self._seen), strict=True)]
        queue = [max(values) for values in zip(*(one[1] for one in self._seen), strict=True)]
        spare = [(k, q) for k, q in zip(kv, queue, strict=True) if k < 0.8 and q < 5]
        if not spare or not self._fits(spare, len(spare)):
            return 0 if pending else 1
        return -1 if len(spare) >= 2 and self._fits(spare, len(spare) - 1) else 0

    @staticmethod
    def _fits(loads: Sequence[tuple[float, int]], replicas: int) -> bool:
        kv, queue = sum(kv for kv, _ in loads) / replicas, sum(queue for _, queue in loads) / replicas
        return 0.8 - kv >= 0.1 and 5 - queue >= 3


@dataclass(slots=True)
class WvaTokens:
    """Its second version: tokens asked for by a replica's tokens; 85 % to add, 70 % to remove."""

    profile: Profile
    interval: float = 60.0
    _prompt: float = 0.0
    _output: float = 0.0
    _full: dict[int, deque[float]] = field(default_factory=dict)
    _acts: Horizontal = field(default_factory=lambda: Horizontal(Behaviour(down_window=240.0)))

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        current, engine = provisioned(view), self.profile.engine
        if view.samples:
            self._prompt = mean([prompt for prompt, _output in view.samples])
            self._output = mean([output for _prompt, output in view.samples])
        used = [share * engine.kv_tokens for share in view.kv_use]
        capacity = self._capacity(used, view.waiting_by)
        asked = sum(used) + view.waiting * self._prompt + view.held * (self._prompt + self._output)
        missing, spare = asked / 0.85 - current * capacity, current * capacity - asked / 0.7
        wish = current + (up(missing / capacity) if missing > 0 else -int(max(0.0, spare) / capacity))
        return (self._acts.settle(view.now, current, max(1, wish)),)

    def _capacity(self, used: Sequence[float], waiting: Sequence[int]) -> float:
        most = 0.8 * self.profile.engine.kv_tokens
        bucket = sum(self._output >= edge for edge in (100, 500))
        for tokens, queue in zip(used, waiting, strict=True):
            if queue >= 5:
                self._full.setdefault(bucket, deque(maxlen=10)).append(tokens)
        if bucket in self._full:
            return max(1.0, min(most, mean(self._full[bucket])))
        return max(1.0, min(most, self._derived() or most))

    def _derived(self) -> float:
        """Tokens in use at the most sequences that the budget of a step carries."""
        if not self._prompt + self._output:
            return 0.0
        engine = self.profile.engine
        sequences = min(engine.token_budget * self._output / (self._prompt + self._output), engine.max_sequences)
        return sequences * (self._prompt + self._output / 2)


@dataclass(slots=True)
class Demand:
    """A HorizontalPodAutoscaler that is told a number of replicas: llm-d's laws by queue, saturation and tokens."""

    law: Callable[[View], int]
    behaviour: Behaviour
    interval: float = TICK
    _acts: Horizontal = field(init=False)

    def __post_init__(self) -> None:
        self._acts = Horizontal(self.behaviour)

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        return (self._acts.settle(view.now, provisioned(view), max(1, self.law(view))),)


def epp_queue(view: View) -> int:
    """One queued request or 16 running ones are a replica."""
    return max(up(queued(view)), up(view.running / 16))


def epp_guard(view: View) -> int:
    """The same, less what starts already."""
    demand, current = max(queued(view), view.running / 16), provisioned(view)
    return up(demand if demand <= current else max(demand - sum(view.starting), current))


def epp_saturation(view: View) -> int:
    """The pool's mean saturation by 0.7, or 16 running ones."""
    loads = [max(waiting / 5, kv / 0.8) for waiting, kv in zip(view.waiting_by, view.kv_use, strict=True)]
    return max(up(mean(loads) / 0.7), up(view.running / 16))


def by_tokens(profile: Profile) -> Callable[[View], int]:
    """Prompt tokens not computed by a replica's rate of them, and KV use by 0.8."""
    rate = profile.prefill_rate
    return lambda view: max(up(view.waiting_tokens / rate / 1.5), up(sum(view.kv_use) / 0.8))


@dataclass(slots=True)
class SloAware:
    """llm-d's law on latency: P90 by its objective, kept in a band."""

    objectives: Objectives
    above: float = 0.55
    below: float = 0.40
    interval: float = TICK
    _seen: Window = field(default_factory=lambda: Window(45.0))
    _acts: Horizontal = field(
        default_factory=lambda: Horizontal(
            Behaviour(up_window=30.0, down_window=180.0, add_period=60.0, remove_pods=1, remove_period=120.0)
        )
    )

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        n, serving = provisioned(view), ready(view)
        signal = self._seen.add(view.now, min(2.0, self._ratio(view)))
        credit = serving / n if 0 < serving < n else 1.0
        wish = n
        if signal > self.above:
            wish = n + up(n * (signal * credit / self.above - 1))
        elif signal < self.below:
            wish = n - int(n * (1 - signal / self.below))
        return (self._acts.settle(view.now, n, max(1, wish)),)

    def _ratio(self, view: View) -> float:
        pairs = ((view.ttft_p90, self.objectives.ttft), (view.tpot_p90, self.objectives.tpot))
        return max((value / objective for value, objective in pairs if objective), default=0.0)


# --- forecasts of NVIDIA Dynamo's planner


def last(rates: Sequence[float]) -> float:
    """What was seen last."""
    return rates[-1]


def kalman(rates: Sequence[float]) -> float:
    """A level that drifts: variance 1 of its start, 0.1 of a step, 10 of an observation."""
    level, variance = rates[0], 1.0
    for rate in rates[1:]:
        variance += 0.1
        gain = variance / (variance + 10.0)
        level, variance = level + gain * (rate - level), (1.0 - gain) * variance
    return level


def arima(rates: Sequence[float]) -> float:
    """ARIMA(1, 1, 0) by least squares: the next difference is a share of the last one."""
    steps = [after - before for before, after in pairwise(rates)]
    square = sum(step * step for step in steps[:-1])
    share = sum(a * b for a, b in pairwise(steps)) / square if square else 0.0
    return max(0.0, rates[-1] + max(-1.0, min(1.0, share)) * (steps[-1] if steps else 0.0))


@dataclass(slots=True)
class Dynamo:
    """Its planner: a forecast of requests by capacity every 180 s is the floor; latency moves it by one each 5 s."""

    profile: Profile
    forecast: Callable[[Sequence[float]], float] = last
    interval: float = 5.0
    _arrivals: int = 0
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    _next: float = 180.0
    _floor: int = 1

    def desired(self, view: View) -> Sequence[int]:
        """Replicas."""
        self._arrivals += view.arrivals
        if view.now >= self._next:
            self._rates.append(self._arrivals / 180.0)
            self._floor = max(1, up(self.forecast(list(self._rates)) / self.profile.capacity))
            self._arrivals, self._next = 0, self._next + 180.0
        current, load = provisioned(view), self._load(view)
        if sum(view.starting):
            return (max(self._floor, current),)
        return (max(self._floor, current + (load > 1.0) - (load < 0.8 * (current - 1) / max(1, current))),)

    def _load(self, view: View) -> float:
        objectives = self.profile.objectives
        pairs = ((view.ttft_mean, objectives.ttft), (view.tpot_mean, objectives.tpot))
        return max((value / objective for value, objective in pairs if objective), default=0.0)


def kv_mean(view: View) -> float:
    """Mean KV use."""
    return mean(view.kv_use)


def running_mean(view: View) -> float:
    """Mean of running requests by ready replica."""
    return view.running / max(1, ready(view))


SLOW: Final = Behaviour(add_percent=0, add_pods=1, add_period=180.0, remove_pods=1, remove_period=300.0)
BOTH_300: Final = Behaviour(up_window=300.0)
GUARD: Final = Behaviour()
TOKENS: Final = Behaviour(
    up_window=300.0, add_percent=0, add_pods=1, add_period=180.0, remove_pods=1, remove_period=300.0
)

BASELINES: Final[Mapping[str, Callable[[Profile], Policy]]] = {
    "fixed": Fixed,
    "hpa": lambda _profile: Hpa(),
    "hpa-slow": lambda _profile: Hpa(SLOW),
    "keda-waiting": lambda _profile: Keda(lambda view: view.waiting + view.held, 5.0),
    "keda-running": lambda profile: Keda(active, 0.7 * profile.concurrency),
    "knative": lambda _profile: Knative(),
    "aibrix-kv": lambda _profile: Apa(kv_mean, 0.5),
    "aibrix-running": lambda profile: Apa(running_mean, 0.7 * profile.concurrency),
    "kubeai": lambda _profile: KubeAi(),
    "kubeai-measured": lambda profile: KubeAi(0.7 * profile.concurrency),
    "wva-v1": lambda _profile: WvaSaturation(),
    "wva-v2": WvaTokens,
    "epp-queue": lambda _profile: Demand(epp_queue, BOTH_300),
    "epp-guard": lambda _profile: Demand(epp_guard, GUARD),
    "epp-saturation": lambda _profile: Demand(epp_saturation, BOTH_300),
    "token": lambda profile: Demand(by_tokens(profile), TOKENS),
    "slo-aware": lambda profile: SloAware(profile.objectives),
    "slo-aware-0.70": lambda profile: SloAware(profile.objectives, 0.70, 0.55),
    "dynamo-last": Dynamo,
    "dynamo-arima": lambda profile: Dynamo(profile, arima),
    "dynamo-kalman": lambda profile: Dynamo(profile, kalman),
}
"""A fresh law of each name, for a workload's profile."""
