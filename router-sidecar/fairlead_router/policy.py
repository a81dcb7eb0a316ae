"""From a name that clients ask for to a policy, and from a caller to the budgets that must admit. Pure."""

from collections import defaultdict
from dataclasses import dataclass, field

import msgspec

from fairlead_router.answers import NO_RETRY, Refusal
from fairlead_router.contract import BudgetConfig, PolicyConfig, PoolConfig, Priority, RouterConfig


class Caller(msgspec.Struct, frozen=True):
    """Who is calling, from a verified token: ``name`` is such as ``sa:web``."""

    namespace: str
    name: str


class Labels(msgspec.Struct, frozen=True):
    """What the caller says about a request, for budgets and reports; ``None`` when it says nothing."""

    feature: str | None = None
    workflow: str | None = None
    priority: Priority | None = None


class BudgetMatch(msgspec.Struct, frozen=True):
    """A budget that covers a request, and the account in it that the request uses."""

    budget: BudgetConfig
    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class Index:
    """The configuration, arranged for look-ups. Built once for each version; building it is also its validation."""

    config: RouterConfig
    pools: dict[str, PoolConfig]
    own: dict[tuple[str, str], PolicyConfig]
    offered: dict[str, tuple[PolicyConfig, ...]]
    budgets: dict[str, tuple[BudgetConfig, ...]]
    excluded: frozenset[tuple[str, str, str, str]] = field(default=frozenset())


class ConfigError(Exception):
    """A configuration that does not hold together; the one in use stays."""


def build_index(config: RouterConfig) -> Index:
    """Arrange a configuration for look-ups, and refuse one that names what it does not contain."""
    pools = {pool.pool: pool for pool in config.pools}
    own: dict[tuple[str, str], PolicyConfig] = {}
    offered: dict[str, list[PolicyConfig]] = defaultdict(list)
    excluded = set()
    for policy in (*config.policies, *config.adapter_policies):
        _check_routes(policy, pools)
        excluded |= {(policy.namespace, policy.name, *pair) for pair in policy.excluded}
        for model in policy.models:
            offered[model].append(policy)
            if (policy.namespace, policy.name, policy.namespace, model) not in excluded:
                own.setdefault((policy.namespace, model), policy)
    budgets: dict[str, list[BudgetConfig]] = defaultdict(list)
    for budget in config.budgets:
        for namespace in budget.namespaces:
            budgets[namespace].append(budget)
    return Index(
        config=config,
        pools=pools,
        own=own,
        offered={model: tuple(policies) for model, policies in offered.items()},
        budgets={namespace: tuple(covering) for namespace, covering in budgets.items()},
        excluded=frozenset(excluded),
    )


def _check_routes(policy: PolicyConfig, pools: dict[str, PoolConfig]) -> None:
    where = f"RoutingPolicy {policy.namespace}/{policy.name}"
    if not policy.routes:
        raise ConfigError(f"{where} has no routes")
    for route in policy.routes:
        if not route.pools:
            raise ConfigError(f"{where}: route {route.name} has no pools")
        named = [(ref.pool, ref.adapter) for ref in route.pools]
        named += [(fallback.pool, fallback.adapter) for fallback in route.fallbacks]
        for pool, adapter in named:
            if pool not in pools:
                raise ConfigError(f"{where}: route {route.name} names pool {pool}, which the configuration lacks")
            if adapter and all(one.name != adapter for one in pools[pool].adapters):
                raise ConfigError(f"{where}: route {route.name} names adapter {adapter}, which pool {pool} lacks")


def find_policy(index: Index, namespace: str, model: str) -> PolicyConfig | Refusal:
    """The policy that serves a model to a namespace: its own first, then what others export to it."""
    own = index.own.get((namespace, model))
    if own is not None:
        return own
    offers = index.offered.get(model, ())
    for policy in offers:
        if _exports(index, policy, namespace, model):
            return policy
    if offers:
        return Refusal(
            403,
            "model_not_allowed",
            f"Model {model} is not open to namespace {namespace}. Owners of its RoutingPolicy can add it to "
            "allowedNamespaces.",
            "permission_error",
            "model",
            NO_RETRY,
        )
    return Refusal(
        404,
        "model_not_found",
        f"No RoutingPolicy serves model {model} to namespace {namespace}. GET /v1/models lists the open ones.",
        "invalid_request_error",
        "model",
        NO_RETRY,
    )


def _exports(index: Index, policy: PolicyConfig, namespace: str, model: str) -> bool:
    open_to = policy.namespaces is None or namespace in policy.namespaces
    return open_to and (policy.namespace, policy.name, namespace, model) not in index.excluded


def usable_models(index: Index, namespace: str) -> list[tuple[str, str]]:
    """(model, namespace of its policy) for every model that a namespace may use, sorted."""
    found = []
    for model in sorted(index.offered):
        policy = find_policy(index, namespace, model)
        if isinstance(policy, PolicyConfig):
            found.append((model, policy.namespace))
    return found


def matching_budgets(index: Index, caller: Caller, labels: Labels, model: str) -> tuple[BudgetMatch, ...]:
    """Every budget that covers the request, with the account of each. All of them must admit it.

    ``model`` is the name that the client sends, whatever serves it.
    """
    found = []
    for budget in index.budgets.get(caller.namespace, ()):
        if budget.models and model not in budget.models:
            continue
        key = _account_key(budget, caller, labels)
        if key is not None:
            namespace = "" if budget.per == "Total" else caller.namespace
            found.append(BudgetMatch(budget, namespace, key))
    return tuple(found)


def _account_key(budget: BudgetConfig, caller: Caller, labels: Labels) -> str | None:
    """The key of the request's account in a budget; ``None``: the budget does not cover it."""
    if budget.per == "Caller":
        return caller.name
    if budget.per == "Feature":
        return labels.feature
    if budget.per == "Workflow":
        return labels.workflow
    return ""


def refuse_unbudgeted(index: Index, caller: Caller, matches: tuple[BudgetMatch, ...]) -> Refusal | None:
    """The 403 for a namespace without a budget, where the platform wants one."""
    if matches or index.config.unbudgeted_namespaces == "Admit" or index.budgets.get(caller.namespace):
        return None
    return Refusal(
        403,
        "no_budget",
        f"Namespace {caller.namespace} has no CostBudget, and this platform serves only namespaces that have one. "
        "Ask the platform's owners for one.",
        "permission_error",
        headers=NO_RETRY,
    )
