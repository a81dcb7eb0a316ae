"""Typed fields as vLLM's arguments."""

import json

import pytest

from fairlead_operator.render.engine_args import engine_arguments, engine_problems, model_location
from tests.builders.resources import PoolBuilder, make_pool

OWN = ("--uds=/run/fairlead/engine.sock", "--served-model-name=chat", "--enable-prompt-tokens-details")


def arguments(pool: PoolBuilder) -> tuple[str, ...]:
    spec = pool.parsed().spec
    return engine_arguments("chat", spec, spec.variants[0])


def speculative(pool: PoolBuilder) -> dict[str, object]:
    (text,) = [one.partition("=")[2] for one in arguments(pool) if one.startswith("--speculative-config=")]
    loaded: dict[str, object] = json.loads(text)
    return loaded


def only_problem(pool: PoolBuilder) -> str:
    (problem,) = engine_problems(pool.parsed().spec)
    return problem.message


def test_an_empty_engine_gets_fairleads_own_arguments_and_vllms_defaults_spelled_out() -> None:
    assert arguments(make_pool("chat")) == (
        "acme/chat-8b",
        *OWN,
        "--shutdown-timeout=15",
        "--revision=v1",
        "--gpu-memory-utilization=0.92",
        "--enable-prefix-caching",
    )


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"maxContextTokens": 16384}, "--max-model-len=16384"),
        ({"maxSequences": 64}, "--max-num-seqs=64"),
        ({"maxBatchedTokens": 8192}, "--max-num-batched-tokens=8192"),
        ({"memoryUtilizationPercent": 10}, "--gpu-memory-utilization=0.10"),
        ({"prefixCaching": "Disabled"}, "--no-enable-prefix-caching"),
        ({"quantization": {"weights": "fp8"}}, "--quantization=fp8"),
        ({"quantization": {"kvCache": "fp8_e5m2"}}, "--kv-cache-dtype=fp8_e5m2"),
        ({"extraArgs": ["--reasoning-parser=qwen3"]}, "--reasoning-parser=qwen3"),
    ],
)
def test_each_field_has_its_argument(fields: dict[str, object], argument: str) -> None:
    assert argument in arguments(make_pool("chat").engine(**fields))


def test_a_variants_fields_replace_the_pools() -> None:
    pool = make_pool("chat").engine(maxSequences=64).variant("a", engine={"maxSequences": 8}, parallelism={"tensor": 2})
    assert "--max-num-seqs=8" in arguments(pool)
    assert "--tensor-parallel-size=2" in arguments(pool)


def test_drafting_above_a_batch_size_is_off() -> None:
    drafting = {"method": "ngram", "tokens": 4, "maxBatchSize": 16}
    assert speculative(make_pool("chat").engine(maxSequences=64, speculativeDecoding=drafting)) == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 16, 4], [17, 64, 0]],
    }


def test_a_draft_model_is_named() -> None:
    drafting = {"method": "draft_model", "tokens": 2, "model": "pvc://weights/draft"}
    assert speculative(make_pool("chat").engine(speculativeDecoding=drafting))["model"] == "/models/weights/draft"


def test_adapters_are_enabled_and_all_of_them_stay_in_the_hosts_memory() -> None:
    lora = {"maxRank": 64, "maxActive": 4, "adapters": [{"name": "sql", "uri": "hf://acme/sql-lora"}]}
    assert {"--enable-lora", "--max-lora-rank=64", "--max-loras=4", "--max-cpu-loras=64"} <= set(
        arguments(make_pool("chat").model(lora=lora))
    )


def test_the_list_of_adapters_is_no_part_of_the_command_line() -> None:
    one, two = ([{"name": name, "uri": f"hf://acme/{name}"} for name in names] for names in ("a", "ab"))
    assert arguments(make_pool("chat").model(lora={"adapters": one})) == arguments(
        make_pool("chat").model(lora={"adapters": two})
    )


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("hf://acme/chat-8b", "acme/chat-8b"),
        ("pvc://weights/llama/8b/", "/models/weights/llama/8b"),
        ("s3://bucket/8b", "s3://bucket/8b"),
        ("oci://registry.example/8b:v1", "/models/image"),
    ],
)
def test_where_a_model_is_loaded_from(uri: str, location: str) -> None:
    assert model_location(uri) == location


def test_a_bucket_is_streamed() -> None:
    pool = make_pool("chat").spec(model={"uri": "s3://bucket/8b"})
    assert "--load-format=runai_streamer" in arguments(pool)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--max-num-seqs=128",
            "is already set by spec.engine.maxSequences: 256. Remove one.",
        ),
        (
            "--revision=v2",
            "is already set by spec.model.revision: v1. Remove one.",
        ),
        (
            "--no-enable-prefix-caching",
            ("is already set by spec.engine.prefixCaching: Enabled. Remove one."),
        ),
        (
            "--uds=/tmp/x",
            ("is set by Fairlead: the router reaches the engine over it. Remove it."),
        ),
        (
            "--shutdown=3",
            ("is set by Fairlead: rollout.drainTimeout is the time that requests have. Remove it."),
        ),
        (
            "--speculative-config.method=ngram",
            ("has a field of its own. Set spec.engine.speculativeDecoding and remove the argument."),
        ),
    ],
)
def test_an_argument_that_something_else_sets_is_refused(argument: str, message: str) -> None:
    problem = only_problem(make_pool("chat").engine(maxSequences=256, extraArgs=[argument]))
    assert problem == f"spec.engine.extraArgs[0] `{argument}` {message}"


def test_other_arguments_pass() -> None:
    pool = make_pool("chat").engine(extraArgs=["--enforce-eager", "--config-format=hf", "--kv-cache-memory-bytes=16M"])
    assert engine_problems(pool.parsed().spec) == ()


def test_a_method_that_vllm_dropped_is_refused() -> None:
    pool = make_pool("chat").engine(quantization={"weights": "bitsandbytes"})
    (problem,) = engine_problems(pool.parsed().spec)
    assert problem.reason == "UnsupportedQuantization"
    assert problem.message == (
        "spec.engine.quantization.weights is bitsandbytes, which is no method of vLLM 0.32 or 0.33 any more. "
        "Leave it out to use what the checkpoint says."
    )


def test_a_cache_type_that_answers_nonsense_on_a_cpu_is_refused_there() -> None:
    pool = make_pool("chat").engine(quantization={"kvCache": "nvfp4"})
    assert engine_problems(pool.parsed().spec) == ()
    (problem,) = engine_problems(pool.variant("cpu", accelerator={"resourceName": "cpu"}).parsed().spec)
    assert not problem.warning


def test_an_unknown_method_is_a_warning_said_once_for_all_variants() -> None:
    pool = make_pool("chat").engine(quantization={"weights": "fp5"}).variant("a").variant("b")
    (problem,) = engine_problems(pool.parsed().spec)
    assert problem.warning
