"""What a budget shows, and which changes of it are told: once each, whoever leads."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead_operator.api.v1alpha1 import EventReason
from fairlead_operator.decide.actions import (
    Standing,
    above_limit,
    acted_percent,
    changes,
    increase_used,
    increase_writer,
    shown_action,
    standing,
)
from fairlead_operator.units import format_usd, usd_places
from fairlead_router.contract import SpendAnswer
from tests.builders.decisions import spend
from tests.builders.resources import make_budget

NOVEMBER = {"start": "2026-10-31T23:00:00Z", "end": "2026-11-30T23:00:00Z", "counted_from": "2026-10-31T23:00:00Z"}
DECEMBER = {"start": "2026-11-30T23:00:00Z", "end": "2026-12-31T23:00:00Z", "counted_from": "2026-11-30T23:00:00Z"}
ACTIONS = st.sampled_from(["None", "Alert", "Pace", "Deprioritize", "Downgrade", "RejectBatch", "Reject"])
AMOUNTS = st.integers(0, 10**6).map(lambda cents: f"{cents / 100:.2f}")
WINDOWS = st.sampled_from([NOVEMBER, DECEMBER, {**NOVEMBER, "counted_from": "2026-11-20T00:00:00Z"}])
STANDINGS = st.builds(
    lambda window, **fields: Standing(**fields, **window),
    window=WINDOWS,
    action=ACTIONS,
    at_percent=st.integers(0, 99),
    limit=AMOUNTS,
    increase=AMOUNTS,
    spent=AMOUNTS,
    used_percent=st.integers(0, 100),
    fullest=st.sampled_from(["", "support"]),
)


def stood(**fields: Any) -> Standing:
    return Standing(**{"limit": "2300.00", "spent": "1942.20", **NOVEMBER, **fields})


def acting(action: str, *active: str) -> SpendAnswer:
    return spend(action=action, active=tuple(active))


@pytest.mark.parametrize(
    ("action", "active", "shown"),
    [
        ("None", (), "None"),
        ("Alert", ("Alert",), "Alert"),
        ("Alert", ("Pace", "Alert"), "Pace"),
        ("Deprioritize", ("Downgrade", "Deprioritize"), "Downgrade"),
        ("Downgrade", ("RejectBatch", "Downgrade"), "RejectBatch"),
        ("Reject", ("RejectBatch",), "Reject"),
        ("Reject", (), "Reject"),
        ("Alert", (), "None"),
    ],
)
def test_the_strongest_action_in_force_is_shown_and_refusal_above_all(
    action: str, active: tuple[str, ...], shown: str
) -> None:
    assert shown_action(acting(action, *active)) == shown


@pytest.mark.parametrize(("active", "percent"), [(0, None), (1, 50), (2, 80), (3, 80), (4, 95), (5, 95)])
def test_actions_are_in_force_from_the_lowest_on(active: int, percent: int | None) -> None:
    written = make_budget("b").alert(80).alert(50).action("Pace", 80).action("Downgrade", 95).parsed().spec.actions
    assert acted_percent(acting("None", *["Alert"] * active), written) == percent


def test_nothing_differs_nothing_is_told() -> None:
    assert changes(stood(), stood(spent="1942.30", used_percent=84)) == ()


@given(STANDINGS)
def test_what_stays_is_never_told(one: Standing) -> None:
    assert changes(one, one) == ()


@given(STANDINGS, STANDINGS)
def test_a_change_is_told_once_and_then_never_again(before: Standing, now: Standing) -> None:
    told = changes(before, now)
    assert len(set(told)) == len(told)
    assert changes(now, now) == ()
    assert (EventReason.BUDGET_ACTION in told) == (before.action != now.action or before.at_percent < now.at_percent)


@given(STANDINGS, st.lists(st.integers(0, 10**6), max_size=8))
def test_figures_that_move_are_no_news(one: Standing, spendings: list[int]) -> None:
    moved = [
        Standing(**{**_fields(one), "spent": f"{cents / 100:.2f}", "used_percent": cents % 101}) for cents in spendings
    ]
    assert [changes(one, after) for after in moved] == [()] * len(moved)


def _fields(one: Standing) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def test_an_action_that_begins_is_told_also_below_a_stronger_one() -> None:
    paced = stood(action="Pace", at_percent=85)
    assert changes(stood(action="Alert", at_percent=70), paced) == (EventReason.BUDGET_ACTION,)
    assert changes(paced, stood(action="Pace", at_percent=90)) == (EventReason.BUDGET_ACTION,)
    assert changes(stood(action="Pace", at_percent=90), paced) == ()


def test_the_next_window_is_no_restart_and_ends_the_action() -> None:
    told = changes(stood(action="Reject", at_percent=85), stood(spent="0.00", **DECEMBER))
    assert told == (EventReason.BUDGET_ACTION,)


def test_other_windows_or_another_count_of_the_same_one_are_a_restart() -> None:
    days = {"start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z", "counted_from": "2026-11-20T11:00:00Z"}
    assert changes(stood(), stood(**days)) == (EventReason.COUNTING_RESTARTED,)
    assert changes(stood(**days), stood()) == (EventReason.COUNTING_RESTARTED,)
    assert changes(stood(), stood(counted_from="2026-11-20T11:00:00Z")) == (EventReason.COUNTING_RESTARTED,)


def test_a_new_object_tells_what_is_in_force_but_not_its_own_limit() -> None:
    assert changes(Standing(), stood()) == ()
    assert changes(Standing(), stood(action="Alert")) == (EventReason.BUDGET_ACTION,)
    assert changes(Standing(), stood(increase="500.00")) == (EventReason.LIMIT_RAISED,)


def test_an_object_whose_figures_are_gone_tells_nothing_of_them() -> None:
    assert changes(stood(action="Reject", increase="1.00"), Standing()) == ()


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({}, {"limit": "2800.00", "increase": "500.00"}, ["LimitRaised"]),
        ({"limit": "2800.00", "increase": "500.00"}, {}, ["LimitRestored"]),
        ({"limit": "2800.00", "increase": "500.00"}, {"limit": "3300.00", "increase": "1000.00"}, ["LimitRaised"]),
        ({"limit": "2800.00", "increase": "500.00"}, {"limit": "2400.00", "increase": "100.00"}, ["LimitChanged"]),
        ({}, {"limit": "1000.00"}, ["LimitChanged"]),
        ({}, {"limit": "1500.00", "increase": "500.00"}, ["LimitChanged", "LimitRaised"]),
        ({"limit": "2800.00", "increase": "500.00"}, {"limit": "2800.00"}, ["LimitChanged", "LimitRestored"]),
    ],
)
def test_limits_and_increases_are_told_apart(before: dict[str, str], now: dict[str, str], told: list[str]) -> None:
    assert [str(reason) for reason in changes(stood(**before), stood(**now))] == told


@given(st.integers(1, 10**14), st.integers(1, 10**13))
@example(705_000_001, 5_000)
def test_an_increase_is_no_other_limit_however_both_are_rounded(limit: int, extra: int) -> None:
    plain, summed = usd_places(limit * 1000), usd_places((limit + extra) * 1000)
    before = stood(limit=format_usd(limit * 1000, plain))
    now = stood(limit=format_usd((limit + extra) * 1000, summed), increase=format_usd(extra * 1000, summed))
    assert EventReason.LIMIT_CHANGED not in changes(before, now)
    assert EventReason.LIMIT_CHANGED not in changes(now, before)


@pytest.mark.parametrize(("limit", "told"), [("0.000700", True), ("0.000616", False)])
def test_the_smallest_limits_are_told_apart(limit: str, told: bool) -> None:
    assert (EventReason.LIMIT_CHANGED in changes(stood(limit="0.000616"), stood(limit=limit))) == told


def test_whole_units_are_told_apart_also_under_an_increase() -> None:
    now = stood(limit="251", increase="50")
    assert changes(stood(limit="200"), now) == (EventReason.LIMIT_CHANGED, EventReason.LIMIT_RAISED)


@pytest.mark.parametrize(
    ("before", "now", "used"),
    [
        ({"spent": "2512.40"}, {"spent": "2512.40"}, "212.40"),
        ({"spent": "2500.00"}, {"spent": "2512.40"}, "212.40"),
        ({"spent": "1942.20"}, {"spent": "1942.20"}, "0"),
        ({"spent": "2800.00"}, {"spent": "2900.00"}, "500.00"),
        ({"spent": "2512.40"}, {"spent": "0.00", **DECEMBER}, "212.40"),
    ],
)
def test_what_an_increase_was_used_for_is_of_its_own_window(
    before: dict[str, str], now: dict[str, str], used: str
) -> None:
    raised = stood(limit="2800.00", increase="500.00", **before)
    assert str(increase_used(raised, stood(**now))) == used


def test_a_status_is_read_as_it_is_written() -> None:
    window = {"id": "2026-11", "start": "a", "end": "b", "countedFrom": "c"}
    status = {"activeAction": "Pace", "activeAtPercent": 85, "limit": "9.00", "increase": "1.00", "window": window}
    read = standing(status)
    assert (read.action, read.at_percent, str(read.base), read.window) == ("Pace", 85, "8.00", ("a", "b", "c"))
    assert standing({}) == Standing()


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.booleans())
def test_a_forecast_near_the_limit_does_not_flap(at_end: int, limit: int, was: bool) -> None:
    first = above_limit(at_end, limit, was_above=was)
    assert above_limit(at_end, limit, was_above=first) == first
    assert first == (at_end > limit) or limit * 98 <= at_end * 100 <= limit * 100


def test_who_wrote_the_increase_is_read_from_the_managed_fields() -> None:
    def entry(manager: str, time: str, *fields: str) -> dict[str, Any]:
        return {"manager": manager, "time": time, "fieldsV1": {"f:spec": {f"f:{name}": {} for name in fields}}}

    entries = [
        entry("argocd", "2026-11-01T00:00:00Z", "limit", "temporaryIncrease"),
        entry("kubectl-edit", "2026-11-20T00:00:00Z", "temporaryIncrease"),
        entry("helm", "2026-11-21T00:00:00Z", "limit"),
        {"manager": "fairlead-operator", "subresource": "status"},
    ]
    assert increase_writer({"metadata": {"managedFields": entries}}) == "kubectl-edit"
    assert increase_writer({"metadata": {}}) == ""


def test_the_wire_keeps_one_entry_for_each_action_in_force() -> None:
    sent = acting("Alert", "Alert", "Alert")
    assert msgspec.json.decode(msgspec.json.encode(sent), type=SpendAnswer).active == ("Alert", "Alert")
