"""Connections to endpoints: none is kept that nobody needs."""

import asyncio

from fairlead_router.upstream import Patience, Upstreams, fetch, request_head, target_of
from tests.builders.router import chat, until
from tests.fakes.engine import Behaviour, FakeEngine


async def test_a_connection_to_an_endpoint_that_is_gone_is_closed_after_its_last_answer(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    upstreams = Upstreams(asyncio.get_running_loop().time, Patience())
    pool = upstreams.pool(target_of(await engine.start()))
    body = chat()
    head = request_head("POST", "/v1/chat/completions", "engine", (), len(body))
    answer = asyncio.create_task(fetch(pool, head, body, 5.0))
    await until(lambda: engine.running, "the request")
    upstreams.keep_only(set())
    gate.set()
    assert (await answer).status == 200
    await until(pool.over, "its end")
    upstreams.check()
    assert not upstreams._everything()
