"""The LoRA adapters of a pool as they are now, from what the routers beside the engines say."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.signals import Report


def adapter_status(pool: ModelPool, pods: Sequence[PodFact], reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """``status.adapters``: how many of the pods that take requests have each adapter loaded; ``reports`` by pod."""
    loaded = [_loaded(reports.get(pod.key)) for pod in pods if pod.ready and not pod.terminating]
    return [{"name": name, "readyReplicas": sum(name in names for names in loaded)} for name in _names(pool)]


def adapter_trouble(pool: ModelPool, reports: Mapping[str, Report], pods: Sequence[PodFact]) -> str:
    """Why adapters are not loaded, in the engine's words; one sentence for the first of them, empty if all is well."""
    found = sorted(
        (one.name, pod.name, one.error)
        for pod in pods
        if (report := reports.get(pod.key)) is not None and report.signals is not None
        for one in report.signals.adapters
        if one.error and one.name in _names(pool)
    )
    if not found:
        return ""
    name, pod, error = found[0]
    more = len({other for other, _, _ in found}) - 1
    rest = f" ({more} more {'adapter' if more == 1 else 'adapters'})" if more else ""
    return f"Adapter {name} cannot be loaded on pod {pod} ({error.rstrip('.')}){rest}."


def _names(pool: ModelPool) -> list[str]:
    lora = pool.spec.model.lora
    return [] if lora is None else sorted(one.name for one in lora.adapters)


def _loaded(report: Report | None) -> frozenset[str]:
    if report is None or report.signals is None:
        return frozenset()
    return frozenset(one.name for one in report.signals.adapters if one.loaded)
