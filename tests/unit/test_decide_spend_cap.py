"""What budgets leave for replicas."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.spend_cap import (
    LAG_MS,
    Left,
    Upkeep,
    accounts_left,
    pays_a_replica,
    spend_cap,
    upkeep_of,
)
from fairlead_operator.decide.variants import VariantOption
from fairlead_router.contract import KeySpend, LedgerBudget, SpendAnswer
from tests.builders.decisions import NOW, USD, pod, spend

POOL = "support/chat"
HOUR = 3_600_000


def budget(**fields: Any) -> LedgerBudget:
    usual: dict[str, Any] = {
        "namespace": "support",
        "name": "support",
        "uid": "u",
        "unit": "USD",
        "per": "Namespace",
        "period": "Month",
        "time_zone": "UTC",
        "limit": 2300 * USD,
        "namespaces": ("support",),
        "idle_namespaces": ("support",),
    }
    return LedgerBudget(**(usual | fields))


def left(answer: SpendAnswer, costs: dict[str, int] | None = None, **fields: Any) -> tuple[Left, ...]:
    return accounts_left(POOL, [budget(**fields)], {"support/support": answer}, costs or {}, NOW)


def cap(answer: SpendAnswer, costs: dict[str, int] | None = None, **fields: Any) -> int | None:
    return spend_cap(left(answer, costs, **fields))


def upkeep(**fields: int) -> Upkeep:
    usual = {"wanted": 3 * USD, "leaving": 0, "first": 3 * USD, "cold_start_ms": 120_000, "drain_ms": 600_000}
    return Upkeep(**(usual | fields))


def test_a_budget_that_counts_no_idle_cost_bounds_no_replicas() -> None:
    assert cap(spend(), idle_namespaces=()) is None


def test_a_budget_that_only_audits_bounds_nothing() -> None:
    assert cap(spend(), enforcement="Audit") is None


def test_a_budget_that_the_ledger_has_not_told_of_yet_bounds_nothing() -> None:
    assert spend_cap(accounts_left(POOL, [budget()], {}, {}, NOW)) is None


def test_what_is_left_must_last_an_hour() -> None:
    rest = 2300 * USD - 2250 * USD - 2 * USD - USD // 2
    assert cap(spend(charged=2250 * USD)) == rest


def test_under_pace_what_is_left_must_last_until_the_window_ends() -> None:
    rest = 2300 * USD - 2250 * USD - 2 * USD - USD // 2
    assert cap(spend(charged=2250 * USD, active=("Alert", "Pace"))) == rest // 24


def test_idle_cost_of_before_is_spent() -> None:
    before = cap(spend())
    assert before is not None
    assert cap(spend(idle=100 * USD)) == before - 100 * USD


def test_other_pools_of_the_account_are_paid_first() -> None:
    costs = {"support/other": 7 * USD, "search/else": 50 * USD, POOL: 900 * USD}
    before = cap(spend())
    assert before is not None
    assert cap(spend(), costs) == before - 7 * USD
    total = {"per": "Total", "idle_namespaces": ("support", "search")}
    assert cap(spend(), costs, **total) == before - 57 * USD


def test_the_account_of_the_pools_own_namespace_counts_and_not_the_fullest() -> None:
    def key(namespace: str, charged: int) -> KeySpend:
        return KeySpend(
            namespace=namespace, key="", charged=charged, leased=0, reserved=0, unreconciled=0, unbacked=0,
            counted_from=0,
        )  # fmt: skip

    keys = (key("search", 2299 * USD), key("support", 300 * USD))
    assert cap(spend(keys=keys), idle_namespaces=("support", "search")) == 2000 * USD
    assert cap(spend(keys=keys[:1]), idle_namespaces=("support", "search")) is None


def test_a_budget_that_is_used_up_leaves_nothing() -> None:
    assert cap(spend(charged=2301 * USD)) == 0


@given(st.integers(0, 3000), st.integers(0, 500), st.integers(1, 40 * 24))
def test_paced_replicas_never_spend_more_than_is_left(charged: int, idle: int, hours: int) -> None:
    answer = spend(charged=charged * USD, idle=idle * USD, active=("Pace",))
    window = type(answer.window)(id=3, start=NOW - HOUR, end=NOW + hours * HOUR)
    answer = SpendAnswer(**{name: getattr(answer, name) for name in answer.__struct_fields__} | {"window": window})
    found = cap(answer)
    rest = max(0, (2300 - charged - idle) * USD - 2 * USD - USD // 2)
    assert found is not None
    assert found * hours <= rest


# --- the worst case of what runs ---


def account(amount: int, **fields: Any) -> Left:
    return Left(**({"amount": amount, "others": 0, "window_ms": 24 * HOUR, "paced": False} | fields))


def test_what_runs_is_paid_until_the_decision_is_made_and_the_last_request_has_drained() -> None:
    reserve = 3 * USD * (LAG_MS + 600_000) // HOUR
    assert pays_a_replica([account(reserve + 1)], upkeep())
    assert not pays_a_replica([account(reserve - 1)], upkeep())
    assert not pays_a_replica([account(reserve + 1)], upkeep(leaving=3 * USD))
    assert not pays_a_replica([account(reserve + 1), account(0)], upkeep())


def test_a_start_must_be_worth_it() -> None:
    enough = 3 * USD * (LAG_MS + 600_000 + 2 * 120_000) // HOUR
    assert pays_a_replica([account(enough + 1)], upkeep(wanted=0))
    assert not pays_a_replica([account(enough - 1)], upkeep(wanted=0))
    assert not pays_a_replica([account(enough + 1)], upkeep(wanted=0, leaving=USD))


def test_other_pools_of_the_account_are_paid_for_as_long() -> None:
    reserve = 5 * USD * (LAG_MS + 600_000) // HOUR
    assert pays_a_replica([account(reserve + 1, others=2 * USD)], upkeep())
    assert not pays_a_replica([account(reserve - 1, others=2 * USD)], upkeep())


def test_nothing_is_kept_for_the_time_after_the_window() -> None:
    assert pays_a_replica([account(USD // 10 + 1, window_ms=120_000)], upkeep())


def test_where_no_budget_bounds_or_nothing_has_a_price_all_is_paid() -> None:
    assert pays_a_replica([], upkeep())
    assert pays_a_replica([account(-1)], upkeep(wanted=0, first=0))


def test_a_pool_pays_for_replicas_that_are_wanted_and_for_those_that_leave() -> None:
    options = (VariantOption("h100", 2, price=3 * USD), VariantOption("l40s", price=USD), VariantOption("odd", 1))
    pods = [replace(pod("a"), variant="h100", terminating=True), replace(pod("b"), variant="h100"), pod("c")]
    assert upkeep_of(options, pods, 120_000, 600_000) == upkeep(wanted=6 * USD, leaving=3 * USD, first=USD)
    assert upkeep_of(options[2:], [], 120_000, 600_000) == upkeep(wanted=0, first=0)


@given(
    st.integers(0, 100), st.integers(0, 8), st.integers(0, 20_000), st.integers(0, 600_000), st.integers(60_000, HOUR)
)
def test_a_pool_without_a_minimum_never_spends_more_than_is_left(
    cents: int, replicas: int, lag_ms: int, drain_ms: int, window_ms: int
) -> None:
    amount, price = cents * USD // 100, 3 * USD
    running_now = upkeep(wanted=replicas * price, drain_ms=600_000)
    kept = bool(replicas) and pays_a_replica([account(amount, window_ms=window_ms)], running_now)
    until_gone_ms = min(window_ms, lag_ms + drain_ms)
    assert not kept or replicas * price * until_gone_ms <= amount * HOUR
