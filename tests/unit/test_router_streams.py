"""Streams as engines may send them: cut anywhere, several events to a chunk, every format; and how prompts spread."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from fairlead_router.app import Place
from fairlead_router.contract import AUDIENCE_ROUTER, PoolConfig
from fairlead_router.replicas import Load
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Station,
    budget,
    chat,
    configuration,
    policy,
    post,
    route,
    station,
    token,
    until,
)
from tests.fakes.engine import Behaviour, FakeEngine

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
COST = b": fairlead cost_usd=0.000001 pool=chat-8b\n\n"


@dataclass
class Script:
    """An engine that answers every request with the same bytes, one write for each part."""

    parts: list[bytes]
    served: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.served += 1
                for part in self.parts:
                    writer.write(part)
                    await asyncio.sleep(0.005)  # a read of its own


@contextlib.asynccontextmanager
async def scripted(*parts: bytes) -> AsyncIterator[tuple[Script, Station]]:
    """A router before such an engine."""
    script = Script(list(parts))
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    try:
        async with station(addresses={POOL: (f"127.0.0.1:{server.sockets[0].getsockname()[1]}",)}) as at:
            yield script, at
    finally:
        server.close()
        for writer in script.writers:
            writer.transport.abort()


def event(**members: object) -> bytes:
    return b"data: " + json.dumps(members, separators=(",", ":")).encode() + b"\n\n"


def framed(*events: bytes, extension: bytes = b"") -> bytes:
    """Each as a chunk."""
    return b"".join(b"%x%b\r\n%b\r\n" % (len(one), extension, one) for one in events)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


TEXT = [event(choices=[{"index": 0, "delta": {"content": word}}]) for word in ("one", "two", "three", "four")]
USAGE = event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14})
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"
EXPECTED = b"".join(TEXT) + COST + DONE

WAYS = {
    "one event to a chunk": [HEAD, *(framed(one) for one in (*TEXT, USAGE, DONE)), LAST],
    "all at once": [HEAD + framed(*TEXT, USAGE, DONE) + LAST],
    "several events to a chunk": [HEAD, framed(b"".join(TEXT[:2]), b"".join([*TEXT[2:], USAGE, DONE])), LAST],
    "an event over several chunks": [HEAD, *(framed(one) for one in pieces(b"".join([*TEXT, USAGE, DONE]), 13)), LAST],
    "chunks over several reads": [HEAD, *pieces(framed(*TEXT, USAGE, DONE) + LAST, 37)],
    "chunk extensions": [HEAD, framed(TEXT[0]), framed(*TEXT[1:], USAGE, DONE, extension=b";a=b"), LAST],
    "trailers": [HEAD, framed(*TEXT, USAGE, DONE), b"0\r\nx-fairlead-cost-usd: 0\r\nx: y\r\n\r\n"],
    "an extension cut in two": [
        HEAD,
        framed(*TEXT),
        b"%x;a" % len(USAGE),
        b"=b\r\n" + USAGE + b"\r\n",
        framed(DONE),
        LAST,
    ],
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_arrives_the_same_and_is_charged_the_same_however_it_is_framed(way: str) -> None:
    async with scripted(*WAYS[way]) as (script, at):
        wire = await at.connect()
        for _ in range(3):  # the second is read by its repeated head
            await wire.send(post(chat(stream=True)))
            answer = await wire.answer()
            assert (answer.status, answer.body) == (200, EXPECTED)
            assert "x-fairlead-cost-usd" not in answer.headers
        totals = at.router.telemetry.pool(POOL).totals()
        assert (totals.requests, totals.prompt, totals.output, totals.nano_usd) == (3, 30, 12, 3 * 704)
    assert script.served == 3
    assert len(script.writers) == 1, "the connection stayed"


@pytest.mark.parametrize("way", WAYS)
async def test_the_usage_that_a_client_asked_for_stays_in_its_place(way: str) -> None:
    async with scripted(*WAYS[way]) as (_, at):
        answer = await at.ask(chat(stream=True, stream_options={"include_usage": True}))
    told = [json.loads(one[6:]) for one in answer.body.decode().split("\n\n")[:-2]]
    assert [one["choices"] == [] for one in told] == [False] * 4 + [True]
    assert told[-1]["usage"]["completion_tokens"] == 4
    assert told[-1]["fairlead"] == {"cost_usd": "0.000001", "budget_remaining": {}, "pool": "chat-8b"}


RESPONSES = [
    b"event: response.created\n" + event(type="response.created", response={"status": "in_progress"}),
    b"event: response.output_text.delta\n" + event(type="response.output_text.delta", delta="hi"),
    b"event: response.completed\n"
    + event(
        type="response.completed", response={"status": "completed", "usage": {"input_tokens": 10, "output_tokens": 4}}
    ),
]
MESSAGES = [
    b"event: message_start\n"
    + event(type="message_start", message={"usage": {"input_tokens": 10, "output_tokens": 0}}),
    b"event: content_block_delta\n" + event(type="content_block_delta", delta={"type": "text_delta", "text": "hi"}),
    b"event: message_delta\n"
    + event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 10, "output_tokens": 4}),
    b"event: message_stop\n" + event(type="message_stop"),
]


@pytest.mark.parametrize(
    ("path", "prompt", "events"),
    [("/v1/responses", "input", RESPONSES), ("/v1/messages", "messages", MESSAGES)],
)
async def test_the_other_formats_tell_their_cost_before_their_last_event(
    path: str, prompt: str, events: list[bytes]
) -> None:
    said: object = "hi" if prompt == "input" else [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": "chat", prompt: said, "stream": True, "max_tokens": 8}).encode()
    async with scripted(HEAD, *(framed(one) for one in events), LAST) as (_, at):
        for _ in range(2):
            answer = await at.ask(body, path)
            assert answer.body == b"".join(events[:-1]) + COST + events[-1]
        assert at.router.telemetry.pool(POOL).totals().nano_usd == 2 * 704


async def test_frames_wait_for_a_slow_reader_and_memory_stays_bounded(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=400, padding=64 * 1024)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await wire.answer()
        await wire.send(post(chat(stream=True)))  # its head repeats: now frames pass
        (client,) = at.clients._open
        await until(lambda: client._full, "a full connection")
        await asyncio.sleep(0.1)
        assert engine.running == 1
        assert client._transport is not None
        assert client._transport.get_write_buffer_size() < 1 << 20
        assert not at.clients.outbox._pending
        assert (await wire.answer()).body.endswith(DONE)


# --- through two routers ---


@contextlib.asynccontextmanager
async def two_routers(engine: FakeEngine, path: str) -> AsyncIterator[tuple[Station, Station]]:
    await engine.start(path)
    place = Place(pod="ai-platform/chat-8b-h100-x", pool=POOL, engine=path)
    async with station(place=place) as target, station(addresses={POOL: (f"127.0.0.1:{target.port}",)}) as entry:
        entry.router.hop_token = token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER).encode()
        yield target, entry


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("run") / "engine.sock")


async def test_what_a_sidecar_says_of_its_engines_load_reaches_the_entrys_choice(
    engine: FakeEngine, socket_path: str
) -> None:
    async with two_routers(engine, socket_path) as (target, entry):
        (replica,) = entry.router._lines[POOL].replicas
        await entry.ask(chat())
        assert replica.told_until == 0, "nothing was told"
        target.router.engine_load._take(Load(7, 0, 100))
        replica.hear_at = 0
        answer = await entry.ask(chat())
        assert "x-fairlead-load" not in answer.headers
        # Seven of the engine's, of which the one request was ours.
        assert (replica.others, replica.full) == (6 + 1, False)
        target.router.engine_load._take(Load(7, 3, 100))
        replica.hear_at = 0
        await entry.ask(chat(stream=True))
        assert replica.full


async def test_requests_whose_heads_repeat_over_a_hop_keep_their_own_ids_and_bodies(
    engine: FakeEngine, socket_path: str
) -> None:
    async with two_routers(engine, socket_path) as (target, entry):
        wire = await entry.connect()
        ids = []
        for index in range(6):
            await wire.send(post(chat("x" * index, stream=index % 2 == 1)))
            answer = await wire.answer()
            assert answer.status == 200
            ids.append(answer.headers["x-request-id"])
        assert len(set(ids)) == 6
        assert [receipt.headers["x-request-id"] for receipt in engine.receipts] == ids
        assert [len(receipt.body["messages"][0]["content"]) for receipt in engine.receipts] == list(range(6))
        assert engine.connections == 1
        assert target.clients.count() == 1
        hidden = {"authorization", "x-fairlead-hop", "x-fairlead-router-token"}
        assert not hidden & {name for receipt in engine.receipts for name in receipt.headers}


async def test_a_forged_hop_token_makes_its_sender_a_client(engine: FakeEngine, socket_path: str) -> None:
    await engine.start(socket_path)
    place = Place(pod="ai-platform/chat-8b-h100-x", pool=POOL, engine=socket_path)
    config = configuration(platform_namespaces=("ai-platform",))
    async with station(config, {}, place=place) as at:
        forged = {"x_fairlead_hop": f"fl-1;{POOL}", "x_fairlead_router_token": token("evil", "x", AUDIENCE_ROUTER)}
        assert (await at.ask(chat(), bearer="", **forged)).status == 401
        unknown = await at.ask(chat(model="nope"), **forged)
        assert (unknown.status, unknown.code) == (404, "model_not_found"), "planned as a client's request"
    assert not engine.receipts


# --- routes ---


def sized(context: int = 512, long: int = 4096) -> dict[str, object]:
    pools = (
        PoolConfig(pool=POOL, max_context_tokens=context, card=CARD),
        PoolConfig(pool=LONG_POOL, max_context_tokens=long, card=CARD),
    )
    return {"pools": pools, "policies": (policy(routes=(route("short", context), route("long", long, LONG_POOL))),)}


async def test_a_prompt_that_the_larger_route_finds_too_long_as_well_gets_the_engines_words(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = Behaviour(status=400, error="maximum context length is 9 tokens")
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    config = configuration(**sized(), budgets=(budget(),))
    async with station(config, addresses, lease={"support/support": 10**9}) as at:
        answer = await at.ask(chat())
        assert (answer.status, answer.json()["error"]["message"]) == (400, "maximum context length is 9 tokens")
        holdings = at.router.wallet.holdings.values()
        assert [(holding.charged, holding.reserved) for holding in holdings] == [(0, 0)]
    assert (len(engine.receipts), len(other.receipts)) == (1, 1)


async def test_a_prompt_of_a_million_tokens_passes_where_a_route_has_the_context(
    engine: FakeEngine, other: FakeEngine
) -> None:
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(configuration(**sized(4096, 1 << 20)), addresses) as at:
        text = "word" * (1 << 20)
        wire = await at.connect()
        await wire.send(post(chat(text)))
        answer = await wire.answer()
        assert (answer.status, answer.headers["x-fairlead-pool"]) == (200, "chat-8b-long")
        assert other.receipts[0].body["messages"][0]["content"] == text
        assert at.clients.bodies.used == 0
        limit = 12 << 20
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n" % token().encode()
        await wire.send(head + b"content-length: %d\r\n\r\n" % (limit + 1))
        refused = await wire.answer()
        assert (refused.status, refused.code) == (413, "body_too_large")
        assert refused.json()["error"]["message"] == (
            f"The body has more than {limit} bytes. As many hold any prompt of 1,048,576 tokens, the largest context "
            "here. Shorten the prompt, or name images and sound by URL."
        )


async def test_a_body_that_its_engine_takes_in_parts_leaves_no_error_in_the_log(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    pools = (PoolConfig(pool=POOL, max_context_tokens=1 << 21, slots=4, card=CARD),)
    config = configuration(pools=pools, policies=(policy(routes=(route(context=1 << 21),)),))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        text = "word" * (1 << 21)
        wire = await at.connect()
        await wire.send(post(chat(text)))
        assert (await wire.answer()).status == 200
        assert engine.receipts[0].body["messages"][0]["content"] == text
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# --- affinity ---


async def test_requests_with_one_beginning_meet_at_one_replica_and_others_spread(
    engine: FakeEngine, other: FakeEngine
) -> None:
    async with station(addresses={POOL: (await engine.start(), await other.start())}) as at:
        for prefix in ("a", "b", "c", "d", "e", "f", "g", "h"):
            for turn in range(3):
                await at.ask(chat(prefix * 4_000 + str(turn), max_tokens=1))
    homes: dict[str, set[str]] = {}
    for place, one in (("engine", engine), ("other", other)):
        for receipt in one.receipts:
            homes.setdefault(receipt.body["messages"][0]["content"][0], set()).add(place)
    assert {len(found) for found in homes.values()} == {1}
    assert {place for found in homes.values() for place in found} == {"engine", "other"}


async def test_one_hot_beginning_does_not_fill_one_replica_while_the_other_is_idle(
    engine: FakeEngine, other: FakeEngine
) -> None:
    gate = asyncio.Event()
    engine.behaviour = other.behaviour = Behaviour(hold=gate)
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=16),)
    async with station(configuration(pools=pools), {POOL: (await engine.start(), await other.start())}) as at:
        tasks = [asyncio.create_task(at.ask(chat("a" * 4_000, max_tokens=1))) for _ in range(16)]
        await until(lambda: engine.running + other.running == 16, "all requests")
        assert max(engine.running, other.running) <= 1.25 * 8 + 1
        gate.set()
        assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
