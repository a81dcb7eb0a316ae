"""Objects that the API server must refuse, one for each rule and each class of bound, and the words it says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.builders.resources import BudgetBuilder, make_budget, make_policy, make_pool


@dataclass(frozen=True, slots=True)
class Misuse:
    """One refused object. ``by``: a CEL rule, the schema, or what only the server checks. ``old``: what it updates."""

    title: str
    by: Literal["rule", "schema", "server"]
    words: str
    obj: dict[str, Any]
    old: dict[str, Any] | None = None


def rule_misuses() -> Iterator[Misuse]:
    """One object for each CEL rule and each place where it holds."""
    yield from _pool_rules()
    yield from _policy_rules()
    yield from _budget_rules()


def _pool_rules() -> Iterator[Misuse]:
    pool = make_pool("chat")
    too_small = {"maxSequences": 256, "maxBatchedTokens": 128}
    draft = {"method": "ngram", "tokens": 4, "model": "hf://acme/draft"}
    for title, words, builder in (
        (
            "a long name",
            "the name must be at most 40 characters: Deployment and Service names are built from it",
            make_pool("a" * 41),
        ),
        (
            "both replicas and autoscaling",
            "set exactly one of replicas and autoscaling",
            pool.spec(autoscaling={"maxReplicas": 2}),
        ),
        (
            "neither replicas nor autoscaling",
            "set exactly one of replicas and autoscaling",
            pool.without("replicas"),
        ),
        (
            "a step smaller than the batch",
            "maxBatchedTokens must be at least maxSequences",
            pool.engine(**too_small),
        ),
        (
            "a step smaller than the batch on a variant",
            "maxBatchedTokens must be at least maxSequences",
            pool.variant("h100", engine=too_small),
        ),
        (
            "a draft model for ngram",
            "model is required by draft_model and eagle3, and not allowed with ngram and mtp",
            pool.engine(speculativeDecoding=draft),
        ),
        (
            "no draft model for eagle3",
            "model is required by draft_model and eagle3, and not allowed with ngram and mtp",
            pool.engine(speculativeDecoding={"method": "eagle3", "tokens": 4}),
        ),
        (
            "a variant's bounds crossed",
            "minReplicas must not exceed maxReplicas",
            pool.variant("h100", minReplicas=3, maxReplicas=2),
        ),
        (
            "autoscaling's bounds crossed",
            "minReplicas must not exceed maxReplicas",
            pool.autoscaling(2, minimum=3),
        ),
        (
            "scale to zero above zero",
            "scaleToZeroAfter needs minReplicas: 0",
            pool.autoscaling(2, scaleToZeroAfter="5m"),
        ),
        (
            "a rollout that cannot move",
            "maxSurge and maxUnavailable must not both be 0",
            pool.rollout(maxSurge=0),
        ),
    ):
        yield Misuse(title, "rule", words, builder.obj())


def _policy_rules() -> Iterator[Misuse]:
    policy = make_policy("chat")
    contexts = "maxContextTokens must differ between routes, and only one route may leave it out"
    selector = "selector is required when from is Selector, and not allowed otherwise"
    no_values = {"matchExpressions": [{"key": "team", "operator": "In"}]}
    for title, words, builder in (
        ("Selector without a selector", selector, policy.spec(allowedNamespaces={"from": "Selector"})),
        ("a selector for All", selector, policy.spec(allowedNamespaces={"from": "All", "selector": {}})),
        (
            "In without values",
            "values are required by In and NotIn, and not allowed with Exists and DoesNotExist",
            policy.spec(allowedNamespaces={"from": "Selector", "selector": no_values}),
        ),
        ("a default above the cap", "default must not exceed max", policy.output_tokens(default=9, max=8)),
        (
            "two routes of one size",
            contexts,
            policy.route("a", "chat", maxContextTokens=8192).route("b", "long", maxContextTokens=8192),
        ),
        ("two routes without a size", contexts, policy.route("a", "chat").route("b", "long")),
        ("no weight at all", "at least one pool needs a weight above 0", policy.route("a", ("chat", 0))),
    ):
        yield Misuse(title, "rule", words, builder.obj())


def _budget_rules() -> Iterator[Misuse]:
    budget = make_budget("monthly")
    immutable = "unit and per are immutable; create another CostBudget"
    no_keys = {"matchExpressions": [{"key": "team", "operator": "Exists", "values": ["a"]}]}
    yield Misuse(
        "half a request",
        "rule",
        "amount must be a whole number unless unit is USD",
        budget.limit("0.5", unit="Requests").obj(),
    )
    yield Misuse(
        "Exists with values",
        "rule",
        "values are required by In and NotIn, and not allowed with Exists and DoesNotExist",
        budget.spec(appliesTo={"namespaceSelector": no_keys}).obj(),
    )
    idle = "idleCost: Included needs unit USD, per Total or Namespace, and no models or backends"
    for title, builder in (
        ("idle cost in requests", budget.with_idle().limit(unit="Requests")),
        ("idle cost of a caller", budget.with_idle().limit(per="Caller")),
        ("idle cost of a model", budget.with_idle().for_models("chat")),
    ):
        yield Misuse(title, "rule", idle, builder.obj())
    half = "temporaryIncrease.amount must be a whole number unless unit is USD"
    yield Misuse("half a request more", "rule", half, budget.limit(5, unit="Requests").increase("0.5").obj())
    for field, value in (("unit", "Tokens"), ("per", "Caller")):
        yield Misuse(f"another {field}", "rule", immutable, budget.limit(**{field: value}).obj(), budget.obj())


def schema_misuses() -> Iterator[Misuse]:
    """One object for each class of bound."""
    pool, policy, budget = make_pool("chat"), make_policy("chat"), make_budget("monthly")
    selector = {f"key-{index}": "value" for index in range(17)}
    for title, words, obj in (
        ("a URI without a scheme", "spec.model.uri in body should match", pool.model(uri="acme/chat").obj()),
        ("an argument without dashes", "should match '^--[a-z0-9]", pool.engine(extraArgs=["seed=1"]).obj()),
        ("a duration without a unit", "should match '^([0-9]{1,5}", pool.rollout(drainTimeout="600").obj()),
        ("a model name with a space", "should match '^[A-Za-z0-9]", policy.models("chat 8b").obj()),
        ("an unknown priority", 'Unsupported value: "High"', policy.spec(priority="High").obj()),
        ("a fallback without a trouble", "should have at least 1 items", _falling(when=[])),
        ("a fallback for an unknown trouble", 'Unsupported value: "Slow"', _falling(when=["Slow"])),
        ("a fallback without a pool", "fallbacks[0].poolRef: Required value", _falling(poolRef=None)),
        ("five fallbacks", "must have at most 4 items", _falling(5)),
        ("too little memory", "should be greater than or equal to 10", pool.engine(memoryUtilizationPercent=9).obj()),
        ("too many replicas", "should be less than or equal to 1000", pool.replicas(1001).obj()),
        ("an unknown period", 'Unsupported value: "Fortnight"', budget.limit(period="Fortnight").obj()),
        ("an action at 100 %", "should be less than or equal to 99", budget.alert(100).obj()),
        ("a long variant name", "Too long: may not be more than 20", pool.variant("x" * 21).obj()),
        ("an empty revision", "should be at least 1 chars long", pool.model(revision="").obj()),
        ("no variant", "should have at least 1 items", pool.spec(variants=[]).obj()),
        ("no adapter", "should have at least 1 items", pool.model(lora={"adapters": []}).obj()),
        (
            "a rank that vLLM does not take",
            "Unsupported value: 12",
            pool.model(lora={"maxRank": 12, "adapters": [{"name": "sql", "uri": "hf://acme/sql"}]}).obj(),
        ),
        (
            "nine variants",
            "must have at most 8 items",
            pool.spec(variants=[{"name": f"v{index}"} for index in range(9)]).obj(),
        ),
        ("seventeen node labels", "must have at most 16", pool.variant("h100", nodeSelector=selector).obj()),
        ("no model", "spec.model: Required value", pool.without("model").obj()),
        ("text for a number", "must be of type integer", pool.spec(replicas="two").obj()),
        (
            "an unquoted decimal",
            "spec.limit.amount in body must be of type integer,string",
            budget.spec(limit=_limit(0.45)).obj(),
        ),
        ("seven decimal places", "spec.limit.amount in body should match", budget.limit("0.1234567").obj()),
        ("an unknown action", 'Unsupported value: "Block"', budget.action("Block", 50).obj()),
        ("nine actions", "must have at most 8 items", _acting(*range(10, 19)).obj()),
        ("an increase without a reason", "should be at least 1 chars long", budget.increase(1, reason="").obj()),
        ("a negative increase", "should be greater than or equal to 0", budget.increase(-1).obj()),
        ("an unknown idle cost", 'Unsupported value: "Shared"', budget.spec(idleCost="Shared").obj()),
        ("a budget of a model with a space", "should match '^[A-Za-z0-9]", budget.for_models("chat 8b").obj()),
        ("a negative amount", "should be greater than or equal to 0", budget.limit(-1).obj()),
        ("an amount of 13 digits", "should be less than or equal to 999999999999", budget.limit(10**12).obj()),
    ):
        yield Misuse(title, "schema", words, obj)


def server_misuses() -> Iterator[Misuse]:
    """What only the server checks: unique keys and unknown fields."""
    pool, policy, budget = make_pool("chat"), make_policy("chat"), make_budget("monthly")
    for title, words, obj in (
        ("a variant twice", "Duplicate value", pool.spec(variants=[{"name": "a"}, {"name": "a"}]).obj()),
        (
            "an adapter twice",
            "Duplicate value",
            pool.model(lora={"adapters": [{"name": "sql", "uri": f"hf://acme/{n}"} for n in "ab"]}).obj(),
        ),
        ("a model name twice", "Duplicate value", policy.models("chat", "chat").obj()),
        ("a trouble twice", "Duplicate value", _falling(when=["Saturated", "Saturated"])),
        (
            "a fallback outside the cluster",
            'unknown field "spec.routes[0].fallbacks[0].provider"',
            _falling(provider={"url": "https://api.example.com/v1"}),
        ),
        ("an alert twice", "Duplicate value", budget.alert(80).alert(80).obj()),
        ("a budget's model twice", "Duplicate value", budget.for_models("chat", "chat").obj()),
        ("an increase until soon", "must be of type date-time", budget.increase(1, until="soon").obj()),
        (
            "a budget of providers",
            'unknown field "spec.appliesTo.backends"',
            budget.spec(appliesTo={"backends": ["Provider"]}).obj(),
        ),
        ("a misspelt field", 'unknown field "spec.engine.maxTokens"', pool.engine(maxTokens=1).obj()),
    ):
        yield Misuse(title, "server", words, obj)


def _falling(count: int = 1, **fields: Any) -> dict[str, Any]:
    """A policy whose only route has fallbacks with these fields; None takes a field away."""
    whole = {"when": ["Unavailable"], "poolRef": {"name": "next"}} | fields
    fallback = {name: value for name, value in whole.items() if value is not None}
    route = {"name": "all", "poolRefs": [{"name": "chat"}], "fallbacks": [fallback] * count}
    return make_policy("chat").spec(routes=[route]).obj()


def _acting(*percents: int) -> BudgetBuilder:
    """A budget with an alert at each of these percents."""
    budget = make_budget("monthly")
    for percent in percents:
        budget = budget.alert(percent)
    return budget


def _limit(amount: float) -> dict[str, Any]:
    return {"amount": amount, "unit": "USD", "per": "Namespace", "period": "Month"}
