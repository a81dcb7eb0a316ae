"""The sizes of requests that capacities are measured on."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.mix import MAX_MIX, REACH_S, mixed
from fairlead_operator.performance.step import Mix

ROUND_S = 5.0


def after(rounds: int, each: int, mix: Mix = (), since: int = 0) -> Mix:
    """The mix after rounds in which so many requests finished, whose prompts count the rounds."""
    for turn in range(since, since + rounds):
        mix = mixed(mix, tuple((turn, place) for place in range(each)), ROUND_S)
    return mix


def test_the_first_requests_are_all_kept() -> None:
    assert after(3, 200) == tuple((turn, place) for turn in range(3) for place in range(200))


def test_of_a_busy_pool_the_mix_reaches_back_for_half_an_hour() -> None:
    rounds = round(REACH_S / ROUND_S)
    oldest, _ = after(2 * rounds, 250)[0]
    assert 0.9 * rounds < 2 * rounds - oldest <= rounds


def test_of_a_pool_that_few_ask_it_is_their_last_requests() -> None:
    assert after(3000, 1) == tuple((turn, 0) for turn in range(3000 - MAX_MIX, 3000))


def test_the_sizes_of_a_round_are_taken_evenly_from_all_who_tell_them() -> None:
    taken = [place for turn, place in after(1, 1000, after(10, 1000), since=10) if turn == 10]
    assert len(taken) == 6
    assert taken == [0, 166, 333, 500, 666, 833]


def test_a_longer_round_counts_for_its_time() -> None:
    full = after(10, 1000)
    assert sum(turn == 10 for turn, _ in mixed(full, ((10, 0),) * 1000, 60.0)) == 69


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(-60, 600)), max_size=20))
def test_whatever_is_told_the_mix_is_bounded_and_holds_only_what_was_told(rounds: list[tuple[int, float]]) -> None:
    mix: Mix = ()
    for each, seconds in rounds:
        mix = mixed(mix, ((each, 1),) * each, seconds)
        assert len(mix) <= MAX_MIX
        assert set(mix) <= {(one, 1) for one, _ in rounds}
