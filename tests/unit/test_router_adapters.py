"""LoRA adapters: brought into an engine and out of it as configured, and requests routed to them by name."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router import adapters, engine_watch
from fairlead_router.adapters import FIRST_RETRY_S, KEPT_S, LONGEST_RETRY_S, Failed, Step, steps
from fairlead_router.contract import AdapterConfig, FallbackConfig, PoolConfig, RouterConfig, UsageLine, WeightedPool
from fairlead_router.policy import ConfigError, build_index
from fairlead_router.replicas import LACKING_S
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
    watching,
)
from tests.fakes.engine import Behaviour, FakeEngine

LEGAL = AdapterConfig(name="legal", path="/models/adapters/legal")
MEDICAL = AdapterConfig(name="medical", path="acme/medical")
SERVED = "chat-8b"


# --- what is to be done ---


def test_what_is_missing_is_loaded_and_what_is_not_wanted_is_unloaded_after_a_while() -> None:
    wanted, loaded = {"a": "/a", "b": "/b"}, {"b": "/b", "c": "/c"}
    assert steps(wanted, loaded, {"c": 10.0}, {}, 10.0 + KEPT_S - 0.1) == [Step("a", "/a")]
    assert steps(wanted, loaded, {"c": 10.0}, {}, 10.0 + KEPT_S) == [Step("c"), Step("a", "/a")]


def test_an_adapter_with_another_path_is_unloaded_and_loaded_anew_at_once() -> None:
    assert steps({"a": "/new"}, {"a": "/old"}, {}, {}, 0.0) == [Step("a"), Step("a", "/new")]


def test_a_failed_adapter_is_tried_again_later_and_later_but_another_path_at_once() -> None:
    failed = {"a": Failed("/a", 1, 100.0, "404: gone")}
    assert not steps({"a": "/a"}, {}, {}, failed, 100.0 + FIRST_RETRY_S - 0.1)
    assert steps({"a": "/a"}, {}, {}, failed, 100.0 + FIRST_RETRY_S) == [Step("a", "/a")]
    assert steps({"a": "/b"}, {}, {}, failed, 100.0) == [Step("a", "/b")]
    often = {"a": Failed("/a", 1_000, 100.0, "404: gone")}
    assert not steps({"a": "/a"}, {}, {}, often, 100.0 + LONGEST_RETRY_S - 0.1)
    assert steps({"a": "/a"}, {}, {}, often, 100.0 + LONGEST_RETRY_S) == [Step("a", "/a")]


paths = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["/1", "/2"]))


@given(paths, paths)
def test_the_steps_lead_to_what_is_wanted_and_never_load_a_name_that_is_there(
    wanted: dict[str, str], loaded: dict[str, str]
) -> None:
    there = dict(loaded)
    for step in steps(wanted, loaded, dict.fromkeys(loaded, 0.0), {}, KEPT_S):
        if step.path:
            assert step.name not in there
            there[step.name] = step.path
        else:
            del there[step.name]
    assert there == wanted


# --- beside an engine ---


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a") / "engine.sock"


def pool(*found: AdapterConfig, name: str = POOL, **changes: Any) -> PoolConfig:
    return PoolConfig(pool=name, max_context_tokens=4096, card=CARD, adapters=found, **{"slots": 4, **changes})


def serving(*found: AdapterConfig, to: tuple[AdapterConfig, ...] | None = None, **changes: Any) -> RouterConfig:
    """The bare model as ``chat``, and each adapter as a model of its own name."""
    routes = ((one.name, route(pools=(WeightedPool(pool=POOL, adapter=one.name),))) for one in to or found)
    each = tuple(policy(name=name, models=(name,), routes=(one,)) for name, one in routes)
    fields = {"pools": (pool(*found),), "adapter_policies": each, "platform_namespaces": ("ai-platform",), **changes}
    return configuration(**fields)


@contextlib.asynccontextmanager
async def sidecar(
    socket: Path, config: RouterConfig, monkeypatch: pytest.MonkeyPatch, **short: float
) -> AsyncIterator[Station]:
    """A router beside an engine, which looks often."""
    for module, name, value in (
        (engine_watch, "LOOK_S", 0.01),
        (engine_watch, "LIST_S", 0.02),
        (adapters, "KEPT_S", 0.05),
        (adapters, "FIRST_RETRY_S", 0.05),
    ):
        monkeypatch.setattr(module, name, short.get(name, value))
    async with watching(socket, config) as at:
        yield at


def reported(at: Station) -> dict[str, tuple[bool, str]]:
    return {one.name: (one.loaded, one.error) for one in at.router.signals("operator", ("", ""), 0).adapters}


def configure(at: Station, config: RouterConfig) -> None:
    at.router.configure(build_index(config))


async def test_the_engine_gets_the_adapters_before_the_pod_is_ready(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.served = SERVED
    await engine.start(str(socket))
    async with sidecar(socket, serving(LEGAL, MEDICAL), monkeypatch) as at:
        await until(lambda: not at.router.engine_watch.trouble(), "the warm-up")
        assert engine.adapters == {"legal": "/models/adapters/legal", "medical": "acme/medical"}
        assert reported(at) == {"legal": (True, ""), "medical": (True, "")}
        assert (await at.ask(chat(model="legal"))).status == 200
        assert engine.receipts[-1].body["model"] == "legal"


async def test_an_adapter_that_cannot_be_loaded_is_reported_tried_again_and_holds_up_nothing_else(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.served = SERVED
    engine.broken[LEGAL.path] = (500, "LoRA rank 64 is greater than max_lora_rank 16.")
    await engine.start(str(socket))
    async with sidecar(socket, serving(LEGAL, MEDICAL), monkeypatch) as at:
        await until(lambda: not at.router.engine_watch.trouble(), "the warm-up")
        error = "500: LoRA rank 64 is greater than max_lora_rank 16."
        assert reported(at) == {"legal": (False, error), "medical": (True, "")}
        answer = await at.ask(chat(model="legal"))
        assert (answer.status, answer.code) == (503, "adapter_not_loaded")
        assert "adapter legal" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "5"
        engine.broken.clear()
        await until(lambda: reported(at)["legal"] == (True, ""), "the next try")


async def test_adapters_follow_the_configuration_while_requests_run(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.served = SERVED
    await engine.start(str(socket))
    async with sidecar(socket, serving(LEGAL), monkeypatch) as at:
        await until(lambda: reported(at)["legal"][0], "the first adapter")
        gate = asyncio.Event()
        engine.plan.append(Behaviour(hold=gate))
        wire = await at.connect()
        await wire.send(post(chat(model="legal")))
        await until(lambda: engine.running == 1, "the request")
        configure(at, serving(MEDICAL))
        await until(lambda: list(engine.adapters) == ["medical"], "the change")
        assert engine.lora_calls == [("load", "legal"), ("load", "medical"), ("unload", "legal")]
        gate.set()
        assert (await wire.answer()).status == 200
        assert reported(at) == {"medical": (True, "")}
        moved = AdapterConfig(name="medical", path="acme/medical-2")
        configure(at, serving(moved))
        await until(lambda: engine.adapters == {"medical": "acme/medical-2"}, "the other path")
        configure(at, configuration(platform_namespaces=("ai-platform",)))
        await until(lambda: not engine.adapters, "the end of the last adapter")


async def test_an_adapter_stays_a_while_after_it_left_the_configuration(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.served = SERVED
    await engine.start(str(socket))
    async with sidecar(socket, serving(LEGAL), monkeypatch, KEPT_S=3_600.0) as at:
        await until(lambda: reported(at)["legal"][0], "the adapter")
        configure(at, serving(MEDICAL))
        await until(lambda: reported(at)["medical"][0], "the other adapter")
        assert set(engine.adapters) == {"legal", "medical"}


async def test_a_restarted_engine_gets_its_adapters_again(
    engine: FakeEngine, other: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.served = other.served = SERVED
    await engine.start(str(socket))
    async with sidecar(socket, serving(LEGAL), monkeypatch, LIST_S=3_600.0) as at:
        await until(lambda: reported(at)["legal"][0], "the adapter")
        await engine.stop()
        await asyncio.to_thread(socket.unlink, missing_ok=True)
        await other.start(str(socket))
        await until(lambda: "legal" in other.adapters, "the adapter in the new engine")
        await until(lambda: not at.router.engine_watch.trouble(), "the warm-up")


async def test_what_somebody_else_unloaded_is_loaded_again(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.served = SERVED
    await engine.start(str(socket))
    async with sidecar(socket, serving(LEGAL), monkeypatch) as at:
        await until(lambda: reported(at)["legal"][0], "the adapter")
        engine.adapters.clear()
        await until(lambda: "legal" in engine.adapters, "its return")


async def test_an_engine_without_adapters_is_asked_for_its_models_once(
    engine: FakeEngine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.start(str(socket))
    async with sidecar(socket, configuration(), monkeypatch) as at:
        await until(lambda: not at.router.engine_watch.trouble(), "the warm-up")
        before = engine.asked.count("/v1/models")
        await asyncio.sleep(0.2)
        assert engine.asked.count("/v1/models") == before == 1
        assert not engine.lora_calls


# --- on the way of a request ---


async def test_a_request_for_an_adapter_is_metered_as_the_pool_and_names_the_pool(engine: FakeEngine) -> None:
    engine.served, engine.adapters = SERVED, {"legal": LEGAL.path}
    config = serving(LEGAL, budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}) as at:
        answer = await at.ask(chat(model="legal"))
        assert (answer.status, answer.headers["x-fairlead-pool"]) == (200, SERVED)
        assert answer.headers["x-fairlead-cost-usd"] == "0.000001"
        (line,) = usage(at)
        assert (line.model, line.pool, line.nano_usd, line.card) == ("legal", POOL, 704, CARD.version)
        assert engine.receipts[0].raw.endswith(b',"model":"legal","max_tokens":16}')


def usage(at: Station) -> list[UsageLine]:
    return list(at.router.book.lines())


async def test_the_models_of_an_adapters_policy_are_listed(engine: FakeEngine) -> None:
    async with station(serving(LEGAL), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token()}\r\n\r\n".encode())
        assert [one["id"] for one in (await wire.answer()).json()["data"]] == ["chat", "legal"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_replica_that_lacks_the_adapter_is_passed_over_and_not_held_to_be_sick(
    engine: FakeEngine, other: FakeEngine, *, stream: bool
) -> None:
    engine.served = other.served = SERVED
    other.adapters = {"legal": LEGAL.path}
    async with station(serving(LEGAL), {POOL: (await engine.start(), await other.start())}) as at:
        while not engine.unknown:
            assert (await at.ask(chat(model="legal", stream=stream))).status == 200
        (lacks,) = [one for one in at.router._lines[POOL].replicas if one.lacking]
        lacks.lacking["legal"] = math.inf
        other.receipts.clear()
        for _ in range(8):
            assert (await at.ask(chat(model="legal", stream=stream))).status == 200
        assert (len(other.receipts), engine.unknown) == (8, 1)
        assert not lacks.troubled
        assert not lacks.in_flight
        for _ in range(8):
            assert (await at.ask(chat())).status == 200
        assert engine.receipts, "the bare model is served by both"


async def test_a_replica_is_asked_again_after_a_while(engine: FakeEngine) -> None:
    engine.served = SERVED
    async with station(serving(LEGAL), {POOL: (await engine.start(),)}) as at:
        (only,) = at.router._lines[POOL].replicas
        assert (await at.ask(chat(model="legal"))).code == "adapter_not_loaded"
        assert 0 < only.lacking["legal"] - at.router.now() <= LACKING_S
        only.lacking["legal"] = math.inf
        assert (await at.ask(chat(model="legal"))).code == "adapter_not_loaded"
        assert engine.unknown == 1
        engine.adapters = {"legal": LEGAL.path}
        only.lacking["legal"] = at.router.now()
        assert (await at.ask(chat(model="legal"))).status == 200


async def test_an_adapter_that_no_replica_has_costs_nothing(engine: FakeEngine) -> None:
    engine.served = SERVED
    config = serving(LEGAL, budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}) as at:
        answer = await at.ask(chat(model="legal"))
        assert (answer.status, answer.code) == (503, "adapter_not_loaded")
        assert not usage(at)
        purses = at.router.wallet.open
        assert not purses


async def test_another_answer_of_404_reaches_the_client(engine: FakeEngine) -> None:
    engine.served, engine.adapters = SERVED, {"legal": LEGAL.path}
    engine.behaviour = Behaviour(status=404, error="The model does not support this API")
    async with station(serving(LEGAL), {POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat(model="legal"))
        assert answer.status == 404
        assert "does not support" in answer.json()["error"]["message"]


async def test_the_bare_model_of_the_same_replicas_may_stand_in(engine: FakeEngine) -> None:
    engine.served = SERVED
    stand_in = (FallbackConfig(pool=POOL, when=("Unavailable",)),)
    routed = route(pools=(WeightedPool(pool=POOL, adapter="legal"),), fallbacks=stand_in)
    config = serving(LEGAL, adapter_policies=(policy(name="legal", models=("legal",), routes=(routed,)),))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        assert (await at.ask(chat(model="legal"))).status == 200
        assert engine.receipts[0].body["model"] == SERVED
        assert [line.attempt for line in usage(at)] == ["Fallback"]


async def test_two_pools_of_a_route_may_have_adapters_of_their_own(engine: FakeEngine, other: FakeEngine) -> None:
    engine.served, engine.adapters = SERVED, {"legal": LEGAL.path}
    other.served, other.adapters = "chat-8b-long", {"law": "/models/law"}
    law = AdapterConfig(name="law", path="/models/law")
    refs = (WeightedPool(pool=POOL, adapter="legal"), WeightedPool(pool=LONG_POOL, adapter="law"))
    pools = (pool(LEGAL), pool(law, name=LONG_POOL))
    config = configuration(pools=pools, policies=(), adapter_policies=(policy(routes=(route(pools=refs),)),))
    async with station(config, {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}) as at:
        for _ in range(16):
            assert (await at.ask(chat())).status == 200
    assert {receipt.body["model"] for receipt in engine.receipts} == {"legal"}
    assert {receipt.body["model"] for receipt in other.receipts} == {"law"}


async def test_adapters_share_no_prefix_with_each_other_nor_with_the_bare_model(engine: FakeEngine) -> None:
    engine.served, engine.adapters = SERVED, {"legal": LEGAL.path, "medical": MEDICAL.path}
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    address = await engine.start()
    config = serving(LEGAL, MEDICAL, pools=(pool(LEGAL, MEDICAL, slots=1),))
    async with station(config, {POOL: (address, address.replace("127.0.0.1", "localhost"))}) as at:
        line = at.router._lines[POOL]

        async def send(*models: str) -> None:
            for model in models:
                await (await at.connect()).send(post(chat("x" * 4096, model=model)))

        await send("chat", "chat")
        await until(lambda: engine.running == 2, "all slots' use")
        await send("chat", "legal", "legal", "medical")
        await until(lambda: line.held.value == 4, "four to wait")
        keys = [place.key for place in line._waiting]
        assert sorted(keys.count(key) for key in set(keys)) == [1, 1, 2]
        assert 0 not in keys
        gate.set()


def test_a_configuration_that_names_an_adapter_which_the_pool_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="names adapter medical, which pool ai-platform/chat-8b lacks"):
        build_index(serving(LEGAL, to=(LEGAL, MEDICAL)))
