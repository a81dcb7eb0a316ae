"""The words and headers with which budgets, pools and engines say no. Pure."""

from typing import Final

from fairlead_router.answers import (
    NO_RETRY,
    Headers,
    Refusal,
    amount,
    bad_request,
    instant,
    limit_text,
    unavailable,
)
from fairlead_router.budget import Holding, Shortage
from fairlead_router.contract import RouteConfig
from fairlead_router.policy import Caller, Labels

_DAY_MS: Final = 86_400_000
_LONGEST_DAY_MS: Final = 25 * 3_600_000


def unauthorized() -> Refusal:
    """The 401."""
    return Refusal(
        401,
        "invalid_api_key",
        "No valid token came with this request. Send a ServiceAccount token with audience fairlead.dev as "
        "Authorization: Bearer.",
        "authentication_error",
        headers=NO_RETRY,
    )


def not_configured() -> Refusal:
    """The 503 of a router that does not know yet whom it may believe: another replica may know it already."""
    return unavailable(
        "not_configured",
        "This router has no configuration from the operator yet, so it cannot tell who calls. Try again in 2s.",
        2,
    )


def foreign_caller(namespace: str, pool: str) -> Refusal:
    """The 403 of a router that the ledger trusts with its own namespace only."""
    return Refusal(
        403,
        "model_not_allowed",
        f"Pool {pool} answers only callers of its own namespace here. Callers in {namespace} use the gateway.",
        "permission_error",
        headers=NO_RETRY,
    )


def body_too_large(bound: int, context: int) -> Refusal:
    """The 413; ``context`` is the largest of all pools in tokens, 0 while one is not known."""
    why = (
        f"As many hold any prompt of {context:,} tokens, the largest context here"
        if context
        else "No more is read until the context of every pool here is known"
    )
    return Refusal(
        413,
        "body_too_large",
        f"The body has more than {bound} bytes. {why}. Shorten the prompt, or name images and sound by URL.",
    )


def price_unknown(budget: str, pool: str) -> Refusal:
    """A USD budget cannot admit what has no price."""
    return unavailable(
        "price_unknown",
        f"Pool {pool} has no price, so budget {budget} (USD) cannot tell what this request costs. See condition "
        f"PriceKnown of ModelPool {pool}.",
    )


def not_only_text(budget: str) -> Refusal:
    """Images and sound have no bound on their tokens."""
    return bad_request(
        f"messages holds content that is not text; its tokens have no known bound, and budget {budget} admits only "
        "requests that have one. Send text parts only.",
        "messages",
        "request_exceeds_budget",
    )


def ledger_unreachable(budget: str) -> Refusal:
    """We cannot know whether the budget would admit it."""
    return unavailable(
        "ledger_unreachable",
        f"The ledger does not answer and this router holds too little of budget {budget}. Try again in 2s.",
        2,
    )


def journal_full(budget: str) -> Refusal:
    """What nobody could charge if this process were killed is not admitted."""
    return unavailable(
        "journal_full",
        f"This router's journal has no room left on its volume, so nothing is admitted that budget {budget} must "
        "account for. Try again in 2s; owners of the router can make room under FAIRLEAD_STATE_DIR.",
        2,
    )


def by_budget(shortage: Shortage, caller: Caller, labels: Labels, ledger_ms: int) -> Refusal:
    """What a shortage means for the client."""
    holding = shortage.purse.current
    if holding is None or shortage.lack in {"Unknown", "Recovering"}:
        return ledger_unreachable(shortage.purse.label)
    if shortage.lack == "TooLarge":
        return _too_large(shortage, holding, caller)
    if shortage.lack == "Exhausted":
        return _exhausted(shortage, holding, caller, labels, ledger_ms)
    if shortage.lack == "Paced":
        return _paced(shortage, holding, caller)
    return _busy(shortage)


def _own(shortage: Shortage, caller: Caller) -> bool:
    """A caller sees amounts of its own namespace's budgets only."""
    return shortage.purse.budget.namespace == caller.namespace


def _too_large(shortage: Shortage, holding: Holding, caller: Caller) -> Refusal:
    purse, unit = shortage.purse, shortage.purse.budget.unit
    whole = f", which is {limit_text(holding.limit, unit)} in all" if _own(shortage, caller) else ""
    return bad_request(
        f"This request can cost {amount(shortage.amount, unit)} {unit}, more than budget {purse.label} ever has"
        f"{whole}. Lower max_tokens or shorten the prompt.",
        "max_tokens",
        "request_exceeds_budget",
    )


def _exhausted(shortage: Shortage, holding: Holding, caller: Caller, labels: Labels, ledger_ms: int) -> Refusal:
    budget, label = shortage.purse.budget, shortage.purse.label
    opens = instant(holding.window.end)
    left = min(holding.remaining(), shortage.amount - 1)
    facts = [("budget", label), ("needed", amount(shortage.amount, budget.unit)), ("unit", budget.unit)]
    if _own(shortage, caller):
        facts.insert(2, ("missing", amount(shortage.amount - left, budget.unit)))
    facts.append(("opens", opens))
    retry = max(1, -(-(holding.window.end - ledger_ms) // 1000))
    headers: Headers = (("retry-after", str(retry)), *NO_RETRY)
    if budget.per == "Workflow":
        code, message = "workflow_cap", _workflow_words(shortage, holding, caller, labels)
    else:
        code, message = "budget_exhausted", _used_up_words(shortage, holding, left, caller)
    return Refusal(429, code, message, "insufficient_quota", headers=headers, facts=tuple(facts))


def _used_up_words(shortage: Shortage, holding: Holding, left: int, caller: Caller) -> str:
    budget, label = shortage.purse.budget, shortage.purse.label
    if not _own(shortage, caller):
        return (
            f"Budget {label} is used up. It opens again at {instant(holding.window.end)}. Owners of namespace "
            f"{budget.namespace} can raise it."
        )
    return (
        f"Budget {label} is used up: {amount(left, budget.unit)} of {limit_text(holding.limit, budget.unit)} left, "
        f"this request can cost {amount(shortage.amount, budget.unit)}. "
        f"It opens again at {instant(holding.window.end)}. "
        f"Owners of namespace {budget.namespace} can raise it."
    )


def _workflow_words(shortage: Shortage, holding: Holding, caller: Caller, labels: Labels) -> str:
    budget = shortage.purse.budget
    when = _period_words(holding)
    if not _own(shortage, caller):
        did = f"reached its limit {when}"
    elif budget.unit == "Requests":
        did = f"made {holding.limit - holding.remaining()} of {holding.limit} requests {when}"
    else:
        used = amount(holding.limit - holding.remaining(), budget.unit)
        did = f"used {used} of {limit_text(holding.limit, budget.unit)} {when}"
    return (
        f"Workflow {labels.workflow} {did} (budget {shortage.purse.label}). Is it a loop? It opens again at "
        f"{instant(holding.window.end)}; other workflows are not affected."
    )


def _period_words(holding: Holding) -> str:
    length = holding.window.end - holding.window.start
    if _DAY_MS - 3_600_000 <= length <= _LONGEST_DAY_MS:
        return "today"
    return f"since {instant(holding.window.start)}"


def _paced(shortage: Shortage, holding: Holding, caller: Caller) -> Refusal:
    unit = shortage.purse.budget.unit
    retry_ms = max(1, shortage.retry_after_ms)
    retry = -(-retry_ms // 1000)
    share = pace = ""
    if _own(shortage, caller):
        share = f"at {100 * holding.used // max(1, holding.limit)}% and is "
        pace = f" at {amount(holding.pace_per_hour, unit)} {unit} an hour" if holding.pace_per_hour else ""
        pace += f"; this request can cost {amount(shortage.amount, unit)} {unit}"
    return Refusal(
        429,
        "budget_pacing",
        f"Budget {shortage.purse.label} is {share}spread over the time until {instant(holding.window.end)}{pace}. "
        f"Try again in {retry}s. Priority Batch waits first.",
        "rate_limit_error",
        headers=(("retry-after", str(retry)), ("retry-after-ms", str(retry_ms)), ("x-should-retry", "true")),
        facts=(("budget", shortage.purse.label),),
    )


def _busy(shortage: Shortage) -> Refusal:
    retry = max(1, -(-shortage.retry_after_ms // 1000)) if shortage.retry_after_ms else 2
    return Refusal(
        429,
        "budget_exhausted",
        f"What is left of budget {shortage.purse.label} is reserved by requests that are running. Try again in "
        f"{retry}s.",
        "insufficient_quota",
        headers=(("retry-after", str(retry)), ("x-should-retry", "true")),
        facts=(("budget", shortage.purse.label),),
    )


def queue_full(pool: str, route: RouteConfig | None) -> Refusal:
    """No replica had room in time, or too many wait already."""
    waited = "too many requests wait for it" if route is None else f"none had room within {route.max_wait_ms / 1000:g}s"
    return Refusal(
        429,
        "queue_full",
        f"All replicas of pool {pool} are busy: {waited}. Try again in 2s.",
        "rate_limit_error",
        headers=(("retry-after", "2"), ("x-should-retry", "true")),
    )


def adapter_not_loaded(adapter: str, pool: str) -> Refusal:
    """No replica has the adapter that the route names."""
    return unavailable(
        "adapter_not_loaded",
        f"No replica of pool {pool} has adapter {adapter} loaded yet. Try again in 5s. If it stays so, owners of the "
        f"pool see the reason in status.adapters of ModelPool {pool}.",
        5,
    )


def pool_waking(model: str, waited_s: float, cold_start_s: int) -> Refusal:
    """The pool has no replica and none came in time."""
    retry = max(1, cold_start_s - int(waited_s))
    return unavailable(
        "pool_waking",
        f"Model {model} is starting from zero and is usually ready after {cold_start_s}s. This request waited "
        f"{waited_s:.0f}s. Try again in {retry}s.",
        retry,
    )


def pool_unpaid(model: str, pool: str) -> Refusal:
    """The pool has no replica, and may start none."""
    return Refusal(
        429,
        "pool_unpaid",
        f"Model {model} is at zero replicas, and the budgets that pay for its accelerators have no money for one now. "
        f"Its owners raise them or wait for their next window: see ScalingLimited of ModelPool {pool}.",
        "insufficient_quota",
        headers=(("retry-after", "60"), ("x-should-retry", "false")),
    )


def context_unknown(model: str) -> Refusal:
    """Right after a pool was made its context is not known, so nothing can be said to fit."""
    return unavailable("pool_waking", f"Model {model} has no replica that told its context length yet.", 10)


def upstream_error(pool: str, tries: int, reason: str) -> Refusal:
    """No replica answered."""
    return Refusal(
        502,
        "upstream_error",
        f"No replica of pool {pool} answered this request ({tries} tried; the last one {reason}). Nothing was charged.",
        "server_error",
    )
