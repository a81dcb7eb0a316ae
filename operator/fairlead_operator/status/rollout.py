"""How far a rollout is, what stopped it, and whether the pods run what the spec and this release ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_operator.api.v1alpha1 import ModelPool, PoolCondition, Reason
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.rollout import Decision, Progress
from fairlead_operator.render.deployment import TemplatePlan
from fairlead_operator.status.conditions import Finding
from fairlead_operator.status.pods import trouble_text


@dataclass(frozen=True, slots=True)
class RolloutView:
    """What the conditions about rollouts are made from. ``progress`` is of the live Deployments; plans by variant."""

    pool: ModelPool
    pods: Sequence[PodFact] = ()
    progress: Sequence[Progress] = ()
    decision: Decision = field(default_factory=Decision)
    plans: Mapping[str, TemplatePlan] = field(default_factory=dict)

    @property
    def running(self) -> list[Progress]:
        """The variants whose pods are being replaced, or are about to be."""
        return [one for one in self.progress if one.running or self._begins(one)]

    def _begins(self, one: Progress) -> bool:
        """Whether its Deployment's status is still of the template before, or its new pods are not all ready yet."""
        step = self.decision.steps.get(one.variant)
        if step is None:
            return False
        begun = step.action != "Keep" or (not one.observed and 0 < step.served != step.revision)
        return begun or (one.unfinished and step.revision > 1)

    @property
    def runs(self) -> int:
        """The revision that pods run, as far as they are."""
        return max((step.revision for step in self.decision.steps.values()), default=0)


def progressing_finding(view: RolloutView, now_ms: int) -> Finding:
    """Whether a rollout is under way, and what stopped it."""
    if view.decision.failure is not None:
        return Finding(PoolCondition.PROGRESSING, "False", Reason.ROLLED_BACK, _rolled_back_text(view))
    overdue = next((one for one in view.progress if one.overdue), None)
    if overdue is not None:
        return _overdue(view, overdue, now_ms)
    waiting = [name for name, step in view.decision.steps.items() if step.waits_for]
    if view.running or waiting:
        return Finding(PoolCondition.PROGRESSING, "True", Reason.ROLLING_OUT, _rolling_text(view))
    if view.decision.pin is not None:
        return Finding(PoolCondition.PROGRESSING, "False", Reason.UNDONE, _undone_text(view))
    text = f"All pods run revision {view.runs}." if view.runs else "All pods run the present template."
    return Finding(PoolCondition.PROGRESSING, "False", Reason.COMPLETE, text)


def up_to_date_finding(view: RolloutView) -> Finding:
    """Whether the pods run what the spec asks for, as this release renders it."""
    decision, name = view.decision, view.pool.name
    asked = f"The spec asks for revision {decision.newest.number}, revision {view.runs} runs: see Progressing."
    if decision.failure is not None:
        return Finding(PoolCondition.UP_TO_DATE, "False", Reason.ROLLED_BACK, asked)
    if decision.pin is not None:
        return Finding(PoolCondition.UP_TO_DATE, "False", Reason.UNDONE, asked)
    stale = [plan.stale for _, plan in sorted(view.plans.items()) if plan.stale]
    if stale:
        remedy = f"They go on as they are; fairlead rollout restart {name} -n {view.pool.namespace} restarts them."
        return Finding(PoolCondition.UP_TO_DATE, "False", Reason.RESTART_PENDING, f"{' '.join(stale)} {remedy}")
    return Finding(PoolCondition.UP_TO_DATE, "True", Reason.UP_TO_DATE, "The pods run what this release renders.")


def _rolled_back_text(view: RolloutView) -> str:
    decision, pool = view.decision, view.pool
    if decision.failure is None:
        return ""
    failure = decision.failure
    text = f"Revision {failure.revision} of variant {failure.variant} never became ready. {failure.message}"
    stays = [f"Variant {name} has no earlier revision that served." for name in decision.missing]
    again = f"Change the spec, or try again with fairlead rollout restart {pool.name} -n {pool.namespace}."
    return " ".join([text, *stays, f"{_back_text(view)}.", again])


def _undone_text(view: RolloutView) -> str:
    pin = view.decision.pin
    if pin is None:
        return ""
    missing = [f"Variant {name} keeps no revision up to {pin.revision}." for name in view.decision.missing]
    text = f"{_back_text(view)} in place of {pin.instead_of}: fairlead rollout undo asked for it."
    return " ".join([text, *missing, "The next change of the spec ends that."])


def _back_text(view: RolloutView) -> str:
    """``Back to revision 12: variant h100, 1 of 3 pods``, and when all is done ``Revision 12 runs``."""
    if not view.running:
        return f"Revision {view.runs} runs"
    parts = [f"variant {one.variant}, {_updated(view, one)} of {one.wanted} pods" for one in view.running]
    return f"Back to revision {view.runs}: {'; '.join(parts)}"


def _rolling_text(view: RolloutView) -> str:
    parts = [_variant_text(view, one) for one in view.running]
    steps = view.decision.steps
    parts += [f"variant {name} waits for {step.waits_for}" for name, step in steps.items() if step.waits_for]
    changes = {view.plans[one.variant].change for one in view.running if one.variant in view.plans} - {""}
    text = "; ".join([*sorted(changes), *parts])
    return f"{text[:1].upper()}{text[1:]}."


def _variant_text(view: RolloutView, one: Progress) -> str:
    rollout = view.pool.spec.rollout
    pace = f"{rollout.max_surge} more at a time" if rollout.max_surge else f"{rollout.max_unavailable} fewer at a time"
    return f"variant {one.variant}: {_updated(view, one)} of {one.wanted} pods run the new template, {pace}"


def _updated(view: RolloutView, one: Progress) -> int:
    """Pods of the new template; what a Deployment says of the one before does not count."""
    step = view.decision.steps.get(one.variant)
    return 0 if step is not None and (step.action != "Keep" or not one.observed) else one.updated


def _overdue(view: RolloutView, overdue: Progress, now_ms: int) -> Finding:
    pods = [pod for pod in view.pods if pod.variant == overdue.variant]
    trouble = trouble_text(pods, now_ms) or "No pod says why."
    limit = view.pool.spec.rollout.startup_timeout
    text = f"Variant {overdue.variant}: no progress within startupTimeout ({limit}). {trouble}"
    unplaced = any(pod.trouble is not None and pod.trouble.kind == "Pending" for pod in pods)
    if overdue.running and unplaced:
        remedy = "Set rollout.maxSurge to 0 and maxUnavailable to 1, or add a node."
        return Finding(PoolCondition.PROGRESSING, "False", Reason.NO_CAPACITY_FOR_SURGE, f"{text} {remedy}")
    return Finding(PoolCondition.PROGRESSING, "False", Reason.STARTUP_TIMED_OUT, text)
