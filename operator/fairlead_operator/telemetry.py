"""The operator's metrics; labels are names of objects in the cluster, never of callers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead_operator.budget_gauges import budget_families
from fairlead_operator.decide.signals import Report
from fairlead_operator.kube.cluster import Snapshot


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

    def collect(self) -> Iterator[Metric]:
        """All gauges."""
        yield GaugeMetricFamily("fairlead_leader", "1 while this replica holds the Lease", value=int(self._leading()))
        yield self._replicas()
        yield self._conditions()
        yield self._ages()
        yield from budget_families(self._snapshot().budgets)

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
        self.registry.register(_Gauges(snapshot, reports, leading, now_ms))
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
