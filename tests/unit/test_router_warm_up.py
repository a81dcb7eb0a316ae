"""The request that an engine must answer before it takes any: what is sane, and when an engine is ready."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router import engine_watch
from fairlead_router.warm_up import MAX_WORDS, POOLING, engine_words, question, trouble
from tests.builders.router import POOL, Station, chat, configuration, station, until, watching
from tests.fakes.engine import SANE, FakeEngine


def answered(**changes: Any) -> bytes:
    choice = {"text": " Paris", "finish_reason": "length", "token_ids": [9, 3, 5, 1], **changes}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 4}}).encode()


def test_an_answer_with_tokens_and_an_end_is_sane() -> None:
    assert not trouble(200, answered())
    assert not trouble(200, answered(finish_reason="stop", token_ids=None))
    assert not trouble(200, json.dumps(SANE).encode())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (answered(token_ids=[0, 0, 0, 0], text="!!!!"), "nothing but token 0 ('!!!!')"),
        (answered(token_ids=[0, 0, 0, 0], text=""), "nothing but token 0 ('')"),
        (answered(token_ids=None, text="!!!!"), "nothing but token 0"),
        (answered(finish_reason="abort"), "finish_reason abort"),
        (answered(finish_reason=None), "finish_reason None"),
        (b'{"choices": [], "usage": {"completion_tokens": 4}}', "no token"),
        (b'{"choices": [{"text": "", "finish_reason": "stop"}], "usage": {"completion_tokens": 0}}', "no token"),
        (b"{}", "no token"),
        (b"<html>", "cannot be read"),
        (b'{"choices": [{"logprob": NaN}]}', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_an_answer_without_sense_says_what_is_wrong(body: bytes, words: str) -> None:
    assert words in trouble(200, body)


def test_one_token_0_alone_may_be_an_answer() -> None:
    body = b'{"choices": [{"text": "!", "finish_reason": "stop", "token_ids": [0]}], "usage": {"completion_tokens": 1}}'
    assert not trouble(200, body)


def test_an_error_is_quoted_in_the_engines_words() -> None:
    body = b'{"error": {"message": "CUDA error:\\n  an illegal memory access", "code": 500}}'
    assert trouble(500, body) == "the warm-up was answered 500: CUDA error: an illegal memory access"
    assert trouble(404, b'{"detail":"Not Found"}') == 'the warm-up was answered 404: {"detail":"Not Found"}'


def test_vectors_are_sane_unless_they_hold_what_is_no_number() -> None:
    assert not trouble(200, b'{"data": [{"data": [[0.5, 0.25]]}]}', POOLING)
    assert "cannot be read" in trouble(200, b'{"data": [{"data": [[NaN]]}]}', POOLING)
    assert "no vector" in trouble(200, b'{"data": []}', POOLING)


@given(st.integers(100, 599), st.binary(max_size=200), st.sampled_from(["/v1/completions", POOLING]))
def test_any_answer_is_judged(status: int, body: bytes, path: str) -> None:
    assert status == 200 or trouble(status, body, path)


@given(st.binary(max_size=4000))
def test_an_engines_words_are_kept_short(body: bytes) -> None:
    assert len(engine_words(body)) <= MAX_WORDS


def test_the_question_is_small_and_greedy() -> None:
    asked = json.loads(question("chat-8b"))
    assert asked["model"] == "chat-8b"
    assert 1 <= asked["max_tokens"] <= 4
    assert asked["temperature"] == 0
    assert "max_tokens" not in json.loads(question("embed", POOLING))


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w") / "engine.sock"


@contextlib.asynccontextmanager
async def watched(socket: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Station]:
    """A sidecar that looks often."""
    monkeypatch.setattr(engine_watch, "LOOK_S", 0.01)
    monkeypatch.setattr(engine_watch, "FIRST_WAIT_S", 0.01)
    async with watching(socket, configuration(platform_namespaces=("ai-platform",))) as at:
        yield at


async def becomes_ready(at: Station) -> None:
    await until(lambda: not at.router.engine_watch.trouble(), "the warm-up")
    assert await at.router.engine_watch.ready()


async def test_an_engine_is_ready_once_it_answered_the_warm_up(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(socket, monkeypatch) as at:
        watch = at.router.engine_watch
        assert watch.trouble() == "the engine has not opened its socket yet"
        assert not await watch.ready()
        engine.health = 503
        await engine.start(str(socket))
        await until(lambda: watch.trouble() == "the engine's health is 503", "the look at its health")
        assert not engine.warm_ups
        engine.health = 200
        await becomes_ready(at)
        assert [asked["model"] for asked in engine.warm_ups] == ["m"]
        assert watch.max_context_tokens == engine.max_model_len


async def test_the_warm_up_is_nobodys_request(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.start(str(socket))
    async with watched(socket, monkeypatch) as at:
        await becomes_ready(at)
        signals = at.router.signals("operator", ("", ""), 0)
        (pool,) = signals.pools
        assert (pool.requests_total, pool.arrivals_total, pool.peak_running, pool.prompt_tokens_total) == (0, 0, 0, 0)
        assert pool.last_request_ms == 0
        assert not at.router.book.lines()
        assert signals.engine_trouble == ""


async def test_a_garbled_answer_keeps_the_engine_from_being_ready_until_a_sane_one_comes(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbled = (200, answered(token_ids=[0, 0, 0, 0], text="!!!!"))
    engine.warm_up.extend([garbled] * 3)
    await engine.start(str(socket))
    async with watched(socket, monkeypatch) as at:
        watch = at.router.engine_watch
        await until(lambda: "token 0" in watch.trouble(), "the verdict")
        assert "token 0" in at.router.signals("operator", ("", ""), 0).engine_trouble
        assert not await watch.ready()
        await becomes_ready(at)
        assert len(engine.warm_ups) == 4


async def test_an_engine_that_generates_nothing_is_asked_for_a_vector(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.warm_up.extend([(404, b'{"detail":"Not Found"}'), (200, b'{"data": [{"data": [0.5]}]}')])
    await engine.start(str(socket))
    async with watched(socket, monkeypatch) as at:
        await becomes_ready(at)
        assert [asked["path"] for asked in engine.warm_ups] == ["/v1/completions", "/pooling"]


async def test_a_restarted_engine_is_warmed_up_anew(
    engine: FakeEngine, other: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.start(str(socket))
    async with watched(socket, monkeypatch) as at:
        await becomes_ready(at)
        await engine.stop()
        await asyncio.to_thread(socket.unlink, missing_ok=True)
        assert at.router.engine_watch.trouble()
        other.warm_up.append((500, b'{"error": {"message": "out of memory"}}'))
        await other.start(str(socket))
        assert not await at.router.engine_watch.ready()
        await becomes_ready(at)
        assert (len(engine.warm_ups), len(other.warm_ups)) == (1, 2)


async def test_a_warm_up_without_an_answer_ends_in_time(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_watch, "WARM_UP_S", 0.05)
    engine.warm_up_held = asyncio.Event()
    await engine.start(str(socket))
    async with watched(socket, monkeypatch) as at:
        await until(lambda: "not answered within" in at.router.engine_watch.trouble(), "the end of waiting")
        engine.warm_up_held = None
        await becomes_ready(at)


async def test_a_gateway_has_no_engine_to_wait_for(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        assert at.router.engine_watch.trouble() == ""
        assert at.router.signals("operator", ("", ""), 0).engine_trouble == ""
        assert (await at.ask(chat())).status == 200
