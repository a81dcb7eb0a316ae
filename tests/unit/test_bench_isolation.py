"""The isolation bench: its model of an engine, its load, its configuration and its statistics."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router.policy import build_index
from tests.bench.isolation import engine, fleet, load
from tests.bench.isolation.__main__ import Outcome, Scenario, figures, scenarios
from tests.bench.isolation.engine import Engine, Scheduler, Sequence
from tests.bench.isolation.fleet import LONG_POOL
from tests.bench.quantiles import quantile

LONG = 100_000


@dataclass
class Page:
    """Where the tokens of a sequence go in these tests."""

    tokens: int = 0
    ended: bool = False

    def token(self, *, last: bool) -> None:
        assert not self.ended
        self.tokens += 1
        self.ended = last


def sequence(prompt: int, output: int) -> tuple[Sequence, Page]:
    page = Page()
    return Sequence(prompt, output, page), page


def until_first_token(scheduler: Scheduler, page: Page) -> tuple[int, float]:
    """Steps and seconds."""
    steps, seconds = 0, 0.0
    while not page.tokens:
        step = scheduler.step()
        assert step is not None
        scheduler.finish(step)
        steps, seconds = steps + 1, seconds + step.seconds
    return steps, seconds


def beside_a_long_prompt(cap: int) -> tuple[int, float]:
    """What a short prompt waits that comes just after a long one has begun."""
    scheduler = Scheduler(cap)
    long, _ = sequence(LONG, 2)
    scheduler.waiting.append(long)
    first = scheduler.step()
    assert first is not None
    scheduler.finish(first)
    short, page = sequence(1000, 2)
    scheduler.waiting.append(short)
    return until_first_token(scheduler, page)


def test_a_long_prompt_alone_takes_as_many_steps_as_its_tokens_fill() -> None:
    scheduler = Scheduler()
    long, page = sequence(LONG, 2)
    scheduler.waiting.append(long)
    steps, seconds = until_first_token(scheduler, page)
    assert steps == -(-LONG // engine.BUDGET)
    assert seconds == pytest.approx(steps * engine.FIXED_S + LONG * engine.TOKEN_S, rel=0.01)


def test_a_short_prompt_waits_until_a_long_one_is_read_unless_the_engine_caps_it() -> None:
    steps, _ = beside_a_long_prompt(cap=0)
    capped, _ = beside_a_long_prompt(cap=512)
    assert steps == -(-LONG // engine.BUDGET)
    assert capped == 2


def test_who_writes_goes_on_writing_while_a_long_prompt_is_read() -> None:
    scheduler = Scheduler()
    writer, page = sequence(10, 1000)
    scheduler.waiting.append(writer)
    until_first_token(scheduler, page)
    long, _ = sequence(LONG, 2)
    scheduler.waiting.append(long)
    before = page.tokens
    for _ in range(10):
        step = scheduler.step()
        assert step is not None
        scheduler.finish(step)
    assert page.tokens == before + 10


def test_a_request_that_the_cache_has_no_room_for_waits_and_none_overtakes_it() -> None:
    scheduler = Scheduler()
    for prompt in (engine.KV_TOKENS - 100, 200, 10):
        scheduler.waiting.append(sequence(prompt, 1)[0])
    scheduler.step()
    assert [one.prompt for one in scheduler.waiting] == [200, 10]


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 30)), min_size=1, max_size=20),
    st.sampled_from([0, 64, 512]),
)
def test_every_prompt_is_read_and_every_token_written_within_the_budget_of_each_step(
    sizes: list[tuple[int, int]], cap: int
) -> None:
    scheduler = Scheduler(cap)
    pairs = [sequence(prompt, output) for prompt, output in sizes]
    scheduler.waiting.extend(one for one, _ in pairs)
    while (step := scheduler.step()) is not None:
        assert 0 < sum(tokens for _, tokens in step.parts) <= engine.BUDGET
        assert step.seconds > engine.FIXED_S
        scheduler.finish(step)
    assert [(page.tokens, page.ended) for _, page in pairs] == [(output, True) for _, output in sizes]
    assert scheduler.running == []


def traffic(**fields: float) -> load.Traffic:
    usual = {"short_rate": 20.0, "long_rate": 2.0, "bytes_per_token": 4}
    return load.Traffic(short=[(100, 5), (50, 3)], long=(3000, 2), **(usual | fields))


def test_the_short_requests_of_a_seed_are_the_same_with_and_without_the_long_ones() -> None:
    alone, mixed = (load.calls(traffic(), 10, 7, long=long) for long in (False, True))
    assert [call for call in mixed if call.kind == "short"] == alone
    assert {call.kind for call in mixed} == {"short", "long"}
    assert [call.at for call in mixed] == sorted(call.at for call in mixed)
    assert load.calls(traffic(), 10, 8, long=False) != alone


def test_prompts_have_the_size_that_was_asked_for_and_begin_differently() -> None:
    rng = random.Random(1)  # noqa: S311 - text
    texts = [load.prompt_text(size, rng) for size in (4, 40, 400_000)]
    assert [len(text) for text in texts] == [4, 40, 400_000]
    assert len({load.prompt_text(400, rng)[:12] for _ in range(100)}) == 100


def test_the_recorded_chats_are_those_that_fit_a_short_route() -> None:
    pairs = load.conversations(8192)
    assert len(pairs) > 19_000
    assert max(prompt + output for prompt, output in pairs) <= 8192
    assert sum(prompt for prompt, _ in pairs) / len(pairs) == pytest.approx(1155, abs=5)


@pytest.mark.parametrize("scenario", scenarios(8192, 131_072), ids=lambda one: one.name)
def test_the_router_takes_the_configuration_of_every_scenario(scenario: Scenario) -> None:
    config = fleet.configuration(scenario.pools)
    build_index(config)
    sizes = [route.max_context_tokens for route in config.policies[0].routes]
    assert sizes == sorted(sizes)
    served = fleet.endpoints(scenario.pools, [1, 2])
    assert {one.pool for one in served.pools} == {one.pool for one in config.pools}


@asynccontextmanager
async def serving(cap: int = 0) -> AsyncIterator[int]:
    """The engine on a port of its own."""
    one = Engine(cap)
    steps = asyncio.create_task(one.run())
    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = asyncio.Event()
        ended.append(mine)
        await one.serve(reader, writer)
        await writer.wait_closed()
        mine.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in ended:
            await connection.wait()
        steps.cancel()


async def test_a_call_sees_its_first_token_and_the_pace_of_the_others() -> None:
    async with serving() as port:
        planned = [load.Call("short", at, load.body("word " * 100, 5)) for at in (0.0, 0.01)]
        seen = await load.run(port, planned)
    assert [one.error for one in seen] == ["", ""]
    assert all(one.ttft >= engine.FIXED_S and one.tpot > 0 for one in seen)


async def test_the_engine_counts_a_long_prompt_whole_and_says_so_in_its_usage() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        content = load.body("x" * 400_000, 2)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        text = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
    usage = next(line for line in text.split(b"\n") if b'"usage"' in line).removeprefix(b"data: ")
    assert msgspec.json.decode(usage)["usage"]["prompt_tokens"] == 100_000


async def test_a_call_that_is_refused_or_cut_off_is_an_error_and_no_figure() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (refused,) = await load.run(port, [load.Call("short", 0.0, load.body("word", 5))])
    server.close()
    await server.wait_closed()
    (gone,) = await load.run(port, [load.Call("short", 0.0, load.body("word", 5))])
    assert "429" in refused.error
    assert gone.error
    assert Outcome([[refused, gone]]).values("short", "ttft") == [[]]


def test_quantiles_are_by_nearest_rank() -> None:
    assert [quantile(range(1, 101), percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert (quantile([7.0], 99), quantile([], 99)) == (7.0, 0.0)


def test_figures_are_over_all_seeds_with_the_least_and_most_of_one() -> None:
    runs = [
        [load.Seen("short", 0.0, ttft=value, tpot=0.01, pool=pool)] for value, pool in ((1, "chat"), (3, LONG_POOL))
    ]
    got = figures(Outcome(runs))
    assert got["short_ttft_p99_ms"] == [3000.0, 1000.0, 3000.0]
    assert (got["short_requests"], got["long_requests"], got["errors"], got["short_in_long_pool"]) == (2, 0, 0, 1)
