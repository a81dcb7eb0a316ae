"""RoutingPolicy's status."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_operator.api.v1alpha1 import PolicyCondition, Reason, RoutingPolicy
from fairlead_operator.api.v1alpha1.routingpolicy import PoolRef, Route, WeightedPoolRef
from fairlead_operator.decide.models import Callers
from fairlead_operator.decide.problems import Problem
from fairlead_operator.render.router_config import PoolInput, has_adapter, route_context
from fairlead_operator.status.conditions import Finding, accepted, all_true, merge, problem_text

_CORRECT = "Add it to the pool's spec.model.lora.adapters, or correct"


@dataclass(frozen=True, slots=True)
class PolicyView:
    """Everything that a policy's status is made from; ``pools`` and ``ready`` by name, of the policy's namespace."""

    policy: RoutingPolicy
    callers: Callers
    pools: Mapping[str, PoolInput]
    ready: Mapping[str, int]
    namespaces_total: int
    routers_total: int
    routers_programmed: int
    address: str


def routingpolicy_status(view: PolicyView, old: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The whole status; ``old`` is the present one, for the conditions' times."""
    generation = view.policy.metadata.generation
    return {
        "conditions": merge(old.get("conditions") or (), findings(view), now_ms, generation),
        "observedGeneration": generation,
        "address": view.address,
        "namespaces": view.callers.count(view.namespaces_total),
        "routes": [_route(view, route) for route in view.policy.spec.routes],
        "routers": {"total": view.routers_total, "programmed": view.routers_programmed},
    }


def findings(view: PolicyView) -> list[Finding]:
    """All conditions, in the order of the API."""
    parts = (accepted_finding(view), resolved_finding(view), programmed_finding(view))
    return [all_true(PolicyCondition.READY, parts, Reason.PROGRAMMED, parts[2].message), *parts]


def accepted_finding(view: PolicyView) -> Finding:
    """Whether the policy owns its model names wherever it offers them."""
    own = (view.callers.problem,) if view.callers.problem else ()
    lost = (Problem(Reason.MODEL_NAME_CONFLICT, conflict.message) for conflict in view.callers.conflicts)
    count = view.callers.count(view.namespaces_total)
    fine = f"{', '.join(view.policy.spec.models)} for {count} {'namespace' if count == 1 else 'namespaces'}."
    return accepted(PolicyCondition.ACCEPTED, (*own, *lost), fine)


def resolved_finding(view: PolicyView) -> Finding:
    """Whether every pool exists and holds what its routes take."""
    routes = view.policy.spec.routes
    problems = [
        problem for route in routes for problem in (*_route_problems(view, route), *_fallback_problems(view, route))
    ]
    if problems:
        return Finding(PolicyCondition.RESOLVED_REFS, "False", problems[0].reason, problem_text(problems))
    unknown = [
        problem for route in routes for problem in (*_context_unknown(view, route), *_fallback_unknown(view, route))
    ]
    if unknown:
        return Finding(PolicyCondition.RESOLVED_REFS, "Unknown", Reason.CONTEXT_UNKNOWN, problem_text(unknown))
    names = sorted({name for route in routes for name in route.pool_names})
    text = f"{'Pool' if len(names) == 1 else 'Pools'} {', '.join(names)} found."
    return Finding(PolicyCondition.RESOLVED_REFS, "True", Reason.RESOLVED, text)


def programmed_finding(view: PolicyView) -> Finding:
    """Whether all routers that serve the policy have it as it is now."""
    total, have = view.routers_total, view.routers_programmed
    generation = view.policy.metadata.generation
    if total == 0:
        text = "No router is ready that could serve the policy. See kubectl get pods of the gateway."
        return Finding(PolicyCondition.PROGRAMMED, "False", Reason.NO_ROUTERS, text)
    if have < total:
        text = f"{have} of {total} routers have confirmed generation {generation}; the others serve what they had. "
        text += "If it stays so, see the routers' logs."
        return Finding(PolicyCondition.PROGRAMMED, "False", Reason.ROUTERS_LAGGING, text)
    text = f"All {total} routers have confirmed generation {generation}."
    return Finding(PolicyCondition.PROGRAMMED, "True", Reason.PROGRAMMED, text)


def _route_problems(view: PolicyView, route: Route) -> Iterable[Problem]:
    namespace = view.policy.namespace
    for ref in route.pool_refs:
        pool = view.pools.get(ref.name)
        if pool is None:
            text = (
                f"Route {route.name} names pool {ref.name}, and namespace {namespace} has no such ModelPool. "
                "The route goes without it. Create it, or correct poolRefs."
            )
            yield Problem(Reason.POOL_NOT_FOUND, text)
        elif not has_adapter(pool, ref):
            text = f"Route {route.name} names {_adapter(pool, ref)} The route goes without it. {_CORRECT} poolRefs."
            yield Problem(Reason.ADAPTER_NOT_FOUND, text)
        elif pool.context and (route.max_context_tokens or 0) > pool.context:
            text = (
                f"Route {route.name} takes {route.max_context_tokens} tokens, pool {ref.name} holds {pool.context}. "
                f"The route takes {pool.context}. Lower its maxContextTokens, or raise the pool's."
            )
            yield Problem(Reason.CONTEXT_TOO_LONG, text)


def _fallback_problems(view: PolicyView, route: Route) -> Iterable[Problem]:
    context = _context(view, route)
    for ref in _fallbacks(route):
        name, pool = ref.name, view.pools.get(ref.name)
        if pool is None:
            text = (
                f"Route {route.name} falls back to pool {name}, and namespace {view.policy.namespace} has no such "
                "ModelPool. The route goes without it. Create it, or correct fallbacks."
            )
            yield Problem(Reason.POOL_NOT_FOUND, text)
        elif not has_adapter(pool, ref):
            text = f"Route {route.name} falls back to {_adapter(pool, ref)} The route goes without it. "
            yield Problem(Reason.ADAPTER_NOT_FOUND, f"{text}{_CORRECT} fallbacks.")
        elif 0 < pool.context < context:
            text = (
                f"Route {route.name} takes {context} tokens, its fallback pool {name} holds {pool.context}. "
                "The route goes without it. Lower the route's maxContextTokens, or raise the pool's."
            )
            yield Problem(Reason.CONTEXT_TOO_LONG, text)


def _context_unknown(view: PolicyView, route: Route) -> Iterable[Problem]:
    names = [ref.name for ref in route.pool_refs if not view.pools[ref.name].context]
    if route.max_context_tokens is None and names:
        text = (
            f"Route {route.name} takes nothing yet: pool {names[0]} sets no engine.maxContextTokens and no engine of "
            "it has reported its own. Set it there or on the route, or wait for the first replica."
        )
        yield Problem(Reason.CONTEXT_UNKNOWN, text)


def _fallback_unknown(view: PolicyView, route: Route) -> Iterable[Problem]:
    for ref in _fallbacks(route):
        name = ref.name
        if not view.pools[name].context:
            text = (
                f"Route {route.name} goes without its fallback pool {name}: the pool sets no engine.maxContextTokens "
                "and no engine of it has reported its own. Set it there, or wait for its first replica."
            )
            yield Problem(Reason.CONTEXT_UNKNOWN, text)


def _fallbacks(route: Route) -> list[PoolRef]:
    """Each once, by name."""
    refs = {(one.pool_ref.name, one.pool_ref.adapter or ""): one.pool_ref for one in route.fallbacks}
    return [ref for _, ref in sorted(refs.items())]


def _adapter(pool: PoolInput, ref: WeightedPoolRef | PoolRef) -> str:
    """An adapter that the pool does not have, and which it has."""
    lora = pool.pool.spec.model.lora
    names = [one.name for one in lora.adapters] if lora is not None else []
    if ref.adapter in names:
        return f"adapter {ref.adapter} of pool {ref.name}, which is not accepted: see ModelPool {ref.name}."
    has = f"has {', '.join(sorted(names))}" if names else "has none"
    return f"adapter {ref.adapter}, and pool {ref.name} has no such adapter: spec.model.lora {has}."


def _ready(view: PolicyView, ref: WeightedPoolRef) -> int:
    """Replicas that answer for the reference: those of an adapter are counted by the pool's status."""
    ready, pool = view.ready.get(ref.name, 0), view.pools.get(ref.name)
    if ref.adapter is None or pool is None:
        return ready
    loaded = {one.name: one.ready_replicas for one in pool.pool.status.adapters}
    return min(ready, loaded.get(ref.adapter, 0))


def _context(view: PolicyView, route: Route) -> int:
    found = [view.pools[ref.name] for ref in route.pool_refs if has_adapter(view.pools.get(ref.name), ref)]
    return route_context(route, found) if found else 0


def _route(view: PolicyView, route: Route) -> dict[str, Any]:
    context = _context(view, route)
    return {
        "name": route.name,
        **({"maxContextTokens": context} if context else {}),
        "readyReplicas": sum(_ready(view, ref) for ref in route.pool_refs),
    }
