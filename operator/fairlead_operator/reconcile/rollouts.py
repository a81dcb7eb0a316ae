"""The pod template of each variant: what is decided about it, with the history that the ReplicaSets are."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead_operator.api.v1alpha1 import ModelPool, ModelPoolSpec, Reason
from fairlead_operator.decide.facts import LABEL_POOL, PodFact
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.rollout import Decision, Inputs, Kept, decide
from fairlead_operator.decide.signals import Report
from fairlead_operator.errors import ForbiddenError
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.resources import REPLICA_SETS
from fairlead_operator.reconcile.pool_facts import Facts
from fairlead_operator.render.deployment import TemplatePlan, plan_template, spec_hashes
from fairlead_operator.render.pod_template import Images, RenderSettings
from fairlead_operator.render.revisions import kept_of, live_of, pin_of
from fairlead_operator.settings import Settings
from fairlead_operator.status.pods import pod_text

WARM_UP = "warm-up"
REMEMBERED = 64
"""Pools whose history is kept at hand; only one that goes back, or was sent back, needs it."""
_Mark = tuple[tuple[str, int, int], ...]
_Given = tuple[ModelPoolSpec, Decision, dict[str, Mapping[str, str] | None]]
"""What the templates of a pool are rendered from, beside the settings."""


@dataclass(frozen=True, slots=True)
class Revisions:
    """What was decided about templates, and what kept it from being decided in full."""

    decision: Decision
    problems: tuple[Problem, ...] = ()


class Rollouts:
    """Decides about the templates of one pool at a time. ReplicaSets are read only to find a template again."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._images = Images(router=settings.router_image, engine=settings.engine_image)
        self._render = RenderSettings(operator_url=settings.operator_url, ledger_url=settings.ledger_url)
        self._known: OrderedDict[str, tuple[_Mark, tuple[Kept, ...]]] = OrderedDict()
        self._planned: dict[str, tuple[_Given, dict[str, TemplatePlan]]] = {}

    async def decide(self, facts: Facts, reports: Mapping[str, Report], *, accepted: bool) -> Revisions:
        """The decision; where the history may not be read, the one that needs none."""
        given = inputs_of(facts, reports, accepted=accepted)
        decision = decide(given)
        if not decision.looks_back:
            return Revisions(decision)
        try:
            return Revisions(decide(replace(given, kept=await self._history(facts))))
        except ForbiddenError as error:
            return Revisions(decide(replace(given, kept=())), (Problem(Reason.FORBIDDEN, str(error), warning=True),))

    def plans(self, facts: Facts, decision: Decision) -> dict[str, TemplatePlan]:
        """What the decision comes to, by variant: rendered again only when something that it is made of has changed."""
        live = {name: body["metadata"].get("annotations") for name, body in facts.deployments.items()}
        given = (facts.pool.spec, decision, live)
        known = self._planned.get(facts.pool.key)
        if known is None or known[0] != given:
            known = (given, self._render_all(facts.pool, decision, live))
            self._planned[facts.pool.key] = known
        return known[1]

    def _render_all(
        self, pool: ModelPool, decision: Decision, live: Mapping[str, Mapping[str, str] | None]
    ) -> dict[str, TemplatePlan]:
        return {
            variant.name: plan_template(
                pool, variant, self._images, self._render, decision=decision, live_annotations=live.get(variant.name)
            )
            for variant in pool.spec.variants
            if variant.name in decision.steps
        }

    def forget(self, pool: str) -> None:
        """The pool is gone."""
        self._known.pop(pool, None)
        self._planned.pop(pool, None)

    async def _history(self, facts: Facts) -> tuple[Kept, ...]:
        """The templates that the pool's ReplicaSets keep; listed again when a Deployment has changed."""
        pool, mark = facts.pool, _mark(facts)
        known = self._known.get(pool.key)
        if known is None or known[0] != mark:
            found = await self._api.list(REPLICA_SETS, namespace=pool.namespace, labels=f"{LABEL_POOL}={pool.name}")
            known = (mark, tuple(kept for body in found.items if (kept := kept_of(body)) is not None))
            self._known[pool.key] = known
        self._known.move_to_end(pool.key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known[1]


def inputs_of(facts: Facts, reports: Mapping[str, Report], *, accepted: bool) -> Inputs:
    """What a decision about templates is made from."""
    spec = facts.pool.spec
    return Inputs(
        wanted=spec_hashes(spec),
        live={name: live_of(body) for name, body in facts.deployments.items()},
        pods=facts.pods,
        now_ms=facts.now_ms,
        accepted=accepted,
        may_be_missing=spec.rollout.max_unavailable,
        startup=str(spec.rollout.startup_timeout),
        words=words_of(facts.pods, reports),
        pin=pin_of(facts.raw["metadata"].get("annotations")),
    )


def words_of(pods: Sequence[PodFact], reports: Mapping[str, Report]) -> dict[str, str]:
    """Why pods do not serve, by name: what Kubernetes says of them, and what their router says of the engine.

    Of an engine that is down the router knows no more than Kubernetes; of one that answers nonsense only it knows.
    """
    words = {}
    for pod in pods:
        report = reports.get(pod.key)
        told = report.signals.engine_trouble if report is not None and report.signals is not None else ""
        if pod.ready or (pod.trouble is not None and WARM_UP not in told):
            told = ""
        said = pod_text(pod) if pod.trouble is not None else ""
        text = " ".join(part for part in (said, f"Pod {pod.name}: {told.rstrip('.')}." if told else "") if part)
        if text:
            words[pod.name] = text
    return words


def _mark(facts: Facts) -> _Mark:
    """Changes with each template that a Deployment was given, and again when its controller has seen it."""
    return tuple(
        (
            str(body["metadata"].get("uid")),
            int(body["metadata"].get("generation") or 0),
            int((body.get("status") or {}).get("observedGeneration") or 0),
        )
        for _, body in sorted(facts.deployments.items())
    )
