"""RoutingPolicy: from a model name that clients ask for to the pools that answer."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fairlead_operator.api.v1alpha1.base import (
    ContextTokens,
    Count,
    Duration,
    KubeModel,
    ModelName,
    Name,
    atomic_list,
    cel,
    map_list,
    rules,
    set_list,
)
from fairlead_operator.api.v1alpha1.common import Resource, Selector, Status

Priority = Literal["Interactive", "Standard", "Batch"]
Trouble = Literal["Unavailable", "Saturated", "ScaledToZero", "Downgraded"]
OutputTokenCount = Annotated[int, Field(ge=1, le=1_048_576)]

CONTEXTS_DIFFER = cel(
    "self.all(a, self.exists_one(b, has(a.maxContextTokens) == has(b.maxContextTokens)"
    " && (!has(a.maxContextTokens) || a.maxContextTokens == b.maxContextTokens)))",
    "maxContextTokens must differ between routes, and only one route may leave it out",
)
ONE_WEIGHS = cel("self.exists(p, p.weight > 0)", "at least one pool needs a weight above 0")


class AllowedNamespaces(KubeModel):
    """Whose callers may use the policy."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(self.from == 'Selector') == has(self.selector)",
                "selector is required when from is Selector, and not allowed otherwise",
            )
        )
    )

    from_: Annotated[Literal["Same", "Selector", "All"], Field(alias="from")] = "Same"
    """Namespaces that may call; the policy's own always may, the others only for platform namespaces. Default: Same."""
    selector: Selector | None = None
    """Labels of the namespaces that may call, with from: Selector. Default: none."""

    def admits(self, own: bool, labels: Mapping[str, str]) -> bool:
        """Whether callers of a namespace with these labels may call; ``own``: it is the policy's namespace."""
        selected = self.from_ == "Selector" and self.selector is not None and self.selector.matches(labels)
        return own or selected or self.from_ == "All"


class OutputTokens(KubeModel):
    """How many output tokens a request gets."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.default) || !has(self.max) || self.default <= self.max",
                "default must not exceed max",
            )
        )
    )

    default: OutputTokenCount | None = None
    """Output tokens of a request that does not say. Default: max."""
    max: OutputTokenCount | None = None
    """Most output tokens of a request; one that asks for more gets these. Default: what the context leaves."""


class WeightedPoolRef(KubeModel):
    """A pool of the policy's namespace, and its share."""

    name: Name
    """Name of the ModelPool."""
    adapter: Name | None = None
    """LoRA adapter of the pool that answers (model.lora.adapters). Default: the model without one."""
    weight: Annotated[int, Field(ge=0, le=1000)] = 1
    """Share of the route's requests, relative to the other pools' weights. Default: 1."""


class PoolRef(KubeModel):
    """A pool of the policy's namespace."""

    name: Name
    """Name of the ModelPool."""
    adapter: Name | None = None
    """LoRA adapter of the pool that answers (model.lora.adapters). Default: the model without one."""


class Fallback(KubeModel):
    """Where a route's requests go when its own pools cannot serve them."""

    when: Annotated[tuple[Trouble, ...], Field(min_length=1, max_length=4, json_schema_extra=set_list())]
    """Trouble of the route's pool: Unavailable (replicas fail), Saturated (no room within maxWait), ScaledToZero; or
    Downgraded: a budget of the caller has its action Downgrade in force."""
    pool_ref: PoolRef
    """Pool that serves instead. It must hold the route's maxContextTokens; at zero it is skipped, never woken."""


class Route(KubeModel):
    """Which pools answer requests up to a size; the smallest route that fits serves."""

    name: Name
    """Name of the route."""
    max_context_tokens: ContextTokens | None = None
    """Prompt and output tokens that the route takes. Default: the smallest maxContextTokens of its pools."""
    pool_refs: Annotated[
        tuple[WeightedPoolRef, ...],
        Field(min_length=1, max_length=4, json_schema_extra={**map_list("name"), **rules(ONE_WEIGHS)}),
    ]
    """Pools that share the route's requests."""
    fallbacks: Annotated[tuple[Fallback, ...], Field(max_length=4, json_schema_extra=atomic_list())] = ()
    """Tried in this order, each priced as itself and asked of the budgets again. Default: none."""
    max_wait: Duration = Duration("30s")
    """Longest wait for room in a pool before a fallback, or 429. Default: 30s."""
    max_cold_start_wait: Duration = Duration("10m")
    """Longest wait for a pool at zero to start. Default: 10m."""

    @property
    def pool_names(self) -> tuple[str, ...]:
        """Every pool that may serve a request of the route, fallbacks included."""
        return (*(ref.name for ref in self.pool_refs), *(fallback.pool_ref.name for fallback in self.fallbacks))


class RoutingPolicySpec(KubeModel):
    """Who may call which names, and who answers."""

    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=16, json_schema_extra=set_list())]
    """Model names that clients send."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """Namespaces whose callers may use these names. Default: the policy's own."""
    output_tokens: OutputTokens | None = None
    """Output tokens of a request. Default: what the context leaves."""
    priority: Priority = "Standard"
    """Highest priority of a request; X-Fairlead-Priority may lower it, Batch is shed first. Default: Standard."""
    routes: Annotated[
        tuple[Route, ...],
        Field(min_length=1, max_length=8, json_schema_extra={**map_list("name"), **rules(CONTEXTS_DIFFER)}),
    ]
    """Routes by size; the smallest that fits serves, their order has no meaning."""


class RouteStatus(KubeModel):
    """One route as it is now."""

    name: Name
    """Name of the route."""
    max_context_tokens: Annotated[int, Field(ge=0, le=10_485_760)] | None = None
    """Prompt and output tokens that the route takes."""
    ready_replicas: Count | None = None
    """Replicas of its poolRefs that take requests; fallbacks do not count."""


class PolicyRouters(KubeModel):
    """How many routers follow the policy."""

    total: Count
    """Routers that serve the policy."""
    programmed: Count
    """Routers that have confirmed this generation."""


class RoutingPolicyStatus(Status):
    """What is in force."""

    address: Annotated[str, Field(max_length=512)] | None = None
    """URL that callers use."""
    namespaces: Count | None = None
    """Number of namespaces that may call."""
    routes: Annotated[tuple[RouteStatus, ...], Field(max_length=8, json_schema_extra=map_list("name"))] = ()
    """Routes as they are now."""
    routers: PolicyRouters | None = None
    """How many routers follow the policy."""


class RoutingPolicy(Resource):
    """A RoutingPolicy leads from a model name that clients ask for to the pools that answer."""

    spec: RoutingPolicySpec
    status: RoutingPolicyStatus = RoutingPolicyStatus()
