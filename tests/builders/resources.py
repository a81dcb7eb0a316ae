"""Builders of API objects, as the API server returns them: every step gives a new builder, ``obj()`` the dict."""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fairlead_operator.api.v1alpha1 import API_VERSION, CostBudget, ModelPool, RoutingPolicy

CREATED = "2026-11-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Builder:
    """What the builders of all kinds share."""

    kind: str
    meta: dict[str, Any]
    body: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)

    def metadata(self, **fields: Any) -> Self:
        """Set fields of the metadata, in the API's names: ``metadata(generation=2)``."""
        return replace(self, meta=self.meta | fields)

    def spec(self, **fields: Any) -> Self:
        """Set fields of the spec, in the API's names."""
        return replace(self, body=self.body | fields)

    def without(self, *names: str) -> Self:
        """Take fields of the spec away."""
        return replace(self, body={name: value for name, value in self.body.items() if name not in names})

    def status(self, **fields: Any) -> Self:
        """Set fields of the status, in the API's names."""
        return replace(self, state=self.state | fields)

    def deleting(self, at: str = "2026-11-20T00:00:00Z") -> Self:
        """Mark the object as being deleted."""
        return self.metadata(deletionTimestamp=at)

    def obj(self) -> dict[str, Any]:
        """The object, free to change."""
        parts = {"apiVersion": API_VERSION, "kind": self.kind, "metadata": self.meta, "spec": self.body}
        return deepcopy(parts | ({"status": self.state} if self.state else {}))


@dataclass(frozen=True, slots=True)
class PoolBuilder(Builder):
    """Builds a ModelPool."""

    def model(self, **fields: Any) -> Self:
        """Set fields of spec.model."""
        return self.spec(model=self.body["model"] | fields)

    def engine(self, **fields: Any) -> Self:
        """Set fields of spec.engine."""
        return self.spec(engine=self.body.get("engine", {}) | fields)

    def variant(self, name: str, **fields: Any) -> Self:
        """Add a variant; the first one takes the place of the default variant."""
        others = [variant for variant in self.body["variants"] if variant["name"] not in {"default", name}]
        return self.spec(variants=[*others, {"name": name, **fields}])

    def replicas(self, count: int) -> Self:
        """Set the number of replicas; takes autoscaling away."""
        return self.without("autoscaling").spec(replicas=count)

    def autoscaling(self, maximum: int, minimum: int = 1, **fields: Any) -> Self:
        """Set autoscaling; takes replicas away."""
        bounds = {"minReplicas": minimum, "maxReplicas": maximum}
        return self.without("replicas").spec(autoscaling=bounds | fields)

    def rollout(self, **fields: Any) -> Self:
        """Set fields of spec.rollout."""
        return self.spec(rollout=self.body.get("rollout", {}) | fields)

    def pod_template(self, **fields: Any) -> Self:
        """Set fields of spec.podTemplate: metadata, spec."""
        return self.spec(podTemplate=self.body.get("podTemplate", {}) | fields)

    def parsed(self) -> ModelPool:
        """The typed object."""
        return ModelPool.parse(self.obj())


@dataclass(frozen=True, slots=True)
class PolicyBuilder(Builder):
    """Builds a RoutingPolicy."""

    def models(self, *names: str) -> Self:
        """Set the model names that clients send."""
        return self.spec(models=list(names))

    def allow_all(self) -> Self:
        """Let every namespace call."""
        return self.spec(allowedNamespaces={"from": "All"})

    def allow_labels(self, **labels: str) -> Self:
        """Let the namespaces with these labels call."""
        return self.spec(allowedNamespaces={"from": "Selector", "selector": {"matchLabels": labels}})

    def output_tokens(self, **fields: int) -> Self:
        """Set spec.outputTokens: default, max."""
        return self.spec(outputTokens=fields)

    def route(self, name: str, *pools: str | tuple[str, int], **fields: Any) -> Self:
        """Add a route to pools, each a name or (name, weight); the first one takes the place of the default route."""
        others = [route for route in self.body["routes"] if route["name"] not in {"default", name}]
        return self.spec(routes=[*others, {"name": name, "poolRefs": [_pool_ref(pool) for pool in pools], **fields}])

    def fallback(self, route: str, pool: str, *when: str) -> Self:
        """Add a fallback to a route that is there; without ``when`` it is for Unavailable."""
        added = {"when": list(when or ("Unavailable",)), "poolRef": {"name": pool}}
        routes = [
            {**one, "fallbacks": [*one.get("fallbacks", []), added]} if one["name"] == route else one
            for one in self.body["routes"]
        ]
        return self.spec(routes=routes)

    def parsed(self) -> RoutingPolicy:
        """The typed object."""
        return RoutingPolicy.parse(self.obj())


@dataclass(frozen=True, slots=True)
class BudgetBuilder(Builder):
    """Builds a CostBudget."""

    def limit(self, amount: int | str | None = None, **fields: Any) -> Self:
        """Set the amount and fields of spec.limit: unit, per, period, timeZone."""
        chosen = fields if amount is None else {"amount": amount} | fields
        return self.spec(limit=self.body["limit"] | chosen)

    def for_labels(self, **labels: str) -> Self:
        """Cover the namespaces with these labels."""
        return self.spec(appliesTo={"namespaceSelector": {"matchLabels": labels}})

    def for_all_namespaces(self) -> Self:
        """Cover every namespace."""
        return self.spec(appliesTo={"namespaceSelector": {}})

    def for_models(self, *names: str) -> Self:
        """Cover the requests for these models only."""
        return self.spec(appliesTo=self.body.get("appliesTo", {}) | {"models": list(names)})

    def action(self, name: str, at_percent: int) -> Self:
        """Add an action."""
        return self.spec(actions=[*self.body.get("actions", []), {"atPercent": at_percent, "action": name}])

    def alert(self, at_percent: int) -> Self:
        """Add an Alert."""
        return self.action("Alert", at_percent)

    def increase(self, amount: int | str, until: str = "2026-12-01T08:00:00Z", reason: str = "launch") -> Self:
        """Set a temporary increase."""
        return self.spec(temporaryIncrease={"amount": amount, "until": until, "reason": reason})

    def with_idle(self) -> Self:
        """Count the idle cost of the covered namespaces' pools."""
        return self.spec(idleCost="Included")

    def audit(self) -> Self:
        """Let requests above the limit pass."""
        return self.spec(enforcement="Audit")

    def parsed(self) -> CostBudget:
        """The typed object."""
        return CostBudget.parse(self.obj())


def make_pool(name: str, namespace: str = "ai-platform") -> PoolBuilder:
    """A pool with one variant, ``default``, and one replica."""
    body = {"model": {"uri": "hf://acme/chat-8b", "revision": "v1"}, "variants": [{"name": "default"}], "replicas": 1}
    return PoolBuilder("ModelPool", _metadata(name, namespace), body)


def make_policy(name: str, namespace: str = "ai-platform") -> PolicyBuilder:
    """A policy for the model of its own name, with one route, ``default``, to the pool of that name."""
    body = {"models": [name], "routes": [{"name": "default", "poolRefs": [{"name": name}]}]}
    return PolicyBuilder("RoutingPolicy", _metadata(name, namespace), body)


def make_budget(name: str, namespace: str = "team-a") -> BudgetBuilder:
    """A budget of 100 USD a month for each namespace it covers: its own."""
    limit = {"amount": 100, "unit": "USD", "per": "Namespace", "period": "Month"}
    return BudgetBuilder("CostBudget", _metadata(name, namespace), {"limit": limit})


def _metadata(name: str, namespace: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": CREATED,
    }


def _pool_ref(pool: str | tuple[str, int]) -> dict[str, Any]:
    if isinstance(pool, str):
        return {"name": pool}
    name, weight = pool
    return {"name": name, "weight": weight}
