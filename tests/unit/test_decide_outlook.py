"""Whose usage a budget's fullest account is, and what follows from it for the window's end."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.forecast import HISTORY, HOUR_MS
from fairlead_operator.decide.outlook import MAX_ROWS, MOST, Scope, burn_per_hour, outlook, points_of, scope_of
from fairlead_router.contract import KeySpend, LedgerBudget, SpendAnswer, UsageRow
from tests.builders.decisions import NOW, USD, spend

EVERYWHERE = ("ai-platform", "search", "support")
HOUR = NOW - NOW % HOUR_MS


def budget(per: str = "Namespace", *namespaces: str) -> LedgerBudget:
    fields: dict[str, Any] = {"period": "Month", "time_zone": "UTC", "limit": 100, "unit": "USD", "uid": "u"}
    return LedgerBudget(namespace="support", name="support", per=per, namespaces=namespaces, **fields)  # type: ignore[arg-type]


def account(namespace: str = "support", key: str = "", charged: int = 0) -> SpendAnswer:
    only: KeySpend = msgspec.structs.replace(
        spend().keys[0], namespace=namespace, key=key, charged=charged, unreconciled=0
    )
    return spend(keys=(only,))


def row(group: tuple[str, ...], **sums: int) -> UsageRow:
    usual = dict.fromkeys(("requests", "prompt", "cached", "output", "nano_usd", "saved"), 0)
    quantiles = dict.fromkeys(("cost_p50_nano", "cost_p95_nano", "cost_p99_nano"), 0)
    return UsageRow(group=group, **(usual | quantiles | sums))


def test_a_budget_of_its_own_namespace_asks_for_that_namespace() -> None:
    assert scope_of(budget(), account(), (), EVERYWHERE) == Scope((("namespace", "support"),))
    assert scope_of(budget(), spend(keys=()), (), EVERYWHERE) == Scope((("namespace", "support"),))


def test_a_ceiling_for_each_namespace_is_about_its_fullest() -> None:
    ceiling = budget("Namespace", "search", "support")
    assert scope_of(ceiling, account("search"), (), EVERYWHERE) == Scope((("namespace", "search"),))
    assert scope_of(ceiling, spend(keys=()), (), EVERYWHERE) is None


@pytest.mark.parametrize(("per", "name"), [("Caller", "caller"), ("Feature", "feature")])
def test_a_budget_for_each_caller_or_feature_is_about_the_fullest_of_them(per: str, name: str) -> None:
    scope = scope_of(budget(per), account("support", "sa:web"), (), EVERYWHERE)
    assert scope == Scope(((name, "sa:web"), ("namespace", "support")))
    assert scope_of(budget(per), spend(keys=()), (), EVERYWHERE) is None


def test_usage_is_not_kept_by_workflow() -> None:
    assert scope_of(budget("Workflow"), account("support", "wf-1"), (), EVERYWHERE) is None


def test_a_total_over_all_namespaces_needs_no_filter_and_one_over_some_is_picked_from_the_answer() -> None:
    everything = scope_of(budget("Total", *EVERYWHERE), account(""), (), EVERYWHERE)
    assert everything == Scope()
    assert everything.by == "time"
    some = scope_of(budget("Total", "search", "support"), account(""), (), EVERYWHERE)
    assert some == Scope((), frozenset({"search", "support"}))
    assert some.by == "time,namespace"


def test_one_model_is_a_filter_and_several_are_picked() -> None:
    one = scope_of(budget(), account(), ("chat",), EVERYWHERE)
    assert one == Scope((("namespace", "support"), ("model", "chat")))
    two = scope_of(budget(), account(), ("chat", "extract"), EVERYWHERE)
    assert two is not None
    assert (two.by, two.models) == ("time,model", frozenset({"chat", "extract"}))


@given(st.integers(1, 800), st.integers(0, 64))
def test_an_answer_never_holds_more_rows_than_the_ledger_gives(namespaces: int, models: int) -> None:
    everywhere = [f"n{number}" for number in range(namespaces)]
    names = [f"m{number}" for number in range(models)]
    scope = scope_of(budget("Total", "n0", "n1"), account(""), names, everywhere)
    if scope is None:
        return
    assert 24 <= scope.hours <= HISTORY
    rows = scope.hours * (namespaces if scope.namespaces else 1) * (models + 1 if scope.models else 1)
    assert rows <= MAX_ROWS


@pytest.mark.parametrize(("unit", "amount"), [("USD", 7), ("Tokens", 15), ("Requests", 2)])
def test_hours_are_summed_in_the_unit_of_the_budget(unit: str, amount: int) -> None:
    sums = {"requests": 1, "prompt": 4, "cached": 3, "output": 1}
    rows = [row((str(HOUR),), nano_usd=3, **sums), row((str(HOUR),), nano_usd=4, **(sums | {"output": 6}))]
    assert points_of(rows, Scope(), unit) == {HOUR: amount}


def test_rows_of_others_and_rows_without_a_time_are_left_out() -> None:
    scope = Scope((), frozenset({"support"}), frozenset({"chat"}))
    rows = [
        row((str(HOUR), "support", "chat"), nano_usd=1),
        row((str(HOUR), "search", "chat"), nano_usd=2),
        row((str(HOUR), "support", "extract"), nano_usd=4),
        row(("~other", "~other", "~other"), nano_usd=8),
    ]
    assert points_of(rows, scope, "USD") == {HOUR: 1}


@pytest.mark.parametrize(("into", "burn"), [(0, 600), (30, 300 + 100), (59, 10 + 100)])
def test_the_burn_is_of_the_last_sixty_minutes(into: int, burn: int) -> None:
    points = {HOUR - 2 * HOUR_MS: 9999, HOUR - HOUR_MS: 600, HOUR: 0 if into == 0 else 100}
    assert burn_per_hour(points, HOUR + into * 60_000) == burn
    assert burn_per_hour({}, NOW) == 0


def test_without_a_history_spending_goes_on_as_it_did() -> None:
    ahead = outlook({}, account(charged=100 * USD), 0, NOW)
    assert (ahead.at_end, ahead.window_end) == (200 * USD, spend().window.end)


def test_a_windows_first_moment_does_not_forecast_more_than_a_status_can_hold() -> None:
    start = msgspec.structs.replace(account(charged=10**15), counted_from=NOW - 1)
    ahead = outlook({}, start, 0, NOW)
    assert (ahead.low, ahead.at_end, ahead.high) == (MOST, MOST, MOST)
    assert re.fullmatch(r"[0-9]{1,18}", str(MOST))


def test_idle_goes_on_as_it_did() -> None:
    plain, counted = (outlook({}, account(charged=100 * USD), idle, NOW) for idle in (0, 10 * USD))
    assert [getattr(counted, name) - getattr(plain, name) for name in ("low", "at_end", "high")] == [20 * USD] * 3


def test_idle_of_a_budget_that_is_new_in_its_window_goes_on_as_it_did_since_the_window_began() -> None:
    new = msgspec.structs.replace(account(), counted_from=NOW - 60_000)
    plain, counted = (outlook({}, new, idle, NOW) for idle in (0, 10 * USD))
    assert counted.at_end - plain.at_end == 20 * USD


@given(
    st.dictionaries(st.integers(0, 700), st.integers(0, 10**12), max_size=60),
    st.integers(0, 10**15),
    st.integers(0, 10**12),
)
def test_a_window_never_ends_with_less_than_is_spent(hours: dict[int, int], charged: int, idle: int) -> None:
    points = {HOUR - ago * HOUR_MS: amount for ago, amount in hours.items()}
    ahead = outlook(points, account(charged=charged), idle, NOW)
    assert charged + idle <= ahead.low <= ahead.at_end <= ahead.high
    assert 0 <= ahead.burn_per_hour <= sum(points.values())
