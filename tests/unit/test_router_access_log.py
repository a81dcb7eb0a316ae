"""The access log: which requests are logged, what a line says, and that a reader that hangs stops nobody."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from fairlead_router.access_log import (
    ERRORS_PER_S,
    FLUSH_BYTES,
    MAX_PENDING,
    MAX_TEXT,
    AccessLog,
    Record,
    Sampler,
    line,
    read_share,
)

TRACE = b"0af7651916cd43dd8448eb211c80319c"
OK = 200
AT_S = 1_763_628_070.204
RECORD = Record(
    request="fl-gw0-51d09a", path="/v1/chat/completions", tenant="support", caller="sa:web", feature="tickets",
    model="chat", pool="ai-platform/chat-8b", replica="ai-platform/chat-8b-h100-2mwq8", route="small",
    priority="Standard", outcome="ok", status=200, stream=True, prompt=3912, cached=384, output=287, nano_usd=142_000,
    router_s=0.0000312, queue_s=0.0, connect_s=0.0005, engine_s=0.0412, stream_s=2.5, ttft_s=0.0418,
    bytes_in=1024, bytes_out=40_000, trace_id=TRACE,
)  # fmt: skip


class Hand:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Pipe:
    """A pipe whose ends are closed once."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}

    def close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)

    def lines(self) -> list[dict[str, Any]]:
        """What was written until now; waits for something."""
        return [json.loads(text) for text in os.read(self.reading, 1 << 20).splitlines()]

    def rest(self) -> bytes:
        """What is written until the other end is closed."""
        found = b""
        while text := os.read(self.reading, 1 << 16):
            found += text
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close(pipe.reading)
    pipe.close(pipe.writing)


def log_to(descriptor: int, share: float = 1.0, now: Callable[[], float] | None = None) -> AccessLog:
    return AccessLog(share, asyncio.get_running_loop(), descriptor, now or Hand(), lambda: AT_S)


async def close_and_read(log: AccessLog, pipe: Pipe) -> bytes:
    """Everything that was written, once the log is closed."""

    async def close() -> None:
        await log.close()
        pipe.close(pipe.writing)

    _, text = await asyncio.gather(close(), asyncio.to_thread(pipe.rest))
    return text


# --- lines ---


def test_a_line_says_who_asked_for_what_where_it_ran_what_it_cost_and_how_long_it_took() -> None:
    assert json.loads(line(RECORD, AT_S)) == {
        "ts": "2025-11-20T08:41:10.204Z", "level": "info", "event": "Request", "request": "fl-gw0-51d09a",
        "outcome": "ok", "status": 200, "path": "/v1/chat/completions", "tenant": "support", "caller": "sa:web",
        "feature": "tickets", "model": "chat", "pool": "ai-platform/chat-8b",
        "replica": "ai-platform/chat-8b-h100-2mwq8", "route": "small", "priority": "Standard", "stream": True,
        "prompt": 3912, "cached": 384, "output": 287, "usd": "0.000142", "router_ms": 0.031, "queue_ms": 0.0,
        "connect_ms": 0.5, "engine_ms": 41.2, "stream_ms": 2500.0, "ttft_ms": 41.8, "bytes_in": 1024,
        "bytes_out": 40_000, "trace_id": TRACE.decode(),
    }  # fmt: skip


def test_what_a_request_did_not_have_is_left_out() -> None:
    found = json.loads(line(Record(request="fl-1", outcome="invalid_api_key", status=401), AT_S))
    assert set(found) == {"ts", "level", "event", "request", "outcome", "status"}


def test_a_free_request_has_a_cost_and_one_without_a_price_has_none() -> None:
    assert json.loads(line(Record(request="fl-1", nano_usd=0), AT_S))["usd"] == "0.000000"
    assert "usd" not in json.loads(line(Record(request="fl-1", nano_usd=None), AT_S))


@given(st.text(), st.text(), st.binary())
def test_whatever_a_client_writes_is_one_line_of_bounded_length(model: str, feature: str, trace_id: bytes) -> None:
    record = Record(request="fl-1", model=model * 100, feature=feature * 100, path=model * 100, trace_id=trace_id)
    text = line(record, AT_S)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    assert json.loads(text).get("model", "") == (model * 100)[:MAX_TEXT]


# --- which ---


def test_a_share_is_a_number_from_0_to_1() -> None:
    assert [read_share(text) for text in ("", "0", "0.01", "1")] == [0, 0, 0.01, 1]
    for text in ("2", "-0.1", "nan", "all", "1%"):
        with pytest.raises(ValueError, match="write a number from 0"):
            read_share(text)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.01, 10), (0.25, 250), (1.0, 1000)])
def test_requests_without_a_trace_are_taken_evenly(share: float, expected: int) -> None:
    sampler = Sampler(share)
    taken = [number for number in range(1000) if sampler.takes(b"")]
    assert abs(len(taken) - expected) <= 1
    gaps = {after - before for before, after in pairwise(taken)}
    assert len(gaps) <= 2


@given(st.integers(min_value=1, max_value=(1 << 128) - 1), st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
def test_every_router_takes_the_same_traces_and_opentelemetry_does_too(trace: int, share: float) -> None:
    trace_id = b"%032x" % trace
    theirs = TraceIdRatioBased(share).should_sample(None, trace, "request").decision
    taken = Sampler(share).takes(trace_id)
    assert taken == Sampler(share).takes(trace_id)
    assert taken == (theirs is Decision.RECORD_AND_SAMPLE)


@given(st.binary(max_size=40))
def test_what_is_no_trace_id_is_taken_like_a_request_without_one(trace_id: bytes) -> None:
    assert Sampler(1.0).takes(trace_id)
    assert not Sampler(0.0).takes(b"~" + trace_id)


async def test_errors_that_the_operator_of_a_fleet_must_see_are_logged_besides_the_share(pipe: Pipe) -> None:
    log = log_to(pipe.writing, share=0.0)
    assert {status: log.wanted(b"", status) for status in (200, 400, 401, 404, 429, 500, 502, 503)} == {
        200: False, 400: False, 401: False, 404: False, 429: True, 500: True, 502: True, 503: True,
    }  # fmt: skip
    await log.close()


async def test_errors_are_logged_ten_times_a_second_at_most(pipe: Pipe) -> None:
    clock = Hand()
    log = log_to(pipe.writing, share=0.0, now=clock)
    assert sum(log.wanted(b"", 503) for _ in range(1000)) == ERRORS_PER_S
    clock.time += 0.5
    assert sum(log.wanted(b"", 429) for _ in range(1000)) == ERRORS_PER_S // 2
    clock.time += 3600
    assert sum(log.wanted(b"", 503) for _ in range(1000)) == ERRORS_PER_S
    await log.close()


# --- writing ---


async def test_lines_are_written_in_order_soon_after_the_request(pipe: Pipe) -> None:
    log = log_to(pipe.writing)
    for number in range(3):
        log.write(Record(request=f"fl-{number}"))
    found = await asyncio.to_thread(pipe.lines)
    assert [entry["request"] for entry in found] == ["fl-0", "fl-1", "fl-2"]
    await log.close()
    assert log.dropped == 0


async def test_closing_writes_what_is_left(pipe: Pipe) -> None:
    log = log_to(pipe.writing)
    log.write(RECORD)
    await log.close()
    assert [entry["request"] for entry in pipe.lines()] == [RECORD.request]


async def test_many_lines_do_not_wait_for_the_timer(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead_router.access_log.FLUSH_S", 3600)
    log = log_to(pipe.writing)
    for _ in range(1 + FLUSH_BYTES // len(line(RECORD, AT_S))):
        log.write(RECORD)
    assert await asyncio.to_thread(os.read, pipe.reading, 100)
    assert (await close_and_read(log, pipe)).endswith(b"\n")


async def test_a_reader_that_hangs_costs_lines_beyond_a_bound_and_blocks_nobody(pipe: Pipe) -> None:
    log = log_to(pipe.writing)
    size, count = len(line(RECORD, AT_S)), 0
    while log.dropped == 0:
        log.write(RECORD)
        count += 1
        assert count < 3 * MAX_PENDING // size, "nothing was dropped"
    for _ in range(99):
        log.write(RECORD)
    assert log.dropped == 100
    text = await close_and_read(log, pipe)
    assert text.count(b"\n") + log.dropped == count + 99, "every line is either written or counted"
    assert text.count(b"\n") >= MAX_PENDING // size


async def test_closing_does_not_wait_for_a_reader_that_hangs(pipe: Pipe) -> None:
    log = log_to(pipe.writing)
    count = 0
    while log.dropped == 0:
        log.write(RECORD)
        count += 1
    await log.close(timeout_s=0.05)
    assert log.dropped == count


async def test_lines_that_nobody_can_read_any_more_are_counted(pipe: Pipe) -> None:
    pipe.close(pipe.reading)
    log = log_to(pipe.writing)
    for _ in range(5):
        log.write(RECORD)
    await log.close()
    assert log.dropped == 5
    log.write(RECORD)
    assert log.dropped == 5


async def test_a_descriptor_that_failed_once_is_tried_again(pipe: Pipe) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    log = log_to(full)
    log.write(RECORD)
    async with asyncio.timeout(10):
        while not log.dropped:  # noqa: ASYNC110 - a count of the log's thread
            await asyncio.sleep(0.01)
    os.dup2(pipe.writing, full)
    log.write(RECORD)
    await log.close()
    os.close(full)
    assert [entry["request"] for entry in pipe.lines()] == [RECORD.request]
    assert log.dropped == 1
