"""Usage found in answers, whatever pieces they come in; usage lines by dimension."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.ledger.access import MAX_LINES
from fairlead_router.budget import MAX_ASKS, MAX_STATEMENTS
from fairlead_router.contract import BUCKET_MS
from fairlead_router.metering import MAX_ENDED, MAX_ROWS, Dimension, Row, Spent, StreamMeter, UsageBook
from fairlead_router.paths import CHAT, SERVED
from fairlead_router.usage import Reading, Usage, reader


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [], **members}, separators=(",", ":")).encode() + b"\n\n"


def token(text: str, **choice: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}])


USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
STREAM = (
    token("a")
    + b": keep-alive\n\n"
    + token('he said "usage" and [DONE]')
    + token("ü\n\nb")
    + event(usage=USAGE)
    + b"data: [DONE]\n\n"
)


def meter(*, asked: bool = False) -> StreamMeter:
    def note(usage: Usage | None, in_chunk: bool) -> bytes:
        seen = usage.prompt_tokens if usage is not None else None
        return f'"fairlead":{seen}'.encode() if in_chunk else f": fairlead {seen}\n\n".encode()

    return StreamMeter(reader(SERVED[CHAT]), note, asked=asked)


def read_answer(body: bytes) -> Reading:
    return reader(SERVED[CHAT]).whole(body)


def run(found: StreamMeter, pieces: list[bytes]) -> bytes:
    return b"".join(found.feed(piece) for piece in pieces) + found.flush()


def test_a_stream_split_at_every_byte_reads_the_same() -> None:
    whole = run(meter(), [STREAM])
    assert whole.endswith(b": fairlead 10\n\ndata: [DONE]\n\n")
    assert b'"usage":{' not in whole
    for cut in range(len(STREAM)):
        found = meter()
        assert run(found, [STREAM[:cut], STREAM[cut:]]) == whole
        assert found.usage is not None
        assert (found.usage.output, found.usage.cached, found.done) == (3, 4, True)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.booleans())
def test_a_stream_in_any_pieces_reads_the_same(sizes: list[int], asked: bool) -> None:
    pieces, rest = [], STREAM
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    pieces.append(rest)
    assert run(meter(asked=asked), [piece for piece in pieces if piece]) == run(meter(asked=asked), [STREAM])


def test_usage_that_was_asked_for_carries_the_cost() -> None:
    out = run(meter(asked=True), [STREAM])
    (chunk,) = [part for part in out.split(b"\n\n") if b'"usage":{' in part]
    assert json.loads(chunk.removeprefix(b"data: ")) == {"choices": [], "usage": USAGE, "fairlead": 10}
    assert b": fairlead" not in out


def test_usage_in_every_chunk_passes_and_the_last_one_counts() -> None:
    stream = event(choices=[{"index": 0}], usage={"prompt_tokens": 1}) + event(usage=USAGE) + b"data: [DONE]\n\n"
    found = meter(asked=True)
    out = run(found, [stream])
    assert out.count(b'"usage"') == 2
    assert found.usage is not None
    assert found.usage.prompt_tokens == 10


def test_text_that_looks_like_usage_is_text() -> None:
    found = meter()
    stream = token('"usage": {"prompt_tokens": 999}') + token("data: [DONE]")
    assert run(found, [stream]) == stream
    assert found.usage is None
    assert not found.done
    assert found.events == 2


def test_an_engine_that_gives_up_within_a_stream_is_seen() -> None:
    for last in (token("x", finish_reason="abort"), b'data: {"error":{"message":"dead","code":500}}\n\n'):
        found = meter()
        run(found, [token("a"), last, b"data: [DONE]\n\n"])
        assert found.aborted


def test_a_stream_that_stops_in_the_middle_of_an_event_gives_what_it_has() -> None:
    found = meter()
    assert run(found, [token("a"), b'data: {"cho']) == token("a") + b'data: {"cho'
    assert found.events == 1


def test_an_event_without_end_passes_in_pieces_instead_of_filling_memory() -> None:
    found = meter()
    piece = b"x" * 1_000_000
    assert sum(len(found.feed(piece)) for _ in range(9)) > 4_000_000


@given(st.binary(max_size=200))
def test_any_bytes_pass_unchanged_when_they_are_no_events(data: bytes) -> None:
    if b"data:" not in data:
        found = meter()
        assert run(found, [data]) == data


def test_a_whole_answer_tells_usage_and_abort() -> None:
    body = json.dumps({"choices": [{"finish_reason": "abort", "message": {"content": "x"}}], "usage": USAGE}).encode()
    reading = read_answer(body)
    assert reading.aborted
    assert reading.usage is not None
    assert reading.usage.prompt_tokens == 10
    assert read_answer(b"nonsense").usage is None


def dimension(caller: str = "sa:web") -> Dimension:
    return Dimension("support", caller, "f", "chat", "ai-platform/chat-8b", "h100", "short", "Usage", 7)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2 * BUCKET_MS), st.integers(0, 10**9))))
def test_usage_lines_add_up_to_what_was_counted(requests: list[tuple[str, int, int]]) -> None:
    book = UsageBook()
    rows = {caller: Row(dimension(caller)) for caller in "ab"}
    for caller, at, nano in requests:
        book.add(rows[caller], at, Spent(5, 2, 3, nano))
    lines = book.take()
    assert sum(line.nano_usd for line in lines) == sum(nano for _, _, nano in requests)
    assert sum(line.requests for line in lines) == len(requests)
    assert sum(sum(line.bins.values()) for line in lines) == len(requests)
    assert book.take() == ()


def test_dimensions_beyond_the_bound_are_counted_together() -> None:
    book = UsageBook()
    for index in range(4_100):
        book.add(Row(dimension(f"sa:{index}")), 0, Spent(1, 0, 1, 1))
    lines = book.take()
    assert len(lines) <= 4_001
    assert sum(line.nano_usd for line in lines) == 4_100


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": 10, "completion_tokens": -3},
        {"prompt_tokens": 10, "completion_tokens": 1 << 40},
        {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": -4}},
        {"prompt_tokens": "many"},
    ],
)
def test_usage_that_cannot_be_true_is_no_usage(usage: dict[str, Any]) -> None:
    assert read_answer(json.dumps({"choices": [], "usage": usage}).encode()).usage is None
    found = meter()
    run(found, [event(usage=usage), b"data: [DONE]\n\n"])
    assert found.usage is None
    assert found.done


def test_an_answer_that_is_nested_without_end_is_an_answer_without_usage() -> None:
    deep = b'{"choices":[],"usage":null,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert read_answer(deep).usage is None
    found = meter()
    assert run(found, [b"data: " + deep + b"\n\n"]).endswith(b"}\n\n")


def test_a_row_that_is_used_over_the_turn_of_a_quarter_hour_tells_both() -> None:
    book, row = UsageBook(), Row(dimension())
    book.add(row, BUCKET_MS - 1, Spent(1, 0, 1, 5))
    book.add(row, BUCKET_MS, Spent(1, 0, 1, 7))
    assert [(line.bucket, line.nano_usd) for line in book.take()] == [(0, 5), (BUCKET_MS, 7)]
    book.add(row, BUCKET_MS + 1, Spent(1, 0, 1, 9))
    assert [(line.bucket, line.nano_usd) for line in book.take()] == [(BUCKET_MS, 9)]


def test_usage_of_days_in_which_the_ledger_is_away_fits_one_message() -> None:
    book, row = UsageBook(), Row(dimension())
    for index in range(12_000):
        book.add(row, index * BUCKET_MS, Spent(1, 0, 1, 1))
    assert len(book.lines()) <= MAX_ENDED + 1
    lines = book.take()
    assert len(lines) <= MAX_ENDED + 1
    assert sum(line.requests for line in lines) == 12_000
    book.add(row, 12_000 * BUCKET_MS, Spent(1, 0, 1, 1))
    assert [line.bucket for line in book.take()] == [12_000 * BUCKET_MS]


def test_a_message_at_its_bounds_is_one_that_the_ledger_takes() -> None:
    assert 2 * MAX_STATEMENTS + MAX_ASKS + MAX_ROWS + MAX_ENDED <= MAX_LINES


def framed(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


def test_chunks_pass_unseen_only_while_nothing_in_them_is_ours_and_no_event_is_open() -> None:
    found = meter()
    assert found.passes(framed(token("a"), token("b")))
    assert found.events == 2
    assert not found.passes(framed(event(usage=USAGE)))
    assert found.feed(b"data: half") == b""
    assert not found.passes(framed(token("c")))
