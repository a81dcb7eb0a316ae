"""One simulated replica: the scheduler's rules, against a plain one that looks at every sequence in every step."""

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.performance.replica import BLOCK_TOKENS, PrefixCache, Replica, Request
from fairlead_operator.performance.step import Engine, StepTime

STEP = StepTime(base=0.0073, per_context_token=1.3e-7, per_token=2.9e-5)
ENGINE = Engine(step=STEP, kv_tokens=100_000)
END = math.inf

Arrivals = list[tuple[float, int, int]]
"""Times, prompt and output tokens."""


def requests_of(arrivals: Arrivals) -> list[Request]:
    return [Request(number, at, prompt, output) for number, (at, prompt, output) in enumerate(sorted(arrivals))]


def served(replica: Replica, requests: list[Request]) -> list[Request]:
    for request in requests:
        replica.advance(request.arrival)
        replica.push(request, request.arrival)
    replica.advance(END)
    return requests


def times(requests: list[Request]) -> list[tuple[float, float]]:
    return [(request.first, request.last) for request in requests]


@dataclass
class Plain:
    """A request of the plain scheduler."""

    number: int
    arrival: float
    prompt: int
    output: int
    generated: int = 0
    computed: int = 0
    decodes: bool = False
    first: float = math.nan
    last: float = math.nan

    @property
    def known(self) -> int:
        return self.prompt + self.generated


@dataclass
class PlainScheduler:
    """The rules, word for word, one step at a time."""

    engine: Engine
    coming: list[Plain]
    now: float = 0.0
    running: list[Plain] = field(default_factory=list)
    waiting: list[Plain] = field(default_factory=list)
    preemptions: int = 0

    def used(self) -> int:
        return sum(one.known for one in self.running)

    def step(self) -> None:
        while self.coming and self.coming[0].arrival <= self.now:
            self.waiting.append(self.coming.pop(0))
        if not self.running and not self.waiting:
            self.now = self.coming[0].arrival
            return
        preempted = self.make_room()
        decoding = [one for one in self.running if one.decodes]
        budget = self.engine.token_budget - len(decoding)
        context = sum(one.known for one in decoding)
        chunks = []
        for one in [one for one in self.running if not one.decodes]:
            chunks.append((one, min(budget, one.known - one.computed)))
            budget -= chunks[-1][1]
        while not preempted and self.waiting and budget > 0 and self.enters(self.waiting[0]):
            one = self.waiting.pop(0)
            self.running.append(one)
            chunks.append((one, min(budget, one.known)))
            budget -= chunks[-1][1]
        tokens = sum(chunk for _, chunk in chunks)
        self.now += self.engine.step.step(len(decoding), tokens, context)
        for one, chunk in chunks:
            one.computed += chunk
        for one in decoding:
            one.computed += 1
        for one in [*decoding, *(one for one, _ in chunks if one.computed == one.known)]:
            self.token(one)

    def make_room(self) -> bool:
        before = self.preemptions
        while self.used() > self.engine.kv_tokens:
            newest = self.running.pop()
            newest.computed, newest.decodes = 0, False
            self.waiting.insert(0, newest)
            self.preemptions += 1
        return self.preemptions > before

    def enters(self, one: Plain) -> bool:
        return len(self.running) < self.engine.max_sequences and self.used() + one.known <= self.engine.kv_tokens

    def token(self, one: Plain) -> None:
        one.generated += 1
        one.decodes = True
        if one.generated == 1:
            one.first = self.now
        if one.generated == one.output:
            one.last = self.now
            self.running.remove(one)


def plainly(engine: Engine, arrivals: Arrivals) -> tuple[list[tuple[float, float]], int]:
    plain = [Plain(number, *arrival) for number, arrival in enumerate(sorted(arrivals))]
    scheduler = PlainScheduler(engine, list(plain))
    while any(math.isnan(one.last) for one in plain):
        scheduler.step()
    return [(one.first, one.last) for one in plain], scheduler.preemptions


arrivals = st.lists(
    st.tuples(st.integers(0, 1000).map(lambda ms: ms / 1000), st.integers(1, 700), st.integers(1, 60)),
    min_size=1,
    max_size=30,
)
engines = st.builds(
    Engine,
    step=st.just(STEP),
    kv_tokens=st.sampled_from((800, 1500, 4000, 100_000)),
    token_budget=st.sampled_from((64, 300, 2048)),
    max_sequences=st.sampled_from((1, 3, 8, 64)),
)


@given(engines, arrivals)
def test_it_does_what_a_scheduler_that_looks_at_every_sequence_does(engine: Engine, arrivals: Arrivals) -> None:
    replica = Replica(engine)
    found = times(served(replica, requests_of(arrivals)))
    expected, preemptions = plainly(engine, arrivals)
    assert [pytest.approx(pair, rel=1e-9) for pair in expected] == found
    assert replica.preemptions == preemptions


@given(engines, arrivals)
def test_steps_taken_at_once_equal_steps_taken_singly(engine: Engine, arrivals: Arrivals) -> None:
    jumping = times(served(Replica(engine), requests_of(arrivals)))
    single = times(served(Replica(engine, jumping=False), requests_of(arrivals)))
    assert [pytest.approx(pair, rel=1e-9) for pair in single] == jumping


@given(engines, arrivals)
def test_every_request_finishes_once_and_nothing_stays_behind(engine: Engine, arrivals: Arrivals) -> None:
    replica = Replica(engine)
    requests = served(replica, requests_of(arrivals))
    assert sorted(request.number for request in replica.finished) == [request.number for request in requests]
    assert sorted(request.number for request in replica.started) == [request.number for request in requests]
    assert (replica.outstanding, replica.running, len(replica.waiting), replica.end) == (0, 0, 0, math.inf)
    assert replica.kv_tokens_used(1e9) == 0
    assert replica.unfinished() == []
    assert all(request.arrival < request.first <= request.last for request in requests)


@given(engines, arrivals)
def test_the_kv_cache_never_holds_more_than_it_can(engine: Engine, arrivals: Arrivals) -> None:
    replica = Replica(engine)
    at = 0.0
    coming = requests_of(arrivals)
    while coming or replica.end < math.inf:
        at += 0.005
        replica.advance(at)
        while coming and coming[0].arrival <= at:
            replica.push(coming.pop(0), at)
        assert 0 <= replica.kv_tokens_used(at) <= engine.kv_tokens
        assert replica.running <= engine.max_sequences
    assert replica.clock > 0


@given(engines, arrivals)
def test_first_tokens_come_in_the_order_of_arrival(engine: Engine, arrivals: Arrivals) -> None:
    requests = served(Replica(engine), requests_of(arrivals))
    firsts = [request.first for request in requests]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (1000, 1), (2048, 7), (2049, 2), (7000, 300)])
def test_a_request_alone_takes_what_the_formula_says(prompt: int, output: int) -> None:
    (request,) = served(Replica(ENGINE), [Request(0, 5.0, prompt, output)])
    steps = math.ceil(prompt / ENGINE.token_budget)
    assert request.ttft == pytest.approx(steps * STEP.base + prompt * STEP.per_token)
    decoded = output - 1
    context = decoded * prompt + decoded * (decoded + 1) / 2
    total = decoded * (STEP.base + STEP.per_token) + context * STEP.per_context_token
    assert request.tpot == pytest.approx(total / decoded if decoded else 0.0)


def test_latency_counts_from_the_release_of_a_request_that_was_held() -> None:
    request = Request(0, 1.0, 100, 5)
    request.released = 8.0
    replica = Replica(ENGINE, now=8.0)
    replica.push(request, 8.0)
    replica.advance(END)
    assert request.ttft == pytest.approx(STEP.base + 100 * STEP.per_token)


def test_prompts_share_a_step_until_its_budget_is_spent_and_a_cut_one_goes_on_first() -> None:
    replica = Replica(replace(ENGINE, token_budget=1000))
    requests = served(replica, requests_of([(0.0, 600, 1), (0.001, 500, 1), (0.001, 700, 1), (0.001, 300, 1)]))
    first = STEP.base + 600 * STEP.per_token
    full = STEP.base + 1000 * STEP.per_token
    # 300 + 500 + 200 of 700, then the other 500: requests of one moment come in the order of their lengths here.
    rest = STEP.base + 500 * STEP.per_token
    assert [request.first for request in requests] == pytest.approx(
        [first, first + full, first + full, first + full + rest]
    )


def test_a_prompt_slows_the_sequences_that_decode_beside_it() -> None:
    decoding, _ = served(Replica(ENGINE), requests_of([(0.0, 100, 50), (0.1, 2000, 1)]))
    (alone,) = served(Replica(ENGINE), requests_of([(0.0, 100, 50)]))
    assert decoding.last - alone.last == pytest.approx(2000 * STEP.per_token)


def test_one_that_does_not_fit_stays_first_in_line_before_one_that_would() -> None:
    replica = Replica(replace(ENGINE, kv_tokens=1000))
    large, larger, small = served(replica, requests_of([(0.0, 900, 30), (0.01, 800, 5), (0.02, 10, 5)]))
    assert larger.first > large.last
    assert small.first >= larger.first
    assert replica.preemptions == 0


def test_the_newest_is_thrown_out_and_computes_its_prompt_and_output_again() -> None:
    replica = Replica(replace(ENGINE, kv_tokens=1000))
    old, new = served(replica, requests_of([(0.0, 480, 100), (0.001, 480, 100)]))
    assert replica.preemptions == 1
    alone = served(Replica(ENGINE), requests_of([(0.0, 480, 100)]))[0]
    assert old.last - old.first < 1.2 * (alone.last - alone.first)
    # It waits until the older one has finished, and then its 480 tokens and what it had generated are computed at once.
    assert new.last > old.last + STEP.base + 490 * STEP.per_token
    assert new.first < old.last


def test_what_a_replica_has_to_do_can_be_seen_at_any_time() -> None:
    replica = Replica(replace(ENGINE, max_sequences=1))
    for request in requests_of([(0.0, 3000, 10), (0.0, 500, 20)]):
        replica.push(request, 0.0)
    assert (replica.running, len(replica.waiting), replica.outstanding) == (0, 2, 3530)
    replica.advance(0.01)
    assert (replica.running, len(replica.waiting), replica.outstanding) == (1, 1, 3530)
    assert (replica.tokens_to_compute(), replica.kv_tokens_used(0.01)) == (3000, 500)
    assert [request.number for request in replica.unfinished()] == [1, 0]
    replica.advance(0.1)
    assert 500 < replica.kv_tokens_used(0.1) < 520
    replica.advance(0.2)
    assert (replica.running, len(replica.waiting), replica.outstanding) == (1, 0, 3010)
    assert (replica.tokens_to_compute(), replica.kv_tokens_used(0.2)) == (3000 - 2048, 3000)


def test_a_request_larger_than_the_kv_cache_does_not_fit() -> None:
    replica = Replica(replace(ENGINE, kv_tokens=1000))
    assert replica.fits(Request(0, 0.0, 900, 100))
    assert not replica.fits(Request(0, 0.0, 900, 101))


# --- prefixes


def test_a_prompt_whose_beginning_is_cached_skips_it_but_for_its_last_token() -> None:
    replica = Replica(ENGINE)
    blocks = [1, 2, 3, 4]
    first, again, longer = (
        Request(0, 0.0, 2048, 3, blocks),
        Request(1, 1.0, 2048, 3, blocks),
        Request(2, 2.0, 4 * BLOCK_TOKENS + 100, 3, blocks),
    )
    served(replica, [first, again, longer])
    assert first.ttft == pytest.approx(STEP.base + 2048 * STEP.per_token)
    # The last block's output is the first token, so that it is computed again.
    assert again.ttft == pytest.approx(STEP.base + BLOCK_TOKENS * STEP.per_token)
    assert longer.ttft == pytest.approx(STEP.base + 100 * STEP.per_token)


def test_tokens_said_to_be_cached_are_not_computed_but_for_the_last_one() -> None:
    replica = Replica(ENGINE)
    part, whole = Request(0, 0.0, 2000, 3), Request(1, 1.0, 2000, 3)
    part.cached, whole.cached = 1500, 2000
    served(replica, [part, whole])
    assert part.ttft == pytest.approx(STEP.base + 500 * STEP.per_token)
    assert whole.ttft == pytest.approx(STEP.base + 1 * STEP.per_token)


def test_a_replica_starts_with_a_cold_cache() -> None:
    (warm,) = served(Replica(ENGINE), [Request(0, 0.0, 2048, 3, [1, 2, 3, 4])])
    (cold,) = served(Replica(ENGINE), [Request(0, 0.0, 2048, 3)])
    assert warm.ttft == cold.ttft


def test_only_a_common_beginning_is_shared() -> None:
    replica = Replica(ENGINE)
    _, other = served(replica, [Request(0, 0.0, 2000, 3, [1, 2, 3]), Request(1, 1.0, 2000, 3, [9, 2, 3])])
    assert other.ttft == pytest.approx(STEP.base + 2000 * STEP.per_token)


def test_running_requests_hold_a_shared_beginning_once() -> None:
    replica = Replica(ENGINE)
    for number in range(3):
        replica.push(Request(number, 0.0, 1100, 50, [1, 2]), 0.0)
    replica.advance(0.001)
    assert replica.kv_tokens_used(0.001) == 3 * 1100 - 2 * 2 * BLOCK_TOKENS


def test_idle_blocks_give_way_to_running_requests_the_oldest_end_first() -> None:
    replica = Replica(replace(ENGINE, kv_tokens=4096))
    served(replica, [Request(0, 0.0, 1500, 3, [1, 2]), Request(1, 1.0, 1500, 3, [3, 4])])
    served(replica, [Request(2, 2.0, 2300, 3)])
    one, other = served(replica, [Request(3, 3.0, 1500, 3, [1, 2]), Request(4, 4.0, 1500, 3, [3, 4])])
    # Room for three blocks was left: block 2, the end of the older prompt, went.
    assert one.ttft == pytest.approx(STEP.base + (1500 - BLOCK_TOKENS) * STEP.per_token)
    assert other.ttft == pytest.approx(STEP.base + (1500 - 2 * BLOCK_TOKENS) * STEP.per_token)


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 2000), st.integers(1, 40), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    )
)
def test_with_shared_prefixes_nothing_is_lost_and_the_cache_keeps_its_bounds(
    drawn: list[tuple[int, int, int, int]],
) -> None:
    replica = Replica(replace(ENGINE, kv_tokens=5000), jumping=False)
    requests = []
    for number, (ms, prompt, output, family) in enumerate(sorted(drawn)):
        blocks = [family * 100 + at for at in range(prompt // BLOCK_TOKENS)]
        requests.append(Request(number, ms / 1000, prompt, output, blocks))
    for request in requests:
        replica.advance(request.arrival)
        replica.push(request, request.arrival)
        idle = len(replica._cache.idle) * BLOCK_TOKENS
        assert idle + replica.kv_tokens_used(request.arrival) <= 5000
    replica.advance(END)
    assert sorted(request.number for request in replica.finished) == list(range(len(requests)))
    assert (replica._cache.pins, replica._cache.saved, replica.kv_tokens_used(1e9)) == ({}, 0, 0)


@given(st.lists(st.lists(st.integers(0, 6), unique=True, max_size=5), max_size=12))
def test_saved_tokens_are_the_blocks_that_more_than_one_request_pins(prompts: list[list[int]]) -> None:
    cache = PrefixCache()
    for blocks in prompts:
        cache.pin(blocks)
    pinned = [block for blocks in prompts for block in blocks]
    assert cache.saved == BLOCK_TOKENS * (len(pinned) - len(set(pinned)))
    for blocks in prompts:
        cache.unpin(blocks)
    assert (cache.saved, cache.pins, set(cache.idle)) == (0, {}, set(pinned))
    cache.trim(2 * BLOCK_TOKENS + 1)
    assert len(cache.idle) == min(2, len(set(pinned)))
