"""The checker of the chaos runs finds what is planted, and nothing in a run that is clean."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.checker import Course, Excuses, Figures, check, highest
from tests.chaos.truth import Account, Asked, Books, ClockSpan, Covered, Fate, Limit, Line, Receipt, Run, Span, Stuck

START = 1_795_258_800.0
"""A full hour."""
HOUR = Covered("team/hour", "USD", "Total", "Hour", ("team",))
AUDIT = Covered("platform/audit", "USD", "Total", "Hour", ("team",), "Audit")
LIMIT = 1_000
BOUND = 100


def asked(at: float = 600.0, **changes: Any) -> Asked:
    fields = {
        "namespace": "team", "caller": "sa:web", "workflow": "", "router": "r00.1", "size": 50, "cap": 10,
        "bound": BOUND, "sent": START + at, "done": START + at + 0.1, "status": 200, **changes,
    }  # fmt: skip
    return Asked(**fields)


def refused(at: float = 1_200.0, **changes: Any) -> Asked:
    return asked(at, status=429, code="budget_exhausted", budget=HOUR.label, **changes)


def receipt(at: float = 600.0, nano: int = 60) -> Receipt:
    return Receipt(START + at, 20, 0, 5, nano, START + at + 0.1)


def account(held: int, charged: int, **changes: Any) -> Account:
    fields = {"budget": HOUR.label, "namespace": "", "key": "", "start": START, "end": START + 3_600}
    return Account(**{**fields, "held": held, "charged": charged, "unbacked": 0, "unreconciled": 0, **changes})


def line(requests: int, nano: int, router: str = "r00.1") -> Line:
    return Line("team", "sa:web", router, requests, 20 * requests, 5 * requests, nano)


def clean(requests: int = 3, **changes: Any) -> Run:
    """So many requests of 60 each ran, were answered, are charged and in the usage."""
    fields: dict[str, Any] = {
        "covered": (HOUR, AUDIT),
        "asked": [asked(600 + index) for index in range(requests)],
        "receipts": {index: receipt(600 + index) for index in range(requests)},
        "twice": (),
        "books": books(60 * requests, 60 * requests, requests),
        "limits": [Limit(label, START - 100, float("inf"), LIMIT) for label in (HOUR.label, AUDIT.label)],
        "clocks": [ClockSpan(START - 1_000, START + 5_000, 0.0)],
        "fates": {"r00.1": "Stopped"},
        **changes,
    }
    return Run(**fields)


def books(held: int, charged: int, lines: int, **changes: Any) -> Books:
    """Both budgets' accounts, and usage lines of so many requests of 60."""
    accounts = [account(held, charged), account(0, charged, budget=AUDIT.label, unbacked=charged)]
    return Books(**{"accounts": accounts, "lines": [line(lines, 60 * lines)], **changes})


def problems(run: Run) -> list[str]:
    figures = check(run)
    return figures.problems + figures.delays


def test_a_clean_run_has_no_problems() -> None:
    figures = check(clean())
    assert figures.problems == []
    assert (figures.requests, figures.ran, figures.answered) == (3, 3, 3)
    assert (figures.overspend_nano_usd, figures.lost, figures.doubled, figures.stranded_percent) == (0, 0, 0, 0.0)


def test_receipts_beyond_the_limit_are_overspent_whatever_the_books_say() -> None:
    figures = check(clean(20))
    assert figures.overspend_nano_usd == 20 * 60 - LIMIT
    cooked = check(replace(clean(20), books=books(LIMIT, LIMIT, 20)))
    assert cooked.overspend_nano_usd == 20 * 60 - LIMIT
    assert cooked.unbooked == 20 * 60 - LIMIT


def test_a_window_that_holds_more_than_its_limit_is_overspent() -> None:
    assert check(replace(clean(), books=books(LIMIT + 1, 180, 3))).overspend_nano_usd == 1
    assert check(replace(clean(), books=books(LIMIT, 180, 3))).overspend_nano_usd == 0


def test_audit_budgets_may_be_exceeded() -> None:
    run = replace(clean(20), covered=(AUDIT,), books=Books([account(0, 1_200, budget=AUDIT.label)], [line(20, 1_200)]))
    assert check(run).problems == []


def test_what_ran_well_within_one_window_is_not_excused_by_the_other_ones() -> None:
    windows = [account(1_200, 1_200), account(0, 0, start=START - 3_600, end=START)]
    figures = check(replace(clean(20), books=Books(windows, [line(20, 1_200)])))
    assert figures.overspend_nano_usd == 200


def test_requests_of_other_units_are_not_counted_as_money() -> None:
    loops = Covered("team/loops", "Requests", "Workflow", "Hour", ("team",))
    run = clean(
        3,
        covered=(loops,),
        asked=[asked(600 + index, workflow="w") for index in range(3)],
        limits=[Limit(loops.label, START, float("inf"), 2)],
        books=Books([account(3, 3, budget=loops.label, namespace="team", key="w")], [line(3, 180)]),
    )
    figures = check(run)
    assert (figures.overspend_nano_usd, figures.overspend_other) == (0, 1)


def test_money_charged_for_nothing_is_a_problem() -> None:
    assert "was charged 181, but only 180 ran" in problems(replace(clean(), books=books(181, 181, 3)))[0]


def test_what_ran_but_is_not_held_against_the_budget_is_a_problem() -> None:
    figures = check(replace(clean(), books=books(120, 120, 3)))
    assert figures.unbooked == 60
    assert figures.problems


def test_what_a_dead_router_held_is_stranded_as_far_as_it_did_not_run() -> None:
    run = clean(asked=[asked(), asked(601), asked(602, status=0)], fates={"r00.1": "VolumeLost"})
    figures = check(replace(run, books=books(280, 120, 2)))
    assert figures.problems == []
    assert figures.unreconciled_nano_usd == 160
    assert figures.stranded_percent == 100 * (280 - 180) / LIMIT


def test_an_answered_request_without_a_usage_line_is_lost() -> None:
    figures = check(replace(clean(), books=books(180, 180, 2)))
    assert figures.lost == 1
    assert figures.problems == ["r00.1 team sa:web: 3 were answered, 2 are in the usage"]


def test_a_line_of_a_lost_volume_is_missing_without_being_lost() -> None:
    figures = check(replace(clean(fates={"r00.1": "VolumeLost"}), books=books(180, 120, 2)))
    assert (figures.lost, figures.unattributed, figures.unattributed_nano_usd) == (0, 1, 60)
    assert figures.problems == []


def test_a_line_of_a_kept_volume_must_be_told_by_the_successor() -> None:
    assert check(replace(clean(fates={"r00.1": "Killed"}), books=books(180, 120, 2))).lost == 1


def test_a_line_that_is_there_twice_is_doubled() -> None:
    figures = check(replace(clean(), books=books(180, 180, 6)))
    assert figures.doubled == 3
    assert figures.problems == ["r00.1 team sa:web: 3 ran, 6 are in the usage"]


def test_usage_of_the_right_count_and_the_wrong_amount_is_a_problem() -> None:
    run = replace(clean(), books=Books(books(180, 180, 3).accounts, [line(3, 181)]))
    assert problems(run) == ["r00.1 team sa:web: 180 nano-USD ran, 181 are in the usage"]


def test_charges_without_a_lease_and_violations_and_leftovers_are_problems() -> None:
    accounts = [account(180, 180, unbacked=7)]
    run = replace(clean(covered=(HOUR,)), books=Books(accounts, [line(3, 180)], {}, 2, 1))
    assert len(problems(run)) == 3


def test_sessions_are_left_of_lost_volumes_only() -> None:
    left = books(180, 180, 3, sessions={"Open": 1, "Lost": 1, "Closed": 5})
    fates: dict[str, Fate] = {"r00.1": "Stopped", "r01.1": "VolumeLost", "r02.1": "VolumeLost"}
    assert problems(replace(clean(), books=left, fates=fates)) == []
    assert "2 sessions are left open" in problems(replace(clean(), books=left, fates={"r01.1": "VolumeLost"}))[0]


def test_ledgers_that_lock_each_other_out_are_a_problem() -> None:
    assert "2 transactions of ledgers" in problems(clean(deadlocks=2))[0]


def test_how_long_ledgers_took_is_told_and_fails_nothing() -> None:
    figures = check(clean(ledger_s=[0.01] * 97 + [2.0] * 3))
    assert (figures.ledger_ms_p50, figures.ledger_ms_p99) == (10.0, 2000.0)
    assert figures.problems + figures.delays == []


def test_what_routers_say_of_themselves_counts() -> None:
    assert problems(clean(swept=1)) == ["1 reservations were settled by nobody and swept"]
    assert problems(clean(untold=2)) == ["2 journals of kept volumes were not told to the ledger"]


def test_a_request_that_ran_twice_or_was_answered_from_nowhere_is_a_problem() -> None:
    assert "ran more than once" in problems(clean(twice=(1,)))[0]
    run = clean(4)
    del run.receipts[3]
    assert "no engine ran" in problems(run)[0]


# --- limits over time


def test_the_highest_limit_of_a_window_counts_even_if_it_was_lowered() -> None:
    limits = [Limit("b", 0, 50, 10), Limit("b", 50, 60, 90), Limit("b", 60, 1_000, 5), Limit("b", 1_000, 2_000, 500)]
    window = account(0, 0, budget="b", start=0.0, end=600.0)
    assert highest(limits, [ClockSpan(-10, 5_000, 0.0)], window) == 90


def test_a_limit_that_ended_before_the_window_could_be_leased_does_not_count() -> None:
    limits = [Limit("b", 0, 100, 90), Limit("b", 100, 1_000, 5)]
    window = account(0, 0, budget="b", start=300.0, end=360.0)
    assert highest(limits, [ClockSpan(0, 5_000, 0.0)], window) == 5


def test_a_window_is_looked_for_by_the_ledgers_clock() -> None:
    limits = [Limit("b", 0, 100, 90), Limit("b", 100, 1_000, 5)]
    window = account(0, 0, budget="b", start=360.0, end=420.0)
    assert highest(limits, [ClockSpan(0, 5_000, 0.0)], window) == 5
    assert highest(limits, [ClockSpan(0, 5_000, 300.0)], window) == 90


# --- refusals


def with_refusal(one: Asked, **changes: Any) -> Run:
    run = clean(**changes)
    return replace(run, asked=[*run.asked, one])


def test_a_refusal_while_the_money_was_there_is_false() -> None:
    figures = check(with_refusal(refused()))
    assert (figures.rejections, figures.judged_rejections, figures.false_rejections, figures.held_back) == (1, 1, 1, 1)
    assert figures.false_rejection_percent == 100.0
    assert figures.delays == ["1 were refused although the money was there for 2 s"]


def test_one_refusal_in_a_thousand_may_come_late_to_money_that_was_there() -> None:
    for right, delays in ((998, 1), (999, 0)):
        run = with_refusal(refused())
        figures = check(replace(run, asked=[*run.asked, *[refused(bound=LIMIT)] * right]))
        assert (figures.judged_rejections, figures.held_back, len(figures.delays)) == (right + 1, 1, delays)


def test_what_was_left_when_a_window_first_refused_is_told() -> None:
    run = with_refusal(refused(bound=900))
    assert check(run).left_at_first_percent == 100 * (LIMIT - 180) / LIMIT


def test_a_refusal_is_right_if_less_than_its_bound_was_left() -> None:
    assert check(with_refusal(refused(bound=LIMIT - 180 + 1))).false_rejections == 0
    assert check(with_refusal(refused(bound=LIMIT - 180))).false_rejections == 1


def test_a_refusal_just_after_money_was_released_is_false_but_not_held_back() -> None:
    running = asked(1_198.0, bound=900, done=START + 1_199.5)
    run = clean()
    run = replace(run, asked=[*run.asked, running, refused(sent=START + 1_199.9, done=START + 1_200.0)])
    run.receipts[3] = receipt(1_198.0)
    figures = check(replace(run, books=books(240, 240, 4)))
    assert (figures.false_rejections, figures.held_back) == (1, 0)


def test_a_refusal_is_right_if_another_budget_of_the_request_lacked_the_money_and_misnamed() -> None:
    own = Covered("team/callers", "USD", "Caller", "Hour", ("team",))
    for limit, found in ((180 + BOUND, (1, 1, 0)), (180 + BOUND - 1, (0, 0, 1))):
        run = with_refusal(refused())
        limits = [*run.limits, Limit(own.label, START - 100, float("inf"), limit)]
        figures = check(replace(run, covered=(HOUR, own, AUDIT), limits=limits))
        assert (figures.false_rejections, figures.held_back, figures.misnamed) == found


def test_an_increase_that_ended_just_before_its_end_was_written_down_is_over() -> None:
    limits = [Limit(HOUR.label, START, START + 1_200.4, LIMIT), Limit(HOUR.label, START + 1_200.3, float("inf"), 200)]
    assert check(with_refusal(refused(), limits=limits)).false_rejections == 0


def test_money_of_the_dead_is_not_there() -> None:
    stuck = Stuck(START + 1_199, HOUR.label, "", "", START + 3_600, 800)
    assert check(replace(with_refusal(refused()), stuck=[stuck])).false_rejections == 0


def test_a_lowered_limit_leaves_less() -> None:
    limits = [Limit(HOUR.label, START, START + 700, LIMIT), Limit(HOUR.label, START + 700, float("inf"), 200)]
    assert check(with_refusal(refused(), limits=limits)).false_rejections == 0


def test_who_could_not_hear_the_ledger_must_not_say_429() -> None:
    span = Span(START + 1_190, START + 1_210, "r00.1")
    waited = refused(done=START + 1_202.1)
    figures = check(replace(with_refusal(waited), unheard=[span]))
    assert (figures.blind_rejections, figures.judged_rejections) == (1, 0)
    assert check(replace(with_refusal(waited), excuses=[span])).blind_rejections == 0
    late = Span(START + 1_199, START + 1_200.1)
    assert check(replace(with_refusal(waited), unheard=[span], starved=[late])).blind_rejections == 0
    assert check(replace(with_refusal(refused()), unheard=[span])).blind_rejections == 0
    assert check(replace(with_refusal(waited), unheard=[replace(span, end=START + 1_201)])).blind_rejections == 0


@pytest.mark.parametrize(
    ("one", "excuses", "problem"),
    [
        (asked(700, status=503, code="ledger_unreachable"), [], "1 times 503 ledger_unreachable for no reason"),
        (asked(700, status=503, code="ledger_unreachable"), [Span(START + 690, START + 695)], ""),
        (asked(700, status=503, code="journal_full"), [], "1 times 503 journal_full for no reason"),
        (asked(700, status=503, code="journal_full"), [Span(START + 690, START + 695)], ""),
        (asked(700, status=503, code="not_configured"), [], "1 times 503 not_configured for no reason"),
        (asked(700, status=503, code="not_configured"), [Span(START + 690, START + 695)], ""),
        (asked(700, status=503, code="ledger_unreachable"), [Span(START + 690, START + 695, "r01.1")], "503"),
        (asked(700, status=502, code="upstream_error"), [Span(START + 690, START + 710)], "502 upstream_error"),
        (asked(700, status=0), [], "1 times 0 for no reason"),
        (asked(700, status=0, router="r01.1"), [], ""),
    ],
)
def test_errors_need_a_reason(one: Asked, excuses: list[Span], problem: str) -> None:
    run = replace(with_refusal(one), excuses=excuses, fates={"r00.1": "Stopped", "r01.1": "Killed"})
    found = problems(run)
    assert (problem in found[0]) if problem else not found


def test_figures_of_nothing_are_zero() -> None:
    run = Run((HOUR,), [], {}, (), Books(), [], [], {})
    assert check(run) == Figures()


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30), st.floats(0, 100), st.floats(0, 20))
def test_the_most_of_a_course_is_that_of_every_instant(
    steps: list[tuple[float, int]], begin: float, length: float
) -> None:
    steps.sort()
    course = Course([at for at, _ in steps], [used for _, used in steps])
    before = [used for at, used in steps if at <= begin][-1:]
    within = [used for at, used in steps if begin < at < begin + length]
    assert course.most(begin, begin + length) == max([*before, *within], default=0)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.sampled_from(["", "r00.1", "r01.1"])), max_size=20),
    st.floats(0, 100),
)
def test_every_excuse_of_a_request_is_found(spans: list[tuple[float, float, str]], at: float) -> None:
    excuses = Excuses(Span(START + begin, START + begin + length, router) for begin, length, router in spans)
    one = asked(at)
    covers = any(
        router in {"", "r00.1"} and START + begin <= one.done and one.sent <= START + begin + length
        for begin, length, router in spans
    )
    assert not covers or excuses.of(one, 0.0)
