"""What a pool becomes on the API server, and what the API server says against it."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fairlead_operator.api.v1alpha1 import Reason
from fairlead_operator.decide import replicas
from fairlead_operator.decide.facts import LABEL_VARIANT, PodFact
from fairlead_operator.decide.placement import stranded
from fairlead_operator.decide.problems import Problem
from fairlead_operator.errors import ApiError, ForbiddenError, OverloadedError, RefusedError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import PODS
from fairlead_operator.reconcile.children import Children, NameTakenError
from fairlead_operator.reconcile.configuration import COLD_START, CONCURRENCY, CONTEXT
from fairlead_operator.reconcile.pool_facts import Facts
from fairlead_operator.render.deployment import TemplatePlan, deployment
from fairlead_operator.render.objects import deployment_name
from fairlead_operator.render.services import pool_disruption_budget, pool_headless_service, pool_service

log = logging.getLogger(__name__)

INTERNAL = 500


async def write(
    children: Children,
    facts: Facts,
    counts: Mapping[str, int],
    plans: Mapping[str, TemplatePlan],
    *,
    accepted: bool,
) -> tuple[Problem, ...]:
    """Write the children; what the API server does not take becomes a problem of the pool."""
    pool, uid = facts.pool, facts.pool.metadata.uid
    try:
        for body in bodies_of(facts, counts, plans, accepted=accepted):
            await children.ensure(facts.snapshot, uid, body)
        if accepted:
            keep = {deployment_name(pool.name, variant.name) for variant in pool.spec.variants}
            await children.prune(facts.snapshot, uid, pool.namespace, pool.name, keep)
    except NameTakenError as error:
        return (Problem(Reason.NAME_CONFLICT, str(error)),)
    except RefusedError as error:
        return (Problem(Reason.INVALID_POD_TEMPLATE, f"The API server refuses {error.what}: {error.message}", "spec"),)
    except ForbiddenError as error:
        return (Problem(Reason.FORBIDDEN, forbidden(error)),)
    except OverloadedError as error:
        # For a field of the wrong type the API server answers 500, not 422, to an apply.
        if error.status != INTERNAL or pool.spec.pod_template is None:
            raise
        return (refused_template(error),)
    return ()


def bodies_of(
    facts: Facts, counts: Mapping[str, int], plans: Mapping[str, TemplatePlan], *, accepted: bool
) -> list[Object]:
    """The objects that the pool becomes; of a spec that is not accepted, only the Deployments that are there.

    ``counts`` are the replicas by variant; those of a variant without one are left as they are.
    """
    pool = facts.pool
    deployments = [
        annotated(deployment(pool, variant, plans[variant.name], counts.get(variant.name)), facts)
        for variant in pool.spec.variants
        if accepted or variant.name in facts.deployments
    ]
    startup_ms = pool.spec.rollout.startup_timeout.ms
    lost = stranded(facts.pods, facts.snapshot.created_ms, startup_ms, facts.now_ms)
    others = [pool_service(pool), pool_headless_service(pool), pool_disruption_budget(pool, lost)] if accepted else []
    return [*deployments, *others]


def annotated(body: Object, facts: Facts) -> Object:
    """The Deployment with what was measured, for the other replicas and for the time after a restart."""
    meta = dict(body["metadata"])
    notes: dict[str, Any] = dict(meta.get("annotations") or {})
    if facts.reported_context:
        notes[CONTEXT] = str(facts.reported_context)
    variant = str(meta["labels"].get(LABEL_VARIANT))
    if variant in facts.concurrency:
        notes[CONCURRENCY] = str(facts.concurrency[variant])
    took_ms = facts.cold_starts.get(variant, replicas.DEFAULT_COLD_START_MS)
    if took_ms != replicas.DEFAULT_COLD_START_MS:
        notes[COLD_START] = str(took_ms)
    return {**body, "metadata": {**meta, "annotations": notes}}


async def replace_reclaimed(api: Api, pods: Iterable[PodFact]) -> tuple[PodFact, ...]:
    """Delete pods whose nodes are about to go, and answer those: each drains, and its ReplicaSet starts another one.

    It is a plain deletion: the node does not wait for a disruption budget. One that fails is tried again next time.
    """
    gone = []
    for pod in pods:
        try:
            await api.delete(PODS, pod.namespace, pod.name, pod.uid)
            gone.append(pod)
        except ApiError as error:
            log.warning("cannot replace %s, whose node is about to go: %s", pod.key, error)
    return tuple(gone)


def refused_template(error: ApiError) -> Problem:
    """What the API server says against a rendered object; what is rendered can be wrong only through podTemplate."""
    text = f"The API server refuses {error.what}: {error.message}"
    return Problem(Reason.INVALID_POD_TEMPLATE, text, "spec.podTemplate")


def forbidden(error: ForbiddenError) -> str:
    """What is not allowed, and who can allow it."""
    return (
        f"The operator may not {error.verb} {error.what}: {error.message.rstrip('.')}. "
        "Grant it to ServiceAccount fairlead-operator, or install the chart's ClusterRole again."
    )
