"""What this pod's engine says of its load."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router.contract import EngineSignals
from fairlead_router.engine_load import LINGERS, EngineLoad, read_engine, read_load
from fairlead_router.replicas import Load, parse_load
from fairlead_router.upstream import Patience, Target, Upstreams

EXPOSITION = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="chat-8b"} 7.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="chat-8b"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="chat-8b",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="chat-8b"} 0.4215
vllm:num_requests_running_created{engine="0"} 1.7e+09
"""
TICK_S = 0.002


class Engine:
    """An engine's socket that knows ``/metrics`` only."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.status = 200
        self.body = EXPOSITION
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.decode().split(" HTTP")[0])
                lines = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.body)}\r\n\r\n".encode()
                writer.write(lines + self.body)
        writer.close()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    made = Engine(str(tmp_path / "engine.sock"))
    server = await asyncio.start_unix_server(made.serve, made.path)
    yield made
    server.close()


@contextlib.asynccontextmanager
async def following(load: EngineLoad, engine: Engine) -> AsyncIterator[None]:
    upstreams = Upstreams(asyncio.get_running_loop().time, Patience())
    task = asyncio.create_task(load.follow(lambda: upstreams.pool(Target(path=engine.path)), TICK_S))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        upstreams.close()


async def until(load: EngineLoad, header: bytes) -> None:
    async with asyncio.timeout(5):
        while load.header() != header:  # noqa: ASYNC110 - what is awaited is a reading, not an event
            await asyncio.sleep(TICK_S)


# --- the exposition ---


def test_running_waiting_and_the_cache_are_read_and_nothing_else() -> None:
    assert read_load(EXPOSITION) == Load(7, 3, 422)


def test_data_parallel_engines_are_summed_and_their_caches_averaged() -> None:
    second = EXPOSITION.replace(b'engine="0"', b'engine="1"').replace(b"0.4215", b"0.8225")
    assert read_load(EXPOSITION + second) == Load(14, 6, 622)


@pytest.mark.parametrize("name", [b"num_requests_running{", b"num_requests_waiting{", b"kv_cache_usage_perc{"])
def test_a_gauge_that_is_missing_makes_the_load_unknown(name: bytes) -> None:
    assert read_load(EXPOSITION.replace(b"vllm:" + name, b"vllm:other{")) is None


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"many"])
def test_a_gauge_that_is_no_number_makes_the_load_unknown(value: bytes) -> None:
    assert read_load(EXPOSITION.replace(b"7.0", value)) is None


def test_labels_may_be_absent_or_hold_braces_and_spaces() -> None:
    plain = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.0\n"
    assert read_load(plain) == Load(1, 0, 0)
    odd = EXPOSITION.replace(b"chat-8b", b'a} 5 {b \\" c')
    assert read_load(odd) == Load(7, 3, 422)


# --- for the autoscaler ---

CACHE = b'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="4062"} 1.0\n'
DRAFTS = b"""\
vllm:spec_decode_num_drafts_total{engine="0"} 100.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 400.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 130.0
"""


def test_the_autoscaler_hears_the_cache_its_use_the_load_and_the_drafts() -> None:
    told = read_engine(EXPOSITION + CACHE + DRAFTS)
    assert told == EngineSignals(
        kv_tokens=64_992,
        kv_permille=422,
        running=7,
        waiting=3,
        drafts_total=100,
        draft_tokens_total=400,
        accepted_total=130,
    )


STEPS = b"""\
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01"} 3.0
vllm:inter_token_latency_seconds_sum{engine="0"} 12.5
vllm:inter_token_latency_seconds_count{engine="0"} 500.0
vllm:prompt_tokens_total{engine="0"} 9000.0
"""
SOURCES = b"""\
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 7.0e+03
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 2000.0
"""


def test_the_autoscaler_hears_how_long_steps_took_and_which_prompts_were_computed() -> None:
    told = read_engine(STEPS + SOURCES)
    assert (told.gaps_total, told.gaps_us_total, told.computed_total) == (500, 12_500_000, 7_000)
    assert read_engine(STEPS).computed_total == 9_000


def test_a_cache_that_is_told_in_tokens_is_not_computed() -> None:
    told = read_engine(CACHE.replace(b"block_size", b'kv_cache_size_tokens="65000",block_size'))
    assert told.kv_tokens == 65_000


def test_caches_of_data_parallel_engines_are_summed() -> None:
    assert read_engine(CACHE + CACHE.replace(b'engine="0"', b'engine="1"')).kv_tokens == 2 * 64_992


@pytest.mark.parametrize(
    "metrics",
    [
        b"",
        b"vllm:cache_config_info 1.0\n",
        CACHE.replace(b"4062", b"None"),
        EXPOSITION.replace(b"7.0", b"NaN").replace(b"3.0", b"+Inf").replace(b"0.4215", b"much"),
    ],
)
def test_what_an_engine_does_not_say_is_unknown(metrics: bytes) -> None:
    assert read_engine(metrics) == EngineSignals()


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_for_the_autoscaler(raw: bytes) -> None:
    told = read_engine(raw + b"\n" + CACHE + DRAFTS)
    assert min(told.kv_tokens, told.kv_permille, told.running, told.waiting, told.drafts_total) >= -1


async def test_the_last_reading_stays_while_the_engine_is_idle_and_goes_when_it_is_gone(engine: Engine) -> None:
    load = EngineLoad()
    engine.body = EXPOSITION + CACHE
    load.running.set(10)
    async with following(load, engine):
        await until(load, b"7,3,422")
        load.running.set(0)
        await until(load, b"")
        assert load.told is not None
        assert load.told.kv_tokens == 64_992
        engine.status = 500
        load.running.set(1)
        async with asyncio.timeout(5):
            while load.told is not None:  # noqa: ASYNC110 - what is awaited is a reading, not an event
                await asyncio.sleep(TICK_S)


# --- the exposition of any engine ---


@given(st.binary(max_size=300))
def test_any_bytes_may_come(raw: bytes) -> None:
    assert read_load(raw) is None
    assert read_load(raw + b"\n" + EXPOSITION) in {None, Load(7, 3, 422)}


@given(*(st.floats() for _ in range(3)))
def test_whatever_the_engine_says_the_header_can_be_read(running: float, waiting: float, use: float) -> None:
    load = EngineLoad()
    lines = (b"num_requests_running", running), (b"num_requests_waiting", waiting), (b"kv_cache_usage_perc", use)
    load._take(read_load(b"".join(b"vllm:%b{} %b\n" % (name, str(value).encode()) for name, value in lines)))
    assert load.header() == b"" or parse_load(load.header()) is not None


# --- the header ---


def test_an_unknown_load_is_not_told() -> None:
    load = EngineLoad()
    load.running.set(5)
    assert load.header() == b""


def test_what_runs_follows_this_routers_own_count_between_two_readings() -> None:
    load = EngineLoad()
    load.running.set(10)
    load._take(Load(running=7, waiting=3, kv_permille=422))
    assert load.header() == b"7,3,422"
    load.running.set(40)
    assert load.header() == b"37,3,422"
    load.running.set(1)
    assert load.header() == b"0,3,422"


def test_sequences_of_requests_with_several_prompts_are_counted_on_top() -> None:
    load = EngineLoad()
    load.running.set(2)
    load._take(Load(running=32, waiting=0, kv_permille=0))
    load.running.set(3)
    assert load.header() == b"33,0,0"


# --- reading it ---


async def test_the_engine_is_read_while_requests_run(engine: Engine) -> None:
    load = EngineLoad()
    load.running.set(10)
    async with following(load, engine):
        await until(load, b"7,3,422")
        engine.body = EXPOSITION.replace(b"0.4215", b"0.95")
        await until(load, b"7,3,950")
    assert set(engine.asked) == {"GET /metrics"}


async def test_an_idle_engine_is_left_alone_after_a_few_readings_and_asked_again_with_the_next_request(
    engine: Engine,
) -> None:
    load = EngineLoad()
    load.running.set(10)
    async with following(load, engine):
        await until(load, b"7,3,422")
        load.running.set(0)
        await until(load, b"")
        asked = len(engine.asked)
        await asyncio.sleep(TICK_S * LINGERS * 4)
        assert len(engine.asked) == asked
        load.running.set(1)
        load.running.set(0)  # over before the next look
        async with asyncio.timeout(5):
            while len(engine.asked) == asked:  # noqa: ASYNC110 - the engine is asked by a loop with a clock
                await asyncio.sleep(TICK_S)


async def test_an_engine_that_was_never_used_is_not_asked(engine: Engine) -> None:
    async with following(EngineLoad(), engine):
        await asyncio.sleep(TICK_S * 10)
    assert engine.asked == []


@pytest.mark.parametrize("trouble", ["status", "body"])
async def test_a_load_that_cannot_be_read_any_more_is_unknown(engine: Engine, trouble: str) -> None:
    load = EngineLoad()
    load.running.set(10)
    async with following(load, engine):
        await until(load, b"7,3,422")
        if trouble == "status":
            engine.status = 500
        else:
            engine.body = b"# metrics are off\n"
        await until(load, b"")
        engine.status, engine.body = 200, EXPOSITION
        await until(load, b"7,3,422")


async def test_an_engine_that_is_not_there_yet_is_asked_until_it_is(tmp_path: Path) -> None:
    load, engine = EngineLoad(), Engine(str(tmp_path / "engine.sock"))
    load.running.set(10)
    async with following(load, engine):
        await asyncio.sleep(TICK_S * 10)
        assert load.header() == b""
        server = await asyncio.start_unix_server(engine.serve, engine.path)
        await until(load, b"7,3,422")
        server.close()


POSITIONS = b"".join(
    b'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="%d",model_name="m",position="%d"} %d.0\n' % one
    for one in ((0, 0, 70), (0, 1, 40), (0, 2, 20), (1, 0, 7), (1, 1, 4), (1, 2, 2))
)


def test_the_operator_hears_how_much_of_a_draft_is_kept_at_each_place() -> None:
    told = read_engine(DRAFTS + POSITIONS)
    assert told.draft_tokens_total == 400
    assert told.accepted_by_position == (77, 44, 22)


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (POSITIONS.replace(b'position="1"', b'position="3"'), (77,)),
        (POSITIONS.replace(b"70.0", b"1e999"), ()),
        (POSITIONS.replace(b"40.0", b"1.2.3"), ()),
        (POSITIONS.replace(b'position="', b'position="9'), ()),
    ],
)
def test_places_are_known_up_to_the_first_that_is_not(told: bytes, known: tuple[int, ...]) -> None:
    assert read_engine(told).accepted_by_position == known
