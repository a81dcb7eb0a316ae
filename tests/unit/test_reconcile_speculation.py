"""What the operator knows of a pool's drafts after some rounds of scrapes."""

from typing import Any

import pytest

from fairlead_operator.decide.engines import begin, learn
from fairlead_operator.decide.replicas import Spending, bounds_of
from fairlead_operator.decide.rounds import Round, Seen
from fairlead_operator.decide.signals import Load, Report
from fairlead_operator.decide.speculation import Advice, Missing
from fairlead_operator.decide.variants import variant_options
from fairlead_operator.reconcile.autoscaler import PoolLaw, Scene, wish_of
from fairlead_operator.reconcile.curves import Curves
from fairlead_operator.reconcile.speculation import judgements_of
from fairlead_router.contract import EngineSignals, Signals
from tests.builders.decisions import NOW
from tests.builders.resources import PoolBuilder, make_pool

NODE = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
POD = "ai-platform/chat-8b-h100-1"


def chat(**drafts: Any) -> PoolBuilder:
    built = make_pool("chat-8b").model(uri="hf://meta-llama/Llama-3.1-8B-Instruct").variant("h100", nodeSelector=NODE)
    return built.replicas(1).engine(speculativeDecoding={"method": "ngram", "tokens": 4} | drafts)


def scene(builder: PoolBuilder, price: int | None = 2_950_000_000) -> Scene:
    pool = builder.parsed()
    options = variant_options(pool.spec, {}, {one.name: price for one in pool.spec.variants})
    return Scene(
        pool=pool, pods=[], nodes={}, created_ms={}, reports={}, load=Load(), seen=Seen(NOW, {}, (Round(NOW),)),
        bounds=bounds_of(pool.spec), options=options, cold_starts={}, spending=Spending(), now_ms=NOW,
    )  # fmt: skip


def learned(builder: PoolBuilder, rounds: int = 20) -> PoolLaw:
    """Eight sequences with a draft in every step of 12 ms, of whose tokens nine in ten are kept at each place."""
    spec = builder.parsed().spec
    known = begin(spec, spec.variants[0], ())
    for turn in range(rounds):
        steps = round(turn * 5 / 0.012) * 8
        kept = tuple(int(steps * 0.9**place) for place in range(1, 5))
        told = EngineSignals(
            gaps_total=steps, gaps_us_total=turn * 40_000_000, computed_total=0, running=8, waiting=0, kv_permille=20,
            kv_tokens=400_000, drafts_total=steps, draft_tokens_total=4 * steps, accepted_total=sum(kept),
            accepted_by_position=kept,
        )  # fmt: skip
        signals = Signals(router=POD, config_version="", endpoints_version="", engine=told)
        known = learn(known, {POD: Report(POD, NOW + turn * 5_000, signals)}, NOW + turn * 5_000)
    return PoolLaw(engines={"h100": known})


def test_engines_that_draft_are_judged_with_their_price() -> None:
    found = judgements_of(learned(chat()), scene(chat()))["h100"]
    assert found.acceptance == pytest.approx(0.77, abs=0.01)
    assert found.length == pytest.approx(4.1, abs=0.01)
    assert found.batch == pytest.approx(8, rel=0.01)
    assert found.advice is Advice.MORE
    # A replica-hour at 8 sequences that get 4.1 tokens each in 12 ms.
    assert found.usd_per_million == pytest.approx(2.95 / 3600 * 1e6 / (8 * 4.1 / 0.012), rel=0.01)


def test_without_a_price_or_any_word_of_an_engine_that_is_unknown() -> None:
    assert judgements_of(learned(chat()), scene(chat(), price=None))["h100"].usd_per_million is None
    assert judgements_of(learned(chat(), rounds=1), scene(chat()))["h100"].missing is Missing.COUNTERS
    assert judgements_of(PoolLaw(), scene(chat())) == {}


def test_a_draft_model_that_is_not_known_leaves_its_gain_unknown() -> None:
    unknown = chat(method="draft_model", model="hf://acme/draft")
    found = judgements_of(learned(unknown), scene(unknown))["h100"]
    assert (found.missing, found.speed_up) == (Missing.COST, None)
    assert found.acceptance is not None


def test_variants_that_do_not_draft_are_not_judged() -> None:
    law = learned(chat())
    plain = make_pool("chat-8b").variant("h100", nodeSelector=NODE).replicas(1)
    assert judgements_of(law, scene(plain)) == {}
    two = chat().variant("l40s")
    assert set(judgements_of(law, scene(two))) == {"h100"}


def test_a_pool_without_objectives_of_latency_is_learned_from_if_it_drafts() -> None:
    law, plain = PoolLaw(), PoolLaw()
    assert wish_of(law, scene(chat()), Curves()) is None
    assert judgements_of(law, scene(chat()))["h100"].missing is Missing.COUNTERS
    assert wish_of(plain, scene(make_pool("chat-8b").variant("h100").replicas(1)), Curves()) is None
    assert plain.engines == {}
