"""What budgets leave for replicas."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.spend_cap import spend_cap
from fairlead_router.contract import KeySpend, LedgerBudget, SpendAnswer
from tests.builders.decisions import NOW, USD, spend

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


def cap(answer: SpendAnswer, costs: dict[str, int] | None = None, **fields: Any) -> int | None:
    return spend_cap(POOL, [budget(**fields)], {"support/support": answer}, costs or {}, NOW)


def test_a_budget_that_counts_no_idle_cost_bounds_no_replicas() -> None:
    assert cap(spend(), idle_namespaces=()) is None


def test_a_budget_that_only_audits_bounds_nothing() -> None:
    assert cap(spend(), enforcement="Audit") is None


def test_a_budget_that_the_ledger_has_not_told_of_yet_bounds_nothing() -> None:
    assert spend_cap(POOL, [budget()], {}, {}, NOW) is None


def test_what_is_left_must_last_an_hour() -> None:
    left = 2300 * USD - 2250 * USD - 2 * USD - USD // 2
    assert cap(spend(charged=2250 * USD)) == left


def test_under_pace_what_is_left_must_last_until_the_window_ends() -> None:
    left = 2300 * USD - 2250 * USD - 2 * USD - USD // 2
    assert cap(spend(charged=2250 * USD, active=("Alert", "Pace"))) == left // 24


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
    left = max(0, (2300 - charged - idle) * USD - 2 * USD - USD // 2)
    assert found is not None
    assert found * hours <= left
