"""The routers' configuration, compiled from pools, policies and budgets; and the endpoints beside it.

Every replica of the operator compiles the same bytes from the same objects, so the version is a hash of them. Routers
refuse a configuration that names what it does not contain, so what cannot be resolved is left out here and shown in
the policy's conditions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fairlead_operator.api.v1alpha1 import CostBudget, ModelPool, ModelPoolSpec, RoutingPolicy
from fairlead_operator.api.v1alpha1.routingpolicy import PoolRef, Route, WeightedPoolRef
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.models import Callers
from fairlead_operator.decide.rates import PoolCard, wire_card
from fairlead_operator.decide.replicas import slots_of
from fairlead_operator.render.engine_args import model_location
from fairlead_router.contract import (
    AdapterConfig,
    ApiKey,
    BudgetConfig,
    Endpoint,
    Endpoints,
    FallbackConfig,
    Issuer,
    Period,
    PolicyConfig,
    PoolConfig,
    PoolEndpoints,
    RouteConfig,
    RouterConfig,
    WeightedPool,
)

VERSION_CHARS = 16
LOADABLE = frozenset({"hf", "pvc"})
"""Schemes of adapters that a running engine can load: it streams none, and an image is mounted when a pod starts."""
_DAY_MS = 86_400_000
WINDOW_MS: Mapping[Period, int] = {
    "Minute": 60_000,
    "Hour": 3_600_000,
    "Day": _DAY_MS,
    "Week": 7 * _DAY_MS,
    "Month": 30 * _DAY_MS,
    "Quarter": 91 * _DAY_MS,
    "Year": 365 * _DAY_MS,
}
"""Usual length of a window; routers size their leases by it."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a pool's engines were told: another thing than the spec's while that is refused, or was taken back.

    ``slots``: requests that every replica runs at once. ``context``: tokens of one request; 0 = the checkpoint's own.
    """

    slots: int
    context: int


@dataclass(frozen=True, slots=True)
class PoolInput:
    """A pool and what is known of it beside its spec.

    ``reported_context``: what its engines say; 0 = unknown. ``concurrency``: requests that a replica of a variant
    should run at once so that the objectives hold, where that is known. ``running``: what its engines were told;
    ``None`` = what the spec says. ``unpaid``: it is at zero, and its budgets do not pay for a replica.
    """

    pool: ModelPool
    card: PoolCard | None = None
    reported_context: int = 0
    cold_start_ms: int = 120_000
    concurrency: Mapping[str, int] = field(default_factory=dict)
    running: Running | None = None
    unpaid: bool = False

    @property
    def context(self) -> int:
        """Tokens that the pool's engines hold; 0 = unknown."""
        told = self.pool.spec.engine.max_context_tokens if self.running is None else self.running.context
        return told or self.reported_context

    @property
    def slots(self) -> int:
        """Requests that every replica of the pool can run at once."""
        return slots_of(self.pool.spec) if self.running is None else self.running.slots


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """A policy and whose requests it gets."""

    policy: RoutingPolicy
    callers: Callers


@dataclass(frozen=True, slots=True)
class BudgetInput:
    """A budget, whom it covers, and whether every pool that these may use has a price."""

    budget: CostBudget
    namespaces: tuple[str, ...]
    price_known: bool = True


@dataclass(frozen=True, slots=True)
class ReleaseInput:
    """What belongs to no pool, policy or budget: whom to trust, and what the chart's values say."""

    issuers: tuple[Issuer, ...] = ()
    platform_namespaces: tuple[str, ...] = ()
    release_namespace: str = "fairlead"
    unbudgeted_namespaces: Literal["Admit", "Reject"] = "Admit"
    keys: tuple[ApiKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A configuration and the version that routers report when they use it."""

    config: RouterConfig
    version: str


@dataclass(frozen=True, slots=True)
class CompiledEndpoints:
    """The endpoints and their version."""

    endpoints: Endpoints
    version: str


def compile_config(
    pools: Sequence[PoolInput],
    policies: Sequence[PolicyInput],
    budgets: Sequence[BudgetInput],
    release: ReleaseInput,
) -> Compiled:
    """The configuration; the order of the inputs has no influence."""
    by_key = {one.pool.key: one for one in pools}
    compiled = [_policy(one, by_key) for one in sorted(policies, key=lambda one: one.policy.key)]
    config = RouterConfig(
        pools=tuple(_pool(by_key[key]) for key in sorted(by_key)),
        policies=tuple(one for one in compiled if one.routes and not _names_adapters(one)),
        adapter_policies=tuple(one for one in compiled if one.routes and _names_adapters(one)),
        budgets=tuple(_budget(one) for one in sorted(budgets, key=lambda one: one.budget.key)),
        issuers=tuple(sorted(release.issuers, key=lambda one: (one.issuer, one.audience))),
        keys=tuple(sorted(release.keys, key=lambda one: (one.namespace, one.name))),
        platform_namespaces=tuple(sorted(release.platform_namespaces)),
        release_namespace=release.release_namespace,
        unbudgeted_namespaces=release.unbudgeted_namespaces,
    )
    return Compiled(config, version_of(config))


def compile_endpoints(pools: Sequence[str], pods: Sequence[PodFact]) -> CompiledEndpoints:
    """The replicas that take requests: ready, with an address, and not on their way out."""
    serving: dict[str, list[PodFact]] = {pool: [] for pool in pools}
    for pod in pods:
        if pod.pool in serving and serves(pod):
            serving[pod.pool].append(pod)
    endpoints = Endpoints(pools=tuple(_endpoints(pool, serving[pool]) for pool in sorted(serving)))
    return CompiledEndpoints(endpoints, version_of(endpoints))


def serves(pod: PodFact) -> bool:
    """Whether requests may be sent to the pod."""
    return pod.ready and not pod.terminating and bool(pod.ip)


def version_of(part: RouterConfig | Endpoints) -> str:
    """Hash of the canonical encoding."""
    return hashlib.sha256(msgspec.json.encode(part, order="deterministic")).hexdigest()[:VERSION_CHARS]


def route_context(route: Route, pools: Sequence[PoolInput]) -> int:
    """Tokens that a route takes: its own bound, never above what its pools hold; 0 = unknown, it takes nothing."""
    if route.max_context_tokens is None and any(pool.context == 0 for pool in pools):
        return 0
    bounds = [pool.context for pool in pools if pool.context]
    return min([*bounds, *([route.max_context_tokens] if route.max_context_tokens else [])], default=0)


def refs_of(route: Route, namespace: str, pools: Mapping[str, PoolInput]) -> tuple[WeightedPoolRef, ...]:
    """The route's pools that exist and have the adapter that it names; ``pools`` by namespace/name."""
    return tuple(ref for ref in route.pool_refs if has_adapter(pools.get(f"{namespace}/{ref.name}"), ref))


def has_adapter(pool: PoolInput | None, ref: WeightedPoolRef | PoolRef) -> bool:
    """Whether a reference is to something that can answer."""
    return pool is not None and (ref.adapter is None or ref.adapter in {one.name for one in adapters_of(pool.pool)})


def adapters_of(pool: ModelPool) -> tuple[AdapterConfig, ...]:
    """The adapters that the pool's engines are to load, by name."""
    lora = pool.spec.model.lora
    found = () if lora is None else sorted(lora.adapters, key=lambda one: one.name)
    return tuple(
        AdapterConfig(name=one.name, path=model_location(one.uri))
        for one in found
        if one.uri.partition("://")[0] in LOADABLE
    )


def fallbacks_of(route: Route, namespace: str, pools: Mapping[str, PoolInput], context: int) -> list[FallbackConfig]:
    """The fallbacks that can take whatever the route takes, ``context`` tokens: they exist and hold as many."""
    named = ((f"{namespace}/{one.pool_ref.name}", one) for one in route.fallbacks)
    return [
        FallbackConfig(pool=key, when=tuple(sorted(one.when)), adapter=one.pool_ref.adapter or "")
        for key, one in named
        if has_adapter(pools.get(key), one.pool_ref) and pools[key].context >= context > 0
    ]


def _pool(one: PoolInput) -> PoolConfig:
    ttft_ms, tpot_ms = objectives_ms(one.pool.spec)
    return PoolConfig(
        pool=one.pool.key,
        max_context_tokens=one.context,
        slots=one.slots,
        card=None if one.card is None else wire_card(one.card),
        cold_start_s=-(-one.cold_start_ms // 1000),
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        variant_slots=tuple(sorted(one.concurrency.items())),
        adapters=adapters_of(one.pool),
        unpaid=one.unpaid,
    )


def objectives_ms(spec: ModelPoolSpec) -> tuple[int, int]:
    """Longest time to the first token and between two output tokens; 0 = no such objective."""
    if spec.autoscaling is None:
        return 0, 0
    wanted = spec.autoscaling.objectives
    ttft, tpot = wanted.time_to_first_token, wanted.time_per_output_token
    return (ttft.ms if ttft is not None else 0), (tpot.ms if tpot is not None else 0)


def _policy(one: PolicyInput, pools: Mapping[str, PoolInput]) -> PolicyConfig:
    policy, callers = one.policy, one.callers
    routes = [_route(route, policy.namespace, pools) for route in policy.spec.routes]
    tokens = policy.spec.output_tokens
    return PolicyConfig(
        namespace=policy.namespace,
        name=policy.name,
        models=tuple(sorted(policy.spec.models)),
        routes=tuple(sorted((route for route in routes if route.pools), key=_by_size)),
        namespaces=callers.namespaces,
        excluded=callers.excluded,
        default_output_tokens=(tokens and tokens.default) or 0,
        max_output_tokens=(tokens and tokens.max) or 0,
        priority=policy.spec.priority,
    )


def _names_adapters(policy: PolicyConfig) -> bool:
    named = [ref.adapter for route in policy.routes for ref in route.pools]
    return any([*named, *(fallback.adapter for route in policy.routes for fallback in route.fallbacks)])


def _by_size(route: RouteConfig) -> tuple[bool, int, str]:
    return (route.max_context_tokens == 0, route.max_context_tokens, route.name)


def _route(route: Route, namespace: str, pools: Mapping[str, PoolInput]) -> RouteConfig:
    found = refs_of(route, namespace, pools)
    context = route_context(route, [pools[f"{namespace}/{ref.name}"] for ref in found])
    return RouteConfig(
        name=route.name,
        max_context_tokens=context,
        pools=tuple(
            WeightedPool(pool=f"{namespace}/{ref.name}", weight=ref.weight, adapter=ref.adapter or "") for ref in found
        ),
        fallbacks=tuple(fallbacks_of(route, namespace, pools, context)),
        max_wait_ms=route.max_wait.ms,
        max_cold_start_wait_ms=route.max_cold_start_wait.ms,
    )


def _budget(one: BudgetInput) -> BudgetConfig:
    limit = one.budget.spec.limit
    return BudgetConfig(
        namespace=one.budget.namespace,
        name=one.budget.name,
        unit=limit.unit,
        per=limit.per,
        namespaces=one.namespaces,
        enforcement=one.budget.spec.enforcement,
        price_known=one.price_known or limit.unit != "USD",
        window_ms=WINDOW_MS[limit.period],
        time_zone=limit.time_zone,
        models=tuple(sorted(one.budget.spec.applies_to.models)),
        batch_apart=any(action.action == "RejectBatch" for action in one.budget.spec.actions),
    )


def _endpoints(pool: str, pods: Sequence[PodFact]) -> PoolEndpoints:
    ordered = sorted(pods, key=lambda pod: pod.key)
    return PoolEndpoints(
        pool=pool,
        endpoints=tuple(Endpoint(pod=pod.key, address=pod.ip, variant=pod.variant) for pod in ordered),
    )
