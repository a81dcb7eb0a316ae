"""What is known of checkpoints: by record, by the config.json of a mirror, or not at all; and nothing of it blocks."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from fairlead_operator.api.v1alpha1 import ModelPool, Reason
from fairlead_operator.decide.fit import Candidate, judge
from fairlead_operator.performance.seeds import ModelFacts, Unknown
from fairlead_operator.reconcile import model_facts
from fairlead_operator.reconcile.model_facts import Checkpoints
from fairlead_operator.render.deployment import spec_hash
from fairlead_operator.render.revisions import ANNOTATION_SPEC
from tests.builders.resources import PoolBuilder, make_pool

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
L4 = {"nvidia.com/gpu.product": "NVIDIA-L4"}


@dataclass
class Mirror:
    """A mirror on this machine; ``body`` replaces what it answers."""

    url: str = ""
    status: int = 200
    body: bytes | None = None
    wait_s: float = 0.0
    asked: list[str] = field(default_factory=list)

    async def config(self, request: web.Request) -> web.Response:
        self.asked.append(request.raw_path)
        await asyncio.sleep(self.wait_s)
        if self.status in {302, 307}:
            return web.Response(status=self.status, headers={"Location": request.raw_path})
        if self.body is not None:
            return web.Response(body=self.body, status=self.status)
        return web.json_response(CONFIG, status=self.status)


@pytest.fixture
async def mirror() -> AsyncIterator[Mirror]:
    served, app = Mirror(), web.Application()
    app.router.add_get("/{path:.*}", served.config)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


def pool_of(uri: str = "hf://acme/novel", **fields: str) -> PoolBuilder:
    return make_pool("chat").spec(model={"uri": uri, **fields}).variant("l4", nodeSelector=L4)


async def only(checkpoints: Checkpoints, pool: ModelPool) -> Candidate:
    (found,) = await checkpoints.candidates(pool, {}, ())
    return found


async def test_the_config_of_a_mirror_tells_the_shape_and_with_it_whether_it_fits(mirror: Mirror) -> None:
    found = await only(Checkpoints(mirror.url), pool_of(revision="a/b").parsed())
    assert isinstance(found.model, ModelFacts)
    assert (found.certain, found.model.context, found.model.estimated) == (True, 131_072, ())
    assert mirror.asked == ["/acme/novel/resolve/a%2Fb/config.json"]
    assert "one 131072-token request 16.0" in judge([found]).problems[0].message


async def test_nothing_is_read_without_an_endpoint(mirror: Mirror) -> None:
    found = await only(Checkpoints(""), pool_of().parsed())
    assert judge([found]).note == (
        "Whether it fits is not known: the model 'novel' is not on record, and no config.json of it was read "
        "(variant l4)."
    )
    assert mirror.asked == []


async def test_a_pinned_config_is_read_once_and_a_loose_or_failed_one_again_after_a_while(mirror: Mirror) -> None:
    at = [0.0]
    checkpoints = Checkpoints(mirror.url, lambda: at[0])
    pinned, loose = pool_of(revision="1").parsed(), pool_of().parsed()
    for _ in range(2):
        await only(checkpoints, pinned)
        await only(checkpoints, loose)
    assert len(mirror.asked) == 2
    at[0] += model_facts.AGAIN_S
    mirror.status = 500
    for _ in range(2):
        assert isinstance((await only(checkpoints, pinned)).model, ModelFacts)
        assert isinstance((await only(checkpoints, loose)).model, Unknown)
    assert len(mirror.asked) == 3


async def test_a_pinned_config_that_could_not_be_read_is_asked_for_again(mirror: Mirror) -> None:
    at = [0.0]
    checkpoints, pinned = Checkpoints(mirror.url, lambda: at[0]), pool_of(revision="1").parsed()
    mirror.status = 503
    assert isinstance((await only(checkpoints, pinned)).model, Unknown)
    mirror.status, at[0] = 200, model_facts.AGAIN_S
    assert isinstance((await only(checkpoints, pinned)).model, ModelFacts)


async def test_no_more_answers_are_kept_than_the_bound(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_facts, "KEPT", 2)
    checkpoints = Checkpoints(mirror.url)
    for name in "abcaa":
        await only(checkpoints, pool_of(f"hf://acme/{name}", revision="1").parsed())
    assert len(mirror.asked) == 4
    assert len(checkpoints._answers) == 2


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, None, "it answered 401"),
        (404, None, "it answered 404"),
        (307, None, "cannot be read"),
        (200, b"{", "is no JSON object"),
        (200, b"[]", "is no JSON object"),
        (200, b"\xff\xfe\xfd", "is no JSON object"),
        (200, b"[" * 200_000, "is no JSON object"),
        (200, b" " * (model_facts.MAX_BYTES + 1), "more than 1048576 bytes"),
        (200, b"{}", "config.json does not say num_hidden_layers"),
    ],
)
async def test_what_cannot_be_read_is_unknown_with_its_reason(
    mirror: Mirror, status: int, body: bytes | None, words: str
) -> None:
    mirror.status, mirror.body = status, body
    verdict = judge([await only(Checkpoints(mirror.url), pool_of().parsed())])
    assert verdict.problems == ()
    assert words in verdict.note


async def test_a_mirror_that_does_not_answer_costs_no_more_than_the_time_allowed(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_facts, "TIMEOUT_S", 0.05)
    mirror.wait_s = 1.0
    assert "did not answer within 0.05 s" in judge([await only(Checkpoints(mirror.url), pool_of().parsed())]).note


async def test_a_mirror_that_is_gone_is_unknown() -> None:
    gone = Checkpoints("http://127.0.0.1:9")
    assert "cannot be read" in judge([await only(gone, pool_of().parsed())]).note


@pytest.mark.parametrize("uri", ["hf://../secret", "hf://a/b/c", "hf://a b", "hf://a/..", "hf://a?x=1"])
async def test_only_names_of_repositories_are_asked_for(mirror: Mirror, uri: str) -> None:
    assert "is no name of a repository" in judge([await only(Checkpoints(mirror.url), pool_of(uri).parsed())]).note
    assert mirror.asked == []


async def test_a_well_known_name_stands_in_for_a_mirror_that_fails(mirror: Mirror) -> None:
    mirror.status = 503
    found = await only(Checkpoints(mirror.url), pool_of("hf://meta-llama/Llama-3.1-8B").parsed())
    assert isinstance(found.model, ModelFacts)
    assert found.certain


async def test_the_formats_of_the_spec_go_before_those_of_the_config(mirror: Mirror) -> None:
    pool = pool_of().engine(quantization={"weights": "fp8"}).parsed()
    found = await only(Checkpoints(mirror.url), pool)
    assert isinstance(found.model, ModelFacts)
    assert found.model.quantization.name == "fp8"


async def test_a_method_that_cannot_load_the_checkpoint_is_refused(mirror: Mirror) -> None:
    mirror.body = json.dumps(CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4}}).encode()
    checkpoints = Checkpoints(mirror.url)
    (problem,) = judge([await only(checkpoints, pool_of().engine(quantization={"weights": "fp8"}).parsed())]).problems
    assert (problem.reason, problem.message) == (
        Reason.UNSUPPORTED_QUANTIZATION,
        (
            "Variant l4: engine.quantization.weights is fp8, and the checkpoint is quantised with awq. Leave it out to "
            "use what the checkpoint says."
        ),
    )
    assert (await only(checkpoints, pool_of().engine(quantization={"weights": "awq_marlin"}).parsed())).fault == ""


async def test_what_a_volume_holds_is_unknown_and_a_well_known_name_on_it_no_more_than_a_hint(mirror: Mirror) -> None:
    checkpoints = Checkpoints(mirror.url)
    blind = judge([await only(checkpoints, pool_of("pvc://models/novel").parsed())])
    assert "the model 'novel' is not on record, and what pvc:// holds is not read" in blind.note
    named = judge([await only(checkpoints, pool_of("pvc://models/llama-3.1-8b/").parsed())])
    assert [problem.warning for problem in named.problems] == [True]
    assert mirror.asked == []


async def test_variants_on_cpus_and_those_that_are_rolled_out_already_are_not_judged() -> None:
    pool = pool_of().variant("cpu", accelerator={"resourceName": "cpu"}).variant("more").parsed()
    first = pool.spec.variants[0]
    live = {"metadata": {"annotations": {ANNOTATION_SPEC: spec_hash(pool.spec, first)}}}
    old = {"metadata": {"annotations": {ANNOTATION_SPEC: "another"}}}
    checkpoints = Checkpoints("")
    assert [one.variant for one in await checkpoints.candidates(pool, {}, ())] == ["l4", "more"]
    assert [one.variant for one in await checkpoints.candidates(pool, {"l4": live, "more": old}, ())] == ["more"]
    assert [one.variant for one in await checkpoints.candidates(pool, {"l4": {"metadata": {}}}, ())] == ["l4", "more"]
