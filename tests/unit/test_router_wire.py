"""What a client may send: bounds, malformed heads, smuggling, pipelining, slow senders, identity."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from fairlead_router.app import Place
from fairlead_router.contract import AUDIENCE_ROUTER, Endpoint, Endpoints, PoolConfig, PoolEndpoints
from fairlead_router.exchange import MAX_BOUNCES, Exchange
from tests.builders.router import POOL, Station, Wire, chat, configuration, post, quick, station, token, until
from tests.fakes.engine import Behaviour, FakeEngine


@pytest.fixture
async def at(engine: FakeEngine) -> AsyncIterator[Station]:
    async with station(addresses={POOL: (await engine.start(),)}) as found:
        yield found


AUTH = b"authorization: Bearer %b\r\n" % token().encode()
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"

SMUGGLED = {
    "length and chunked": LINE
    + b"host: x\r\n"
    + AUTH
    + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": LINE + b"host: x\r\n" + AUTH + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "signed length": LINE + b"host: x\r\n" + AUTH + b"content-length: +3\r\n\r\nabc",
    "folded header": LINE + b"host: x\r\n" + AUTH + b"x: a\r\n b\r\ncontent-length: 3\r\n\r\nabc",
    "bare LF": LINE + b"host: x\r\n" + AUTH + b"x: a\ncontent-length: 3\r\n\r\nabc",
    "space before colon": LINE + b"host: x\r\n" + AUTH + b"content-length : 3\r\n\r\nabc",
    "chunked not last": LINE + b"host: x\r\n" + AUTH + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunk size with LF": LINE + b"host: x\r\n" + AUTH + b"transfer-encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
    "NUL in a header": LINE + b"host: x\x00y\r\n" + AUTH + b"content-length: 3\r\n\r\nabc",
    "no host": LINE + AUTH + b"content-length: 3\r\n\r\nabc",
    "two hosts": LINE + b"host: x\r\nhost: y\r\n" + AUTH + b"content-length: 3\r\n\r\nabc",
    "two authorizations": LINE + b"host: x\r\n" + AUTH + AUTH + b"content-length: 3\r\n\r\nabc",
    "chunked in 1.0": LINE.replace(b"1.1", b"1.0")
    + b"host: x\r\n"
    + AUTH
    + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_a_request_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    at: Station, engine: FakeEngine, name: str
) -> None:
    wire = await at.connect()
    await wire.send(SMUGGLED[name] + post(chat()))
    answer = await wire.answer()
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert await wire.closed() == b""
    assert not engine.receipts


async def test_a_head_of_too_many_bytes_or_headers_is_431(at: Station) -> None:
    for extra in (b"x: " + b"a" * 70_000, b"\r\n".join(b"x%d: 1" % index for index in range(101))):
        wire = await at.connect()
        await wire.send(LINE + b"host: x\r\n" + extra + b"\r\n\r\n")
        answer = await wire.answer()
        assert (answer.status, answer.code) == (431, "head_too_large")


async def test_a_head_without_end_is_refused_at_its_bound(at: Station) -> None:
    wire = await at.connect()
    await wire.send(LINE + b"x: " + b"a" * 66_000)
    assert (await wire.answer()).status == 431


async def test_a_body_above_the_limit_is_413_before_it_is_read(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(LINE + b"host: x\r\n" + AUTH + b"content-length: 5000000\r\n\r\n" + b"x" * 100)
        answer = await wire.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
        chunked = await at.connect()
        await chunked.send(LINE + b"host: x\r\n" + AUTH + b"transfer-encoding: chunked\r\n\r\n")
        await chunked.send(b"110000\r\n" + b"x" * 0x110000 + b"\r\n")
        refused = await chunked.answer()
        assert refused.status == 413
        assert refused.json()["error"]["message"].startswith(
            "The body has more than 1048576 bytes. As many hold any prompt of 4,096 tokens"
        )


async def test_a_413_says_that_the_bound_will_change_while_a_pools_context_is_not_known() -> None:
    async with station(configuration(pools=(PoolConfig(pool=POOL),)), limits=quick(body=1000)) as at:
        answer = await at.ask(b"x" * 1001)
        assert answer.status == 413
        assert "more than 1000 bytes. No more is read until the context of every pool" in answer.body.decode()


async def test_a_refused_body_can_still_be_written_while_the_answer_is_read(at: Station) -> None:
    wire = await at.connect()
    body = b"x" * 3_000_000
    await wire.send(LINE + b"host: x\r\ncontent-length: 3000000\r\n\r\n" + body)
    answer = await wire.answer()
    assert (answer.status, answer.code) == (401, "invalid_api_key")


async def test_a_slow_head_and_a_slow_body_time_out_with_408() -> None:
    async with station(limits=quick(head_s=0.05, body_s=0.05)) as at:
        for start in (LINE + b"host: x\r\n", LINE + b"host: x\r\n" + AUTH + b"content-length: 10\r\n\r\nabc"):
            wire = await at.connect()
            await wire.send(start)
            answer = await wire.answer()
            assert (answer.status, answer.code) == (408, "request_timeout")


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with station(limits=quick(idle_s=0.05)) as at:
        wire = await at.connect()
        assert await wire.closed() == b""


async def test_a_request_may_come_byte_by_byte(at: Station) -> None:
    wire = await at.connect()
    for byte in post(chat()):
        wire.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.answer()).status == 200


async def test_a_chunked_body_with_extensions_and_trailers_is_read(at: Station, engine: FakeEngine) -> None:
    body = chat("chunks")
    wire = await at.connect()
    await wire.send(LINE + b"host: x\r\n" + AUTH + b"transfer-encoding: chunked\r\n\r\n")
    await wire.send(
        b"5;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nx-fairlead-feature: late\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
    )
    assert (await wire.answer()).status == 200
    assert engine.receipts[0].headers["content-length"] == str(len(engine.receipts[0].raw))


async def test_pipelined_requests_are_answered_in_order(at: Station, engine: FakeEngine) -> None:
    wire = await at.connect()
    await wire.send(b"".join(post(chat(str(index), stream=index == 1)) for index in range(5)))
    answers = [await wire.answer() for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert [receipt.body["messages"][0]["content"] for receipt in engine.receipts] == list("01234")
    assert engine.peak == 1


async def test_a_good_request_is_answered_before_a_bad_one_behind_it(at: Station) -> None:
    wire = await at.connect()
    await wire.send(post(chat()) + SMUGGLED["two lengths"])
    assert (await wire.answer()).status == 200
    assert (await wire.answer()).status == 400
    assert await wire.closed() == b""


async def test_expect_continue_is_answered_before_the_body(at: Station) -> None:
    body = chat()
    wire = await at.connect()
    await wire.send(LINE + b"host: x\r\nexpect: 100-continue\r\n" + AUTH + b"content-length: %d\r\n\r\n" % len(body))
    assert (await wire.head())[0] == 100
    await wire.send(body)
    assert (await wire.answer()).status == 200


async def test_expect_continue_is_refused_at_once_without_identity(at: Station) -> None:
    wire = await at.connect()
    await wire.send(LINE + b"host: x\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n")
    assert (await wire.answer()).status == 401


async def test_an_offer_to_upgrade_is_ignored(at: Station) -> None:
    wire = await at.connect()
    await wire.send(post(chat(), connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AAM"))
    assert (await wire.answer()).status == 200


async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection(at: Station) -> None:
    wire = await at.connect()
    await wire.send(post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
    status, headers = await wire.head()
    assert (status, headers["connection"]) == (200, "close")
    assert (await wire.closed()).endswith(b"data: [DONE]\n\n")


async def test_nagle_is_off_towards_clients(at: Station) -> None:
    wire = await at.connect()
    await wire.send(post(chat()))
    await wire.answer()
    (client,) = at.clients._open
    assert client._transport is not None
    found = client._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert found


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/chat/completions?x=1", 200), ("/v1/tokenize", 404), ("/metrics", 404), ("/v1/chat/completions/", 404)],
)
async def test_only_the_open_paths_reach_an_engine(at: Station, path: str, status: int) -> None:
    answer = await at.ask(chat(), path)
    assert answer.status == status
    if status == 404:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code", "fairlead"}


BAD_TOKENS = {
    "none": "",
    "garbage": "abc",
    "another audience": token(audience="other"),
    "expired": token(exp=1_600_000_000),
    "another issuer": token(iss="https://evil"),
    "an unknown key": token(kid="two"),
    "no service account": token(sub="admin"),
    "very long": "a" * 9_000,
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_nothing_passes_without_a_valid_token(at: Station, engine: FakeEngine, name: str) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/nope"):
        answer = await at.ask(chat(), path, bearer=BAD_TOKENS[name])
        assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert not engine.receipts


@pytest.mark.parametrize("value", ["x" * 129, "a\tb", "ü"])
async def test_a_feature_that_is_too_long_or_not_printable_is_refused(at: Station, value: str) -> None:
    assert (await at.ask(chat(), x_fairlead_feature=value)).status == 400


def hop(body: bytes, bearer: str, pool: str = POOL) -> bytes:
    return post(body, x_fairlead_hop=f"fl-gw1-1;{pool}", x_fairlead_router_token=bearer, bearer="")


async def test_a_hop_goes_straight_to_the_engine_as_it_came(
    engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("run") / "engine.sock")
    await engine.start(path)
    place = Place(pod="ai-platform/chat-8b-h100-x", pool=POOL, engine=path)
    async with station(place=place) as at:
        wire = await at.connect()
        await wire.send(hop(chat(model="chat-8b"), token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER)))
        answer = await wire.answer()
        assert answer.status == 200
        assert "x-fairlead-cost-usd" not in answer.headers
        assert engine.receipts[0].raw == chat(model="chat-8b")
        assert at.router.own_engine.read("operator") == 1
        await _hops_of_others_are_refused(at, wire)
        at.router.drain()
        await wire.send(hop(chat(), token("ai-platform", "default", AUDIENCE_ROUTER)))
        draining = await wire.answer()
        assert (draining.status, draining.headers["x-fairlead-retry"]) == (503, "draining")


async def _hops_of_others_are_refused(at: Station, wire: Wire) -> None:
    for bearer, pool in (
        (token("support", "web", AUDIENCE_ROUTER), POOL),
        (token("fairlead", "fairlead-gateway"), POOL),
        (token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER), "ai-platform/another"),
    ):
        other = await at.connect()
        await other.send(hop(chat(), bearer, pool))
        assert (await other.answer()).status == 401
    del wire


async def test_a_hop_to_a_gateway_is_a_client_like_any_other(at: Station) -> None:
    wire = await at.connect()
    await wire.send(hop(chat(), token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER)))
    assert (await wire.answer()).status == 401


async def test_a_hop_that_leaves_stops_the_engine(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("run") / "engine.sock")
    await engine.start(path)
    engine.behaviour = Behaviour(hold=asyncio.Event())
    async with station(place=Place(pod="ai-platform/p", pool=POOL, engine=path)) as at:
        wire = await at.connect()
        await wire.send(hop(chat(), token("ai-platform", "default", AUDIENCE_ROUTER)))
        await until(lambda: engine.running == 1, "the request")
        wire.close()
        await until(lambda: engine.running == 0, "the engine's abort")
        assert at.router.own_engine.value == 0


async def test_a_request_goes_through_two_routers_and_only_the_first_one_charges(
    engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("run") / "engine.sock")
    await engine.start(path)
    place = Place(pod="ai-platform/chat-8b-h100-x", pool=POOL, engine=path)
    async with station(place=place) as target, station(addresses={POOL: (f"127.0.0.1:{target.port}",)}) as entry:
        entry.router.hop_token = token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER).encode()
        answer = await entry.ask(chat())
        stream = await entry.ask(chat(stream=True))
        assert answer.headers["x-fairlead-cost-usd"] == "0.000001"
        assert stream.body.endswith(b": fairlead cost_usd=0.000001 pool=chat-8b\n\ndata: [DONE]\n\n")
        assert (
            entry.router.telemetry.pool(POOL).totals().requests,
            target.router.telemetry.pool(POOL).totals().requests,
        ) == (2, 0)
        assert {receipt.headers["x-request-id"] for receipt in engine.receipts} == {
            answer.headers["x-request-id"],
            stream.headers["x-request-id"],
        }


async def test_a_request_that_meets_a_draining_replica_waits_for_the_one_that_comes(
    engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("run") / "engine.sock")
    await engine.start(path)
    place = Place(pod="ai-platform/chat-8b-h100-x", pool=POOL, engine=path)
    async with (
        station(place=place) as old,
        station(place=place) as new,
        station(addresses={POOL: (f"127.0.0.1:{old.port}",)}) as entry,
    ):
        entry.router.hop_token = token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER).encode()
        old.router.drain()
        asked = asyncio.create_task(entry.ask(chat()))
        await until(lambda: entry.router.signals("r", ("", ""), 0).pools[0].held == 1, "the held request")
        both = tuple(
            Endpoint(pod=f"ai-platform/{s.port}", address=f"127.0.0.1:{s.port}", variant="h100") for s in (old, new)
        )
        entry.router.set_endpoints(Endpoints(pools=(PoolEndpoints(pool=POOL, endpoints=both),)))
        assert (await asked).status == 200


async def test_a_replica_that_drains_for_ever_is_not_asked_for_ever(
    engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("run") / "engine.sock")
    await engine.start(path)
    place = Place(pod="ai-platform/chat-8b-h100-x", pool=POOL, engine=path)
    async with station(place=place) as target, station(addresses={POOL: (f"127.0.0.1:{target.port}",)}) as entry:
        entry.router.hop_token = token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER).encode()
        target.router.drain()
        asked = asyncio.create_task(entry.ask(chat()))
        await until(lambda: entry.router._lines[POOL].held.value == 1, "a request that was sent on")
        (client,) = entry.clients._open
        exchange = client._handler
        assert isinstance(exchange, Exchange)
        exchange._bounces = MAX_BOUNCES
        refused = await asked
        assert (refused.status, refused.code) == (502, "upstream_error")


async def test_answers_do_not_pile_up_for_a_client_that_sends_and_does_not_read(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(padding=2 << 20)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat()) * 20)
        (client,) = at.clients._open
        await until(lambda: client._full and client._current is None, "a full connection")
        assert len(engine.receipts) < 20
        assert [(await wire.answer()).status for _ in range(20)] == [200] * 20


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(padding=8 << 20)
    async with station(addresses={POOL: (await engine.start(),)}, limits=quick(idle_s=0.2)) as at:
        wire = await at.connect()
        await wire.send(post(chat()))
        await until(lambda: engine.receipts, "the request")
        await until(lambda: not at.clients._open, "the end of the connection")
