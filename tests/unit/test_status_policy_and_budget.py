"""Statuses of RoutingPolicy and CostBudget."""

import json
from typing import Any

import msgspec
import pytest

from fairlead_operator.api.v1alpha1 import CostBudgetStatus, RoutingPolicyStatus
from fairlead_operator.decide.models import Callers, Conflict
from fairlead_operator.decide.problems import Problem
from fairlead_operator.render.router_config import PoolInput
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_operator.status.events import Event, events_of_costbudget, events_of_routingpolicy
from fairlead_operator.status.routingpolicy import PolicyView, routingpolicy_status
from tests.builders.decisions import NOW, USD, spend
from tests.builders.resources import make_budget, make_policy, make_pool
from tests.golden_files import assert_golden

CONFLICT = Conflict("chat", ("support",), "ai-platform/chat", "2026-09-07")


def policy(**fields: Any) -> PolicyView:
    usual: dict[str, Any] = {
        "policy": make_policy("chat").route("all", "chat-8b").parsed(),
        "callers": Callers(("ai-platform", "support")),
        "pools": {"chat-8b": PoolInput(make_pool("chat-8b").engine(maxContextTokens=8192).parsed())},
        "ready": {"chat-8b": 3},
        "namespaces_total": 9,
        "routers_total": 8,
        "routers_programmed": 8,
        "address": "http://fairlead-gateway.fairlead",
    }
    return PolicyView(**(usual | fields))


def budget(**fields: Any) -> BudgetView:
    usual: dict[str, Any] = {
        "budget": make_budget("support", "support").limit(2300).parsed(),
        "spend": spend(),
        "ledger_silent_s": 1,
        "routers_total": 8,
        "routers_enforcing": 8,
    }
    return BudgetView(**(usual | fields))


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"], found["message"]


def told(before: BudgetView, after: BudgetView, writer: str = "") -> tuple[Event, ...]:
    """The Events of what happened between two views."""
    old = costbudget_status(before, {}, NOW)
    return events_of_costbudget(old, costbudget_status(after, old, NOW), after, writer)


def policy_condition(view: PolicyView, kind: str) -> tuple[str, str, str]:
    return condition(routingpolicy_status(view, {}, NOW), kind)


def budget_condition(view: BudgetView, kind: str) -> tuple[str, str, str]:
    return condition(costbudget_status(view, {}, NOW), kind)


def test_a_policy_in_force_is_as_recorded_and_fits_the_schema() -> None:
    status = routingpolicy_status(policy(), {}, NOW)
    RoutingPolicyStatus.model_validate(status)
    assert_golden("status/routingpolicy.json", json.dumps(status, indent=2) + "\n")


def test_a_lost_name_is_told_with_its_winner() -> None:
    view = policy(callers=Callers(("ai-platform", "support"), (("support", "chat"),), (CONFLICT,)))
    text = (
        "Model chat is exported to namespace support by ai-platform/chat (2026-09-07, older). "
        "This policy gets no requests from there. Choose another name in spec.models."
    )
    assert policy_condition(view, "Accepted") == ("False", "ModelNameConflict", text)
    assert policy_condition(view, "Ready") == ("False", "ModelNameConflict", text)
    before, after = routingpolicy_status(policy(), {}, NOW), routingpolicy_status(view, {}, NOW)
    assert [event.reason for event in events_of_routingpolicy(before, after)] == ["ModelNameConflict"]


def test_a_pool_that_does_not_exist_is_named() -> None:
    assert policy_condition(policy(pools={}), "ResolvedRefs") == (
        "False",
        "PoolNotFound",
        (
            "Route all names pool chat-8b, and namespace ai-platform has no such ModelPool. The route goes without it. "
            "Create it, or correct poolRefs."
        ),
    )


def test_a_route_above_what_its_pool_holds_is_told() -> None:
    long = make_policy("chat").route("all", "chat-8b", maxContextTokens=131072).parsed()
    assert policy_condition(policy(policy=long), "ResolvedRefs") == (
        "False",
        "ContextTooLong",
        (
            "Route all takes 131072 tokens, pool chat-8b holds 8192. The route takes 8192. "
            "Lower its maxContextTokens, or raise the pool's."
        ),
    )


def test_a_context_that_no_engine_has_reported_is_unknown() -> None:
    view = policy(pools={"chat-8b": PoolInput(make_pool("chat-8b").parsed())})
    assert policy_condition(view, "ResolvedRefs")[:2] == ("Unknown", "ContextUnknown")
    assert policy_condition(view, "Ready")[:2] == ("Unknown", "ContextUnknown")
    assert "maxContextTokens" not in routingpolicy_status(view, {}, NOW)["routes"][0]


def with_fallback(**pools: PoolInput) -> PolicyView:
    falling = make_policy("chat").route("all", "chat-8b").fallback("all", "spare").parsed()
    return policy(policy=falling, pools={**policy().pools, **pools}, ready={"chat-8b": 3, "spare": 2})


def test_a_fallback_that_does_not_exist_is_named() -> None:
    assert policy_condition(with_fallback(), "ResolvedRefs") == (
        "False",
        "PoolNotFound",
        (
            "Route all falls back to pool spare, and namespace ai-platform has no such ModelPool. "
            "The route goes without it. Create it, or correct fallbacks."
        ),
    )


def test_a_fallback_below_what_its_route_takes_is_told() -> None:
    spare = PoolInput(make_pool("spare").engine(maxContextTokens=4096).parsed())
    view = with_fallback(spare=spare)
    assert policy_condition(view, "ResolvedRefs") == (
        "False",
        "ContextTooLong",
        (
            "Route all takes 8192 tokens, its fallback pool spare holds 4096. The route goes without it. "
            "Lower the route's maxContextTokens, or raise the pool's."
        ),
    )
    assert policy_condition(view, "Ready")[:2] == ("False", "ContextTooLong")


def test_a_fallback_of_unknown_context_is_left_out_and_told() -> None:
    unknown = with_fallback(spare=PoolInput(make_pool("spare").parsed()))
    assert policy_condition(unknown, "ResolvedRefs")[:2] == ("Unknown", "ContextUnknown")
    assert "goes without its fallback pool spare" in policy_condition(unknown, "ResolvedRefs")[2]
    reported = with_fallback(spare=PoolInput(make_pool("spare").parsed(), reported_context=8192))
    assert policy_condition(reported, "ResolvedRefs") == ("True", "Resolved", "Pools chat-8b, spare found.")


def test_a_routes_replicas_and_context_are_those_of_its_own_pools() -> None:
    spare = PoolInput(make_pool("spare").engine(maxContextTokens=131072).parsed())
    status = routingpolicy_status(with_fallback(spare=spare), {}, NOW)
    assert status["routes"] == [{"name": "all", "maxContextTokens": 8192, "readyReplicas": 3}]


@pytest.mark.parametrize(("total", "have", "reason"), [(8, 6, "RoutersLagging"), (0, 0, "NoRouters")])
def test_a_policy_is_programmed_when_all_routers_have_it(total: int, have: int, reason: str) -> None:
    view = policy(routers_total=total, routers_programmed=have)
    assert policy_condition(view, "Programmed")[:2] == ("False", reason)


def test_a_budget_in_force_is_as_recorded_and_fits_the_schema() -> None:
    status = costbudget_status(budget(), {}, NOW)
    CostBudgetStatus.model_validate(status)
    assert_golden("status/costbudget.json", json.dumps(status, indent=2) + "\n")


def test_a_budget_that_is_used_up_says_until_when() -> None:
    view = budget(spend=spend(2300 * USD, action="Reject", keys_limited=1))
    assert budget_condition(view, "WithinBudget") == (
        "False",
        "LimitReached",
        (
            "2300.50 of 2300.00 USD in 2026-11 (support). Requests that do not fit are refused until "
            "2026-11-21T11:00:00Z."
        ),
    )
    (event,) = told(budget(), view)
    assert (event.type, event.reason) == ("Warning", "BudgetAction")
    assert event.message == (
        "None to Reject: 2300.50 of 2300 USD (100%); requests that do not fit are refused until 2026-11-21T11:00Z"
    )


def test_several_full_accounts_are_counted() -> None:
    view = budget(spend=spend(2300 * USD, action="Reject", keys_limited=3, keys_total=37))
    assert budget_condition(view, "WithinBudget")[2].startswith(
        "3 of 37 accounts used up their limit; fullest: 2300.50"
    )


def test_an_alert_is_an_event_of_its_own() -> None:
    (event,) = told(budget(), budget(spend=spend(1610 * USD - USD // 2, active=("Alert",))))
    assert (event.type, event.message) == ("Normal", "None to Alert: 1610.00 of 2300 USD (70%)")


def test_audit_is_ready_and_not_enforced() -> None:
    view = budget(budget=make_budget("support", "support").audit().parsed())
    assert budget_condition(view, "Enforced")[:2] == ("False", "Audit")
    assert budget_condition(view, "Ready")[:2] == ("True", "Ready")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"routers_enforcing": 7}, "RoutersLagging"),
        ({"ledger_silent_s": 90}, "LedgerUnreachable"),
        ({"routers_total": 0, "routers_enforcing": 0}, "NoRouters"),
    ],
)
def test_a_budget_is_enforced_only_when_all_confirm(fields: dict[str, int], reason: str) -> None:
    view = budget(**fields)
    assert budget_condition(view, "Enforced")[:2] == ("False", reason)
    assert budget_condition(view, "Ready")[:2] == ("False", reason)


def test_a_silent_ledger_keeps_the_last_figures_and_is_told_once() -> None:
    before = costbudget_status(budget(), {}, NOW)
    after = costbudget_status(budget(spend=None, ledger_silent_s=90), before, NOW)
    assert after["spent"] == before["spent"]
    assert condition(after, "WithinBudget")[:2] == ("Unknown", "LedgerUnreachable")
    silent = budget(spend=None, ledger_silent_s=90)
    assert [event.reason for event in events_of_costbudget(before, after, silent)] == ["LedgerUnreachable"]
    assert events_of_costbudget(after, after, silent) == ()


def test_pools_without_a_price_are_named_to_usd_budgets_only() -> None:
    pools = tuple(f"a/p{number}" for number in range(5))
    assert (
        "No price for a/p0, a/p1, a/p2 and 2 more:"
        in budget_condition(budget(price_unknown_pools=pools), "PriceKnown")[2]
    )
    requests = make_budget("loop", "support").limit(200, unit="Requests").parsed()
    assert budget_condition(budget(budget=requests, price_unknown_pools=pools), "PriceKnown")[0] == "True"


def test_a_budget_that_is_not_counted_says_so_and_shows_no_figures() -> None:
    before = costbudget_status(budget(), {}, NOW)
    problem = Problem("LimitTooLarge", "spec.limit.amount is 9 USD.", "spec.limit.amount")
    view = budget(spend=None, ledger_silent_s=0, problems=(problem,))
    assert budget_condition(view, "Ready") == ("False", "LimitTooLarge", "spec.limit.amount is 9 USD.")
    assert budget_condition(view, "Enforced")[:2] == ("False", "NotAccepted")
    assert budget_condition(view, "WithinBudget")[:2] == ("Unknown", "NotAccepted")
    after = costbudget_status(view, before, NOW)
    assert "spent" not in after
    assert [event.reason for event in events_of_costbudget(before, after, view)] == ["LimitTooLarge"]


def test_while_requests_are_refused_what_routers_hold_counts_as_used() -> None:
    key = msgspec.structs.replace(spend().keys[0], charged=58 * USD, leased=42 * USD, reserved=0, unreconciled=0)
    for action, percent in (("None", 58), ("Reject", 100)):
        status = costbudget_status(budget(spend=spend(limit=100 * USD, action=action, keys=(key,))), {}, NOW)
        assert (status["spent"], status["usedPercent"], status["activeAction"]) == ("58.00", percent, action)


def test_whole_units_print_without_places() -> None:
    loop = spend(0, unit="Requests", per="Workflow", limit=200, keys=(), reserved=0, unreconciled=0)
    status = costbudget_status(budget(spend=loop), {}, NOW)
    assert (status["limit"], status["spent"], status["remaining"]) == ("200", "0", "200")
