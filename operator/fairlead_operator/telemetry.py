"""The operator's metrics; labels are names of objects in the cluster, never of callers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead_operator.budget_gauges import budget_families
from fairlead_operator.decide.signals import Report
from fairlead_operator.decide.speculation import Judgement
from fairlead_operator.kube.cluster import Snapshot


@dataclass(frozen=True, slots=True)
class ScalingFigures:
    """What the last decision about a pool with objectives of latency was made from; rates are requests/s.

    ``capacity`` is what one replica of each variant takes within the objectives, ``need`` what is to be covered:
    the demand forecast for ``horizon_s`` from now that is exceeded one time in ten.
    """

    rate: float
    forecast: float
    need: float
    have: float
    horizon_s: float
    backlog: int
    misses_left: int
    capacity: Mapping[str, float]


class _Gauges(Collector):
    """Figures of the present snapshot, computed when they are asked for."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        reports: Callable[[], Mapping[str, Report]],
        leading: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._snapshot = snapshot
        self._reports = reports
        self._leading = leading
        self._now_ms = now_ms
        self.scaling: dict[str, ScalingFigures] = {}
        self.drafting: dict[str, Mapping[str, Judgement]] = {}

    def collect(self) -> Iterator[Metric]:
        """All gauges."""
        yield GaugeMetricFamily("fairlead_leader", "1 while this replica holds the Lease", value=int(self._leading()))
        yield self._replicas()
        yield self._conditions()
        yield self._ages()
        yield from self._scaling()
        yield from self._drafting()
        yield from budget_families(self._snapshot().budgets)

    def _scaling(self) -> Iterator[Metric]:
        for name, about, read in _SCALING:
            family = GaugeMetricFamily(name, about, labels=["pool"])
            for pool, figures in self.scaling.items():
                family.add_metric([pool], read(figures))
            yield family
        text = "Requests a second that one replica takes within the pool's objectives"
        capacity = GaugeMetricFamily("fairlead_pool_capacity", text, labels=["pool", "variant"])
        for pool, figures in self.scaling.items():
            for variant, rate in figures.capacity.items():
                capacity.add_metric([pool, variant], rate)
        yield capacity

    def _drafting(self) -> Iterator[Metric]:
        judged = [
            (pool, variant, one) for pool, found in self.drafting.items() for variant, one in sorted(found.items())
        ]
        for suffix, about, field in DRAFTING:
            family = GaugeMetricFamily(f"fairlead_pool_draft_{suffix}", about, labels=["pool", "variant"])
            for pool, variant, one in judged:
                value = getattr(one, field)
                if value is not None:
                    family.add_metric([pool, variant], value)
            yield family
        text = "1 for what would pay more than a variant's drafts as they are, and what is missing to say so"
        advice = GaugeMetricFamily("fairlead_pool_draft_advice", text, labels=["pool", "variant", "advice", "missing"])
        for pool, variant, one in judged:
            advice.add_metric([pool, variant, one.advice, one.missing], 1)
        yield advice

    def _replicas(self) -> Metric:
        family = GaugeMetricFamily(
            "fairlead_pool_replicas", "Replicas of a pool by variant", labels=["pool", "variant", "state"]
        )
        for key, pool in self._snapshot().pools.items():
            for variant in pool.status.variants:
                family.add_metric([key, variant.name, "desired"], variant.desired_replicas)
                family.add_metric([key, variant.name, "ready"], variant.ready_replicas)
        return family

    def _conditions(self) -> Metric:
        family = GaugeMetricFamily(
            "fairlead_condition",
            "1 while a condition is True, 0 while it is False or Unknown",
            labels=["kind", "tenant", "name", "type"],
        )
        snapshot = self._snapshot()
        kinds: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("ModelPool", snapshot.pools),
            ("RoutingPolicy", snapshot.policies),
            ("CostBudget", snapshot.budgets),
        )
        for kind, objects in kinds:
            for body in objects.values():
                for condition in body.status.conditions:
                    family.add_metric([kind, body.namespace, body.name, condition.type], condition.status == "True")
        return family

    def _ages(self) -> Metric:
        family = GaugeMetricFamily("fairlead_signal_age_seconds", "Age of a router's last signals", labels=["router"])
        now = self._now_ms()
        for router, report in self._reports().items():
            family.add_metric([router], max(0, now - report.received_ms) / 1000)
        return family


class Telemetry:
    """The registry, and the counters that others count with."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        reports: Callable[[], Mapping[str, Report]],
        leading: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self.registry = CollectorRegistry()
        gauges = _Gauges(snapshot, reports, leading, now_ms)
        self.scaling = gauges.scaling
        """The figures behind the last decision about each pool that has objectives of latency."""
        self.drafting = gauges.drafting
        """What is known of the drafts of each pool that has them, by variant."""
        self.registry.register(gauges)
        self.decisions = Counter(
            "fairlead_scale_decisions",
            "Changes of a pool's number of replicas",
            ["pool", "reason"],
            registry=self.registry,
        )
        self.reconciles = Counter(
            "fairlead_reconciles", "Reconciles by outcome", ["kind", "result"], registry=self.registry
        )

    def forget_pool(self, pool: str) -> None:
        """The pool is gone, and its series with it."""
        self.decisions.remove_by_labels({"pool": pool})
        self.scaling.pop(pool, None)
        self.drafting.pop(pool, None)


_SCALING: tuple[tuple[str, str, Callable[[ScalingFigures], float]], ...] = (
    ("fairlead_pool_rate", "Requests a second that are asked of a pool now", lambda one: one.rate),
    ("fairlead_pool_forecast", "The same when a replica that is started now would serve", lambda one: one.forecast),
    ("fairlead_pool_need", "What of it is to be covered: exceeded one time in ten", lambda one: one.need),
    ("fairlead_pool_have", "Requests a second that the wanted replicas take", lambda one: one.have),
    ("fairlead_pool_horizon_seconds", "How far the forecast looks ahead", lambda one: one.horizon_s),
    ("fairlead_pool_backlog", "Requests that wait now", lambda one: one.backlog),
    ("fairlead_pool_misses_left", "Requests that may still miss the objectives today", lambda one: one.misses_left),
)
DRAFTING: tuple[tuple[str, str, str], ...] = (
    ("acceptance_ratio", "Of the tokens drafted lately the share that the model kept", "acceptance"),
    ("accepted_length", "Mean tokens of a drafted step lately", "length"),
    ("batch", "Sequences of a replica's step lately, as a token sees it", "batch"),
    ("speed_up_ratio", "Times as fast as without drafts at that batch, estimated", "speed_up"),
    ("pays_below_batch", "Batch from which on drafts slow down, estimated; 0 always, +Inf never", "pays_below"),
    ("advised_tokens", "Tokens to draft, as advised or as set", "tokens"),
    ("advised_max_batch_size", "Largest batch to draft for, as advised or as set; 0 any", "max_batch"),
    ("advised_speed_up_ratio", "Times as fast as without drafts with what is advised, estimated", "speed_up_advised"),
    ("usd_per_million_tokens", "USD of a million output tokens at that batch", "usd_per_million"),
    ("advised_usd_per_million_tokens", "The same with what is advised, estimated", "usd_per_million_advised"),
    ("advised_saving_usd_per_hour", "USD an hour that the present load would cost less, estimated", "usd_per_hour"),
)
"""Name after fairlead_pool_draft_, what it says, and the figure of a Judgement."""
