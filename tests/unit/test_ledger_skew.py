"""The ledger's clock against those of the routers."""

import pytest

from fairlead_operator.ledger.skew import HEARD_MS, MAX_OFF_MS, QUORUM, TOLERANCE_MS, VOTERS, Skew, trusted
from tests.builders.ledger import HOUR, NOW


def heard(skew: Skew, count: int, *, now: int = NOW, off: int = 0, monotonic: float = 0.0, first: int = 0) -> Skew:
    """So many routers say that it is later or earlier than the ledger thinks."""
    for number in range(first, first + count):
        skew.hear(f"s{number}", now + off, now, monotonic)
    return skew


def test_too_few_routers_have_no_say_and_the_past_decides() -> None:
    assert heard(Skew(), QUORUM - 1).vouched() is None
    assert trusted(NOW, high_water=NOW + TOLERANCE_MS, vouched=None)
    assert not trusted(NOW, high_water=NOW + TOLERANCE_MS + 1, vouched=None)


@pytest.mark.parametrize(("off", "agreed"), [(0, True), (MAX_OFF_MS, True), (-MAX_OFF_MS - 1, False), (HOUR, False)])
def test_the_median_of_the_routers_decides_whatever_the_past_was(off: int, *, agreed: bool) -> None:
    vouched = heard(Skew(), QUORUM, off=off).vouched()
    assert vouched is agreed
    assert trusted(NOW, high_water=NOW + HOUR, vouched=vouched) is agreed


def test_a_few_routers_with_a_wrong_clock_change_nothing() -> None:
    skew = heard(Skew(), 3)
    assert heard(skew, 2, off=HOUR, first=3).vouched() is True
    assert heard(skew, 2, off=HOUR, first=5).vouched() is False


def test_only_those_heard_last_vote_and_each_once() -> None:
    skew = heard(Skew(), VOTERS, off=HOUR)
    for _ in range(50):
        skew.hear("s0", NOW, NOW, 0.0)
    assert skew.vouched() is False
    assert heard(skew, VOTERS, first=100).vouched() is True


def test_messages_that_do_not_tell_the_time_do_not_vote() -> None:
    skew = Skew()
    for number in range(9):
        skew.hear(f"s{number}", 0, NOW, 0.0)
    assert skew.vouched() is None


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_clock_that_jumped_is_not_trusted_before_the_routers_confirm_it(jump: int) -> None:
    skew = heard(Skew(), 5, now=NOW)
    assert heard(skew, 2, now=NOW + jump).vouched() is False
    assert heard(skew, 3, now=NOW + jump).vouched() is True


def test_time_that_passes_on_both_clocks_is_no_jump() -> None:
    skew = heard(Skew(), 3)
    assert heard(skew, 1, now=NOW + HOUR, monotonic=HOUR / 1000).vouched() is not False


def test_a_jump_that_no_router_saw_leaves_the_decision_to_the_past() -> None:
    skew = Skew()
    skew.hear("s", 0, NOW, 0.0)
    skew.hear("s", 0, NOW + HOUR, 0.0)
    assert skew.vouched() is None


def test_sessions_of_which_a_successor_told_old_messages_do_not_outvote_the_living_for_ever() -> None:
    skew = heard(Skew(), 5, off=-30 * MAX_OFF_MS)
    heard(skew, 3, now=NOW + 1000, monotonic=1.0, first=5)
    assert skew.vouched() is False
    heard(skew, 3, now=NOW + HEARD_MS + 1001, monotonic=HEARD_MS / 1000 + 1.001, first=5)
    assert skew.vouched() is True


def test_a_clock_that_was_confirmed_stays_so_when_routers_end() -> None:
    skew = heard(Skew(), 5)
    heard(skew, 3, now=NOW + HOUR)
    assert skew.vouched() is True
    heard(skew, 2, now=NOW + HOUR + HEARD_MS + 1, monotonic=HEARD_MS / 1000 + 0.001)
    assert skew.vouched() is not False


def test_after_a_jump_the_routers_that_are_left_decide_however_few_they_are() -> None:
    skew = heard(Skew(), QUORUM)
    later = HEARD_MS / 1000 + 1
    jumped = NOW + 2 * MAX_OFF_MS
    heard(skew, 1, now=jumped)
    assert skew.vouched() is False
    heard(skew, 1, now=jumped + int(later * 1000), monotonic=later)
    assert skew.vouched() is not False
    assert trusted(jumped, high_water=NOW, vouched=skew.vouched())
