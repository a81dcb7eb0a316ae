"""Tests of what an engine's step is expected to take before anything is measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.performance.model_config import model_from_config, model_from_name, well_known
from fairlead_operator.performance.seeds import (
    QUANTIZATIONS,
    HardwareFacts,
    ModelFacts,
    Seed,
    Unknown,
    accelerators,
    engine_of,
    hardware_named,
)

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
LLAMA_70B["num_attention_heads"] = 64
QWEN_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def facts(config: dict[str, object], **given: int | str | None) -> ModelFacts:
    read = model_from_config(
        config,
        parameters=given.get("parameters"),  # type: ignore[arg-type]
        quantization=given.get("quantization"),  # type: ignore[arg-type]
    )
    assert isinstance(read, ModelFacts), read
    return read


def hardware(name: str) -> HardwareFacts:
    found = hardware_named(name)
    assert isinstance(found, HardwareFacts), found
    return found


def seed(model: ModelFacts, name: str, **given: int) -> Seed:
    made = engine_of(model, hardware(name), **given)  # type: ignore[arg-type]
    assert isinstance(made, Seed), made
    return made


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [(LLAMA_8B, 8.03, 8.03), (LLAMA_70B, 70.55, 70.55), (QWEN_30B_A3B, 30.5, 3.3), (DEEPSEEK_V3, 671.0, 37.5)],
)
def test_parameters_counted_from_a_config_are_those_that_the_model_is_known_for(
    config: dict[str, object], billions: float, active: float
) -> None:
    model = facts(config)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.03)


def test_a_number_of_parameters_that_is_known_goes_before_the_count() -> None:
    assert facts(LLAMA_8B, parameters=8_030_261_248).parameters == 8_030_261_248
    assert facts({**LLAMA_8B, "model_type": "novel"}, parameters=9_000_000_000).active_parameters == 9_000_000_000


def test_the_shape_of_the_text_model_is_read_out_of_a_multimodal_config() -> None:
    assert facts({"model_type": "mistral3", "text_config": LLAMA_8B}) == facts(LLAMA_8B)


def test_a_model_that_keeps_a_latent_needs_its_width_in_the_cache() -> None:
    assert facts(DEEPSEEK_V3).kv_bytes(1) == 61 * (512 + 64) * 2
    assert facts(LLAMA_70B).kv_bytes(4) == 327_680
    assert facts(LLAMA_70B).kv_bytes(16) == 2 * 327_680
    assert facts(LLAMA_70B).kv_bytes(4, value_bytes=1) == 163_840


@pytest.mark.parametrize(
    ("stated", "flag", "name"),
    [
        (None, None, "none"),
        (None, "fp8", "fp8"),
        ({"quant_method": "fp8"}, None, "fp8"),
        ({"quant_method": "awq", "bits": 4}, None, "int4"),
        ({"quant_method": "gptq", "bits": 8}, None, "w8a16"),
        ({"quant_method": "mxfp4"}, None, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, None, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None, "int4"),
        ({"quant_method": "compressed-tensors", "c": {"weights": {"num_bits": 8, "type": "float"}}}, None, "fp8"),
        ({"quant_method": "compressed-tensors", "c": {"weights": {"num_bits": 8, "type": "int"}}}, None, "int8"),
        ({"quant_method": "compressed-tensors", "c": {"weights": {"num_bits": 4, "type": "int"}}}, None, "int4"),
        ({"quant_method": "awq", "bits": 4}, "fp8", "fp8"),
    ],
)
def test_the_quantization_is_the_flags_or_the_configs(
    stated: dict[str, object] | None, flag: str | None, name: str
) -> None:
    config = LLAMA_8B if stated is None else {**LLAMA_8B, "quantization_config": stated}
    assert facts(config, quantization=flag).quantization is QUANTIZATIONS[name]


def test_a_quantization_that_is_not_known_is_not_guessed() -> None:
    read = model_from_config({**LLAMA_8B, "quantization_config": {"quant_method": "turbo"}})
    assert read == Unknown(
        "Quantization 'turbo' is not known; known are " + ", ".join(QUANTIZATIONS) + ", awq and gptq."
    )


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, -1, "32", True, 10**12])
def test_a_config_without_a_usable_number_says_which(key: str, value: object) -> None:
    read = model_from_config({**LLAMA_8B, key: value})
    assert isinstance(read, Unknown)
    assert key in read.reason


def test_parameters_of_an_unknown_kind_of_model_are_not_guessed() -> None:
    read = model_from_config({**LLAMA_8B, "model_type": "novel"})
    assert isinstance(read, Unknown)
    assert "give their number" in read.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted(
    {
        *DEEPSEEK_V3,
        *QWEN_30B_A3B,
        "text_config",
        "num_local_experts",
        "quantization_config",
        "layer_types",
        "sliding_window",
        "sliding_window_pattern",
        "rope_scaling",
        "max_position_embeddings",
    }
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON | st.integers(min_value=1, max_value=10**9)), st.booleans())
def test_no_config_crashes_the_reader_or_yields_an_impossible_engine(config: dict[str, object], whole: bool) -> None:
    read = model_from_config({**DEEPSEEK_V3, **config} if whole else config)
    if isinstance(read, Unknown):
        assert read.reason
        return
    assert 0 < read.active_parameters <= read.parameters
    made = engine_of(read, hardware("H200"), accelerators=8)
    assert isinstance(made, Seed) or "no room" in made.reason


@pytest.mark.parametrize(
    ("name", "billions", "active", "quantization"),
    [
        ("acme/Novel-8B-Instruct", 8, 8, "none"),
        ("hf://acme/Novel-30B-A3B-Instruct-2507-FP8", 30, 3, "fp8"),
        ("Novel-0.5B-Instruct-AWQ", 0.5, 0.5, "int4"),
        ("HuggingFaceTB/SmolLM2-135M", 0.135, 0.135, "none"),
    ],
)
def test_a_name_tells_parameters_and_quantization_and_the_rest_is_called_an_estimate(
    name: str, billions: float, active: float, quantization: str
) -> None:
    model = model_from_name(name)
    assert isinstance(model, ModelFacts)
    assert (model.parameters, model.active_parameters) == (round(billions * 1e9), round(active * 1e9))
    assert model.quantization.name == quantization
    assert model.estimated
    assert any(reason.startswith("estimated: layers") for reason in seed(model, "H100-SXM").reasons)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B),
        ("hf://meta-llama/Meta-Llama-3-70B-Instruct", LLAMA_70B),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", QWEN_30B_A3B),
    ],
)
def test_a_well_known_name_has_the_shape_of_its_config(name: str, config: dict[str, object]) -> None:
    named, read = model_from_name(name), facts(config)
    assert isinstance(named, ModelFacts)
    assert named.parameters == pytest.approx(read.parameters, rel=1e-3)
    assert named.active_parameters == pytest.approx(read.active_parameters, rel=1e-2)
    assert replace(named, parameters=0, active_parameters=0, estimated=(), context=None) == replace(
        read, parameters=0, active_parameters=0
    )
    assert named.estimated


@pytest.mark.parametrize(
    ("name", "context"),
    [("Meta-Llama-3-8B-Instruct", 8192), ("Llama-3.1-8B", 131_072), ("Qwen3-30B-A3B-Instruct-2507", 32_768)],
)
def test_the_context_on_record_is_the_least_of_the_name(name: str, context: int) -> None:
    named = model_from_name(name)
    assert isinstance(named, ModelFacts)
    assert named.context == context


@pytest.mark.parametrize(
    ("name", "quantization", "certain"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "none", True),
        ("hf://meta-llama/Meta-Llama-3-70B", "none", True),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "int4", True),
        ("nvidia/Llama-3.1-8B-Instruct-FP4", "nvfp4", True),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "int4", True),
        ("Qwen/Qwen2.5-7B-Instruct-1M", "none", False),
        ("acme/Llama-3.1-8B-Instruct-GGUF", "none", False),
        ("mistralai/Mistral-7B-v0.1", "none", False),
        ("mistralai/Mistral-7B-Instruct-v0.3", "none", True),
    ],
)
def test_a_name_is_certain_only_if_each_of_its_words_is_accounted_for(
    name: str, quantization: str, certain: bool
) -> None:
    found = well_known(name)
    assert not isinstance(found, Unknown)
    assert (found[0].quantization.name, found[1]) == (quantization, certain)
    assert found[0].kv_value_bytes == (2 if quantization == "none" else 1)


def test_a_name_that_is_not_on_record_is_unknown_and_so_is_an_unknown_quantization() -> None:
    assert well_known("acme/novel-8b") == Unknown("the model 'novel-8b' is not on record")
    assert isinstance(well_known("Llama-3.1-8B", quantization="turbo"), Unknown)
    family = well_known("RedHatAI/Llama-3.1-8B-Instruct-FP8", quantization="compressed-tensors")
    assert not isinstance(family, Unknown)
    assert family[0].quantization.name == "fp8"


@pytest.mark.parametrize(
    ("config", "windowed", "window"),
    [
        ({"sliding_window": 4096, "model_type": "mistral"}, 32, 4096),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 16, 4096),
        ({"sliding_window": 512, "sliding_window_pattern": 4}, 24, 512),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0, 0),
        ({"sliding_window": None}, 0, 0),
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16}, 16, 128),
        ({"layer_types": ["full_attention"] * 32}, 0, 0),
    ],
)
def test_layers_with_a_window_are_counted(config: dict[str, object], windowed: int, window: int) -> None:
    read = facts({**LLAMA_8B, **config})
    assert (read.windowed, read.window) == (windowed, window)


def test_layers_of_another_kind_are_not_guessed() -> None:
    read = model_from_config({**LLAMA_8B, "layer_types": ["linear_attention", "full_attention"] * 16})
    assert read == Unknown("config.json has layers of a kind that is not known: linear_attention.")
    short = model_from_config({**LLAMA_8B, "layer_types": ["full_attention"]})
    assert short == Unknown("config.json has 1 layer_types for 32 layers.")


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 131_072}, 131_072),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 8}}, None),
        ({}, None),
    ],
)
def test_the_context_is_the_configs_unless_it_is_stretched(config: dict[str, object], context: int | None) -> None:
    assert facts({**LLAMA_8B, **config}).context == context


@pytest.mark.parametrize(
    ("stated", "size"),
    [
        ({"quant_method": "fp8"}, 2),
        ({"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}, 1),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, 1),
    ],
)
def test_a_quantized_cache_is_the_checkpoints(stated: dict[str, object], size: int) -> None:
    assert facts({**LLAMA_8B, "quantization_config": stated}).kv_value_bytes == size


def test_a_well_known_name_is_no_beginning_of_a_word_and_its_quantization_is_its_own() -> None:
    fp8, other = model_from_name("RedHatAI/Llama-3.1-8B-FP8"), model_from_name("Llama-3.1-8Bis-7B")
    assert isinstance(fp8, ModelFacts)
    assert isinstance(other, ModelFacts)
    assert (fp8.layers, fp8.quantization.name, other.parameters) == (32, "fp8", 7_000_000_000)


@pytest.mark.parametrize("name", ["chat", "novel-8x7B", "gpt-4", "", "v1.5", "Qwen3-A3B"])
def test_a_name_that_tells_no_number_of_parameters_is_not_guessed_from(name: str) -> None:
    assert isinstance(model_from_name(name), Unknown)
    assert isinstance(model_from_name(name, parameters=7_000_000_000), ModelFacts)


@given(st.text(max_size=60), st.none() | st.integers(min_value=1, max_value=10**13))
def test_no_name_crashes_the_reader(name: str, parameters: int | None) -> None:
    assert isinstance(model_from_name(name, parameters=parameters), ModelFacts | Unknown)


@pytest.mark.parametrize(
    ("label", "name"),
    [("NVIDIA-H100-80GB-HBM3", "H100-SXM"), ("nvidia-l4", "L4"), ("a100-80", "A100-80"), ("t4", "T4")],
)
def test_an_accelerator_is_known_by_its_nodes_label(label: str, name: str) -> None:
    assert hardware(label).name == name


def test_an_accelerator_without_a_data_sheet_is_not_guessed() -> None:
    assert isinstance(hardware_named("a100"), Unknown)
    assert isinstance(hardware_named(""), Unknown)


def test_no_data_sheet_lacks_a_number_and_no_label_means_two() -> None:
    sheets = accelerators()
    assert len(sheets) == 14
    for sheet in sheets.values():
        assert min(sheet.memory, sheet.bandwidth, sheet.link, sheet.flops["16"], *sheet.flops.values()) > 1e9
        assert 0 <= sheet.all_reduce < 1e-3


def test_a_step_of_llama_8b_on_an_h100_is_the_formulas() -> None:
    model = facts(LLAMA_8B)
    engine = seed(model, "H100-SXM").engine
    read = (model.parameters - 128256 * 4096) * 2
    assert engine.step.base == pytest.approx(1.04e-3 + 32 * 65e-6 + read / (3.35e12 * 0.975))
    assert engine.step.per_context_token == pytest.approx(131072 / (3.35e12 * 0.975))
    assert engine.step.per_token == pytest.approx(read / (989e12 * 0.63))
    assert engine.kv_tokens == pytest.approx((80e9 * 0.9 - 4e9 - model.parameters * 2) / 131072, abs=1)


def test_fp8_halves_the_weights_and_its_arithmetic_counts_only_where_the_accelerator_has_it() -> None:
    half, whole = facts(LLAMA_8B, quantization="fp8"), facts(LLAMA_8B)
    assert half.weight_bytes < 0.6 * whole.weight_bytes
    for name, gain in (("H100-SXM", 2.0), ("A100-80", 1.0)):
        ratio = seed(whole, name).engine.step.per_token / seed(half, name).engine.step.per_token
        assert ratio == pytest.approx(gain, rel=0.01)


def test_int4_weights_are_read_faster_and_computed_as_16_bits() -> None:
    quarter, whole = facts(LLAMA_8B, quantization="int4"), facts(LLAMA_8B)
    assert seed(quarter, "L4").engine.step.base < 0.5 * seed(whole, "L4").engine.step.base
    assert seed(quarter, "L4").engine.step.per_token == seed(whole, "L4").engine.step.per_token


@given(
    st.sampled_from([LLAMA_8B, LLAMA_70B, QWEN_30B_A3B, DEEPSEEK_V3]),
    st.sampled_from(sorted(accelerators())),
    st.sampled_from([1, 2, 4, 8]),
)
def test_more_accelerators_never_shorten_a_step_by_more_than_their_number(
    config: dict[str, object], name: str, count: int
) -> None:
    model = facts(config)
    one, many = (engine_of(model, hardware(name), accelerators=n, kv_tokens=1000) for n in (1, count))
    assert isinstance(one, Seed)
    assert isinstance(many, Seed)
    assert many.engine.step.base >= one.engine.step.base / count
    assert many.engine.step.per_token >= one.engine.step.per_token / count * 0.999


def test_the_pool_that_the_engine_reports_goes_before_the_estimate() -> None:
    told = seed(facts(LLAMA_8B), "H100-SXM", kv_tokens=123_456)
    assert told.engine.kv_tokens == 123_456
    assert "KV cache as the engine reports" in told.reasons
    assert any("estimated" in reason for reason in seed(facts(LLAMA_8B), "H100-SXM").reasons)


def test_a_model_that_does_not_fit_is_refused_with_what_would_help() -> None:
    made = engine_of(facts(LLAMA_70B), hardware("H100-SXM"))
    assert isinstance(made, Unknown)
    assert made.reason == (
        "The weights (141.1 GB) leave no room for a KV cache on 1 × H100-SXM (80 GB): take more accelerators, or a "
        "quantised model."
    )
    assert isinstance(engine_of(facts(LLAMA_70B), hardware("H100-SXM"), accelerators=0), Unknown)


def test_a_mixture_of_experts_says_that_all_of_them_are_taken_as_read() -> None:
    assert any("mixture" in reason for reason in seed(facts(QWEN_30B_A3B), "H100-SXM").reasons)


def test_a_table_of_tokens_that_is_also_the_output_layer_is_read_and_kept_once() -> None:
    untied = facts(LLAMA_8B)
    tied = replace(untied, tied=True)
    assert tied.bytes_read == tied.weight_bytes == untied.weight_bytes
    assert untied.bytes_read == untied.weight_bytes - 128256 * 4096 * 2
