"""A router beside real vLLM on a CPU: its warm-up, and LoRA adapters loaded and unloaded under traffic."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from fairlead_router.app import Place
from fairlead_router.contract import AdapterConfig, PoolConfig, RouterConfig, WeightedPool
from fairlead_router.policy import build_index
from hack.vllm import environment
from tests.builders.lora import write_adapter, write_nan_model
from tests.builders.router import CARD, POOL, Station, chat, configuration, policy, route, station, until
from tests.e2e.engines import engine

pytestmark = pytest.mark.e2e

POD = "ai-platform/p0"
FLAGS = (
    *("--enforce-eager", "--dtype=float32", "--block-size=32", "--kv-cache-memory-bytes=16M", "--max-model-len=2048"),
    f"--served-model-name={POOL.partition('/')[2]}",
)
LORA = ("--enable-lora", "--max-lora-rank=8", "--max-loras=2", "--max-cpu-loras=64", "--max-num-seqs=1")
"""One sequence at a time: with more, vLLM 0.32 on a CPU applies an adapter to the bare model's requests beside it."""
WORKERS = 4


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e") / "e.sock"


def serving(*adapters: AdapterConfig) -> RouterConfig:
    """The bare model as ``chat``, and each adapter as a model of its own name."""
    pool = PoolConfig(pool=POOL, max_context_tokens=2048, slots=16, card=CARD, adapters=adapters)
    each = (route(context=2048, pools=(WeightedPool(pool=POOL, adapter=one.name),)) for one in adapters)
    named = [policy(name=one.name, models=(one.name,), routes=(to,)) for one, to in zip(adapters, each, strict=True)]
    bare = policy(routes=(route(context=2048),))
    return configuration(
        pools=(pool,), policies=(bare,), adapter_policies=tuple(named), platform_namespaces=("ai-platform",)
    )


@contextlib.asynccontextmanager
async def sidecar(socket: Path, config: RouterConfig) -> AsyncIterator[Station]:
    """A router in this process, beside the engine, that looks after it."""
    place = Place(pod=POD, pool=POOL, engine=str(socket))
    async with station(config, {POOL: (f"unix:{socket}",)}, place=place) as router:
        watching = asyncio.create_task(router.router.engine_watch.follow())
        try:
            yield router
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def run(scene: Coroutine[Any, Any, None]) -> None:
    uvloop.run(scene)


async def text(router: Station, model: str) -> str:
    body = chat(model=model, max_tokens=8, temperature=0, ignore_eos=True)
    answer = await router.ask(body, content_type="application/json")
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["message"]["content"])


def loaded(router: Station) -> dict[str, bool]:
    return {one.name: one.loaded for one in router.router.engine_watch.adapters.report()}


async def ready(router: Station) -> None:
    await until(lambda: not router.router.engine_watch.trouble(), "the end of the warm-up", 60)


async def traffic(router: Station, model: str, seen: list[str]) -> None:
    """Requests one after the other until cancelled; each must be answered."""
    while True:
        seen.append(await text(router, model))


def test_adapters_come_and_go_under_traffic_and_no_request_fails(
    vllm: environment.Environment, models: Path, socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    legal, medical, wide = (
        AdapterConfig(name=name, path=str(write_adapter(tmp_path / name, models / "tiny", seed, rank)))
        for name, seed, rank in (("legal", 1, 8), ("medical", 2, 8), ("wide", 3, 16))
    )
    absent = AdapterConfig(name="absent", path=str(tmp_path / "nowhere"))

    async def scene(client: httpx.Client) -> None:
        async with sidecar(socket, serving(legal)) as router:
            await ready(router)
            watch = router.router.engine_watch
            assert loaded(router) == {"legal": True}
            assert watch.max_context_tokens == 2048
            bare, first = await text(router, "chat"), await text(router, "legal")
            assert bare != first
            talk: list[str] = []
            law: list[str] = []
            working = [asyncio.create_task(traffic(router, "chat", talk)) for _ in range(WORKERS)]
            working += [asyncio.create_task(traffic(router, "legal", law)) for _ in range(WORKERS)]
            router.router.configure(build_index(serving(legal, medical, wide, absent)))
            await until(lambda: loaded(router)["medical"], "the second adapter", 30)
            second = await text(router, "medical")
            assert second not in {bare, first}
            await until(lambda: all(one.loaded or one.error for one in watch.adapters.report()), "the errors", 30)
            errors = {one.name: one.error for one in watch.adapters.report()}
            assert "rank" in errors["wide"]
            assert errors["absent"].startswith("404: ")
            refused = await router.ask(chat(model="absent"), content_type="application/json")
            assert (refused.status, refused.code) == (503, "adapter_not_loaded")
            router.router.configure(build_index(serving(legal)))
            await until(lambda: "medical" not in listed(client), "the end of the second adapter", 30)
            done = len(talk), len(law)
            await until(lambda: len(talk) > done[0] + 10 and len(law) > done[1] + 10, "more answers", 30)
            for task in working:
                task.cancel()
            ended = await asyncio.gather(*working, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
            assert (set(talk), set(law)) == ({bare}, {first})

    with engine(vllm, tmp_path, [str(models / "tiny"), *FLAGS, *LORA, f"--uds={socket}"]) as client:
        run(scene(client))
        assert listed(client) == {"chat-8b": None, "legal": "chat-8b"}


def listed(client: httpx.Client) -> dict[str, str | None]:
    """What the engine lists: the bare model's name by the adapter's."""
    return {one["id"]: one["parent"] for one in client.get("/v1/models").json()["data"]}


def test_an_engine_that_computes_nan_never_becomes_ready(
    vllm: environment.Environment, models: Path, socket: Path, tmp_path: Path
) -> None:
    broken = write_nan_model(tmp_path / "nan", models / "tiny")

    async def scene() -> None:
        async with sidecar(socket, serving()) as router:
            watch = router.router.engine_watch
            await until(lambda: "warm-up" in watch.trouble(), "the word about the warm-up", 60)
            assert "nothing but token 0" in watch.trouble()
            assert not await watch.ready()
            assert (await watch.health()).status == 200

    with engine(vllm, tmp_path, [str(broken), *FLAGS, f"--uds={socket}"]):
        run(scene())


def test_an_engine_that_only_embeds_is_warmed_up_too(
    vllm: environment.Environment, models: Path, socket: Path, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with sidecar(socket, serving()) as router:
            await ready(router)
            assert await router.router.engine_watch.ready()

    pooling = ("--runner=pooling", "--convert=embed")
    with engine(vllm, tmp_path, [str(models / "tiny"), *FLAGS, *pooling, f"--uds={socket}"]):
        run(scene())
