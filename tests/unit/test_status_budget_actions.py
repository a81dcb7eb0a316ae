"""A budget's actions, forecast, increase and confirmation, in the words that people read."""

import json
from typing import Any

import msgspec
import pytest

from fairlead_operator.api.v1alpha1 import CostBudgetStatus
from fairlead_operator.decide.outlook import Outlook
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_operator.status.events import Event, events_of_costbudget, minute_text, whole
from fairlead_router.contract import SpendAnswer, Window
from tests.builders.decisions import NOW, USD, spend
from tests.builders.resources import BudgetBuilder, make_budget
from tests.golden_files import assert_golden

SUPPORT = make_budget("support", "support").limit(2300).alert(70).action("Pace", 85)
DAY_MS = 86_400_000
END = spend().window.end


def ahead(at_end: int, **fields: Any) -> Outlook:
    usual = {"burn_per_hour": 9_610_000_000, "low": at_end - USD, "high": at_end + USD, "window_end": END}
    return Outlook(**({"at_end": at_end, "made_ms": NOW} | usual | fields))


def view(sent: SpendAnswer | None = None, written: BudgetBuilder = SUPPORT, **fields: Any) -> BudgetView:
    usual: dict[str, Any] = {"ledger_silent_s": 1, "routers_total": 8, "routers_enforcing": 8}
    return BudgetView(**({"budget": written.parsed(), "spend": sent or stood(), **usual} | fields))


def stood(charged: int = 1000 * USD, action: str = "None", *active: str, **fields: Any) -> SpendAnswer:
    """What the ledger says, without anything unreconciled."""
    sent = spend(charged, action=action, active=tuple(active), unreconciled=0, **fields)
    return msgspec.structs.replace(sent, keys=(msgspec.structs.replace(sent.keys[0], unreconciled=0),))


def told(before: BudgetView, after: BudgetView, writer: str = "") -> list[Event]:
    old = costbudget_status(before, {}, NOW)
    return list(events_of_costbudget(old, costbudget_status(after, old, NOW), after, writer))


def messages(before: BudgetView, after: BudgetView, writer: str = "") -> list[tuple[str, str, str]]:
    return [(one.type, one.reason, one.message) for one in told(before, after, writer)]


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"], found["message"]


def test_a_paced_budget_with_idle_and_increase_is_as_recorded_and_fits_the_schema() -> None:
    sent = stood(1955 * USD, "Pace", "Alert", "Pace", extra=500 * USD, idle=120 * USD, pace_per_hour=1_380_000_000)
    status = costbudget_status(view(sent, SUPPORT.with_idle().increase(500), outlook=ahead(3326 * USD)), {}, NOW)
    CostBudgetStatus.model_validate(status)
    assert_golden("status/costbudget-paced.json", json.dumps(status, indent=2) + "\n")


def test_alert_then_pace_are_told_with_what_pace_admits_and_what_is_asked() -> None:
    alerted = view(stood(1610 * USD, "Alert", "Alert"))
    paced = view(stood(1955 * USD, "Pace", "Alert", "Pace", pace_per_hour=1_380_000_000), outlook=ahead(3326 * USD))
    assert messages(view(), alerted) == [("Normal", "BudgetAction", "None to Alert: 1610.00 of 2300 USD (70%)")]
    text = "Alert to Pace: 1955.00 of 2300 USD (85%); 1.38 USD/h are admitted until 2026-11-21T11:00Z, 9.61 are asked"
    assert messages(alerted, paced) == [("Warning", "BudgetAction", text)]


def test_pace_without_a_known_burn_says_only_what_is_admitted() -> None:
    paced = view(stood(1955 * USD, "Pace", "Alert", "Pace", pace_per_hour=1_380_000_000))
    assert messages(view(), paced)[0][2].endswith("; 1.38 USD/h are admitted until 2026-11-21T11:00Z")


@pytest.mark.parametrize(
    ("action", "effect"),
    [
        ("Deprioritize", "requests are served as priority Batch until"),
        ("Downgrade", "requests take their routes' fallbacks for Downgraded until"),
        ("RejectBatch", "what is left is kept for priorities above Batch until"),
        ("Reject", "requests that do not fit are refused until"),
    ],
)
def test_every_action_says_what_it_does_to_requests(action: str, effect: str) -> None:
    sent = stood(2300 * USD, action, *(() if action == "Reject" else (action,)))
    ((kind, _, text),) = messages(view(), view(sent, SUPPORT.without("actions")))
    assert (kind, text) == ("Warning", f"None to {action}: 2300.00 of 2300 USD (100%); {effect} 2026-11-21T11:00Z")


def test_an_action_that_ends_is_normal_and_promises_nothing() -> None:
    ended = messages(view(stood(2300 * USD, "Reject")), view(stood(1955 * USD, "Alert", "Alert")))
    assert ended == [("Normal", "BudgetAction", "Reject to Alert: 1955.00 of 2300 USD (85%)")]


def test_a_second_alert_is_told_though_the_action_shown_stays() -> None:
    twice = SUPPORT.alert(90)
    before = view(stood(1955 * USD, "Pace", "Alert", "Pace"), twice)
    after = view(stood(2070 * USD, "Pace", "Alert", "Pace", "Alert"), twice)
    ((_, _, text),) = messages(before, after)
    assert text.startswith("Pace, 90%: 2070.00 of 2300 USD (90%)")


def test_audit_says_that_requests_pass() -> None:
    audit = SUPPORT.audit()
    ((_, _, text),) = messages(view(written=audit), view(stood(2300 * USD, "Reject"), audit))
    assert text == "None to Reject: 2300.00 of 2300 USD (100%); enforcement is Audit, so requests are let pass"


def test_an_account_of_another_name_is_named_and_tells_events_apart() -> None:
    loop = make_budget("loop", "support").limit(200, unit="Requests", per="Workflow")
    fields: dict[str, Any] = {"unit": "Requests", "per": "Workflow", "limit": 200, "reserved": 0}
    key = msgspec.structs.replace(stood(200).keys[0], key="wf-7f3a", leased=0, reserved=0)
    sent = msgspec.structs.replace(stood(200, "Reject", **fields), keys=(key,))
    (event,) = told(view(None, loop, spend=None), view(sent, loop))
    assert event.key == "support/wf-7f3a"
    assert event.message.startswith("None to Reject: 200 of 200 Requests (100%) by support/wf-7f3a; requests that")


def test_an_increase_is_told_when_it_begins_and_ends() -> None:
    raised = view(stood(2512_400_000_000, extra=500 * USD), SUPPORT.increase(500))
    text = (
        "2300 to 2800 USD until 2026-12-01T08:00Z (temporaryIncrease: launch; written by kubectl-edit)",
        "2800 to 2300 USD: 212.40 of the extra 500 USD were used",
    )
    assert messages(view(), raised, "kubectl-edit") == [("Warning", "LimitRaised", text[0])]
    over = view(stood(2512_400_000_000), SUPPORT.increase(500))
    assert messages(raised, over) == [("Normal", "LimitRestored", text[1])]
    assert messages(view(), raised)[0][2].endswith("(temporaryIncrease: launch)")


def test_a_lowered_limit_is_told_with_what_is_spent() -> None:
    lowered = view(stood(limit=900 * USD), SUPPORT.limit(900))
    assert messages(view(), lowered) == [
        ("Normal", "LimitChanged", "2300 to 900 USD; 1000.00 are spent in this window")
    ]


def test_another_period_says_that_counting_restarted() -> None:
    day = Window(id=9, start=NOW, end=NOW + DAY_MS)
    daily = view(stood(0, window=day, window_label="2026-11-20", counted_from=NOW), SUPPORT.limit(period="Day"))
    ((kind, reason, text),) = messages(view(), daily)
    assert (kind, reason) == ("Warning", "CountingRestarted")
    assert text == (
        "counts by Day in UTC since 2026-11-20T11:00:00Z: 0.00 of 2300 USD in this window. The 1000.00 USD of the "
        "former one do not count in it; they do again if the change is undone"
    )


def test_the_next_window_tells_nothing_when_no_action_was_in_force() -> None:
    later = Window(id=4, start=END, end=END + DAY_MS)
    assert messages(view(), view(stood(0, window=later, counted_from=END))) == []


def test_counted_idle_is_part_of_what_is_used() -> None:
    sent = stood(idle=150 * USD)
    counted = costbudget_status(view(sent, SUPPORT.with_idle()), {}, NOW)
    assert (counted["idle"], counted["remaining"], counted["usedPercent"]) == ("150.00", "1148.00", 50)
    assert condition(counted, "WithinBudget")[2].startswith("1000.00 + 150.00 idle of 2300.00 USD")
    apart = costbudget_status(view(sent), {}, NOW)
    assert "idle" not in apart
    assert (apart["remaining"], apart["usedPercent"]) == ("1298.00", 43)


def test_a_forecast_above_the_limit_says_when_it_is_reached() -> None:
    status = costbudget_status(view(outlook=ahead(3600 * USD)), {}, NOW)
    assert condition(status, "ForecastWithinBudget") == (
        "False",
        "ForecastAboveLimit",
        (
            "3600.00 (3599.00 to 3601.00) of 2300.00 USD are expected at the end of 2026-11 (support) if no action "
            "holds it back; 9.61 an hour now. The limit is reached about 2026-11-20T23:00:00Z."
        ),
    )
    assert condition(costbudget_status(view(outlook=ahead(2299 * USD)), {}, NOW), "ForecastWithinBudget")[0] == "True"


def test_a_forecast_that_falls_just_below_the_limit_does_not_flap() -> None:
    status = costbudget_status(view(outlook=ahead(2301 * USD)), {}, NOW)
    near = costbudget_status(view(outlook=ahead(2299 * USD)), status, NOW)
    clear = costbudget_status(view(outlook=ahead(2200 * USD)), near, NOW)
    kinds = [condition(one, "ForecastWithinBudget")[:2] for one in (status, near, clear)]
    assert kinds == [("False", "ForecastAboveLimit"), ("False", "ForecastAboveLimit"), ("True", "WithinLimit")]
    assert "The limit is reached" not in condition(near, "ForecastWithinBudget")[2]


def test_a_forecast_of_another_window_is_not_shown() -> None:
    status = costbudget_status(view(outlook=ahead(3600 * USD, window_end=END - 1)), {}, NOW)
    assert "forecast" not in status
    assert "burnPerHour" not in status
    assert condition(status, "ForecastWithinBudget")[:2] == ("Unknown", "NoForecast")


def test_what_was_spent_since_the_forecast_was_made_raises_it() -> None:
    status = costbudget_status(view(stood(1200 * USD), outlook=ahead(1000 * USD)), {}, NOW)
    assert status["forecast"] == {"atWindowEnd": "1200.00", "low": "1200.00", "high": "1200.00"}


def test_a_new_leader_keeps_the_forecast_of_this_window_until_it_has_its_own() -> None:
    status = costbudget_status(view(outlook=ahead(3600 * USD)), {}, NOW)
    taken = costbudget_status(view(), status, NOW)
    assert (taken["forecast"], taken["burnPerHour"]) == (status["forecast"], "9.61")
    assert condition(taken, "ForecastWithinBudget") == condition(status, "ForecastWithinBudget")
    later = stood(0, window=Window(id=4, start=END, end=END + DAY_MS), counted_from=END)
    turned = costbudget_status(view(later), status, NOW)
    assert "forecast" not in turned
    assert condition(turned, "ForecastWithinBudget")[:2] == ("Unknown", "NoForecast")


def test_what_was_confirmed_holds_until_routers_could_confirm_it_to_a_new_leader() -> None:
    confirmed = costbudget_status(view(), {}, NOW)
    for lacking in ({"routers_enforcing": 0}, {"spend": None}, {"ledger_silent_s": 99}):
        taken = costbudget_status(view(settling=True, **lacking), confirmed, NOW + 5000)
        assert condition(taken, "Enforced") == condition(confirmed, "Enforced")
        assert condition(taken, "Ready") == condition(confirmed, "Ready")
        assert taken["routers"] == {"total": 8, "enforcing": 8}
        settled = costbudget_status(view(**lacking), taken, NOW + 20_000)
        assert condition(settled, "Enforced")[0] == "False"


def test_what_nobody_confirmed_is_not_enforced_by_a_change_of_leader() -> None:
    lagging = costbudget_status(view(routers_enforcing=7), {}, NOW)
    assert (
        condition(costbudget_status(view(routers_enforcing=7, settling=True), lagging, NOW), "Enforced")[0] == "False"
    )
    edited = view(written=SUPPORT.metadata(generation=2), routers_enforcing=0, settling=True)
    assert condition(costbudget_status(edited, costbudget_status(view(), {}, NOW), NOW), "Enforced")[0] == "False"
    assert condition(costbudget_status(view(routers_enforcing=0, settling=True), {}, NOW), "Enforced")[0] == "False"


def test_a_cluster_without_routers_is_not_enforced_also_under_a_new_leader() -> None:
    confirmed = costbudget_status(view(), {}, NOW)
    bare = costbudget_status(view(routers_total=0, routers_enforcing=0, settling=True), confirmed, NOW)
    assert condition(bare, "Enforced")[:2] == ("False", "NoRouters")
    assert bare["routers"] == {"total": 0, "enforcing": 0}


@pytest.mark.parametrize(
    ("amount", "text"), [("2300.00", "2300"), ("0.500000", "0.5"), ("200", "200"), ("0.00", "0"), ("12.50", "12.5")]
)
def test_amounts_of_limits_are_told_as_they_are_written(amount: str, text: str) -> None:
    assert whole(amount) == text


def test_times_are_told_to_the_minute_where_they_are_whole() -> None:
    assert minute_text("2026-11-30T23:00:00Z") == "2026-11-30T23:00Z"
    assert minute_text("2026-11-30T23:00:30Z") == "2026-11-30T23:00:30Z"
    assert minute_text("2026-12-01T08:00:00+01:00") == "2026-12-01T08:00:00+01:00"
