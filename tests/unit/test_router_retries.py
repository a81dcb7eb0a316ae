"""The budget of retries."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_router.retries import FLOOR_PER_S, SHARE_DIVISOR, WINDOW_S, RetryBudget


def used(budget: RetryBudget, now: float, wanted: int) -> int:
    return sum(budget.allow(now) for _ in range(wanted))


def test_where_nothing_runs_a_few_retries_a_second_are_allowed() -> None:
    budget = RetryBudget()
    assert used(budget, 0.0, 10) == FLOOR_PER_S
    assert used(budget, 0.9, 10) == 0
    assert used(budget, 1.0, 10) == FLOOR_PER_S


def test_a_fifth_of_the_requests_may_be_tried_again() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.request(5.0)
    assert used(budget, 5.0, 100) == 20


def test_a_broken_pool_gets_at_most_a_fifth_more() -> None:
    budget = RetryBudget()
    sent = retried = 0
    for step in range(60_000):
        now = step / 1000
        budget.request(now)
        sent += 1
        retried += used(budget, now, 2)
    assert retried <= sent // 5


def test_requests_count_for_ten_seconds() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.request(3.0)
    assert used(budget, 12.9, 5) == 5
    assert used(budget, 13.0, 10) == FLOOR_PER_S


def test_a_long_silence_forgets_everything() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.request(3.0)
    assert used(budget, 1e9, 10) == FLOOR_PER_S


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=300))
def test_the_retries_of_any_window_stay_within_share_and_floor(steps: list[tuple[float, bool]]) -> None:
    budget = RetryBudget()
    now = 0.0
    requests: list[int] = []
    retries: list[int] = []
    for pause, retry in steps:
        now += pause
        second = int(now)
        recent = [at for at in retries if at > second - WINDOW_S]
        if not retry:
            budget.request(now)
            requests.append(second)
        elif budget.allow(now):
            retries.append(second)
            share = sum(at > second - WINDOW_S for at in requests) // SHARE_DIVISOR
            assert len(recent) < share or recent.count(second) < FLOOR_PER_S
        else:
            assert recent.count(second) >= FLOOR_PER_S
