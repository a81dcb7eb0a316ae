"""Steps the law of latency for one pool, once after each round of scrapes: with what is known of engines and mix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_operator.api.v1alpha1 import ModelPool, Variant
from fairlead_operator.decide.autoscale import History, Memory, Observation, Settings, VariantState, Wish, step
from fairlead_operator.decide.engines import Learned, begin, engine_key, engine_now, learn
from fairlead_operator.decide.facts import NodeFact, PodFact
from fairlead_operator.decide.replicas import Bounds, Spending
from fairlead_operator.decide.rounds import Seen
from fairlead_operator.decide.signals import Load, Report
from fairlead_operator.decide.variants import VariantOption
from fairlead_operator.performance.curve import Curve
from fairlead_operator.performance.step import Mix, Objectives
from fairlead_operator.reconcile.curves import Curves, Question, sharing
from fairlead_operator.telemetry import ScalingFigures

LEAST_MIX = 8
"""Requests that must have finished before their sizes stand for all."""
SOME = 4
MEASURED_ROUNDS = 60
MEASURED_WITHIN = 0.15
"""An engine's speed counts as measured after so many rounds of load, while its steps take what is expected of them."""
MS = 1000
PERCENT = 100


@dataclass(frozen=True, slots=True)
class Past:
    """A pool's demand of past days, and the mean prompt (uncached) and output of the newest day with requests."""

    history: History
    usual: tuple[int, int] | None


@dataclass(slots=True)
class PoolLaw:
    """What is remembered of one pool. ``reason`` says why there is no wish, empty if there is one."""

    memory: Memory | None = None
    wish: Wish | None = None
    stepped_ms: int = 0
    engines: dict[str, Learned] = field(default_factory=dict)
    questions: dict[tuple[str, int], Question] = field(default_factory=dict)
    curves: dict[tuple[str, int], Curve] = field(default_factory=dict)
    """By variant and number of replicas that share the load, as the questions."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """One pool now, as far as the law wants to know. Times of starts and prices are by variant."""

    pool: ModelPool
    pods: Sequence[PodFact]
    nodes: Mapping[str, NodeFact]
    created_ms: Mapping[str, int]
    reports: Mapping[str, Report]
    load: Load
    seen: Seen
    bounds: Bounds
    options: Sequence[VariantOption]
    cold_starts: Mapping[str, int]
    spending: Spending
    now_ms: int
    past: Past | None = None

    def pods_of(self, variant: str) -> list[PodFact]:
        """Those that are not leaving."""
        return [pod for pod in self.pods if pod.variant == variant and not pod.terminating]


def objectives_of(pool: ModelPool) -> Objectives | None:
    """The pool's objectives of latency; ``None`` if it has none."""
    scaling = pool.spec.autoscaling
    if scaling is None or not scaling.objectives.timed:
        return None
    ttft, tpot = scaling.objectives.time_to_first_token, scaling.objectives.time_per_output_token
    return Objectives(
        ttft.ms / MS if ttft is not None else None,
        tpot.ms / MS if tpot is not None else None,
        scaling.objectives.attainment_percent / PERCENT,
    )


def wish_of(law: PoolLaw, scene: Scene, curves: Curves) -> Wish | None:
    """What the law wishes now; ``None`` where there are no such objectives, or not enough is known yet."""
    objectives = objectives_of(scene.pool)
    fresh = scene.seen.at_ms > law.stepped_ms
    if fresh and (objectives is not None or _drafts(scene.pool)):
        law.stepped_ms = scene.seen.at_ms
        _learn(law, scene)
    if objectives is None:
        law.memory, law.wish, law.reason = None, None, ""
        return None
    if fresh:
        law.reason = _draw(law, scene, objectives, curves)
        law.memory, law.wish = _stepped(law, scene, objectives) if not law.reason else (law.memory, None)
    return law.wish


def _drafts(pool: ModelPool) -> bool:
    """Whether some replicas draft tokens: what that gains is shown, whether or not the pool is scaled by it."""
    return any(pool.spec.engine_of(one).speculative_decoding is not None for one in pool.spec.variants)


def concurrency_of(law: PoolLaw, pool: ModelPool) -> dict[str, int]:
    """Requests that a replica of each variant should run at once; only of engines whose speed was measured well.

    A number from a seed alone could keep requests from an engine that is faster than assumed.
    """
    if objectives_of(pool) is None:
        return {}
    return {
        name: max(one.slots for (variant, _), one in law.curves.items() if variant == name)
        for name in {variant for variant, _ in law.curves}
        if (known := law.engines.get(name)) is not None
        and known.memory.rounds >= MEASURED_ROUNDS
        and known.memory.error <= MEASURED_WITHIN
    }


def _learn(law: PoolLaw, scene: Scene) -> None:
    """Add what the engines told to what is known of them; other settings begin anew."""
    for variant in scene.pool.spec.variants:
        pods = scene.pods_of(variant.name)
        known = law.engines.get(variant.name)
        if known is None or known.key != engine_key(scene.pool.spec, variant):
            known = begin(scene.pool.spec, variant, _labels(scene, pods, variant))
        told = {pod.key: scene.reports[pod.key] for pod in pods if pod.ready and pod.key in scene.reports}
        law.engines[variant.name] = learn(known, told, scene.now_ms)
    present = {one.name for one in scene.pool.spec.variants}
    law.engines = {name: known for name, known in law.engines.items() if name in present}
    law.questions = {place: one for place, one in law.questions.items() if place[0] in present}
    law.curves = {place: one for place, one in law.curves.items() if place[0] in present}


def _labels(scene: Scene, pods: Sequence[PodFact], variant: Variant) -> list[str]:
    """Values of the labels of the nodes that the variant runs on, or could run on."""
    used = [scene.nodes[pod.node] for pod in pods if pod.node in scene.nodes]
    selector = variant.node_selector.items()
    fitting = [node for node in scene.nodes.values() if selector and selector <= node.labels.items()]
    nodes = used or fitting
    return sorted({value for node in nodes[:1] for value in node.labels.values()})


def _draw(law: PoolLaw, scene: Scene, objectives: Objectives, curves: Curves) -> str:
    """Bring the curves up to date; answers what is missing for a decision, empty if nothing is."""
    mix = _mix(scene)
    if not mix:
        return f"fewer than {LEAST_MIX} requests have finished yet, so the usual sizes are not known"
    missing = [
        reason
        for variant in scene.pool.spec.variants
        if (reason := _draw_one(law, scene, variant, mix, objectives, curves))
    ]
    return "; ".join(missing)


def _mix(scene: Scene) -> Mix:
    """Sizes of requests: those that finished lately; the mean of days past until enough of them have."""
    if len(scene.seen.mix) >= LEAST_MIX:
        return scene.seen.mix
    usual = scene.past.usual if scene.past is not None else None
    return () if usual is None else (usual,)


def _draw_one(  # noqa: PLR0917 - one variant of the above
    law: PoolLaw, scene: Scene, variant: Variant, mix: Mix, objectives: Objectives, curves: Curves
) -> str:
    engine = engine_now(law.engines[variant.name], scene.pool.spec, variant)
    if engine is None:
        return f"the speed of variant {variant.name} is not known: {law.engines[variant.name].reason}"
    for replicas in _sizes(scene):
        _ask(law, (variant.name, replicas), Question(engine, mix, objectives, replicas), curves)
        # One is enough to decide by: where many pools wait, each has its first capacity before others a second.
        if not any(name == variant.name for name, _ in law.curves):
            return f"the capacity of variant {variant.name} is being computed"
    return ""


def _ask(law: PoolLaw, place: tuple[str, int], question: Question, curves: Curves) -> None:
    """One question at a time: sizes move each round, and where computing takes longer no answer would ever come."""
    asked = law.questions.setdefault(place, question)
    found = curves.find(asked)
    if not asked.like(question) and not curves.waits(asked):
        law.questions[place] = question
        found = curves.find(question) or found
    if found is not None:
        law.curves[place] = found


def _sizes(scene: Scene) -> list[int]:
    """Numbers of replicas to know the capacity of: one alone, some, and as many as there are."""
    current = sum(option.current for option in scene.options)
    return sorted({1, *(size for size in (SOME, sharing(max(SOME, current))) if size <= scene.bounds.maximum)})


def _stepped(law: PoolLaw, scene: Scene, objectives: Objectives) -> tuple[Memory, Wish]:
    bounds, spending = scene.bounds, scene.spending
    settings = Settings(
        minimum=bounds.minimum,
        maximum=bounds.maximum,
        variants=tuple(_variant(law, scene, option) for option in scene.options),
        objectives=objectives,
        zero_after_ms=bounds.zero_after_ms,
        max_cost_per_thousand=spending.per_thousand,
        spend_cap_per_hour=spending.per_hour,
        pays_a_replica=spending.pays_a_replica,
        history=scene.past.history if scene.past is not None else None,
    )
    return step(law.memory or Memory(since_ms=scene.now_ms), observation_of(scene), settings)


def observation_of(scene: Scene) -> Observation:
    """The last round as the law takes it; ``finished`` are those that were judged, of which a share missed."""
    last, load = scene.seen.last, scene.load
    return Observation(
        at_ms=scene.seen.at_ms,
        arrivals=last.counts.arrivals,
        finished=last.counts.met + last.counts.missed,
        met=last.counts.met,
        missed=last.counts.missed,
        prompt_tokens=last.counts.arrived_tokens,
        output_tokens=last.counts.output_tokens,
        running=load.running,
        waiting=load.waiting,
        held=load.held,
        waiting_tokens=last.waiting_tokens,
        last_request_ms=min(load.last_request_ms, scene.now_ms),
        complete=load.complete,
    )


def _variant(law: PoolLaw, scene: Scene, option: VariantOption) -> VariantState:
    pods = scene.pods_of(option.name)
    starting = [pod for pod in pods if not pod.ready]
    return VariantState(
        name=option.name,
        curves=tuple(sorted((size, found) for (name, size), found in law.curves.items() if name == option.name)),
        price=option.price,
        cold_start_ms=scene.cold_starts[option.name],
        current=option.current,
        ready=min(option.current, sum(pod.ready for pod in pods)),
        start_ages_ms=tuple(max(0, scene.now_ms - scene.created_ms.get(pod.key, scene.now_ms)) for pod in starting),
        minimum=option.minimum,
        maximum=option.maximum,
    )


def figures_of(law: PoolLaw, pool: ModelPool) -> ScalingFigures | None:
    """What the last wish was made from; ``None`` without one."""
    wish, memory, objectives = law.wish, law.memory, objectives_of(pool)
    if wish is None or memory is None or objectives is None:
        return None
    able = memory.service.by_name
    capacity = {
        name: able.get(name, 1.0) * found.capacity(objectives.attainment)
        for (name, _), found in sorted(law.curves.items())
    }
    return ScalingFigures(
        rate=wish.rate,
        forecast=wish.forecast,
        need=wish.forecast_high,
        have=sum(capacity.get(name, 0.0) * count for name, count in wish.counts),
        horizon_s=wish.horizon_ms / MS,
        backlog=wish.backlog,
        misses_left=wish.misses_left,
        capacity=capacity,
    )
