"""What answers of each format say about their use, whole and as events, as vLLM 0.32 writes them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router.paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RERANK,
    RESPONSES,
    SCORE,
    SERVED,
    TOKENIZE,
    closed,
)
from fairlead_router.usage import EventReading, Reader, Usage, merge, reader

ABORTED = EventReading(aborted=True)
FINAL = EventReading(final=True)


def of(path: bytes) -> Reader:
    return reader(SERVED[path])


def line(value: Any, name: str = "", **layout: Any) -> bytes:
    """An event without the blank line at its end."""
    start = f"event: {name}\n" if name else ""
    return f"{start}data: {json.dumps(value, **layout)}".encode()


def signed(found: Reader, event: bytes) -> bool:
    return any(sign in event for sign in found.signs)


# --- chat and completions ---

CHAT_USAGE = {
    "prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47, "prompt_tokens_details": {"cached_tokens": 32},
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_whole_answer_tells_its_usage(path: bytes) -> None:
    answer = {"choices": [{"finish_reason": "stop"}], "usage": CHAT_USAGE}
    reading = of(path).whole(json.dumps(answer).encode())
    assert reading.usage == Usage(40, 7, 32)
    assert reading.usage.output == 7
    assert not reading.aborted


@pytest.mark.parametrize(
    "details", [{}, {"prompt_tokens_details": None}, {"prompt_tokens_details": {"cached_tokens": None}}]
)
def test_usage_without_details_has_nothing_cached(details: dict[str, Any]) -> None:
    answer = {"usage": {"prompt_tokens": 40, "completion_tokens": 7, **details}}
    assert of(CHAT).whole(json.dumps(answer).encode()).usage == Usage(40, 7, 0)


def test_more_cached_than_prompt_tokens_are_not_believed() -> None:
    assert Usage(10, 1, 99).cached == 10


@pytest.mark.parametrize("bad", [-1, 2**28 + 1, 10**30, 1.5, "7", True, None])
def test_a_count_that_is_none_makes_usage_absent(bad: Any) -> None:
    for path, usage in (
        (CHAT, {"prompt_tokens": bad}),
        (RESPONSES, {"input_tokens": 5, "output_tokens": bad}),
        (MESSAGES, {"input_tokens": bad}),
    ):
        assert of(path).whole(json.dumps({"usage": usage}).encode()).usage is None


@pytest.mark.parametrize("answer", [{"choices": [{"finish_reason": "abort"}]}, {"error": {"code": 500}}])
def test_an_engine_that_gave_up_is_seen(answer: dict[str, Any]) -> None:
    assert of(CHAT).whole(json.dumps(answer).encode()).aborted
    assert of(CHAT).event(line(answer)) is not None
    assert signed(of(CHAT), line(answer))


def test_one_aborted_choice_of_many_is_seen() -> None:
    answer = {"choices": [{"finish_reason": "stop"}, {"finish_reason": "abort"}], "usage": CHAT_USAGE}
    assert of(CHAT).whole(json.dumps(answer).encode()).aborted


def test_the_usage_chunk_is_told_from_usage_beside_output() -> None:
    found = of(CHAT)
    alone = found.event(line({"choices": [], "usage": CHAT_USAGE}))
    beside = found.event(line({"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": CHAT_USAGE}))
    assert alone == EventReading(Usage(40, 7, 32), usage_only=True)
    assert beside == EventReading(Usage(40, 7, 32), output=True)
    assert found.usage_chunk


@pytest.mark.parametrize("event", [b"data: [DONE]", b"data:[DONE]", b"data: [DONE] ", b"id: 1\ndata: [DONE]"])
def test_done_is_the_end(event: bytes) -> None:
    assert of(CHAT).event(event) == FINAL
    assert signed(of(CHAT), event)


@pytest.mark.parametrize(
    "event",
    [
        line({"choices": [{"delta": {"content": '"usage" [DONE] "abort" "error"'}}], "usage": None}),
        line({"choices": [{"delta": {"content": "x"}}], "error": None}),
        b": keep-alive",
        b"",
        b"data: nonsense",
        b'data: {"choices":5}',
        b"event: error",
    ],
)
def test_an_event_that_says_nothing_is_let_be(event: bytes) -> None:
    assert of(CHAT).event(event) is None


# --- responses ---

RESPONSE_USAGE = {
    "input_tokens": 40, "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 8}, "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 47,
}  # fmt: skip


def response(status: str, **members: Any) -> dict[str, Any]:
    return {"id": "resp_1", "status": status, "error": None, "usage": RESPONSE_USAGE, "output": [], **members}


@pytest.mark.parametrize(
    ("status", "aborted"), [("completed", False), ("incomplete", False), ("cancelled", True), ("failed", True)]
)
def test_a_whole_response_tells_its_usage_and_its_end(status: str, aborted: bool) -> None:
    reading = of(RESPONSES).whole(json.dumps(response(status)).encode())
    assert (reading.usage, reading.aborted) == (Usage(40, 7, 32), aborted)


@pytest.mark.parametrize(
    ("name", "status", "aborted"),
    [
        ("response.completed", "completed", False),
        ("response.incomplete", "incomplete", False),
        ("response.completed", "cancelled", True),
        ("response.failed", "failed", True),
    ],
)
@pytest.mark.parametrize("layout", [{}, {"separators": (",", ":")}])
def test_a_response_ends_with_its_usage(name: str, status: str, aborted: bool, layout: dict[str, Any]) -> None:
    event = line({"type": name, "sequence_number": 9, "response": response(status)}, name, **layout)
    assert of(RESPONSES).event(event) == EventReading(Usage(40, 7, 32), final=True, aborted=aborted)
    assert signed(of(RESPONSES), event)


def test_a_response_that_only_begins_says_nothing() -> None:
    for name in ("response.created", "response.in_progress"):
        event = line({"type": name, "response": response("in_progress", usage=None)}, name)
        assert of(RESPONSES).event(event) is None


def test_text_of_a_response_cannot_imitate_its_end() -> None:
    text = '"response.completed" "error" "message_stop"'
    event = line({"type": "response.output_text.delta", "delta": text}, "response.output_text.delta")
    assert not signed(of(RESPONSES), event)
    assert of(RESPONSES).event(event) is None


@pytest.mark.parametrize("value", [{"type": "error", "error": {"code": 500}}, {"error": {"code": 500}}])
def test_a_response_that_fails_is_seen(value: dict[str, Any]) -> None:
    assert of(RESPONSES).event(line(value)) == ABORTED
    assert signed(of(RESPONSES), line(value))


# --- messages ---

MESSAGE_USAGE = {"input_tokens": 8, "output_tokens": 7, "cache_read_input_tokens": 32}


@pytest.mark.parametrize(("reason", "aborted"), [("end_turn", False), ("max_tokens", False), (None, True)])
def test_a_whole_message_counts_its_cached_tokens_to_the_prompt(reason: str | None, aborted: bool) -> None:
    answer = {"type": "message", "stop_reason": reason, "usage": {**MESSAGE_USAGE, "cache_creation_input_tokens": 2}}
    reading = of(MESSAGES).whole(json.dumps(answer).encode())
    assert (reading.usage, reading.aborted) == (Usage(42, 7, 32), aborted)


def test_a_messages_stream_tells_its_input_first_and_its_output_last() -> None:
    found = of(MESSAGES)
    start = line(
        {"type": "message_start", "message": {"usage": {"input_tokens": 40, "output_tokens": 0}}}, "message_start"
    )
    delta = line(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": MESSAGE_USAGE}, "message_delta"
    )
    stop = line({"type": "message_stop"}, "message_stop")
    assert all(signed(found, event) for event in (start, delta, stop))
    first, last = found.event(start), found.event(delta)
    assert first == EventReading(Usage(40, 0, 0))
    assert last == EventReading(Usage(40, 7, 32))
    assert found.event(stop) == FINAL
    assert not found.usage_chunk


def test_a_message_without_a_reason_to_stop_was_aborted() -> None:
    found = of(MESSAGES).event(line({"type": "message_delta", "delta": {}, "usage": MESSAGE_USAGE}))
    assert found == EventReading(Usage(40, 7, 32), aborted=True)


def test_a_message_that_fails_is_seen() -> None:
    event = line({"type": "error", "error": {"type": "internal_error", "message": "x"}}, "error")
    assert of(MESSAGES).event(event) == ABORTED
    assert signed(of(MESSAGES), event)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": '"message_stop" "usage"'}},
        {"type": "message_delta", "delta": {"stop_reason": None}},
        {"type": "ping"},
        {"type": "message_start"},
    ],
)
def test_a_messages_event_that_says_nothing_is_let_be(value: dict[str, Any]) -> None:
    assert of(MESSAGES).event(line(value)) is None


# --- pooling, and what runs nothing ---


@pytest.mark.parametrize("path", [EMBEDDINGS, SCORE[0], RERANK[0]])
def test_pooling_answers_have_prompt_tokens_only(path: bytes) -> None:
    usage = {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0}
    reading = of(path).whole(json.dumps({"data": [], "usage": usage}).encode())
    assert (reading.usage, reading.aborted) == (Usage(12, 0, 0), False)
    assert not of(path).usage_chunk


@pytest.mark.parametrize("path", [TOKENIZE, COUNT_TOKENS])
def test_paths_that_run_nothing_tell_no_usage(path: bytes) -> None:
    assert of(path).whole(b'{"usage":{"prompt_tokens":5},"input_tokens":5}').usage is None
    assert (of(path).event(b"data: [DONE]"), of(path).signs) == (None, ())


# --- all formats ---


@given(st.sampled_from(sorted(SERVED)), st.binary(max_size=80))
def test_no_answer_breaks_a_reader(path: bytes, noise: bytes) -> None:
    found = of(path)
    for data in (noise, b'{"usage":' + noise + b"}", b'{"choices":[' + noise + b"]}"):
        assert found.whole(data).usage is None or b"{" in noise
        found.event(data)
        found.event(b"event: x\ndata: " + data)


@given(st.sampled_from([CHAT, RESPONSES, MESSAGES]), st.text(max_size=40))
def test_an_event_without_signs_needs_no_look(path: bytes, text: str) -> None:
    found = of(path)
    value = {"type": "content_block_delta", "delta": {"text": text}, "choices": [{"delta": {"content": text}}]}
    for event in (line(value), line(value, ensure_ascii=False) if text.isprintable() else line(value)):
        if not signed(found, event):
            assert found.event(event) is None


@given(*[st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))] * 2)
def test_usage_of_a_stream_only_grows(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    merged = merge(merge(None, Usage(*one)), Usage(*other))
    assert merged == merge(Usage(*other), Usage(*one))
    assert (merged.prompt_tokens, merged.completion_tokens) == (max(one[0], other[0]), max(one[1], other[1]))


# --- paths ---


def test_the_paths_that_are_served_are_these() -> None:
    assert sorted(SERVED) == [
        b"/classify", b"/detokenize", b"/pooling", b"/rerank", b"/score", b"/tokenize", b"/v1/chat/completions",
        b"/v1/completions", b"/v1/embeddings", b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/rerank",
        b"/v1/responses", b"/v1/score", b"/v2/rerank",
    ]  # fmt: skip
    assert [path for path, served in SERVED.items() if served.free] == [COUNT_TOKENS, TOKENIZE, b"/detokenize"]
    assert all(path == served.path for path, served in SERVED.items())


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/audio/transcriptions", b"/v1/realtime", b"/inference/v1/generate", b"/invocations", b"/v1/responses/r1",
        b"/v1/responses/r1/cancel", b"/v1/chat/completions/batch", b"/v2/embed", b"/v1/load_lora_adapter",
    ],
)  # fmt: skip
def test_a_path_that_is_closed_on_purpose_says_why(path: bytes) -> None:
    assert path not in SERVED
    refusal = closed("POST", path)
    assert (refusal.status, refusal.code) == (404, "unknown_url")
    start, _, reason = refusal.message.partition(" is not served here. ")
    assert start == f"POST {path.decode()}"
    assert reason.endswith(".")


@pytest.mark.parametrize(
    "path", [b"/metrics", b"/load", b"/sleep", b"/collective_rpc", b"/v1/chat/completions/", b"/\xff"]
)
def test_every_other_path_is_closed(path: bytes) -> None:
    assert path not in SERVED
    assert closed("POST", path).message.endswith("is not served here.")
