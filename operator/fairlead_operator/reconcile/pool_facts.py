"""What is known of one pool when it is decided about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide import replicas
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.pricing import PriceList, VariantPrice
from fairlead_operator.decide.rollout import progress_of
from fairlead_operator.decide.signals import Load, Report
from fairlead_operator.kube.api import Object
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.reconcile.books import Start
from fairlead_operator.reconcile.configuration import COLD_START, measured

COLD_START_STEP_MS = 5_000
"""Measured starts are rounded up to this, so that a second more or less changes no configuration."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of one pool when it is decided about."""

    pool: ModelPool
    raw: Object
    snapshot: Snapshot
    pods: tuple[PodFact, ...]
    deployments: Mapping[str, Object]
    """Live Deployments by variant."""
    prices: PriceList
    variant_prices: Mapping[str, VariantPrice]
    slots: int
    """Requests that every replica can run at once."""
    load: Load
    reported_context: int
    cold_starts: Mapping[str, int]
    """How long a start takes, by variant."""
    started: Mapping[str, int]
    """Pods that became ready since the last look: uid → milliseconds."""
    now_ms: int
    concurrency: Mapping[str, int] = field(default_factory=dict)
    """Requests that a replica should run at once, by variant, as far as that is known."""

    @property
    def cold_start_ms(self) -> int:
        """How long a start takes on the slowest variant."""
        return max(self.cold_starts.values())


def cold_start(snapshot: Snapshot, pool: ModelPool, variant: str, taken: Sequence[int]) -> int:
    """What was measured by this process, else what an earlier one wrote down, else the default."""
    if not taken:
        return measured(snapshot, pool, COLD_START, variant) or replicas.DEFAULT_COLD_START_MS
    return max(1, -(-replicas.cold_start_ms(taken) // COLD_START_STEP_MS)) * COLD_START_STEP_MS


def starts(snapshot: Snapshot, pods: Sequence[PodFact]) -> dict[str, Start]:
    """From creation to ready, by uid, of the pods that are ready and never restarted."""
    return {
        pod.uid: Start(pod.variant, created, pod.ready_ms)
        for pod in pods
        if pod.ready and pod.restarts == 0 and pod.ready_ms is not None
        if (created := snapshot.created_ms.get(pod.key, 0))
    }


def reported_context(pods: Sequence[PodFact], reports: Mapping[str, Report]) -> int:
    """The smallest context that the pool's engines report; 0 = none has yet."""
    signals = [report.signals for pod in pods if (report := reports.get(pod.key)) is not None]
    return min((one.max_context_tokens for one in signals if one is not None and one.max_context_tokens), default=0)


def rolling(body: Object) -> bool:
    """Whether pods are still being replaced, or the controller has not yet looked at the last change."""
    progress = progress_of(body)
    return not progress.observed or progress.running


def settled_pods(facts: Facts) -> list[PodFact]:
    """The pods of variants that are not being rolled out: there more pods than wanted are no sign of shrinking."""
    busy = {name for name, body in facts.deployments.items() if rolling(body)}
    return [pod for pod in facts.pods if pod.variant not in busy]
