"""The router's metrics: plain counters on the request's way, rendered for Prometheus when it asks.

Labels are bounded: 200 tenants and then ``other``, 2,000 series for each metric; what does not fit is counted.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_TENANTS: Final = 200
MAX_SERIES: Final = 2_000
OTHER_TENANT: Final = "other"
PRIORITY: Final = "Standard"
_RESERVOIR: Final = 2_048
_RECENT_S: Final = 300.0

SECONDS: Final = tuple(0.001 * 2**step for step in range(20))
DOLLARS: Final = tuple(0.000001 * 2**step for step in range(24))

Labels = tuple[str, ...]


class Counter:
    """One counter metric."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self.name, self._text, self._labels = name, text, labels
        self._values: dict[Labels, float] = {}
        self.dropped = 0

    def add(self, labels: Labels, value: float = 1) -> None:
        """Count."""
        values = self._values
        if labels in values:
            values[labels] += value
        elif len(values) < MAX_SERIES:
            values[labels] = value
        else:
            self.dropped += 1

    def collect(self) -> Metric:
        """The metric as it is now."""
        family = CounterMetricFamily(self.name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """One histogram metric with buckets that double."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self.name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._values: dict[Labels, list[float]] = {}
        self.dropped = 0

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value; the last two slots are the count beyond all bounds and the sum."""
        slots = self._values.get(labels)
        if slots is None:
            if len(self._values) >= MAX_SERIES:
                self.dropped += 1
                return
            slots = self._values[labels] = [0.0] * (len(self._bounds) + 2)
        slots[bisect_left(self._bounds, value)] += 1
        slots[-1] += value

    def collect(self) -> Metric:
        """The metric as it is now."""
        family = HistogramMetricFamily(self.name, self._text, labels=self._labels)
        for labels, slots in self._values.items():
            total, buckets = 0.0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), slots, strict=False):
                total += count
                buckets.append((bound, total))
            family.add_metric(labels, buckets, slots[-1])
        return family


class Gauge:
    """One gauge metric, read when asked for."""

    def __init__(
        self, name: str, text: str, labels: Labels, read: Callable[[], Iterable[tuple[Labels, float]]]
    ) -> None:
        self.name, self._text, self._labels, self._read = name, text, labels, read
        self.dropped = 0

    def collect(self) -> Metric:
        """The metric as it is now."""
        family = GaugeMetricFamily(self.name, self._text, labels=self._labels)
        for labels, value in self._read():
            family.add_metric(labels, value)
        return family


class Recent:
    """The last values of a latency, for the operator's signals: bounded in number and in age."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=_RESERVOIR)

    def add(self, now: float, value: float) -> None:
        """Remember a value."""
        self._values.append((now, value))

    def p99_ms(self, now: float) -> int:
        """The 99th percentile in ms; 0 when there is nothing recent."""
        while self._values and self._values[0][0] < now - _RECENT_S:
            self._values.popleft()
        if not self._values:
            return 0
        ordered = sorted(value for _, value in self._values)
        return max(1, round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000))


class Telemetry(Collector):
    """All metrics of a router."""

    def __init__(self) -> None:
        per_route = ("pool", "route", "priority")
        self.requests = Counter(
            "fairlead_requests", "Requests that ended here.", ("tenant", "pool", "route", "outcome")
        )
        self.tokens = Counter("fairlead_tokens", "Tokens that engines reported.", ("tenant", "pool", "kind"))
        self.charged = Counter("fairlead_charged_usd", "Charges, by kind of token.", ("tenant", "pool", "kind"))
        self.renewals = Counter("fairlead_lease_renewals", "Messages to the ledger, by result.", ("result",))
        self.ttft = Histogram(
            "fairlead_time_to_first_token_seconds", "From the request's end to the first byte.", per_route, SECONDS
        )
        self.tpot = Histogram("fairlead_time_per_output_token_seconds", "Between output tokens.", per_route, SECONDS)
        self.wait = Histogram("fairlead_queue_wait_seconds", "Waiting for a replica.", per_route, SECONDS)
        self.overhead = Histogram(
            "fairlead_router_overhead_seconds",
            "From the request's end until it was sent on, less waiting.",
            per_route,
            SECONDS,
        )
        self.cost = Histogram("fairlead_request_cost_usd", "Charge of one request.", ("pool", "route"), DOLLARS)
        self._gauges: list[Gauge] = []
        self._tenants: set[str] = set()

    def gauge(self, name: str, text: str, labels: Labels, read: Callable[[], Iterable[tuple[Labels, float]]]) -> None:
        """Add a gauge."""
        self._gauges.append(Gauge(name, text, labels, read))

    def tenant(self, namespace: str) -> str:
        """The label of a caller's namespace."""
        if namespace in self._tenants:
            return namespace
        if len(self._tenants) >= MAX_TENANTS:
            return OTHER_TENANT
        self._tenants.add(namespace)
        return namespace

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        everything: tuple[Counter | Histogram | Gauge, ...] = (
            self.requests, self.tokens, self.charged, self.renewals, self.ttft, self.tpot, self.wait, self.overhead,
            self.cost, *self._gauges,
        )  # fmt: skip
        dropped = CounterMetricFamily(
            "fairlead_series_dropped", "Values that did not fit a metric's series.", labels=("metric",)
        )
        for metric in everything:
            yield metric.collect()
            if metric.dropped:
                dropped.add_metric((metric.name,), metric.dropped)
        yield dropped
