"""What is known of an engine's speed, before and after it has told something."""

from typing import Any

import pytest

from fairlead_operator.decide.engines import Learned, begin, engine_key, engine_now, learn
from fairlead_operator.decide.signals import Report
from fairlead_operator.performance.step import Engine, StepTime
from fairlead_router.contract import EngineSignals, Signals
from tests.builders.decisions import NOW
from tests.builders.resources import PoolBuilder, make_pool

H100 = "NVIDIA-H100-80GB-HBM3"
POD = "ai-platform/chat-8b-h100-1"
STEP_S = 5.0


def chat(**variant: Any) -> PoolBuilder:
    usual: dict[str, Any] = {"nodeSelector": {"nvidia.com/gpu.product": H100}}
    return make_pool("chat-8b").model(uri="hf://meta-llama/Llama-3.1-8B-Instruct").variant("h100", **(usual | variant))


def known(builder: PoolBuilder, *labels: str) -> Learned:
    spec = builder.parsed().spec
    return begin(spec, spec.variants[0], labels)


def report(at_ms: int, **told: Any) -> dict[str, Report]:
    signals = Signals(router=POD, config_version="", endpoints_version="", engine=EngineSignals(**told))
    return {POD: Report(POD, at_ms, signals)}


def driven(start: Learned, step: StepTime, rounds: int, sequences: int = 64, prompt_rate: int = 2_000) -> Learned:
    """The engine steps as ``step`` says, for some rounds of five seconds, with a load that moves a little."""
    gaps = gaps_us = computed = 0
    for turn in range(rounds):
        busy = sequences + 8 * (turn % 5)
        context = busy * 1_000
        each = step.step(busy, prompt_rate * 0.01, context)
        gaps += round(STEP_S / each) * busy
        gaps_us += round(STEP_S * busy * 1e6)
        computed += prompt_rate * 5
        told = report(
            NOW + turn * 5_000, gaps_total=gaps, gaps_us_total=gaps_us, computed_total=computed, running=busy,
            waiting=0, kv_tokens=400_000, kv_permille=context * 1000 // 400_000,
        )  # fmt: skip
        start = learn(start, told, NOW + turn * 5_000)
    return start


def test_a_seed_comes_from_the_models_name_and_the_nodes_accelerator() -> None:
    spec = chat().parsed().spec
    engine = engine_now(known(chat()), spec, spec.variants[0])
    assert engine is not None
    assert 0.005 < engine.step.base < 0.02
    assert (engine.token_budget, engine.max_sequences) == (8192, 1024)
    assert "GB on 1 × H100" in known(chat()).reason


@pytest.mark.parametrize(
    ("product", "tokens"), [("NVIDIA-L4", 2048), ("NVIDIA-A100-SXM4-80GB", 2048), ("NVIDIA-B200", 16384)]
)
def test_an_engines_step_is_as_large_as_vllm_takes_it_on_the_accelerator(product: str, tokens: int) -> None:
    builder = chat(nodeSelector={"nvidia.com/gpu.product": product})
    engine = engine_now(known(builder), builder.parsed().spec, builder.parsed().spec.variants[0])
    assert engine is not None
    assert engine.token_budget == tokens


def test_a_label_of_the_nodes_names_the_accelerator_where_the_variant_selects_none() -> None:
    assert known(chat(nodeSelector={}), "eu-west-1", H100).seed is not None


@pytest.mark.parametrize(
    ("builder", "part"),
    [
        (chat(nodeSelector={"zone": "a"}), "names an accelerator"),
        (chat().model(uri="hf://acme/chat"), "does not say how many parameters"),
    ],
)
def test_without_a_seed_there_is_no_engine_and_it_says_why(builder: PoolBuilder, part: str) -> None:
    spec, start = builder.parsed().spec, known(builder)
    assert engine_now(start, spec, spec.variants[0]) is None
    assert part in start.reason


def test_what_the_spec_sets_is_the_engines_and_quantization_makes_it_faster() -> None:
    small = chat().engine(maxSequences=64, maxBatchedTokens=4096, quantization={"weights": "fp8", "kvCache": "fp8"})
    spec = small.parsed().spec
    engine, plain = engine_now(known(small), spec, spec.variants[0]), known(chat()).seed
    assert engine is not None
    assert plain is not None
    assert (engine.token_budget, engine.max_sequences) == (4096, 64)
    assert engine.step.base < plain.step.base
    assert engine.kv_tokens > plain.kv_tokens


def test_the_engines_own_kv_cache_is_taken_instead_of_the_estimate() -> None:
    spec = chat().parsed().spec
    told = learn(known(chat()), report(NOW, kv_tokens=12_345), NOW)
    engine = engine_now(told, spec, spec.variants[0])
    assert engine is not None
    assert engine.kv_tokens == 12_345
    assert learn(told, {}, NOW + 5_000).kv_tokens == 12_345, "it stays while no engine runs"


def test_a_running_engine_corrects_its_seed() -> None:
    spec, slower = chat().parsed().spec, StepTime(0.016, 8e-8, 5e-5)
    learned = driven(known(chat()), slower, 120)
    engine = engine_now(learned, spec, spec.variants[0])
    assert engine is not None
    wanted = slower.step(80, 20, 80_000)
    assert engine.step.step(80, 20, 80_000) == pytest.approx(wanted, rel=0.1)
    assert "fitted" in learned.reason


def test_an_engine_without_a_seed_is_learned_from_what_it_shows() -> None:
    builder = chat(nodeSelector={}, accelerator={"resourceName": "cpu"})
    spec, slow = builder.parsed().spec, StepTime(0.2, 1e-6, 2e-3)
    engine = engine_now(driven(known(builder), slow, 60), spec, spec.variants[0])
    assert engine is not None
    assert engine.step.step(80, 20, 80_000) == pytest.approx(slow.step(80, 20, 80_000), rel=0.2)


@pytest.mark.parametrize(
    "second",
    [
        report(NOW + 5_000),
        report(NOW + 5_000, gaps_total=5, gaps_us_total=9, computed_total=1, running=1, kv_permille=1, kv_tokens=1),
        report(NOW + 600_000, gaps_total=10**6, gaps_us_total=1, computed_total=10**6, running=1, kv_permille=1),
        {},
    ],
)
def test_what_no_two_readings_tell_teaches_nothing(second: dict[str, Report]) -> None:
    first = report(
        NOW, gaps_total=100, gaps_us_total=10**6, computed_total=50, running=4, kv_permille=9, kv_tokens=400_000
    )
    start = learn(known(chat()), first, NOW)
    assert learn(start, second, NOW + 5_000).memory.rounds == 0


def test_other_settings_are_another_engine_and_the_number_of_replicas_is_not() -> None:
    def key(builder: PoolBuilder) -> str:
        spec = builder.parsed().spec
        return engine_key(spec, spec.variants[0])

    assert key(chat().replicas(3)) == key(chat().autoscaling(8))
    others = [chat().engine(maxSequences=9), chat(parallelism={"tensor": 2}), chat(nodeSelector={"a": "b"})]
    assert key(chat()) not in {key(one) for one in others}


# --- drafts ---

FAST = StepTime(0.010, 1e-8, 2e-5)
NGRAM = {"method": "ngram", "tokens": 4}


def drafting(
    builder: PoolBuilder, rounds: int, kept: tuple[int, ...] = (80, 60, 40, 20), step: StepTime = FAST
) -> Learned:
    """What is learned of an engine whose sequences each have a draft of four tokens in every step.

    ``kept`` are the hundredths of them that are kept, by place.
    """
    known_now, counters = known(builder), [0.0] * 4
    for turn in range(rounds):
        busy = 32 + 8 * (turn % 5)
        steps = STEP_S / step.step(5 * busy, 0, busy * 1_000)
        made = [steps * busy, STEP_S * busy * 1e6, steps * busy, 400.0]
        counters = [total + gain for total, gain in zip(counters, made, strict=True)]
        gaps, gaps_us, drafts, computed = (round(total) for total in counters)
        places = tuple(drafts * share // 100 for share in kept)
        told = report(
            NOW + turn * 5_000, gaps_total=gaps, gaps_us_total=gaps_us, computed_total=computed, running=busy,
            waiting=0, kv_tokens=400_000, kv_permille=busy * 1000 * 1000 // 400_000, drafts_total=drafts,
            draft_tokens_total=4 * drafts, accepted_total=sum(places), accepted_by_position=places,
        )  # fmt: skip
        known_now = learn(known_now, told, NOW + turn * 5_000)
    return known_now


def engine_after(builder: PoolBuilder, learned: Learned) -> Engine:
    spec = builder.parsed().spec
    found = engine_now(learned, spec, spec.variants[0])
    assert found is not None
    return found


def test_a_sequence_gets_the_tokens_that_its_engine_keeps_from_a_step() -> None:
    builder = chat().engine(speculativeDecoding=NGRAM)
    engine = engine_after(builder, drafting(builder, 80))
    wanted = FAST.step(5 * 48, 0, 48_000) / 3
    assert engine.step.step(48, 0, 48_000) == pytest.approx(wanted, rel=0.05)
    assert engine.token_budget == pytest.approx(8192 / 3, rel=0.01)


def test_before_enough_was_drafted_nothing_is_taken_to_be_kept() -> None:
    builder = chat().engine(speculativeDecoding=NGRAM)
    plain, seeded = engine_after(chat(), known(chat())), engine_after(builder, known(builder))
    assert seeded.step.base == plain.step.base
    assert seeded.step.per_token == pytest.approx(5 * plain.step.per_token)
    assert seeded.token_budget == plain.token_budget


def test_an_engine_that_drafts_for_small_batches_only_is_without_drafts_when_it_is_full() -> None:
    builder = chat().engine(maxSequences=64, speculativeDecoding=NGRAM | {"maxBatchSize": 16})
    learned = drafting(builder, 80)
    assert learned.counted.tokens_per_step == pytest.approx(3, rel=0.01)
    assert engine_after(builder, learned).step.step(64, 0, 64_000) == pytest.approx(FAST.step(64, 0, 64_000), rel=0.1)


def test_a_draft_model_makes_a_step_longer_and_one_without_a_size_leaves_it_unknown() -> None:
    small = {"method": "draft_model", "tokens": 4, "model": "hf://meta-llama/Llama-3.2-1B-Instruct"}
    builder = chat().engine(speculativeDecoding=small)
    plain, seeded = known(chat()).seed, known(builder)
    assert plain is not None
    assert seeded.seed is not None
    assert seeded.cost is not None
    assert 0.1 < seeded.cost < 0.4
    assert seeded.seed.step.base == pytest.approx(plain.step.base * (1 + 4 * seeded.cost))
    assert known(chat().engine(speculativeDecoding=small | {"model": "hf://acme/draft"})).cost is None
    assert known(chat(nodeSelector={}).engine(speculativeDecoding=small)).cost is None
