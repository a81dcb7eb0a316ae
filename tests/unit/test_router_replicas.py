"""The choice of a replica: affinity within a bound, room, health."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead_router.affinity import NO_PREFIX, SUCCESSORS, bound
from fairlead_router.replicas import (
    FAILURES_IN_A_ROW,
    FAILURES_OF_LATEST,
    FIRST_EJECTION_S,
    HEAR_EVERY_S,
    LEAVING_S,
    LONGEST_EJECTION_S,
    TOLD_S,
    Fleet,
    Load,
    Replica,
    parse_load,
)
from fairlead_router.upstream import Target

SLOTS = 16
KEY = 0x5EED5EED


def replica(index: int) -> Replica:
    return Replica(f"team/chat-{index}", "gpu", Target(host=f"10.0.0.{index}", port=8000))


def fleet(size: int) -> Fleet:
    made = Fleet()
    made.update([replica(index) for index in range(size)])
    return made


def taken(
    pool: Fleet, key: int = KEY, now: float = 0.0, *, slots: int = SLOTS, skip: tuple[Replica, ...] = ()
) -> Replica:
    found = pool.take(key, slots, now, skip)
    assert found is not None
    return found


def run(pool: Fleet, times: int, key: int = NO_PREFIX) -> None:
    for _ in range(times):
        taken(pool, key, slots=1 << 20)


# --- affinity ---


@pytest.mark.parametrize("size", [1, 2, 8, 30])
def test_one_beginning_meets_at_one_replica_in_every_router(size: int) -> None:
    one, two = fleet(size), Fleet()
    two.update(reversed([replica(index) for index in range(size)]))
    for key in range(1, 1 << 32, 1 << 27):
        found = [taken(pool, key).pod for pool in (one, one, two)]
        assert len(set(found)) == 1
        for pool in (one, two):
            for each in pool.replicas:
                while each.in_flight:
                    pool.release(each)


def test_a_router_finds_its_own_pod_where_the_others_find_it() -> None:
    inside = Fleet()
    inside.update([Replica("team/chat-0", "gpu", Target(path="/engine"), local=True), *map(replica, range(1, 8))])
    outside = fleet(8)
    for key in range(1, 1 << 32, 1 << 26):
        found = [taken(pool, key) for pool in (inside, outside)]
        assert found[0].pod == found[1].pod
        inside.release(found[0])
        outside.release(found[1])


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(0, 5), max_size=200))
def test_nobody_gets_more_than_the_bound_however_hot_a_beginning_is(size: int, keys: list[int]) -> None:
    pool = fleet(size)
    for key in keys:
        most = bound(pool.running, size)
        got = taken(pool, key * 0x1234567, slots=1 << 20)
        if key:
            assert got.in_flight <= most


def test_a_busy_replica_hands_on_to_the_next_on_the_ring() -> None:
    pool = fleet(4)
    home = taken(pool)
    assert taken(pool) is home
    following = taken(pool, skip=(home,))
    while pool.running < 4 * 4:
        taken(pool)
    busy = sorted(pool.replicas, key=lambda each: -each.in_flight)
    assert busy[:2] == [home, following]


def test_when_the_home_is_free_again_the_beginning_returns_to_it() -> None:
    pool = fleet(2)
    home = taken(pool)
    while taken(pool) is home:
        pass
    pool.release(home)
    pool.release(home)
    assert taken(pool) is home


def test_without_a_beginning_the_least_loaded_is_taken() -> None:
    pool = fleet(3)
    run(pool, 30)
    assert {each.in_flight for each in pool.replicas} == {10}


def test_without_a_beginning_and_without_load_all_have_their_turn() -> None:
    pool = fleet(5)
    seen = set()
    for _ in range(200):
        found = taken(pool, NO_PREFIX)
        seen.add(found)
        pool.release(found)
    assert seen == set(pool.replicas)


def test_without_a_beginning_the_others_load_counts() -> None:
    pool = fleet(2)
    one, two = pool.replicas
    run(pool, 2)
    one.told(Load(9, 0, 100), 0.0)
    assert {taken(pool, NO_PREFIX) for _ in range(5)} == {two}


def test_those_that_are_left_share_a_load_that_the_bound_of_the_whole_pool_would_not_let_them_carry() -> None:
    pool = fleet(8)
    for each in pool.replicas[2:]:
        each.failed(0.0)
    for _ in range(16):
        taken(pool)
    assert sorted(each.in_flight for each in pool.replicas)[-2:] == [5, bound(15, 2)]


def test_a_pool_wider_than_the_kept_order_is_used_as_a_whole() -> None:
    pool = fleet(3 * SUCCESSORS)
    for _ in range(3 * SUCCESSORS * SLOTS):
        taken(pool)
    assert {each.in_flight for each in pool.replicas} == {SLOTS}
    assert pool.take(KEY, SLOTS, 0.0) is None


# --- room ---


@pytest.mark.parametrize("key", [NO_PREFIX, KEY])
def test_full_slots_are_no_room(key: int) -> None:
    pool = fleet(2)
    assert {taken(pool, key, slots=1), taken(pool, key, slots=1)} == set(pool.replicas)
    assert pool.take(key, 1, 0.0) is None
    assert taken(pool, key, slots=2) in pool.replicas


def test_an_empty_pool_has_no_room() -> None:
    assert Fleet().take(KEY, SLOTS, 0.0) is None
    assert Fleet().take(NO_PREFIX, SLOTS, 0.0) is None
    assert Fleet().empty(0.0)


def test_a_skipped_replica_is_not_taken() -> None:
    pool = fleet(2)
    one, two = pool.replicas
    assert taken(pool, skip=(one,)) is two
    assert pool.take(KEY, SLOTS, 0.0, (one, two)) is None


@pytest.mark.parametrize("load", [Load(1, 1, 10), Load(1, 0, 950), Load(SLOTS, 0, 10), Load(9000, 0, 10)])
def test_a_replica_that_told_that_it_is_full_gets_nothing_until_that_is_old(load: Load) -> None:
    pool = fleet(2)
    full, other = taken(pool), None
    full.told(load, 0.0)
    other = next(each for each in pool.replicas if each is not full)
    assert {taken(pool), taken(pool, NO_PREFIX), taken(pool, now=TOLD_S - 0.01)} == {other}
    assert taken(pool, now=TOLD_S) is full


def test_a_full_replica_where_none_of_ours_run_is_asked_once() -> None:
    pool = fleet(1)
    (only,) = pool.replicas
    only.told(Load(SLOTS, 5, 1000), 0.0)
    assert taken(pool) is only
    assert pool.take(KEY, SLOTS, 0.0) is None
    assert pool.take(NO_PREFIX, SLOTS, 0.0) is None


def test_one_that_is_not_full_is_taken_before_a_full_one_is_asked() -> None:
    pool = fleet(2)
    home = taken(pool)
    pool.release(home)
    home.told(Load(0, 1, 0), 0.0)
    assert home not in {taken(pool) for _ in range(SLOTS)}
    assert taken(pool) is home


def test_our_own_requests_are_not_counted_twice() -> None:
    pool = fleet(1)
    (only,) = pool.replicas
    run(pool, 3)
    only.told(Load(5, 0, 100), 0.0)
    assert only.load(0.0) == 5
    pool.release(only)
    assert only.load(0.0) == 4
    run(pool, 2)
    assert only.load(0.0) == 6
    assert only.load(TOLD_S) == 4


def test_the_others_requests_take_slots() -> None:
    pool = fleet(1)
    (only,) = pool.replicas
    only.told(Load(SLOTS - 2, 0, 100), 0.0)
    run_one = [taken(pool), taken(pool)]
    assert run_one == [only, only]
    assert pool.take(KEY, SLOTS, 0.0) is None
    assert pool.take(KEY, SLOTS, TOLD_S) is only


def test_an_answer_tells_the_load_and_many_at_once_are_read_once() -> None:
    only = fleet(1).replicas[0]
    only.hear(b"7,0,100", 0.0)
    only.hear(b"9,0,100", HEAR_EVERY_S / 2)
    assert only.load(0.1) == 7
    only.hear(b"9,0,100", HEAR_EVERY_S)
    assert only.load(0.1) == 9
    only.hear(b"nonsense", 1.0)
    assert only.load(1.0) == 9


@settings(deadline=None)
@given(st.integers(0, 9_999_999), st.integers(0, 9_999_999), st.integers(0, 1000))
def test_a_load_is_read_as_it_was_written(running: int, waiting: int, kv: int) -> None:
    assert parse_load(b"%d,%d,%d" % (running, waiting, kv)) == (running, waiting, kv)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_load_or_none(raw: bytes) -> None:
    load = parse_load(raw)
    assert load is None or (raw.count(b",") == 2 and min(load) >= 0)


@pytest.mark.parametrize(
    "raw",
    [b"", b"1,2", b"1,2,3,4", b"1,2,1001", b"-1,2,3", b"+1,2,3", b"1_0,2,3", b" 1,2,3", b"1,2,3\n", b"12345678,2,3",
     b"1.0,2,3", "٣,2,3".encode()],
)  # fmt: skip
def test_what_is_not_exactly_a_load_is_none(raw: bytes) -> None:
    assert parse_load(raw) is None


# --- health ---


def test_a_replica_that_cannot_be_reached_is_left_alone_and_comes_back_slowly() -> None:
    pool = fleet(2)
    sick = taken(pool)
    pool.release(sick)
    assert sick.failed(0.0)
    assert sick not in {taken(pool, now=FIRST_EJECTION_S - 0.01) for _ in range(SLOTS)}
    assert [taken(pool, now=FIRST_EJECTION_S) for _ in range(1)] == [sick]
    assert pool.take(KEY, SLOTS, FIRST_EJECTION_S) is None  # the other is full, this one is trusted with one
    sick.succeeded()
    assert taken(pool, now=FIRST_EJECTION_S) is sick
    assert pool.take(KEY, SLOTS, FIRST_EJECTION_S) is None


def test_the_time_doubles_up_to_a_minute_and_starts_anew_when_it_is_well() -> None:
    pool = fleet(2)
    sick = pool.replicas[0]
    now, times = 0.0, []
    for _ in range(9):
        assert sick.failed(now)
        times.append(sick.ejected_until - now)
        now = sick.ejected_until
    assert times == [1, 2, 4, 8, 16, 32, LONGEST_EJECTION_S, LONGEST_EJECTION_S, LONGEST_EJECTION_S]
    for _ in range(6):
        sick.succeeded()
    assert sick.failed(now)
    assert sick.ejected_until - now == FIRST_EJECTION_S


def test_failures_of_one_moment_count_once() -> None:
    sick = fleet(2).replicas[0]
    assert sick.failed(0.0)
    assert not sick.failed(0.1)
    assert sick.ejected_until == FIRST_EJECTION_S


def test_a_request_that_failed_may_itself_be_at_fault() -> None:
    sick = fleet(2).replicas[0]
    failed = [sick.failed(0.0, reached=True) for _ in range(FAILURES_IN_A_ROW)]
    assert failed == [False] * (FAILURES_IN_A_ROW - 1) + [True]


def test_failures_with_successes_between_eject_by_their_rate() -> None:
    sick = fleet(2).replicas[0]
    ejected: list[bool] = []
    while not any(ejected):
        ejected.append(sick.failed(0.0, reached=True))
        sick.succeeded()
    assert len(ejected) == FAILURES_OF_LATEST


def test_few_failures_among_many_results_eject_nobody() -> None:
    sick = fleet(2).replicas[0]
    for _ in range(100):
        assert not sick.failed(0.0, reached=True)
        for _ in range(2):
            sick.succeeded()


def test_old_failures_are_forgotten() -> None:
    sick = fleet(2).replicas[0]
    sick.failed(0.0, reached=True)
    for _ in range(10):
        assert sick.troubled
        sick.succeeded()
    assert not sick.troubled


def test_what_led_to_an_ejection_does_not_count_again_once_the_replica_is_well() -> None:
    one, two = fleet(2).replicas
    two.failed(0.0)
    assert not any(one.failed(0.0, reached=True) for _ in range(10))  # half of the pool is out already
    assert one.failed(two.ejected_until, reached=True)
    for _ in range(6):
        one.succeeded()
    assert not one.failed(one.ejected_until, reached=True)


@pytest.mark.parametrize(("size", "out"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_failing_requests_eject_at_most_half_of_a_pool(size: int, out: int) -> None:
    pool = fleet(size)
    for _ in range(10):
        for each in pool.replicas:
            each.failed(0.0, reached=True)
    assert sum(each.out(0.0) for each in pool.replicas) == out


def test_replicas_that_cannot_be_reached_may_all_be_out_and_the_first_to_come_back_is_tried() -> None:
    pool = fleet(3)
    for at, each in enumerate(pool.replicas):
        each.failed(at / 10)
    assert {taken(pool, key, 0.5) for key in (NO_PREFIX, KEY)} == {pool.replicas[0]}
    assert taken(pool, now=0.5, skip=(pool.replicas[0],)) is pool.replicas[1]
    assert pool.take(KEY, 2, 0.5, pool.replicas[1:]) is None


def test_while_a_healthy_one_is_full_an_ejected_one_is_not_tried() -> None:
    pool = fleet(2)
    pool.replicas[0].failed(0.0)
    assert taken(pool, slots=1) is pool.replicas[1]
    assert pool.take(KEY, 1, 0.0) is None


def test_a_success_that_began_earlier_does_not_bring_an_ejected_replica_back() -> None:
    pool = fleet(2)
    sick = pool.replicas[0]
    sick.failed(0.0)
    sick.succeeded()
    assert sick not in {taken(pool) for _ in range(SLOTS)}


@pytest.mark.parametrize("key", [NO_PREFIX, KEY])
def test_a_replica_that_drains_is_passed_over(key: int) -> None:
    pool = fleet(2)
    leaving, staying = pool.replicas
    leaving.leave(0.0)
    assert {taken(pool, key) for _ in range(4)} == {staying}
    assert not pool.empty(0.0)
    staying.leave(0.0)
    assert pool.empty(0.0)
    assert pool.take(key, SLOTS, 0.0) is None
    assert not pool.empty(LEAVING_S)
    assert taken(pool, key, LEAVING_S) in pool.replicas


def test_when_all_that_stay_are_out_one_that_drains_is_not_tried() -> None:
    pool = fleet(2)
    leaving, sick = pool.replicas
    leaving.leave(0.0)
    sick.failed(0.0)
    assert taken(pool) is sick


# --- the pool changes ---


def test_replicas_that_stay_keep_what_is_known_of_them() -> None:
    pool = fleet(2)
    run(pool, 4)
    sick = pool.replicas[0]
    sick.failed(0.0)
    pool.update([replica(0), replica(5)])
    assert pool.replicas[0] is sick
    assert {taken(pool) for _ in range(4)} == {pool.replicas[1]}


def test_a_request_ends_after_its_replica_left() -> None:
    pool = fleet(1)
    gone = taken(pool)
    pool.update([])
    pool.release(gone)
    assert (pool.running, gone.in_flight) == (0, 0)
    assert pool.take(KEY, SLOTS, 0.0) is None


def test_a_replica_that_comes_takes_only_its_own_share() -> None:
    pool = fleet(4)
    keys = range(1, 1 << 32, 1 << 24)

    def homes() -> dict[int, str]:
        found = {}
        for key in keys:
            got = taken(pool, key)
            found[key] = got.pod
            pool.release(got)
        return found

    before = homes()
    pool.update([*pool.replicas, replica(9)])
    after = homes()
    moved = {after[key] for key in keys if after[key] != before[key]}
    assert moved == {"team/chat-9"}


class Pool(RuleBasedStateMachine):
    """Any history of one pool: nobody gets more than they may, and all counts are those of the requests that run."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = fleet(4)
        self.now = 0.0
        self.running: list[Replica] = []

    @rule(key=st.integers(0, (1 << 32) - 1), skipped=st.sets(st.integers(0, 3)))
    def take(self, key: int, skipped: set[int]) -> None:
        skip = tuple(each for at, each in enumerate(self.pool.replicas) if at in skipped)
        before = {each: (each.has_room(self.now), each.in_flight) for each in self.pool.replicas}
        got = self.pool.take(key, 3, self.now, skip)
        room = [each for each, (free, _) in before.items() if free and each not in skip]
        if got is None:
            assert not room
            return
        assert got not in skip
        assert got in room or not room
        assert got.in_flight == before[got][1] + 1 <= 3
        assert got.leaving_until <= self.now
        self.running.append(got)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.running:
            self.pool.release(self.running.pop(data.draw(st.integers(0, len(self.running) - 1))))

    @rule(seconds=st.floats(0.01, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(at=st.integers(0, 7), what=st.sampled_from(["failed", "reached", "succeeded", "leave", "full", "told"]))
    def hear(self, at: int, what: str) -> None:
        if not self.pool.replicas:
            return
        each = self.pool.replicas[at % len(self.pool.replicas)]
        heard: dict[str, Callable[[], object]] = {
            "failed": lambda: each.failed(self.now),
            "reached": lambda: each.failed(self.now, reached=True),
            "succeeded": each.succeeded,
            "leave": lambda: each.leave(self.now),
            "full": lambda: each.told(Load(3, 1, 0), self.now),
            "told": lambda: each.told(Load(2, 0, 500), self.now),
        }
        heard[what]()

    @rule(wanted=st.sets(st.integers(0, 5)))
    def update(self, wanted: set[int]) -> None:
        self.pool.update([replica(index) for index in sorted(wanted)])

    @invariant()
    def counts_are_those_of_what_runs(self) -> None:
        assert self.pool.running == len(self.running)
        assert all(each.in_flight == self.running.count(each) for each in self.running)

    @invariant()
    def limits_never_promise_too_much(self) -> None:
        for each in self.pool.replicas:
            if each.limit:
                assert not each.out(self.now)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
