"""How simulations spread requests over replicas."""

import math

import pytest

from fairlead_operator.performance.replica import Replica, Request
from fairlead_operator.performance.routing import LATE_EVERY, MAX_WAIT, PATIENCE, Place, Router
from fairlead_operator.performance.step import Engine, StepTime

ENGINE = Engine(StepTime(base=0.01, per_context_token=0.0, per_token=0.0), kv_tokens=100_000)


def places(count: int, slots: int) -> list[Place]:
    return [Place(Replica(ENGINE), slots=slots) for _ in range(count)]


def request(number: int, at: float, output: int = 100) -> Request:
    return Request(number, at, 10, output)


def served(router: Router, where: list[Place], until: float) -> None:
    while (free := router.free_at(where)) < until:
        router.give(free, where)


def test_a_replica_runs_at_most_its_slots_and_the_rest_wait() -> None:
    router, where = Router(math.inf), places(2, 3)
    for number in range(10):
        assert router.arrive(request(number, 0.0), 0.0, where)
    assert [len(place.replica.waiting) + place.replica.running for place in where] == [3, 3]
    assert router.waiting() == len(router.unfinished()) == 4
    served(router, where, math.inf)
    assert router.waiting() == 0


def test_without_slots_nobody_waits_at_the_router() -> None:
    router, where = Router(1.0), [Place(Replica(ENGINE))]
    for number in range(1000):
        router.arrive(request(number, 0.0), 0.0, where)
    assert router.waiting() == 0
    assert router.free_at(where) == math.inf


def test_a_burst_of_twice_the_capacity_loses_only_what_is_too_much_and_starves_nobody() -> None:
    """Two slots, a second each: two requests a second are served in time of the four that come."""
    router, where = Router(2.0), places(1, 2)
    asked = [request(number, number / 4) for number in range(400)]
    for one in asked:
        served(router, where, one.arrival)
        router.arrive(one, one.arrival, where)
    served(router, where, math.inf)
    where[0].replica.advance(math.inf)
    in_time = [one for one in asked if one.first - one.arrival <= 2.0]
    assert len(in_time) == pytest.approx(200 * (1 - 1 / LATE_EVERY), rel=0.05)
    assert all(one.last > 0 for one in asked)
    late_while_busy = [one for one in asked if one not in in_time and one.first < asked[-1].arrival]
    assert len(late_while_busy) == pytest.approx(200 / LATE_EVERY, abs=4)


def test_who_can_still_be_in_time_goes_before_who_cannot() -> None:
    router, where = Router(2.0), places(1, 1)
    for number, at in enumerate((0.0, 0.1, 1.0)):
        router.arrive(request(number, at, output=300), at, where)
    served(router, where, 5.0)  # the first took 3 s: nobody who waits can be in time, and the second runs
    young = request(3, 5.0)
    router.arrive(young, 5.0, where)
    served(router, where, 5.0 + PATIENCE * 2.0)
    assert [one.number for one in router.unfinished()] == [2]


def test_those_who_waited_too_long_are_refused() -> None:
    router, where = Router(2.0), places(1, 1)
    for number in range(3):
        router.arrive(request(number, 0.0, output=10_000), 0.0, where)
    assert router.expired(MAX_WAIT) == []
    assert [one.number for one in router.expired(MAX_WAIT + 1)] == [1, 2]
    assert router.waiting() == 0


def test_a_request_larger_than_any_cache_is_given_back() -> None:
    router, where = Router(2.0), places(1, 1)
    huge = Request(0, 0.0, 200_000, 10)
    assert not router.arrive(huge, 0.0, where)
    router.arrive(request(1, 0.0), 0.0, where)
    router.arrive(huge, 0.0, where)
    assert router.give(10.0, where) == [huge]
