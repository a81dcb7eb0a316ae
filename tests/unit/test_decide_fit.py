"""Whether weights, one request and vLLM's reserve fit, against vLLM's own numbers; and what is said if they do not."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.api.v1alpha1 import Engine, EventReason, Reason, Variant
from fairlead_operator.api.v1alpha1.modelpool import Parallelism, Quantization
from fairlead_operator.decide.accelerator import candidates_on_record, memory_of
from fairlead_operator.decide.facts import NodeFact
from fairlead_operator.decide.fit import (
    GIB,
    LEAST_RESERVE,
    UNCOUNTED,
    Candidate,
    Memory,
    Verdict,
    _Setup,
    _setup,
    judge,
)
from fairlead_operator.performance.model_config import well_known
from fairlead_operator.performance.seeds import QUANTIZATIONS, ModelFacts, Unknown, accelerators, hardware_named
from tests.builders.resources import make_pool

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.1-70B-Instruct"


def known(name: str) -> ModelFacts:
    found = well_known(name)
    assert not isinstance(found, Unknown), found
    return found[0]


def sheet(name: str) -> Memory:
    found = hardware_named(name)
    assert not isinstance(found, Unknown), found
    return Memory(found.name, found.driver_mib, "fp8" in found.flops)


def candidate(
    model: str = LLAMA, hardware: str = "L4", tensor: int = 1, pipeline: int = 1, **engine: object
) -> Candidate:
    size = Parallelism(tensor=tensor, pipeline=pipeline)
    return Candidate("gpu", Engine.model_validate(engine), size, known(model), sheet(hardware))


def only(verdict: Verdict) -> str:
    assert verdict.note == ""
    (problem,) = verdict.problems
    return problem.message


@dataclass(frozen=True, slots=True)
class Start:
    """What vLLM printed at a start, in GiB for each accelerator; 0 where it did not print it.

    ``total`` is what it found, ``share`` what it might use, ``rest`` all that it kept beside weights and KV cache.
    """

    source: str
    model: str
    total: float
    share: float
    weights: float
    rest: float
    tensor: int = 1
    tokens: int = 2048
    sequences: int = 256
    cache: float = 0.0
    cache_tokens: int = 0


VLLM = "https://github.com/vllm-project/vllm"
STARTS = [
    Start(f"{VLLM}/pull/10511", "Llama-3-8B", 79.22, 0.90, 14.96, 3.05, tokens=8192),
    Start(f"{VLLM}/pull/17122", LLAMA, 44.42, 0.90, 14.99, 0.0, cache=19.37, cache_tokens=158_656),
    Start(f"{VLLM}/issues/15815", "Qwen2.5-32B-Instruct", 44.42, 0.90, 30.71, 1.56, tensor=2, tokens=10_000),
    Start(
        "https://github.com/LMCache/LMCache/issues/3430",
        "Qwen3-8B",
        23.5,
        0.9764,
        15.27,
        1.30,
        cache=6.37,
        cache_tokens=46_368,
    ),
    Start(f"{VLLM}/issues/21348", "Qwen3-235B-A22B-FP8", 79.1, 0.90, 0.0, 0.0, 4, 8192, 1024, 8.11, 178_880),
    Start(f"{VLLM}/issues/34076", "Qwen3-30B-A3B-FP8", 0.0, 0.0, 0.0, 0.0, cache=24.0, cache_tokens=262_144),
]
"""Printed by vLLM and published in issues; the last is what it says that a request needs."""


def setup_of(start: Start) -> _Setup:
    mib = round(start.total * 1024) or 81559
    made = replace(
        candidate(start.model, tensor=start.tensor, maxBatchedTokens=start.tokens, maxSequences=start.sequences),
        memory=Memory("card", mib),
    )
    bare = replace(known(start.model), kv_value_bytes=2)
    return placed(replace(made, model=bare))


def placed(one: Candidate) -> _Setup:
    setup = _setup(one)
    assert not isinstance(setup, Unknown)
    return setup


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.source)
def test_weights_and_cache_are_what_vllm_prints_and_the_reserve_is_near_it(start: Start) -> None:
    setup = setup_of(start)
    if start.weights:
        assert setup.weights / GIB == pytest.approx(start.weights, rel=0.02)
    if start.cache_tokens:
        assert setup.cache(start.cache_tokens) / GIB == pytest.approx(start.cache, rel=0.015)
    if start.rest:
        reserve = setup.reserve / GIB
        assert reserve * LEAST_RESERVE < start.rest
        assert start.rest / 1.7 < reserve < start.rest * 1.7


def test_a_model_with_windows_needs_what_vllm_says_it_needs() -> None:
    gpt_oss = replace(
        known(LLAMA), layers=36, hidden=2880, kv_heads=8, head_dim=64, windowed=18, window=128, context=131_072
    )
    setup = placed(replace(candidate(maxBatchedTokens=1024), model=gpt_oss))
    printed = 4.54  # https://github.com/vllm-project/vllm/issues/27508
    assert setup.cache(131_072) / GIB == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize(("layers", "kv_heads", "tokens"), [(2, 1, 16_384), (8, 1, 4096)])
def test_a_cache_of_16_mib_holds_as_many_tokens_as_vllm_on_a_cpu_says(layers: int, kv_heads: int, tokens: int) -> None:
    """As vLLM 0.32.0 on a CPU counted, in float32, with the models of hack/models, tiny and small."""
    model = replace(known(LLAMA), layers=layers, kv_heads=kv_heads, head_dim=64, kv_value_bytes=4)
    assert placed(replace(candidate(), model=model)).cache(tokens) == 16 * 2**20


def test_what_does_not_fit_is_told_as_a_sum_with_every_remedy_that_would_do() -> None:
    assert only(judge([candidate("RedHatAI/Qwen2.5-32B-Instruct-FP8", "L40S", maxContextTokens=131_072)])) == (
        "Variant gpu: weights 32.0 + KV cache of one 131072-token request 16.0 + activations and graphs 1.6 = 49.6 GiB;"
        " vLLM may use 41.4 (92% of 44.99, L40S). Set engine.maxContextTokens to 63968 or less, or parallelism.tensor "
        "to 2, or take an accelerator with 54 GiB."
    )


def test_a_context_that_is_not_set_is_the_checkpoints_own() -> None:
    assert "one 131072-token request 16.0" in only(judge([candidate()]))
    assert judge([candidate(maxContextTokens=8192)]) == Verdict()


def test_weights_that_do_not_fit_have_no_context_that_would_do() -> None:
    text = only(judge([candidate(LARGE, "H100", maxContextTokens=8192)]))
    assert "weights 131.4 + KV cache of one 8192-token request 2.5 + " in text
    assert text.endswith("Set parallelism.tensor to 2, or take an accelerator with 150 GiB.")


def test_number_formats_are_a_remedy_only_where_the_accelerator_computes_in_them() -> None:
    new, old = (only(judge([candidate(hardware=name, maxContextTokens=49_152)])) for name in ("L4", "A10G"))
    assert "engine.quantization.kvCache to fp8, or engine.quantization.weights to fp8" in new
    assert "fp8" not in old


def test_a_cache_of_one_byte_holds_twice_the_context() -> None:
    halved = replace(
        candidate(maxContextTokens=49_152), engine=Engine(max_context_tokens=49_152, quantization=FP8_CACHE)
    )
    assert judge([halved]) == Verdict()
    assert judge([candidate(maxContextTokens=49_152)]).problems


FP8_CACHE = Quantization(kv_cache="fp8")


def test_two_accelerators_share_what_one_cannot_hold() -> None:
    assert "on each accelerator" in only(judge([candidate(LARGE, "H100", tensor=2)]))
    assert judge([candidate(LARGE, "H100", tensor=4)]) == Verdict()
    assert judge([candidate(LARGE, "H100", tensor=2, pipeline=2)]) == Verdict()


def test_a_pipeline_stage_has_its_layers_and_one_of_the_tables() -> None:
    model, halved = known(LLAMA), placed(candidate(hardware="H100", pipeline=2))
    table = model.embedding * 2
    assert halved.weights == (model.weight_bytes - 2 * table) / 2 + table
    assert halved.cache(1024) == placed(candidate()).cache(1024) / 2
    uneven = placed(replace(candidate(pipeline=3), model=replace(model, layers=4)))
    assert uneven.stage == 0.5


def test_no_number_of_accelerators_is_advised_that_the_heads_cannot_be_shared_by() -> None:
    odd = replace(candidate(LARGE, "H100", maxContextTokens=8192), model=replace(known(LARGE), heads=63))
    assert only(judge([odd])).endswith("Take an accelerator with 150 GiB.")


def test_a_doubt_within_the_estimate_of_the_reserve_refuses_nothing() -> None:
    found = {
        problem.reason
        for context in range(33_000, 43_000, 160)
        for problem in judge([candidate(maxContextTokens=context)]).problems
    }
    assert found == {Reason.DOES_NOT_FIT, EventReason.MAY_NOT_FIT}


def test_what_is_known_by_a_name_alone_is_a_hint() -> None:
    (problem,) = judge([replace(candidate(), certain=False)]).problems
    assert (problem.warning, problem.reason) == (True, EventReason.MAY_NOT_FIT)
    assert problem.message.endswith(
        "The model is known only by what its name resembles, so this is no more than a hint."
    )


def test_heads_and_layers_must_be_shared_evenly() -> None:
    text = only(judge([candidate("Qwen2.5-7B", "H200", tensor=8)]))
    assert text == (
        "Variant gpu: parallelism.tensor is 8, and the model's 28 attention heads are no multiple of it. "
        "Set it to one of 1, 2, 4, 7."
    )
    few = replace(candidate(hardware="H200", pipeline=16), model=replace(known(LLAMA), layers=8))
    assert "parallelism.pipeline is 16, and the model has 8 layers. Set it to 8 or less." in only(judge([few]))


def test_many_requests_with_little_cache_are_a_hint() -> None:
    (problem,) = judge([candidate(maxContextTokens=8192, maxSequences=256)]).problems
    assert (problem.warning, problem.reason) == (True, EventReason.FITS_FEW)
    assert "room for about 36 requests of 1024 tokens, and maxSequences is 256" in problem.message
    assert judge([candidate(maxContextTokens=8192, maxSequences=36)]) == Verdict()
    assert judge([candidate(maxContextTokens=8192)]) == Verdict()


@pytest.mark.parametrize("argument", UNCOUNTED)
def test_an_argument_that_changes_what_fits_makes_it_unknown(argument: str) -> None:
    verdict = judge([candidate(extraArgs=[f"{argument}=1"])])
    assert verdict == Verdict((), f"Whether it fits is not known: extraArgs {argument} changes it (variant gpu).")


def test_a_type_of_cache_without_a_size_makes_it_unknown() -> None:
    odd = replace(candidate(), engine=Engine(quantization=Quantization(kv_cache="turboquant_k8v4")))
    assert judge([odd]).note.startswith("Whether it fits is not known: how much this type of KV cache takes")


def test_what_is_not_known_is_said_once_for_all_variants_and_stops_nothing() -> None:
    blind = replace(candidate(), model=Unknown("nobody knows the model."))
    verdict = judge([replace(blind, variant="a"), replace(blind, variant="b"), replace(candidate(), variant="c")])
    assert verdict.note == "Whether it fits is not known: nobody knows the model (variants a, b)."
    assert [problem.path for problem in verdict.problems] == ["spec.variants[c]"]


def test_no_graphs_leave_more_room() -> None:
    assert placed(candidate(extraArgs=["--enforce-eager"])).room() > placed(candidate()).room()


MODELS = st.builds(
    ModelFacts,
    parameters=st.integers(1, 2 * 10**12),
    active_parameters=st.just(1),
    layers=st.integers(1, 200),
    hidden=st.integers(1, 32_768),
    kv_heads=st.integers(1, 128),
    head_dim=st.integers(1, 512),
    embedding=st.integers(1, 10**10),
    tied=st.booleans(),
    latent=st.none() | st.integers(1, 1024),
    quantization=st.sampled_from(list(QUANTIZATIONS.values())),
    heads=st.none() | st.integers(1, 128),
    context=st.none() | st.integers(1, 10**7),
    windowed=st.integers(0, 1),
    window=st.integers(1, 10**6),
)
MEMORIES = st.builds(Memory, name=st.just("card"), mib=st.integers(1, 2**24), fp8=st.booleans())
SIZES = st.builds(Parallelism, tensor=st.integers(1, 16), pipeline=st.integers(1, 16))
ENGINES = st.builds(
    Engine,
    max_context_tokens=st.none() | st.integers(128, 10_485_760),
    max_sequences=st.none() | st.integers(1, 4096),
    max_batched_tokens=st.none() | st.integers(1, 1_048_576),
    memory_utilization_percent=st.integers(10, 99),
)


@given(MODELS, MEMORIES, SIZES, ENGINES, st.booleans())
def test_every_model_is_judged_and_more_memory_never_makes_it_worse(
    model: ModelFacts, memory: Memory, size: Parallelism, engine: Engine, certain: bool
) -> None:
    one = Candidate("v", engine, size, model, memory, certain)
    more = judge([replace(one, memory=replace(memory, mib=memory.mib * 2))])
    less = judge([one])
    assert all(problem.message.startswith("Variant v: ") for problem in less.problems)
    assert all(problem.warning for problem in less.problems) or certain
    if less == Verdict() and (memory.mib < 70 * 1024) == (memory.mib * 2 < 70 * 1024) and memory.mib * 2 < 160 * 1024:
        assert not [problem for problem in more.problems if not problem.warning]


@given(MODELS, MEMORIES, SIZES, ENGINES)
def test_the_context_that_is_advised_fits_and_the_next_does_not(
    model: ModelFacts, memory: Memory, size: Parallelism, engine: Engine
) -> None:
    setup = placed(Candidate("v", engine, size, model, memory))
    most = setup.most_context
    if most:
        assert replace(setup, context=most).fits()
    if setup.context is not None and setup.room() > 0 and most + 16 <= setup.context:
        assert not replace(setup, context=most + 16).fits()


def node(name: str, gpus: str = "8", **labels: str) -> NodeFact:
    return NodeFact(name, {key.replace("__", "/"): value for key, value in labels.items()}, {"nvidia.com/gpu": gpus})


L4 = {"nvidia.com__gpu.product": "NVIDIA-L4"}
SELECTOR = {"nvidia.com/gpu.product": "NVIDIA-L4"}


def test_memory_is_that_of_the_largest_node_that_the_pods_may_run_on() -> None:
    small, large = node("a", **L4), node("b", **L4, **{"nvidia.com__gpu.memory": "49140"})
    assert memory_of(Variant(name="v", node_selector=SELECTOR), [small, large]) == Memory("L4", 49140, fp8=True)
    assert memory_of(Variant(name="v", node_selector=SELECTOR), [small]) == Memory("L4", 23034, fp8=True)
    blind = node("c")
    assert isinstance(memory_of(Variant(name="v"), [small, blind]), Unknown)


def test_without_a_node_the_selector_tells_and_else_nothing_does() -> None:
    assert memory_of(Variant(name="v", node_selector=SELECTOR), []) == Memory("L4", 23034, fp8=True)
    shared = {"nvidia.com/gpu.product": "NVIDIA-L4-SHARED"}
    assert memory_of(Variant(name="v", node_selector=shared), []) == Memory("L4", 23034, fp8=True)
    stated = {"nvidia.com/gpu.memory": "12345"}
    assert memory_of(Variant(name="v", node_selector=stated), []) == Memory("accelerator", 12345)
    found = memory_of(Variant(name="v"), [])
    assert isinstance(found, Unknown)
    assert "its nodeSelector does not tell" in found.reason


@pytest.mark.parametrize("value", ["", "-1", "0", "1e6", "many", "99999999999", "²"])
def test_a_label_that_is_no_memory_is_not_believed(value: str) -> None:
    stated = {"nvidia.com/gpu.memory": value}
    assert isinstance(memory_of(Variant(name="v", node_selector=stated), []), Unknown)


def test_a_slice_has_the_memory_of_its_name() -> None:
    sliced = Variant.model_validate({"name": "v", "accelerator": {"resourceName": "nvidia.com/mig-3g.40gb"}})
    assert memory_of(sliced, []) == Memory("nvidia.com/mig-3g.40gb", 40 * 1024)


def test_a_driver_reports_about_what_the_data_sheet_says() -> None:
    for one in accelerators().values():
        assert 0.93 < one.driver_mib * 2**20 / one.memory < 1.10, one.name


@pytest.mark.parametrize(
    ("uri", "weights", "warned"),
    [
        ("hf://meta-llama/Llama-3.1-8B-Instruct", "awq", True),
        ("hf://meta-llama/Llama-3.1-8B-Instruct", "compressed-tensors", True),
        ("hf://meta-llama/Llama-3.1-8B-Instruct", "fp8", False),
        ("hf://acme/Llama-3.1-8B-Instruct-AWQ", "awq", False),
        ("hf://acme/Llama-3.1-8B-Legal", "awq", False),
        ("hf://acme/legal", "awq", False),
        ("pvc://models/Llama-3.1-8B-Instruct", "awq", False),
        ("hf://meta-llama/Llama-3.1-8B-Instruct", "from_a_plugin", False),
        ("hf://meta-llama/Llama-3.1-8B-Instruct", None, False),
    ],
)
def test_a_format_that_a_well_known_checkpoint_does_not_have_is_warned_of(
    uri: str, weights: str | None, warned: bool
) -> None:
    pool = (
        make_pool("chat")
        .model(uri=uri)
        .variant("h100", nodeSelector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"})
    )
    pool = pool.engine(maxContextTokens=8192, **({"quantization": {"weights": weights}} if weights else {}))
    found = [one for one in judge(candidates_on_record(pool.parsed().spec)).problems if one.reason == "MayNotLoad"]
    assert bool(found) is warned
    assert all(one.warning and "by its name the checkpoint is not quantised" in one.message for one in found)
