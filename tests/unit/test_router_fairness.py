"""Who is next among those that wait."""

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fairlead_router.contract import Priority
from fairlead_router.fairness import PRIORITIES, FairQueue

TENANTS = ("a", "b", "c", "d")


@dataclass(frozen=True, eq=False)
class Job:
    tenant: str = "a"
    cost: int = 1
    priority: Priority = field(default="Standard", kw_only=True)


def queue(*jobs: Job) -> FairQueue[Job]:
    made: FairQueue[Job] = FairQueue()
    for job in jobs:
        made.add(job)
    return made


def served(waiting: FairQueue[Job], count: int = 1 << 30) -> list[Job]:
    """Who gets the next turns."""
    found: list[Job] = []
    while len(found) < count and (job := next(iter(waiting), None)) is not None:
        waiting.serve(job)
        found.append(job)
    return found


costs = st.one_of(st.integers(1, 10), st.integers(1, 10**12))
jobs = st.builds(Job, st.sampled_from(TENANTS), costs, priority=st.sampled_from(PRIORITIES))


# --- order ---


@given(st.lists(jobs))
def test_a_higher_priority_goes_before_a_lower_one_whoever_waits_longer(waiting: list[Job]) -> None:
    bands = [PRIORITIES.index(job.priority) for job in served(queue(*waiting))]
    assert bands == sorted(bands)


@given(st.lists(jobs))
def test_everyone_is_served_once_and_a_tenants_own_in_the_order_of_arrival(waiting: list[Job]) -> None:
    order = served(queue(*waiting))
    assert Counter(order) == Counter(waiting)
    for tenant in TENANTS:
        for priority in PRIORITIES:
            mine = [job for job in waiting if (job.tenant, job.priority) == (tenant, priority)]
            assert [job for job in order if (job.tenant, job.priority) == (tenant, priority)] == mine


@given(st.dictionaries(st.sampled_from(TENANTS), st.lists(costs, min_size=1, max_size=20), min_size=2))
def test_tenants_that_wait_get_equal_cost_within_one_request_at_any_moment(backlog: dict[str, list[int]]) -> None:
    waiting = queue(*(Job(tenant, cost) for tenant, own in backlog.items() for cost in own))
    left, got = {tenant: len(own) for tenant, own in backlog.items()}, dict.fromkeys(backlog, 0)
    largest = max(max(own) for own in backlog.values())
    while all(left.values()):
        (job,) = served(waiting, 1)
        left[job.tenant] -= 1
        got[job.tenant] += job.cost
        assert max(got.values()) - min(got.values()) <= largest


def test_a_tenant_with_huge_prompts_and_one_with_small_ones_get_equal_dollars() -> None:
    huge, small = [Job("huge", 100_000) for _ in range(3)], [Job("small", 100) for _ in range(2500)]
    order = served(queue(*huge, *small))
    assert [order.index(job) for job in huge] == [999, 2_000, 2_502]
    spent = Counter[str]()
    for job in order[:2_002]:
        spent[job.tenant] += job.cost
    assert abs(spent["huge"] - spent["small"]) <= 100_000


def test_equal_costs_take_turns() -> None:
    order = served(queue(*(Job(tenant) for tenant in "aaabbbccc")))
    assert "".join(job.tenant for job in order) == "abcabcabc"


def test_a_tenant_that_asks_one_at_a_time_gets_no_more_than_one_that_waits_with_many() -> None:
    waiting = queue(*(Job("many", 10) for _ in range(200)), Job("serial", 10))
    turns = Counter[str]()
    for _ in range(200):
        (job,) = served(waiting, 1)
        turns[job.tenant] += 1
        if job.tenant == "serial":
            waiting.add(Job("serial", 10))
    assert turns == {"many": 100, "serial": 100}


def test_who_comes_back_has_saved_nothing_and_owes_nothing() -> None:
    waiting = queue(*(Job("stays", 10) for _ in range(100)), Job("leaves", 10))
    served(waiting, 50)
    for _ in range(5):
        waiting.add(Job("leaves", 10))
    assert "".join(job.tenant[0] for job in served(waiting, 10)) == "sl" * 5


@given(st.lists(costs, min_size=1, max_size=30), costs)
def test_no_stream_of_newcomers_keeps_a_tenant_waiting_for_ever(flood: list[int], cost: int) -> None:
    patient = Job("patient", cost)
    waiting, sent = queue(patient), 0
    feed = deque(flood)
    while patient in set(waiting):
        newcomer = Job("flood", max(cost, feed[0]))
        feed.rotate()
        waiting.add(newcomer)
        served(waiting, 1)
        sent += 1
        assert sent <= 2


@given(st.integers(-5, 0))
def test_a_cost_below_one_counts_as_one(cost: int) -> None:
    waiting = queue(*(Job("free", cost) for _ in range(3)), *(Job("one", 1) for _ in range(3)))
    assert "".join(job.tenant[0] for job in served(waiting)) == "fofofo"


def test_a_job_that_is_passed_over_keeps_its_place_and_its_tenant_pays_for_the_one_that_was_served() -> None:
    stuck, next_one = Job("a", 5), Job("a", 5)
    waiting = queue(stuck, next_one, *(Job("b", 5) for _ in range(3)))
    assert list(waiting)[:2] == [stuck, next_one]
    waiting.serve(next_one)
    assert [job.tenant for job in served(waiting, 2)] == ["b", "a"]


# --- leaving ---


def test_a_tenant_whose_first_request_leaves_keeps_the_credit_that_it_waited_for() -> None:
    dear, cheap = Job("a", 1_000), Job("a", 500)
    waiting = queue(dear, cheap, *(Job("b", 100) for _ in range(20)))
    served(waiting, 6)
    waiting.remove(dear)
    assert served(waiting, 1) == [cheap]


def test_leaving_from_the_middle_changes_nobody_elses_turn() -> None:
    mine = [Job("a") for _ in range(3)]
    waiting = queue(mine[0], Job("b"), mine[1], mine[2])
    waiting.remove(mine[1])
    assert [job.tenant for job in served(waiting)] == ["a", "b", "a"]


# --- a full line ---


def test_a_higher_priority_takes_the_place_of_the_newest_of_the_longest_tenant_of_the_lowest_band() -> None:
    newest = Job("long", priority="Batch")
    waiting = queue(Job("short", priority="Batch"), Job("long", priority="Batch"), newest, Job(), Job())
    assert waiting.yields_to(Job(priority="Standard")) is newest
    assert waiting.yields_to(Job("long", priority="Interactive")) is newest


def test_within_a_band_the_tenant_with_most_requests_loses_its_newest() -> None:
    newest = Job("long")
    waiting = queue(Job("long"), Job("long"), newest, Job("short"))
    assert waiting.yields_to(Job("short")) is newest
    assert waiting.yields_to(Job("new")) is newest


def test_who_would_have_as_many_as_the_longest_pushes_nobody_out() -> None:
    waiting = queue(Job("long"), Job("long"), Job("short"))
    assert waiting.yields_to(Job("long")) is None
    assert waiting.yields_to(Job("short")) is None
    assert queue(Job("a"), Job("b")).yields_to(Job("c")) is None


def test_a_lower_priority_pushes_nobody_out() -> None:
    waiting = queue(*(Job("a") for _ in range(5)))
    assert waiting.yields_to(Job("b", priority="Batch")) is None
    assert queue().yields_to(Job()) is None


# --- the structure, whatever happens to it ---


class Model(RuleBasedStateMachine):
    """The queue against a plain list of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Job] = FairQueue()
        self.waiting: list[Job] = []
        self.late: list[Job] = []
        """Those of them that were put off, in that order."""

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def put_off(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting))
        assert self.queue.put_off(job) == (job not in self.late)
        if job not in self.late:
            self.late.append(job)

    def forget(self, job: Job) -> None:
        self.waiting.remove(job)
        if job in self.late:
            self.late.remove(job)

    @rule(job=jobs)
    def add(self, job: Job) -> None:
        self.queue.add(job)
        self.waiting.append(job)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting))
        self.queue.remove(job)
        self.forget(job)

    @precondition(lambda self: self.waiting)
    @rule()
    def serve(self) -> None:
        (job,) = served(self.queue, 1)
        self.forget(job)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def serve_one_further_back(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.queue)))
        self.queue.serve(job)
        self.forget(job)

    @precondition(lambda self: self.waiting)
    @rule(newcomer=jobs)
    def make_room(self, newcomer: Job) -> None:
        victim = self.queue.yields_to(newcomer)
        lowest = max(self.rank(job) for job in self.waiting)
        band = [job for job in (*self.in_time(), *self.late) if self.rank(job) == lowest]
        sizes = Counter(job.tenant for job in band)
        own = 2 * PRIORITIES.index(newcomer.priority)
        if own == lowest:
            sizes[newcomer.tenant] += 1
        assert (victim is not None) == (
            own < lowest or (own == lowest and sizes[newcomer.tenant] < max(sizes.values()))
        )
        if victim is not None:
            assert sizes[victim.tenant] == max(sizes.values())
            assert victim is [job for job in band if job.tenant == victim.tenant][-1]

    def in_time(self) -> list[Job]:
        return [job for job in self.waiting if job not in self.late]

    def rank(self, job: Job) -> int:
        return 2 * PRIORITIES.index(job.priority) + (job in self.late)

    @invariant()
    def those_put_off_are_behind_the_others_of_their_priority(self) -> None:
        ranks = [self.rank(job) for job in self.queue]
        assert ranks == sorted(ranks)
        assert Counter(self.queue.late()) == Counter(self.late)

    @invariant()
    def all_are_there_once(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert Counter(self.queue) == Counter(self.waiting)

    @invariant()
    def nothing_is_kept_of_a_tenant_that_waits_no_more(self) -> None:
        for (priority, late), band in self.queue._bands.items():
            there = {job.tenant for job in self.waiting if (job.priority, job in self.late) == (priority, late)}
            assert band._tenants.keys() == there
            assert len(band._turns) == len(there)
            assert band._turns == sorted(band._turns, key=lambda entry: entry[0])


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)
