"""ModelPool's status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool, PoolCondition, Reason, Variant
from fairlead_operator.decide import replicas
from fairlead_operator.decide.facts import PodFact, clock_text, time_text
from fairlead_operator.decide.placement import NoRoom
from fairlead_operator.decide.pricing import MILLI, VariantPrice, hardware_of
from fairlead_operator.decide.problems import Problem, errors
from fairlead_operator.decide.rates import PoolCard, source_word
from fairlead_operator.decide.replicas import missing_text, price_text
from fairlead_operator.decide.rollout import Decision, progress_of
from fairlead_operator.decide.signals import Load
from fairlead_operator.render.deployment import TemplatePlan
from fairlead_operator.render.objects import pool_selector
from fairlead_operator.status.conditions import Finding, accepted, all_true, merge
from fairlead_operator.status.pods import refusal_text, serving, trouble_text
from fairlead_operator.status.rollout import RolloutView, progressing_finding, up_to_date_finding
from fairlead_operator.units import format_duration, format_latency, format_usd

SCALING_SHOWN = 5
NANO_PER_PICO_MILLION = 1000
"""Pico-USD for a token are micro-USD for a million tokens."""
WINDOW = "5m"
_BOUNDS: Mapping[str, tuple[str, str]] = {
    Reason.MAX_REPLICAS: ("autoscaling.maxReplicas allows", "Raise it to serve them."),
    Reason.VARIANT_BOUNDS: ("variants[].maxReplicas allows", "Raise it to serve them."),
    Reason.COST_PER_REQUEST: ("autoscaling.maxCostPerThousandRequests allows", "Raise it, or add a cheaper variant."),
    Reason.BUDGET: (
        "the budgets with idleCost: Included leave money for",
        "Raise their limits, or wait for the next window.",
    ),
}
"""What binds, and what can be done about it."""
LONGEST_LATENCY_MS = 99_999_000
"""What a router reports is shown as a duration of at most five digits, whatever it reports."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """Everything that a pool's status is made from.

    ``prices``, ``plans`` and ``deployments`` are by variant, ``pod_prices`` (nano-USD an hour) by namespace/name;
    ``pods`` are the pool's live ones. Latencies are 0 and ``cost_per_thousand`` (nano-USD) is ``None`` without data.
    ``seeded`` says that the price list has all that a rate card is cut from; without a ``card`` it is then the ledger
    that has none yet. ``capacity`` is a clause on what the card's tokens per second are, empty if there is nothing to
    say. ``awaited``: OpenCost has still to be heard. ``attainment_percent`` is ``None`` without a judged request.
    ``second_writer`` says who else writes the number of replicas, empty if nobody does. ``full`` are the variants whose
    pods find no node. ``latency`` says why objectives of latency are not decided by yet, empty if they are or there are
    none. ``revisions`` is what was decided about pod templates. ``fit`` is what is not known about whether the model
    fits, empty if nothing.
    ``adapters`` are the status' own; ``adapter_trouble`` says why one of them is not loaded, empty if all are.
    """

    pool: ModelPool
    decision: replicas.Decision
    load: Load
    pods: tuple[PodFact, ...]
    problems: tuple[Problem, ...] = ()
    prices: Mapping[str, VariantPrice] = field(default_factory=dict)
    pod_prices: Mapping[str, int | None] = field(default_factory=dict)
    plans: Mapping[str, TemplatePlan] = field(default_factory=dict)
    deployments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    card: PoolCard | None = None
    seeded: bool = False
    capacity: str = ""
    awaited: bool = False
    cold_start_ms: int = 0
    cost_per_thousand: int | None = None
    ttft_ms: int = 0
    tpot_ms: int = 0
    attainment_percent: int | None = None
    second_writer: str = ""
    full: Mapping[str, NoRoom] = field(default_factory=dict)
    latency: str = ""
    revisions: Decision = field(default_factory=Decision)
    fit: str = ""
    adapters: Sequence[Mapping[str, Any]] = ()
    adapter_trouble: str = ""

    @property
    def ready(self) -> int:
        """Replicas that take requests."""
        return serving(self.pods)

    @property
    def refusal(self) -> str:
        """Why the API server takes no more pods, if fewer exist than are wanted."""
        said = [refusal_text(body) for _, body in sorted(self.deployments.items())]
        return next((text for text in said if text), "") if len(self.pods) < self.decision.replicas else ""

    @property
    def rollout(self) -> RolloutView:
        """What is said of rollouts."""
        progress = [progress_of(self.deployments[name]) for name in sorted(self.deployments)]
        return RolloutView(self.pool, self.pods, progress, self.revisions, self.plans)


def modelpool_status(view: PoolView, old: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The whole status; ``old`` is the present one, for times and for the list of decisions."""
    generation = view.pool.metadata.generation
    cost = _cost_per_hour(view)
    return {
        "conditions": merge(old.get("conditions") or (), findings(view, now_ms), now_ms, generation),
        "observedGeneration": generation,
        "replicas": len(view.pods),
        "readyReplicas": view.ready,
        "desiredReplicas": view.decision.replicas,
        "selector": pool_selector(view.pool.name),
        **_present("costPerHour", _money(cost)),
        **_present(
            "costPerThousandRequests",
            None if view.cost_per_thousand is None else format_usd(view.cost_per_thousand, 3),
        ),
        "service": _service(view),
        **_present("rate", _rate(view.card, old.get("rate") or {}, now_ms)),
        "scaling": _scaling(view.decision, old.get("scaling") or (), now_ms),
        "variants": [_variant(view, variant) for variant in view.pool.spec.variants],
        **({"adapters": list(view.adapters)} if view.adapters else {}),
    }


def findings(view: PoolView, now_ms: int) -> list[Finding]:
    """All conditions, in the order of the API."""
    taken, available = accepted_finding(view), available_finding(view, now_ms)
    ready = all_true(PoolCondition.READY, (taken, available), Reason.READY, available.message)
    return [
        ready,
        taken,
        available,
        progressing_finding(view.rollout, now_ms),
        up_to_date_finding(view.rollout),
        scaling_active_finding(view, now_ms),
        scaling_limited_finding(view, now_ms),
        price_known_finding(view),
    ]


def accepted_finding(view: PoolView) -> Finding:
    """What cannot run is refused here, before a pod starts."""
    found = errors(view.problems)
    if found:
        kept = " What runs keeps serving." if view.ready else ""
        refused = accepted(PoolCondition.ACCEPTED, found, "")
        return Finding(refused.type, refused.status, refused.reason, refused.message + kept)
    loose = _unpinned(view.pool)
    if loose:
        text = f"No revision is set for {loose}: each new pod loads the source's head of its own time. {view.fit}"
        return Finding(PoolCondition.ACCEPTED, "True", Reason.REVISION_NOT_PINNED, text.rstrip())
    return accepted(PoolCondition.ACCEPTED, (), f"The spec can be run as it is written. {view.fit}".rstrip())


def available_finding(view: PoolView, now_ms: int) -> Finding:
    """Whether the pool answers, or is at zero on purpose."""
    wanted, ready = view.decision.replicas, view.ready
    count = f"{ready} of {wanted} {'replica is' if wanted == 1 else 'replicas are'} ready."
    trouble = [trouble_text(view.pods, now_ms), view.refusal] if ready < wanted else []
    text = " ".join(part for part in (count, *trouble, view.adapter_trouble) if part)
    if wanted == 0 and ready == 0:
        return Finding(PoolCondition.AVAILABLE, "True", Reason.SCALED_TO_ZERO, _zero_text(view))
    if ready > 0:
        return Finding(PoolCondition.AVAILABLE, "True", Reason.REPLICAS_READY, text)
    stuck = any(pod.trouble is not None for pod in view.pods) or any(one.overdue for one in view.rollout.progress)
    if stuck or errors(view.problems):
        return Finding(PoolCondition.AVAILABLE, "False", Reason.REPLICAS_MISSING, text)
    usual = f" A start usually takes {_duration(view.cold_start_ms)}." if view.cold_start_ms else ""
    return Finding(PoolCondition.AVAILABLE, "False", Reason.STARTING, text + usual)


def scaling_active_finding(view: PoolView, now_ms: int) -> Finding:
    """Whether the autoscaler has the signals that it decides from."""
    if view.second_writer:
        return Finding(PoolCondition.SCALING_ACTIVE, "False", Reason.SECOND_WRITER, view.second_writer)
    if view.pool.spec.replicas is not None:
        text = f"spec.replicas is {view.pool.spec.replicas}; whoever writes it decides."
        return Finding(PoolCondition.SCALING_ACTIVE, "False", Reason.REPLICAS_SET, text)
    if view.load.complete:
        text = "Every router that could know of a request has reported."
        if view.latency:
            text = f"{text} Objectives of latency do not count yet, queueDepth does: {view.latency}."
        return Finding(PoolCondition.SCALING_ACTIVE, "True", Reason.SIGNALS_FRESH, text)
    namespace, _, pod = view.load.missing[0].router.partition("/")
    keeps = f"It keeps {view.decision.replicas} {_replica_word(view.decision.replicas)} and does not scale down."
    see = f" See kubectl logs -n {namespace} {pod} -c router." if pod else ""
    text = f"{missing_text(view.load.missing, now_ms)} {keeps}{see}"
    return Finding(PoolCondition.SCALING_ACTIVE, "False", Reason.SIGNALS_MISSING, text)


def scaling_limited_finding(view: PoolView, now_ms: int) -> Finding:
    """What keeps the number of replicas below what is wanted."""
    decision = view.decision
    bound = _BOUNDS.get(decision.bound_by)
    if bound is not None:
        waiting = view.load.waiting + view.load.held
        waits = f" {waiting} {'request waits' if waiting == 1 else 'requests wait'}." if waiting else ""
        wanted = f"Wants {decision.wanted} {_replica_word(decision.wanted)}"
        text = f"{wanted}, {bound[0]} {decision.replicas}.{waits} {bound[1]}"
        return Finding(PoolCondition.SCALING_LIMITED, "True", decision.bound_by, text)
    if view.full:
        text = " ".join(_full_text(name, one) for name, one in sorted(view.full.items()))
        return Finding(PoolCondition.SCALING_LIMITED, "True", Reason.NO_CAPACITY, text)
    if view.refusal:
        wanted = f"Wants {decision.replicas} {_replica_word(decision.replicas)}, has {view.ready}"
        return Finding(PoolCondition.SCALING_LIMITED, "True", Reason.NO_CAPACITY, f"{wanted}: {view.refusal}")
    unplaced = [pod for pod in view.pods if pod.trouble is not None and pod.trouble.kind == "Pending"]
    if unplaced:
        wanted = f"Wants {decision.replicas} {_replica_word(decision.replicas)}, has {view.ready}"
        text = f"{wanted}: {trouble_text(unplaced, now_ms)} Add such a node, or lower the number of replicas."
        return Finding(PoolCondition.SCALING_LIMITED, "True", Reason.NO_CAPACITY, text)
    text = f"{decision.replicas} {_replica_word(decision.replicas)} wanted, nothing limits it."
    return Finding(PoolCondition.SCALING_LIMITED, "False", Reason.NOT_LIMITED, text)


def _full_text(variant: str, full: NoRoom) -> str:
    why = f": {full.message.rstrip('.')}" if full.message else ""
    more = f"more than {full.replicas} {_replica_word(full.replicas)}"
    text = f"Variant {variant} has no room for {more}{why}."
    return f"{text} Other variants serve instead where there are any; it is tried again at {clock_text(full.until_ms)}."


def price_known_finding(view: PoolView) -> Finding:
    """Whether every variant has a price, and so the pool a rate card."""
    missing = [price.problem for _, price in sorted(view.prices.items()) if price.replica is None]
    if missing and view.card is not None and view.awaited:
        text = f"{' '.join(missing)} Requests are charged by card {view.card.version} until OpenCost has answered."
        return Finding(PoolCondition.PRICE_KNOWN, "Unknown", Reason.NO_PRICE, text)
    if missing:
        text = f"{' '.join(missing)} USD budgets refuse it. Add it to prices.accelerators in the chart's values."
        return Finding(PoolCondition.PRICE_KNOWN, "False", Reason.NO_PRICE, text)
    if view.card is None and view.seeded:
        text = "The ledger has not taken the pool's rate card yet. USD budgets refuse it until then."
        return Finding(PoolCondition.PRICE_KNOWN, "False", Reason.LEDGER_UNREACHABLE, text)
    if view.card is None:
        text = (
            "The chart's rateCard.seeds have no entry for this hardware and no default, so its tokens have no price. "
            "USD budgets refuse it. Add rateCard.seeds.default."
        )
        return Finding(PoolCondition.PRICE_KNOWN, "False", Reason.NO_PRICE, text)
    parts = [
        f"{price.name} {price_text(price.replica or 0)} USD for a replica-hour ({price.source})"
        for _, price in sorted(view.prices.items())
    ]
    text = "; ".join([*parts, *([view.capacity] if view.capacity else [])])
    return Finding(PoolCondition.PRICE_KNOWN, "True", Reason.PRICED, f"{text}.")


def _unpinned(pool: ModelPool) -> str:
    sources = [pool.spec.model_of(variant) for variant in pool.spec.variants]
    return ", ".join(sorted({source.uri for source in sources if source.loose}))


def _zero_text(view: PoolView) -> str:
    if view.pool.spec.replicas is not None:
        return "At zero: spec.replicas is 0. Requests are refused until it is raised."
    usual = f", usually ready after {_duration(view.cold_start_ms)}" if view.cold_start_ms else ""
    return f"At zero. The next request starts a replica{usual}, and is held until then."


def _cost_per_hour(view: PoolView) -> int | None:
    """What the pods that hold a node cost, those that end too; ``None`` when one of them has no price."""
    prices = [_pod_price(view, pod) for pod in view.pods if pod.node]
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


def _pod_price(view: PoolView, pod: PodFact) -> int | None:
    """By the node that it runs on: spot and on-demand nodes may serve one variant."""
    if pod.key in view.pod_prices:
        return view.pod_prices[pod.key]
    price = view.prices.get(pod.variant)
    return None if price is None else price.replica


def _service(view: PoolView) -> dict[str, Any]:
    waiting = view.load.waiting + view.load.held
    return {
        "window": WINDOW,
        **({"queueDepth": waiting} if view.load.complete else {}),
        **_present("timeToFirstToken", _latency(view.ttft_ms)),
        **_present("timePerOutputToken", _latency(view.tpot_ms)),
        **_present("attainmentPercent", view.attainment_percent),
    }


def _latency(ms: int) -> str | None:
    return format_latency(min(ms, LONGEST_LATENCY_MS)) if ms > 0 else None


def _rate(card: PoolCard | None, old: Mapping[str, Any], now_ms: int) -> dict[str, Any] | None:
    if card is None:
        return None
    rates = card.rates
    known = old.get("effectiveTime") if old.get("version") == card.version else None
    return {
        "version": card.version,
        "source": source_word(card.source),
        "promptPerMillionTokens": format_usd(rates.prompt_pico * NANO_PER_PICO_MILLION),
        "cachedPromptPerMillionTokens": format_usd(rates.cached_pico * NANO_PER_PICO_MILLION),
        "outputPerMillionTokens": format_usd(rates.output_pico * NANO_PER_PICO_MILLION),
        "effectiveTime": known or time_text(card.at_ms or now_ms),
    }


def _scaling(decision: replicas.Decision, old: Sequence[Mapping[str, Any]], now_ms: int) -> list[dict[str, Any]]:
    """The last decisions, newest first; one that is tried again after an error is the same decision."""
    kept = [dict(item) for item in old]
    if not decision.changed:
        return kept
    entry = {
        "time": time_text(now_ms),
        "fromReplicas": decision.current,
        "toReplicas": decision.replicas,
        "reason": str(decision.reason),
        "message": decision.message,
        **_present("costPerHourBefore", _money(decision.cost_per_hour_before)),
        **_present("costPerHourAfter", _money(decision.cost_per_hour_after)),
    }
    same = ("fromReplicas", "toReplicas", "reason")
    if kept and all(kept[0].get(key) == entry[key] for key in same):
        return kept
    return [entry, *kept][:SCALING_SHOWN]


def _variant(view: PoolView, variant: Variant) -> dict[str, Any]:
    pods = [pod for pod in view.pods if pod.variant == variant.name]
    price, plan = view.prices.get(variant.name), view.plans.get(variant.name)
    hardware = hardware_of(view.pool.spec, variant)
    known = price is not None and price.accelerator is not None
    return {
        "name": variant.name,
        "replicas": len(pods),
        "readyReplicas": serving(pods),
        "desiredReplicas": dict(view.decision.counts).get(variant.name, 0),
        "acceleratorsPerReplica": -(-hardware.milli_units // MILLI),
        **_present("pricePerAcceleratorHour", _money(price.accelerator) if price is not None and known else None),
        **_present("priceSource", price.source if price is not None and known else None),
        **_present("image", (plan.engine_image or None) if plan else None),
        **_present("revision", (plan.checkpoint_revision or None) if plan else None),
    }


def _present(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _money(nano: int | None) -> str | None:
    return None if nano is None else price_text(nano)


def _duration(ms: int) -> str:
    return format_duration(-(-ms // 1000) * 1000)


def _replica_word(count: int) -> str:
    return "replica" if count == 1 else "replicas"
