"""The line for a pool's replicas."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_router.contract import PoolConfig, Priority
from fairlead_router.fairness import PRIORITIES
from fairlead_router.queueing import LATE_EVERY, MAX_LENGTH, Line, Place
from fairlead_router.replicas import TOLD_S, Load, Replica
from fairlead_router.upstream import Target
from tests.builders.router import POOL


@dataclass(eq=False)
class Guest:
    """A request that notes what it is told; ``then`` is what it does once it is placed."""

    places: list[Replica] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    then: Callable[[Replica], None] = field(default=lambda _: None)

    def placed(self, replica: Replica) -> None:
        self.places.append(replica)
        self.told.append("placed")
        self.then(replica)

    def timed_out(self, *, cold: bool) -> None:
        self.told.append("cold" if cold else "busy")

    def shed(self) -> None:
        self.told.append("shed")

    def replan(self) -> None:
        self.told.append("replan")
        self.then(Replica("", "", Target()))


def place(
    guest: Guest,
    *skip: Replica,
    tenant: str = "a",
    priority: Priority = "Standard",
    cost: int = 1,
    max_wait_s: float = 10.0,
    max_cold_s: float = 20.0,
    since: float = 0.0,
) -> Place:
    return Place(guest, max_wait_s, max_cold_s, since, skip, tenant=tenant, priority=priority, cost=cost)


def replica(index: int) -> Replica:
    return Replica(f"a/{index}", "v", Target(path=str(index)))


class Clock:
    """The time of a line; its timers run on the loop's own."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line_of(*replicas: Replica, slots: int = 1, ttft_ms: int = 0, now: Callable[[], float] | None = None) -> Line:
    line = Line(PoolConfig(pool=POOL, slots=slots, ttft_ms=ttft_ms), now or Clock())
    line.update(line.config, replicas)
    return line


def filled(line: Line) -> list[Replica]:
    """Take all slots."""
    taken = []
    while (found := line.enter(0)) is not None:
        taken.append(found)
    return taken


async def told(guest: Guest) -> str:
    async with asyncio.timeout(5):
        while not guest.told:  # noqa: ASYNC110 - a guest is told by a timer
            await asyncio.sleep(0.001)
    return guest.told[-1]


# --- a slot at once ---


async def test_a_request_enters_while_there_is_room_and_not_beyond() -> None:
    line = line_of(replica(1), replica(2), slots=3)
    assert len(filled(line)) == 6
    assert line.running == 6
    line.release(line.replicas[1])
    assert line.enter(0) is line.replicas[1]


async def test_nobody_overtakes_those_that_wait() -> None:
    one = replica(1)
    line = line_of(one)
    filled(line)
    first = Guest()
    assert line.wait(place(first))
    one.slots = 2
    one.recheck_at = 0.0  # room that time made, which nobody was told of
    assert line.enter(0) is None
    line.advance()
    assert first.places == [one]


async def test_what_a_replica_told_of_others_requests_leaves_less_room() -> None:
    clock, one = Clock(), replica(1)
    line = line_of(one, slots=8, now=clock)
    taken = line.enter(0)
    assert taken is one
    one.told(Load(running=6, waiting=0, kv_permille=100), clock())
    assert len(filled(line)) == 2
    clock.now += TOLD_S
    assert len(filled(line)) == 5


@pytest.mark.parametrize("load", [Load(3, 1, 100), Load(3, 0, 950)], ids=["waiting", "cache full"])
async def test_a_replica_that_is_full_takes_nothing_while_ours_run_there_and_one_once_none_do(load: Load) -> None:
    clock, one = Clock(), replica(1)
    line = line_of(one, slots=8, now=clock)
    assert line.enter(0) is one
    one.told(load, clock())
    assert line.enter(0) is None
    guest, behind = Guest(), Guest()
    assert line.wait(place(guest))
    assert line.wait(place(behind))
    line.release(one)
    assert (guest.places, behind.places) == ([one], [])
    one.told(Load(1, 0, 100), clock())
    line.advance()
    assert behind.places == [one]


# --- skipping ---


async def test_a_request_that_may_not_use_the_free_replica_holds_up_nobody_behind_it() -> None:
    one, two = replica(1), replica(2)
    line = line_of(one, two)
    assert set(filled(line)) == {one, two}
    picky, easy = Guest(), Guest()
    assert line.wait(place(picky, one))
    assert line.wait(place(easy))
    line.release(one)
    assert (picky.places, easy.places) == ([], [one])
    line.release(two)
    assert picky.places == [two]


async def test_nor_a_newcomer() -> None:
    one, two = replica(1), replica(2)
    line = line_of(one, two)
    filled(line)
    picky = Guest()
    assert line.wait(place(picky, one))
    line.release(one)
    assert line.enter(0) is one
    assert picky.places == []


async def test_nor_the_same_tenants_next_nor_a_lower_band() -> None:
    one, two = replica(1), replica(2)
    line = line_of(one, two, slots=2)
    filled(line)
    picky, mine, low = Guest(), Guest(), Guest()
    assert line.wait(place(picky, one, priority="Interactive"))
    assert line.wait(place(mine, priority="Interactive"))
    assert line.wait(place(low, priority="Batch"))
    line.release(one)
    line.release(one)
    assert (picky.places, mine.places, low.places) == ([], [one], [one])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 2)), st.sampled_from("ab"), st.sampled_from(PRIORITIES))))
async def test_no_slot_stays_free_while_somebody_waits_who_could_use_it(
    requests: list[tuple[set[int], str, Priority]],
) -> None:
    replicas = [replica(index) for index in range(3)]
    line = line_of(*replicas)
    held = filled(line)
    waiting: dict[Guest, Place] = {}
    for skip, tenant, priority in requests:
        guest = Guest(then=held.append)
        waiting[guest] = place(guest, *(replicas[index] for index in skip), tenant=tenant, priority=priority)
        assert line.wait(waiting[guest])
    while held:
        line.release(held.pop(0))
        free = {each for each in replicas if not each.in_flight}
        for guest, there in waiting.items():
            assert guest.places or free <= set(there.skip)
    for guest, there in waiting.items():
        assert guest.places or set(there.skip) == set(replicas)
        assert set(guest.places).isdisjoint(there.skip)
        line.leave(there)
    assert (line.running, line.held.value, line._queued) == (0, 0, 0)


# --- order ---


async def test_slots_go_by_priority_and_then_to_the_tenants_in_turn_by_cost() -> None:
    one = replica(1)
    line = line_of(one)
    filled(line)
    order: list[str] = []
    for name, tenant, priority, cost in (
        ("batch", "a", "Batch", 1),
        ("big 1", "big", "Standard", 30),
        ("big 2", "big", "Standard", 30),
        ("small 1", "small", "Standard", 10),
        ("small 2", "small", "Standard", 10),
        ("small 3", "small", "Standard", 10),
        ("small 4", "small", "Standard", 10),
        ("person", "a", "Interactive", 1000),
    ):
        guest = Guest(then=lambda _, name=name: order.append(name))  # type: ignore[misc]
        assert line.wait(place(guest, tenant=tenant, priority=priority, cost=cost))  # type: ignore[arg-type]
    for _ in range(8):
        line.release(one)
    assert order == ["person", "small 1", "small 2", "big 1", "small 3", "small 4", "big 2", "batch"]


async def test_a_guest_that_is_over_at_once_lets_the_next_in_without_depth() -> None:
    one = replica(1)
    line = line_of(one)
    filled(line)
    guests = [Guest(then=line.release) for _ in range(MAX_LENGTH)]
    for guest in guests:
        assert line.wait(place(guest))
    line.release(one)
    assert all(guest.places == [one] for guest in guests)
    assert (line.running, line.held.value) == (0, 0)


class Skipped(tuple[Replica, ...]):
    """Replicas that a place does not take; counts how often one was looked for among them."""

    __slots__ = ()
    looks = 0

    def __contains__(self, one: object) -> bool:
        Skipped.looks += 1
        return super().__contains__(one)


async def test_the_work_of_a_release_does_not_grow_with_those_that_wait() -> None:
    one, two = replica(1), replica(2)
    line = line_of(one, two)
    filled(line)
    Skipped.looks = 0
    for number in range(MAX_LENGTH):
        waiting = place(Guest(), tenant=str(number))
        if number % 2:
            waiting.skip = Skipped((one,))
        assert line.wait(waiting)
    for _ in range(MAX_LENGTH // 2):
        line.release(one)
    assert line.held.value == MAX_LENGTH // 2
    assert 0 < Skipped.looks <= 4 * MAX_LENGTH


# --- length ---


async def test_a_full_line_takes_a_tenant_that_has_less_there_and_sheds_the_newest_of_the_largest() -> None:
    line = line_of()
    guests = [Guest() for _ in range(MAX_LENGTH)]
    for guest in guests:
        assert line.wait(place(guest, tenant="crowd"))
    assert not line.wait(place(Guest(), tenant="crowd"))
    assert line.wait(place(Guest(), tenant="other"))
    assert [guest.told for guest in guests[-2:]] == [[], ["shed"]]
    assert line.held.value == MAX_LENGTH


async def test_batch_is_shed_first() -> None:
    line = line_of()
    batch = Guest()
    assert line.wait(place(batch, tenant="b", priority="Batch"))
    for _ in range(MAX_LENGTH - 1):
        assert line.wait(place(Guest(), tenant="a"))
    assert not line.wait(place(Guest(), tenant="c", priority="Batch"))
    assert line.wait(place(Guest(), tenant="a"))
    assert batch.told == ["shed"]
    assert not line.wait(place(Guest(), tenant="a"))


async def test_parked_requests_count_for_the_length_and_one_tenant_does_not_fill_it() -> None:
    line = line_of()
    guests = [Guest() for _ in range(MAX_LENGTH)]
    for guest in guests:
        assert line.park(place(guest, tenant="crowd"))
    assert not line.wait(place(Guest()))
    assert line.park(place(Guest(), tenant="other"))
    assert guests[-1].told == ["shed"]
    assert line.held.value == MAX_LENGTH


async def test_a_guest_that_is_shed_may_come_back_at_once() -> None:
    line = line_of()
    for _ in range(MAX_LENGTH - 1):
        assert line.wait(place(Guest(), tenant="a", priority="Batch"))
    came_back: list[bool] = []

    class Stubborn(Guest):
        def shed(self) -> None:
            came_back.append(line.wait(place(Guest(), tenant="a", priority="Batch")))

    assert line.wait(place(Stubborn(), tenant="a", priority="Batch"))
    assert line.wait(place(Guest(), priority="Interactive"))
    assert came_back == [False]
    assert line.held.value == MAX_LENGTH


# --- leaving ---


async def test_whoever_leaves_is_told_nothing_and_leaving_twice_is_nothing() -> None:
    one = replica(1)
    line = line_of(one)
    filled(line)
    gone, stays = Guest(), Guest()
    left = place(gone, max_wait_s=0.0)
    assert line.wait(left)
    assert line.wait(place(stays))
    line.leave(left)
    line.leave(left)
    assert line.held.value == 1
    await asyncio.sleep(0.01)
    line.release(one)
    assert (gone.told, stays.told) == ([], ["placed"])
    line.leave(left)
    assert line.held.value == 0


async def test_a_slot_of_a_replica_that_left_the_pool_can_be_given_back() -> None:
    one, two = replica(1), replica(2)
    line = line_of(one)
    assert line.enter(0) is one
    guest = Guest()
    assert line.wait(place(guest))
    line.update(line.config, (two,))
    assert guest.places == [two]
    line.release(one)
    line.release(two)
    assert line.running == 0


# --- time ---


async def test_a_request_waits_no_longer_than_its_route_allows() -> None:
    line = line_of(replica(1))
    filled(line)
    guest, patient = Guest(), Guest()
    assert line.wait(place(guest, max_wait_s=0.01))
    assert line.wait(place(patient))
    assert await told(guest) == "busy"
    assert patient.told == []
    assert line.held.value == 1


async def test_a_pool_at_zero_has_its_own_bound_counted_from_the_requests_beginning() -> None:
    clock = Clock()
    clock.now = 100.0
    line = line_of(now=clock)
    late, early = Guest(), Guest()
    assert line.wait(place(late, max_wait_s=0.0, since=100.0))
    assert line.wait(place(early, max_wait_s=0.0, since=80.0))
    assert await told(early) == "cold"
    assert late.told == []


async def test_a_pool_that_wakes_places_those_it_can_and_gives_the_others_their_full_wait() -> None:
    line, one = line_of(), replica(1)
    first, second = Guest(), Guest()
    assert line.wait(place(first, max_wait_s=0.01))
    assert line.wait(place(second, max_wait_s=0.01))
    await asyncio.sleep(0.02)
    line.update(line.config, (one,))
    assert (first.places, second.told) == ([one], [])
    assert await told(second) == "busy"


async def test_a_pool_that_falls_asleep_holds_those_that_wait() -> None:
    line = line_of(replica(1), now=asyncio.get_running_loop().time)
    filled(line)
    guest = Guest()
    waiting = place(guest, max_wait_s=0.01, since=asyncio.get_running_loop().time())
    assert line.wait(waiting)
    line.update(line.config, ())
    await asyncio.sleep(0.03)
    assert guest.told == []
    assert line.empty()


# --- parked ---


async def test_parked_requests_are_looked_at_again_by_priority_and_may_park_again() -> None:
    line = line_of()
    order: list[str] = []

    def again(name: str) -> None:
        order.append(name)
        assert line.park(place(Guest()))

    low = Guest(then=lambda _: again("low"))
    high = Guest(then=lambda _: again("high"))
    assert line.park(place(low, priority="Batch"))
    assert line.park(place(high, priority="Interactive"))
    line.replan()
    assert order == ["high", "low"]
    assert line.held.value == 2


async def test_a_parked_request_that_leaves_while_others_are_looked_at_is_not_looked_at() -> None:
    line = line_of()
    second = Guest()
    leaves = place(second)
    first = Guest(then=lambda _: line.leave(leaves))
    assert line.park(place(first))
    assert line.park(leaves)
    line.replan()
    assert (first.told, second.told) == (["replan"], [])
    assert line.held.value == 0


async def test_a_parked_request_gives_up_as_for_a_pool_at_zero() -> None:
    line, guest = line_of(replica(1)), Guest()
    assert line.park(place(guest, max_cold_s=0.0))
    assert await told(guest) == "cold"


# --- what the operator sees ---


async def test_the_operator_sees_the_most_that_were_held_since_it_last_looked() -> None:
    one = replica(1)
    line = line_of(one)
    filled(line)
    for _ in range(3):
        assert line.wait(place(Guest(then=line.release)))
    line.release(one)
    assert (line.held.value, line.held.read("operator"), line.held.read("operator")) == (0, 3, 0)


async def test_a_request_that_goes_elsewhere_for_a_pool_at_zero_wakes_it() -> None:
    line = line_of()
    line.held.read("operator")
    line.wake()
    assert (line.held.value, line.held.read("operator"), line.held.read("operator")) == (0, 1, 0)


async def test_a_key_matters_only_where_there_is_a_choice() -> None:
    line = line_of(replica(1))
    assert not line.chooses()
    line.update(line.config, (replica(1), replica(2)))
    assert line.chooses()
    assert len(line.replicas) == 2


# --- all together ---


class Life:
    """Requests that come, wait, leave and end by chance, and replicas that come and go."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - a test's own choices
        self.replicas = [replica(index) for index in range(3)]
        self.line = line_of(*self.replicas, slots=2)
        self.held: list[Replica] = []
        self.places: list[Place] = []

    def arrive(self) -> None:
        draw = self.draw
        there = place(
            Guest(then=self.held.append), *draw.sample(self.replicas, draw.randrange(3)),
            tenant=draw.choice("abc"), priority=draw.choice(PRIORITIES), cost=draw.randrange(1000),
        )  # fmt: skip
        found = self.line.enter(0, there.skip)
        if found is not None:
            self.held.append(found)
        elif self.line.wait(there):
            self.places.append(there)

    def leave(self) -> None:
        if self.places:
            self.line.leave(self.draw.choice(self.places))

    def end(self) -> None:
        if self.held:
            self.line.release(self.held.pop(self.draw.randrange(len(self.held))))

    def change(self) -> None:
        self.line.update(self.line.config, self.draw.sample(self.replicas, self.draw.randrange(4)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1 << 30))
async def test_after_any_life_nothing_is_left(seed: int) -> None:
    life = Life(seed)
    line = life.line
    for _ in range(200):
        life.draw.choice([life.arrive, life.arrive, life.leave, life.end, life.change])()
        assert line.running == len(life.held)
        assert line.held.value == sum(there.queue is not None for there in life.places)
    line.update(line.config, life.replicas)
    while life.held:
        life.end()
    assert (line.running, line.held.value, line._queued) == (0, 0, 0)
    assert all(len(there.guest.told) <= 1 for there in life.places if isinstance(there.guest, Guest))


# --- a time to the first token ---


def served_in_turn(line: Line, count: int) -> None:
    """So many slots become free, one after the other."""
    for _ in range(count):
        line.release(line.replicas[0])


async def test_those_who_waited_too_long_go_behind_those_who_can_still_be_in_time() -> None:
    clock = Clock()
    line = line_of(replica(1), ttft_ms=2000, now=clock)
    filled(line)
    old, young, late_batch = Guest(), Guest(), Guest()
    line.wait(place(old, since=0.0))
    line.wait(place(late_batch, priority="Batch", since=0.0))
    clock.now = 1.7
    line.wait(place(young, since=1.7))
    served_in_turn(line, 1)
    assert (len(young.places), len(old.places)) == (1, 0)
    served_in_turn(line, 1)
    assert (len(old.places), len(late_batch.places)) == (1, 0)


async def test_without_a_promised_time_whoever_came_first_goes_first() -> None:
    clock = Clock()
    line = line_of(replica(1), now=clock)
    filled(line)
    old, young = Guest(), Guest()
    line.wait(place(old))
    clock.now = 1000.0
    line.wait(place(young, since=1000.0))
    served_in_turn(line, 1)
    assert (len(old.places), len(young.places)) == (1, 0)


async def test_nobody_is_late_for_the_time_in_which_there_was_no_replica() -> None:
    clock = Clock()
    line = line_of(ttft_ms=2000, now=clock)
    first, second = Guest(), Guest()
    line.wait(place(first, since=0.0))
    line.wait(place(second, since=0.0))
    clock.now = 60.0
    line.update(line.config, [replica(1)])
    young = Guest()
    clock.now = 61.0
    line.wait(place(young, since=61.0))
    served_in_turn(line, 1)
    assert (len(first.places), len(second.places), len(young.places)) == (1, 1, 0)


async def test_a_burst_of_twice_the_capacity_loses_only_what_is_too_much_and_starves_nobody() -> None:
    clock, ttft = Clock(), 2.0
    line = line_of(replica(1), slots=8, ttft_ms=2000, now=clock)
    guests: list[tuple[float, Guest]] = []
    begun: dict[Guest, float] = {}
    running = 0
    for tick in range(1200):  # each 50 ms: two come, one slot of the eight becomes free
        clock.now = tick / 20
        for _ in range(2):
            guest = Guest()
            guests.append((clock.now, guest))
            if line.enter(0) is not None:
                guest.placed(line.replicas[0])
            else:
                assert line.wait(place(guest, since=clock.now, max_wait_s=1000.0))
        running = min(8, running + 2)
        if running == 8:
            line.release(line.replicas[0])
        begun |= {guest: clock.now for _, guest in guests if guest.places and guest not in begun}
        if len(line._waiting) > MAX_LENGTH - 4:
            break
    rounds = tick + 1
    in_time = sum(1 for came, guest in guests if guest in begun and begun[guest] - came <= ttft)
    assert in_time >= 0.9 * rounds  # of those that there was a slot for
    late = sum(1 for came, guest in guests if guest in begun and begun[guest] - came > ttft)
    assert late >= 0.8 * rounds / LATE_EVERY - 4
    newest = [guest for came, guest in guests if came < clock.now - 5]
    while line._waiting:
        line.release(line.replicas[0])
    assert all(guest.places for guest in newest)


async def test_a_variant_that_runs_fewer_at_once_has_its_own_bound() -> None:
    small, large = Replica("a/1", "small", Target(path="1")), Replica("a/2", "large", Target(path="2"))
    line = line_of(small, large, slots=4)
    bounded = PoolConfig(pool=POOL, slots=4, variant_slots=(("small", 1), ("large", 9)))
    assert len(filled(line)) == 8
    line.update(bounded, [small, large])
    for one in (small, small, small, large, large):
        line.release(one)
    assert filled(line) == [large, large]
    line.release(small)
    assert filled(line) == [small]
    line.update(PoolConfig(pool=POOL, slots=4), [small, large])
    assert filled(line) == [small] * 3
