"""Typed fields as vLLM's arguments, and what may not stand in ``extraArgs``."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairlead_operator.api.v1alpha1 import Engine, EventReason, ModelPoolSpec, Reason, Variant
from fairlead_operator.api.v1alpha1.modelpool import ModelSource, SpeculativeDecoding
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.replicas import DEFAULT_SLOTS

ENGINE_SOCKET = "/run/fairlead/engine.sock"
MODELS_DIR = "/models"
SHUTDOWN_SECONDS = 15
"""What vLLM may take after SIGTERM. The drain is over by then, and the kubelet kills after 30 s."""

_OWN_ARGUMENTS = {
    "--uds": "the router reaches the engine over it",
    "--host": "the engine has no port",
    "--port": "the engine has no port",
    "--served-model-name": "the router asks for the pool's name",
    "--enable-prompt-tokens-details": "cached tokens are charged by it",
    "--no-enable-prompt-tokens-details": "cached tokens are charged by it",
    "--shutdown-timeout": "rollout.drainTimeout is the time that requests have",
    "--api-key": "the engine has no port, and the router sends no key",
    "--data-parallel-size": "replicas are pods",
    "--config": "its values would not be checked against the fields",
    "--headless": "the engine must answer the router",
    "--enable-lora": "routers know no adapters",
}
"""Arguments that Fairlead sets or that would break what it relies on, with the reason."""

_ALIASES = {
    "--device-memory-utilization": "--gpu-memory-utilization",
    "--spec-method": "--speculative-config",
    "--spec-model": "--speculative-config",
    "--spec-tokens": "--speculative-config",
    "--no-enable-prefix-caching": "--enable-prefix-caching",
}
"""Other spellings of arguments that fields set."""

_FIELDS = {
    "--max-model-len": "spec.engine.maxContextTokens",
    "--max-num-seqs": "spec.engine.maxSequences",
    "--max-num-batched-tokens": "spec.engine.maxBatchedTokens",
    "--quantization": "spec.engine.quantization.weights",
    "--kv-cache-dtype": "spec.engine.quantization.kvCache",
    "--tensor-parallel-size": "parallelism.tensor of the variant",
    "--pipeline-parallel-size": "parallelism.pipeline of the variant",
    "--speculative-config": "spec.engine.speculativeDecoding",
    "--revision": "spec.model.revision",
    "--model": "spec.model.uri",
}
"""Arguments with a field of their own, which must not be set behind its back."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WEIGHT_METHODS = _words("""
    awq awq_marlin auto_awq gptq gptq_marlin auto_gptq compressed-tensors fp8 fp8_per_tensor fp8_per_channel
    fp8_per_block mxfp8 int8_per_channel_weight_only nvfp4_per_token online modelopt modelopt_fp4 modelopt_mxfp8
    modelopt_mixed mxfp4 gpt_oss_mxfp4 quark inc torchao moe_wna16 experts_int8 humming deepseek_v4_fp8 fbgemm_fp8
    fp_quant
""")
REMOVED_WEIGHT_METHODS = _words("""
    bitsandbytes gguf ptpc_fp8 bitblas hqq aqlm marlin rtn petit_nvfp4 tpu_int8 ipex auto-round
""")
CACHE_TYPES = _words("""
    auto bfloat16 float16 fp8 fp8_e4m3 fp8_e5m2 fp8_inc fp8_ds_mla nvfp4 nvfp4_4over6 nvfp4_ds_mla fp8_per_token_head
    int8_per_token_head int4_per_token_head turboquant_k8v4 turboquant_4bit_nc turboquant_k3v4_nc turboquant_3bit_nc
    ultraquant_4bit
""")
CPU_GARBAGE_CACHE_TYPES = frozenset({"fp8_inc", "int8_per_token_head", "nvfp4"})
"""Types that vLLM starts with on a CPU, and then answers nonsense."""


@dataclass(frozen=True, slots=True)
class _Typed:
    """One typed field that is set: its argument and, for messages, its place and value."""

    argument: str
    value: str | None
    path: str
    shown: str

    @property
    def rendered(self) -> tuple[str, ...]:
        """The argument as vLLM reads it."""
        return (self.argument,) if self.value is None else (f"{self.argument}={self.value}",)


def engine_arguments(pool_name: str, spec: ModelPoolSpec, variant: Variant) -> tuple[str, ...]:
    """What follows ``vllm serve``: the model, Fairlead's own arguments, the typed fields, then extraArgs."""
    source = spec.model_of(variant)
    own = (
        model_location(source.uri),
        f"--uds={ENGINE_SOCKET}",
        f"--served-model-name={pool_name}",
        "--enable-prompt-tokens-details",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
    )
    typed = [text for field in _typed(spec, variant) for text in field.rendered]
    return (*own, *typed, *spec.engine_of(variant).extra_args)


def model_location(uri: str, image_dir: str = "image") -> str:
    """What vLLM is told to load: a repository, a bucket's address, or a path of a mounted volume."""
    scheme, _, rest = uri.partition("://")
    match scheme:
        case "pvc":
            return f"{MODELS_DIR}/{rest.rstrip('/')}"
        case "oci":
            return f"{MODELS_DIR}/{image_dir}"
        case "hf":
            return rest
        case _:
            return uri


def engine_problems(spec: ModelPoolSpec) -> tuple[Problem, ...]:
    """What of the engine's settings cannot run, and what is merely unknown (warnings); each said once."""
    found = [problem for variant in spec.variants for problem in _variant_problems(spec, variant)]
    return tuple(dict.fromkeys(found))


def slots(engine: Engine) -> int:
    """Requests that a replica with these settings runs at once."""
    return engine.max_sequences or DEFAULT_SLOTS


def _loading(source: ModelSource, path: str) -> list[_Typed]:
    revision = source.revision if source.uri.startswith("hf://") else None
    streamed = source.uri.startswith(("s3://", "gs://"))
    return [
        *([_Typed("--revision", revision, f"{path}.revision", revision)] if revision else []),
        *([_Typed("--load-format", "runai_streamer", f"{path}.uri", source.uri)] if streamed else []),
    ]


def _typed(spec: ModelPoolSpec, variant: Variant) -> list[_Typed]:
    """The table: every typed field that is set, as vLLM's argument."""
    engine, size = spec.engine_of(variant), variant.parallelism
    caching = "--enable-prefix-caching" if engine.prefix_caching == "Enabled" else "--no-enable-prefix-caching"
    memory = engine.memory_utilization_percent
    quantization, place = engine.quantization, f"spec.variants[{variant.name}].parallelism"
    rows: list[tuple[str, Any, str, Any]] = [
        ("--max-model-len", engine.max_context_tokens, "spec.engine.maxContextTokens", None),
        ("--max-num-seqs", engine.max_sequences, _path(variant, "max_sequences"), None),
        ("--max-num-batched-tokens", engine.max_batched_tokens, _path(variant, "max_batched_tokens"), None),
        ("--gpu-memory-utilization", f"0.{memory:02d}", _path(variant, "memory_utilization_percent"), memory),
        ("--quantization", quantization and quantization.weights, f"{_path(variant, 'quantization')}.weights", None),
        ("--kv-cache-dtype", quantization and quantization.kv_cache, f"{_path(variant, 'quantization')}.kvCache", None),
        ("--tensor-parallel-size", size.tensor if size.tensor > 1 else None, f"{place}.tensor", None),
        ("--pipeline-parallel-size", size.pipeline if size.pipeline > 1 else None, f"{place}.pipeline", None),
        ("--speculative-config", _speculative(engine), _path(variant, "speculative_decoding"), "set"),
    ]
    path = f"spec.variants[{variant.name}].model" if variant.model else "spec.model"
    flags = [_Typed(caching, None, "spec.engine.prefixCaching", engine.prefix_caching)]
    fields = [_Typed(name, str(value), where, str(shown or value)) for name, value, where, shown in rows if value]
    return [*_loading(spec.model_of(variant), path), *fields, *flags]


def _path(variant: Variant, field: str) -> str:
    overridden = variant.engine is not None and getattr(variant.engine, field) is not None
    camel = re.sub(r"_(.)", lambda match: match[1].upper(), field)
    return f"spec.variants[{variant.name}].engine.{camel}" if overridden else f"spec.engine.{camel}"


def _speculative(engine: Engine) -> str | None:
    chosen = engine.speculative_decoding
    if chosen is None:
        return None
    config: dict[str, Any] = {"method": chosen.method, "num_speculative_tokens": chosen.tokens}
    if chosen.model is not None:
        config["model"] = model_location(chosen.model, "draft")
    ranges = _drafted_batches(chosen, slots(engine))
    if ranges:
        config["num_speculative_tokens_per_batch_size"] = ranges
    return json.dumps(config, separators=(",", ":"), sort_keys=True)


def _drafted_batches(chosen: SpeculativeDecoding, most: int) -> list[list[int]]:
    """[first batch size, last, tokens]: above maxBatchSize nothing is drafted."""
    if chosen.max_batch_size is None or chosen.max_batch_size >= most:
        return []
    return [[1, chosen.max_batch_size, chosen.tokens], [chosen.max_batch_size + 1, most, 0]]


def _variant_problems(spec: ModelPoolSpec, variant: Variant) -> Iterable[Problem]:
    engine = spec.engine_of(variant)
    typed = {_canonical(field.argument): field for field in _typed(spec, variant)}
    for index, argument in enumerate(engine.extra_args):
        where = f"{_path(variant, 'extra_args')}[{index}]"
        problem = _argument_problem(argument, where, typed)
        if problem is not None:
            yield problem
    yield from _quantization_problems(engine, variant)


def _canonical(argument: str) -> str:
    name = argument.partition("=")[0]
    whole = name.partition(".")[0]  # --speculative-config.method sets a part of --speculative-config
    return _ALIASES.get(whole, whole)


def _argument_problem(argument: str, where: str, typed: Mapping[str, _Typed]) -> Problem | None:
    name = _canonical(argument)
    own = _own_argument(name)
    if own is not None:
        text = f"{where} `{argument}` is set by Fairlead: {_OWN_ARGUMENTS[own]}. Remove it."
    elif name in typed:
        text = f"{where} `{argument}` is already set by {typed[name].path}: {typed[name].shown}. Remove one."
    elif name in _FIELDS:
        text = f"{where} `{argument}` has a field of its own. Set {_FIELDS[name]} and remove the argument."
    else:
        return None
    return Problem(Reason.INVALID_ARGUMENT, text, where)


def _own_argument(name: str) -> str | None:
    """The argument of Fairlead's that ``name`` means; Python's parsers accept every unambiguous beginning of one."""
    return next((own for own in _OWN_ARGUMENTS if own == name or own.startswith(name)), None)


def _quantization_problems(engine: Engine, variant: Variant) -> Iterable[Problem]:
    chosen = engine.quantization
    if chosen is None:
        return
    where = _path(variant, "quantization")
    if chosen.weights is not None:
        yield from _value_problems(chosen.weights, f"{where}.weights", WEIGHT_METHODS, REMOVED_WEIGHT_METHODS)
    if chosen.kv_cache is not None:
        on_cpu = variant.accelerator.resource_name == "cpu"
        garbage = CPU_GARBAGE_CACHE_TYPES if on_cpu else frozenset[str]()
        yield from _value_problems(chosen.kv_cache, f"{where}.kvCache", CACHE_TYPES, garbage)


def _value_problems(value: str, where: str, known: frozenset[str], refused: frozenset[str]) -> Iterable[Problem]:
    if value in refused:
        why = "answers nonsense with it on a CPU" if value in CPU_GARBAGE_CACHE_TYPES else "no longer has this method"
        text = f"{where} is {value}: vLLM 0.32 {why}. Leave it out to use what the checkpoint says."
        yield Problem(Reason.UNSUPPORTED_QUANTIZATION, text, where)
    elif value not in known:
        text = (
            f"{where} is {value}, which vLLM 0.32 does not list; it is passed on as it is, for an engine with a plugin."
        )
        yield Problem(EventReason.UNKNOWN_QUANTIZATION, text, where, warning=True)
