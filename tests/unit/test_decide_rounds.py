"""What routers counted between two rounds of scrapes, whatever happens to routers and answers in between."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.mix import MAX_MIX
from fairlead_operator.decide.rounds import (
    MOST,
    WINDOW_MS,
    Counts,
    Round,
    Seen,
    attainment_percent,
    counting,
    look,
    requests_per_hour,
)
from fairlead_operator.decide.signals import Report, Router
from fairlead_router.contract import PoolSignals, Signals
from tests.builders.decisions import NOW

POOL = "a/chat"
GATEWAY = Router("fairlead/gateway-1")
SIDECAR = Router("a/chat-1", POOL)
STEP = 5_000


def told(router: Router, at_ms: int, uptime_s: int = 3_600, **totals: Any) -> dict[str, Report]:
    pools = (PoolSignals(pool=POOL, **totals),)
    signals = Signals(router=router.router, config_version="", endpoints_version="", uptime_s=uptime_s, pools=pools)
    return {router.router: Report(router.router, at_ms, signals)}


def after(*answers: dict[str, Report], routers: tuple[Router, ...] = (GATEWAY, SIDECAR)) -> Seen:
    """One round for each set of answers, five seconds apart."""
    seen = Seen()
    for turn, reports in enumerate(answers):
        seen = look(seen, POOL, routers, reports, NOW + turn * STEP)
    return seen


def test_a_round_counts_what_every_router_counted_since_the_one_before() -> None:
    first = told(GATEWAY, NOW, arrivals_total=100, met_total=7) | told(SIDECAR, NOW, arrivals_total=1_000)
    second = told(GATEWAY, NOW + STEP, arrivals_total=103, met_total=9) | told(
        SIDECAR, NOW + STEP, arrivals_total=1_010
    )
    assert after(first, second).last.counts == Counts(arrivals=13, met=2)


def test_what_a_new_leader_finds_counted_is_no_demand_of_now() -> None:
    assert after(told(GATEWAY, NOW, arrivals_total=1_000_000)).last.counts == Counts()


def test_an_answer_that_is_heard_twice_counts_once() -> None:
    answer = told(GATEWAY, NOW + STEP, arrivals_total=8)
    seen = after(told(GATEWAY, NOW, arrivals_total=5), answer, answer)
    assert [one.counts.arrivals for one in seen.recent] == [0, 3, 0]


def test_a_router_that_began_anew_counts_from_zero() -> None:
    seen = after(told(GATEWAY, NOW, arrivals_total=500), told(GATEWAY, NOW + STEP, uptime_s=3, arrivals_total=4))
    assert seen.last.counts.arrivals == 4


def test_a_router_that_is_younger_than_the_last_round_counts_whole_and_an_older_one_is_only_remembered() -> None:
    young = told(GATEWAY, NOW, arrivals_total=1) | told(SIDECAR, NOW + STEP, uptime_s=2, arrivals_total=6)
    assert after(told(GATEWAY, NOW, arrivals_total=1), young).last.counts.arrivals == 6
    old = told(GATEWAY, NOW, arrivals_total=1) | told(SIDECAR, NOW + STEP, uptime_s=900, arrivals_total=6)
    assert after(told(GATEWAY, NOW, arrivals_total=1), old).last.counts.arrivals == 0


def test_a_router_that_was_heard_before_it_counted_anything_counts_whole() -> None:
    first = look(Seen(), POOL, (), {}, NOW, ())
    answers = told(GATEWAY, NOW + STEP, arrivals_total=4)
    assert look(first, POOL, (GATEWAY,), answers, NOW + STEP, {GATEWAY.router}).last.counts.arrivals == 4
    assert look(first, POOL, (GATEWAY,), answers, NOW + STEP, {"another"}).last.counts.arrivals == 0


def test_only_routers_that_counted_something_and_whose_word_counts_are_looked_at() -> None:
    stranger = Router("b/other-1", "b/other", platform=False)
    reports = told(GATEWAY, NOW, arrivals_total=1) | told(SIDECAR, NOW) | told(stranger, NOW, arrivals_total=9)
    assert counting((GATEWAY, SIDECAR, stranger, Router("fairlead/silent")), reports) == {POOL: [GATEWAY]}


def test_what_is_told_after_a_silence_is_no_burst() -> None:
    silent = told(GATEWAY, NOW, arrivals_total=0)
    rounds = [silent] * 12 + [told(GATEWAY, NOW + 12 * STEP, arrivals_total=1_200)]
    assert after(*rounds).last.counts.arrivals == 100


def test_one_round_that_a_router_missed_is_counted_whole_in_the_next() -> None:
    answers = [told(GATEWAY, NOW, arrivals_total=0)] * 2 + [told(GATEWAY, NOW + 2 * STEP, arrivals_total=40)]
    assert after(*answers).last.counts.arrivals == 40


def test_a_router_of_another_team_has_no_say() -> None:
    stranger = Router("b/other-1", "b/other", platform=False)
    answers = [told(stranger, NOW, arrivals_total=0), told(stranger, NOW + STEP, arrivals_total=900, waiting_tokens=9)]
    seen = after(*answers, routers=(stranger,))
    assert (seen.last.counts, seen.last.waiting_tokens, seen.routers) == (Counts(), 0, {})


def test_a_router_that_lies_counts_no_more_than_a_router_can_serve() -> None:
    answers = [told(GATEWAY, NOW, arrivals_total=0), told(GATEWAY, NOW + STEP, arrivals_total=10**17)]
    assert after(*answers).last.counts.arrivals == MOST


def test_what_is_of_now_is_taken_from_fresh_answers_only() -> None:
    fresh = told(SIDECAR, NOW, waiting_tokens=5, decoding=2, context_tokens=70, ttft_ms_p99=900)
    stale = told(GATEWAY, NOW - 60_000, waiting_tokens=500, decoding=50, ttft_ms_p99=9_000)
    one = after(fresh | stale).last
    assert (one.waiting_tokens, one.decoding, one.context_tokens, one.ttft_ms) == (5, 2, 70, 900)


def test_the_mix_is_of_the_requests_that_finished_in_the_round_each_once() -> None:
    first = told(GATEWAY, NOW, finished_total=1, samples=((10, 1),))
    second = told(GATEWAY, NOW + STEP, finished_total=3, samples=((10, 1), (20, 2), (0, 0)))
    seen = after(first, second, second)
    assert seen.mix == ((20, 2), (1, 1))


def test_the_mix_and_the_rounds_are_bounded() -> None:
    sizes = tuple((place, 1) for place in range(1, 17))
    answers = [told(GATEWAY, NOW + n * STEP, finished_total=n * 16, samples=sizes) for n in range(200)]
    seen = after(*answers)
    assert len(seen.mix) == MAX_MIX
    assert len(seen.recent) == WINDOW_MS // STEP


@pytest.mark.parametrize(("met", "missed", "percent"), [(0, 0, None), (999, 1, 99), (5, 0, 100), (0, 3, 0)])
def test_attainment_is_of_the_judged_requests_and_rounded_down(met: int, missed: int, percent: int | None) -> None:
    rounds = [Round(NOW, Counts(met=met)), Round(NOW, Counts(missed=missed))]
    assert attainment_percent(rounds) == percent


def test_requests_per_hour_are_those_of_the_last_minute_or_of_all_rounds_whichever_is_more() -> None:
    def rounds(*arrivals: int) -> list[Round]:
        return [Round(NOW + n * STEP, Counts(arrivals=one)) for n, one in enumerate(arrivals)]

    assert requests_per_hour([]) is None
    assert requests_per_hour(rounds(*[5] * 12)) is None
    assert requests_per_hour(rounds(*[5] * 13)) == 3_600
    assert requests_per_hour(rounds(*[0] * 24, *[10] * 12)) == 7_200
    assert requests_per_hour(rounds(*[10] * 25, *[0] * 12)) == 10 * 24 * 20


@given(
    st.lists(
        st.tuples(st.integers(-20_000, 20_000), st.integers(0, 10**19), st.integers(0, 10**9), st.integers(-5, 10**12)),
        max_size=8,
    )
)
def test_whatever_a_router_tells_counts_are_never_negative_and_never_unbounded(
    answers: list[tuple[int, int, int, int]],
) -> None:
    rounds = [
        told(GATEWAY, NOW + late, uptime, arrivals_total=total, finished_total=total, waiting_tokens=waiting)
        for late, total, uptime, waiting in answers
    ]
    for one in after(*rounds).recent:
        assert 0 <= one.counts.arrivals <= MOST
        assert 0 <= one.waiting_tokens <= 10**9


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.data())
def test_with_answers_lost_for_less_than_three_rounds_every_request_counts_once(
    arrivals: list[int], data: st.DataObject
) -> None:
    total, answer, lost, rounds = 0, told(GATEWAY, NOW, arrivals_total=0), 0, []
    rounds.append(answer)
    for turn, count in enumerate(arrivals, 1):
        total += count
        heard = turn == len(arrivals) or lost == 2 or data.draw(st.booleans())
        lost = 0 if heard else lost + 1
        if heard:
            answer = told(GATEWAY, NOW + turn * STEP, arrivals_total=total)
        rounds.append(answer)
    assert sum(one.counts.arrivals for one in after(*rounds).recent) == total
