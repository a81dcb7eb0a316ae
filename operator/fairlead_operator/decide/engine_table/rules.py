"""What cannot be combined: what vLLM refuses to start with, or starts with and then fails every request."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fairlead_operator.decide.engine_table.formats import DEPRECATED_WEIGHTS, WEIGHTS
from fairlead_operator.decide.engine_table.hardware import dotted
from fairlead_operator.decide.engine_table.setting import OFF, ON, Setting

CPU_BLOCK = 32
_BRAIN_CAPABILITY = 80
_DTYPES = {"half": "float16", "float": "float32"}
_MEGA = re.compile(r"deep_gemm_mega_moe|aiter_mega_moe|flashinfer_moe_ep_\w+")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Settings that exclude each other: where the one to change stands, and the rest of the sentence."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that cannot be. ``about`` is for people; ``evidence``: who says so."""

    about: str
    evidence: str
    find: Callable[[Setting], Iterator[Conflict]]
    versions: tuple[str, ...] = ()
    """Versions that it holds in, if not in all."""

    def conflicts(self, setting: Setting) -> Iterator[Conflict]:
        """What of it a variant breaks. A rule of some versions holds only where the version is known."""
        if not self.versions or setting.version in self.versions:
            yield from self.find(setting)


def _batch_below_sequences(setting: Setting) -> Iterator[Conflict]:
    tokens, sequences = setting.engine.max_batched_tokens, setting.engine.max_sequences
    if tokens is not None and sequences is not None and tokens < sequences:
        yield Conflict(
            setting.place("max_batched_tokens"),
            f"is {tokens}, less than {setting.place('max_sequences')}, {sequences}. Set it to {sequences} or more.",
        )


def _sequences_above_usual_batch(setting: Setting) -> Iterator[Conflict]:
    engine, usual = setting.engine, max(tokens for _, tokens in setting.device.default_batches)
    if engine.max_sequences is None or engine.max_batched_tokens is not None:
        return
    if setting.given("--enable-chunked-prefill") == OFF or setting.given("--performance-mode") is not None:
        return
    usual *= setting.variant.parallelism.accelerators if setting.device.platform == "cpu" else 1
    if engine.max_sequences > usual:
        yield Conflict(
            setting.place("max_sequences"),
            f"is {engine.max_sequences}, more than the {usual} tokens of a step that vLLM takes by itself on "
            f"{setting.device.shown}. Set spec.engine.maxBatchedTokens to {engine.max_sequences} or more.",
        )


def _no_slot_for_drafts(setting: Setting) -> Iterator[Conflict]:
    chosen, tokens = setting.engine.speculative_decoding, setting.engine.max_batched_tokens
    if chosen is not None and chosen.method == "draft_model" and tokens == 1:
        yield Conflict(
            setting.place("max_batched_tokens"),
            "is 1, which leaves no room for drafts of a draft model. Set it to 2 or more.",
        )


def _batch_within_drafts(setting: Setting) -> Iterator[Conflict]:
    chosen, tokens = setting.engine.speculative_decoding, setting.engine.max_batched_tokens
    if chosen is not None and chosen.method != "ngram" and tokens is not None and tokens <= chosen.tokens:
        yield Conflict(
            setting.place("max_batched_tokens"),
            f"is {tokens}, not more than {setting.place('speculative_decoding')}.tokens, {chosen.tokens}. Set it to "
            f"{chosen.tokens + 1} or more.",
        )


def _drafts_with_adapters(setting: Setting) -> Iterator[Conflict]:
    engine, chosen = setting.engine, setting.engine.speculative_decoding
    if chosen is None or setting.spec.model.lora is None:
        return
    sizes = [
        (
            engine.max_sequences or min(sequences, engine.max_batched_tokens or tokens),
            engine.max_batched_tokens or tokens,
        )
        for sequences, tokens in setting.device.default_batches
    ]
    sequences, tokens = min(sizes, key=lambda size: size[0] * (chosen.tokens + 1) - size[1])
    needed = sequences * (chosen.tokens + 1)
    if tokens < needed:
        yield Conflict(
            f"{setting.place('speculative_decoding')}.tokens",
            f"is {chosen.tokens}, which with spec.model.lora and {sequences} sequences needs steps of {needed} tokens, "
            f"and variant {setting.variant.name} has {tokens}. Set spec.engine.maxBatchedTokens to {needed} or more, "
            f"or maxSequences to {max(1, tokens // (chosen.tokens + 1))} or less.",
        )


def _adapters_on_cpu(setting: Setting) -> Iterator[Conflict]:
    if setting.device.platform == "cpu" and setting.spec.model.lora is not None and setting.engine.max_sequences != 1:
        yield Conflict(
            "spec.model.lora",
            f"on a CPU (variant {setting.variant.name}): vLLM answers requests for the bare model with an adapter's "
            "weights when both run at once. Set engine.maxSequences to 1 there.",
        )


def _whole_prompts_above_batch(setting: Setting) -> Iterator[Conflict]:
    tokens, context = setting.engine.max_batched_tokens, setting.engine.max_context_tokens
    if setting.given("--enable-chunked-prefill") == OFF and tokens and context and tokens < context:
        yield Conflict(
            setting.where("--enable-chunked-prefill"),
            f"has prompts computed in one step, and {setting.place('max_batched_tokens')}, {tokens}, is less than "
            f"spec.engine.maxContextTokens, {context}. Remove the argument.",
        )


def _active_above_sequences(setting: Setting) -> Iterator[Conflict]:
    active, sequences = setting.number("--max-num-active-seqs"), setting.engine.max_sequences
    if active is not None and sequences is not None and active > sequences:
        yield Conflict(
            setting.where("--max-num-active-seqs"),
            f"is more than {setting.place('max_sequences')}, {sequences}. Lower it or remove it.",
        )


def _threshold_above_context(setting: Setting) -> Iterator[Conflict]:
    threshold, context = setting.number("--long-prefill-token-threshold"), setting.engine.max_context_tokens
    if threshold is not None and context is not None and threshold > context:
        yield Conflict(
            setting.where("--long-prefill-token-threshold"),
            f"is more than spec.engine.maxContextTokens, {context}. Lower it or remove it.",
        )


def _async_with_ngram(setting: Setting) -> Iterator[Conflict]:
    chosen = setting.engine.speculative_decoding
    if chosen is not None and chosen.method == "ngram" and setting.given("--async-scheduling") == ON:
        yield Conflict(
            setting.where("--async-scheduling"),
            f"cannot be combined with {setting.place('speculative_decoding')}.method ngram. Remove the argument: vLLM "
            "schedules asynchronously where it can.",
        )


def _draft_metrics_without_drafts(setting: Setting) -> Iterator[Conflict]:
    if setting.engine.speculative_decoding is None and setting.given("--per-request-spec-decode-metrics") not in {
        None,
        "none",
    }:
        yield Conflict(
            setting.where("--per-request-spec-decode-metrics"),
            "needs spec.engine.speculativeDecoding. Set that, or remove the argument.",
        )


def _servers_with_adapters(setting: Setting) -> Iterator[Conflict]:
    if setting.spec.model.lora is not None and (setting.number("--api-server-count") or 1) > 1:
        yield Conflict(
            setting.where("--api-server-count"),
            "cannot be combined with spec.model.lora: adapters are loaded in one server. Remove the argument.",
        )


def _mega_experts_with_adapters(setting: Setting) -> Iterator[Conflict]:
    backend = setting.given("--moe-backend")
    if setting.spec.model.lora is not None and backend is not None and _MEGA.fullmatch(backend):
        yield Conflict(
            setting.where("--moe-backend"), "cannot be combined with spec.model.lora. Use another, or remove it."
        )


def _pipeline_on_cpu(setting: Setting) -> Iterator[Conflict]:
    if setting.device.platform == "cpu" and setting.variant.parallelism.pipeline > 1:
        yield Conflict(
            f"spec.variants[{setting.variant.name}].parallelism.pipeline",
            f"is {setting.variant.parallelism.pipeline}, and on a CPU vLLM starts with it and fails the first request. "
            "Use tensor instead.",
        )


def _gpu_only_on_cpu(setting: Setting) -> Iterator[Conflict]:
    if setting.device.platform != "cpu":
        return
    for option, off in (("--enable-sleep-mode", OFF), ("--kv-offloading-size", "None")):
        if setting.given(option) not in {None, off}:
            yield Conflict(setting.where(option), "needs a GPU, and the variant runs on a CPU. Remove the argument.")


def _block_on_cpu(setting: Setting) -> Iterator[Conflict]:
    block = setting.number("--block-size")
    if setting.device.platform == "cpu" and block is not None and block % CPU_BLOCK:
        yield Conflict(
            setting.where("--block-size"), f"is no multiple of {CPU_BLOCK}, which a CPU needs. Use {CPU_BLOCK}."
        )


def _deprecated_weights(setting: Setting) -> Iterator[Conflict]:
    method, chosen = _weights(setting), setting.engine.speculative_decoding
    if method not in DEPRECATED_WEIGHTS:
        return
    if chosen is not None and chosen.method == "mtp":
        yield Conflict(
            f"{setting.place('quantization')}.weights",
            f"is {method}, which vLLM is about to drop and refuses with speculativeDecoding.method mtp. Use another "
            "checkpoint.",
        )
    elif setting.given("--allow-deprecated-quantization") != ON:
        yield Conflict(
            f"{setting.place('quantization')}.weights",
            f"is {method}, which vLLM is about to drop and refuses by default. Use another checkpoint, or add "
            "--allow-deprecated-quantization to extraArgs.",
        )


def _online_without_formats(setting: Setting) -> Iterator[Conflict]:
    if _weights(setting) == "online" and setting.given("--quantization-config") is None:
        yield Conflict(
            f"{setting.place('quantization')}.weights",
            "is online, which says no format. Use fp8_per_channel or the like, or add --quantization-config to "
            "extraArgs.",
        )


def _dtype_of_cache(setting: Setting) -> Iterator[Conflict]:
    dtype, chosen = setting.given("--dtype"), setting.engine.quantization
    cache = chosen.kv_cache if chosen is not None else None
    name = _DTYPES.get(dtype or "", dtype)
    if cache in {"float16", "bfloat16"} and name not in {None, "auto", cache}:
        yield Conflict(
            setting.where("--dtype"),
            f"cannot be combined with {setting.place('quantization')}.kvCache {cache}. Leave kvCache out: it is then "
            "of the model's type.",
        )
    found = WEIGHTS.get(_weights(setting) or "")
    if cache in {"float16", "bfloat16"} and found is not None and cache not in found.dtypes:
        yield Conflict(
            f"{setting.place('quantization')}.kvCache",
            f"is {cache}, and weights {found.name} work with {' and '.join(found.dtypes)} only. Leave kvCache out.",
        )


def _dtype_of_weights(setting: Setting) -> Iterator[Conflict]:
    dtype, method = setting.given("--dtype"), _weights(setting)
    found = WEIGHTS.get(method or "")
    name = _DTYPES.get(dtype or "", dtype)
    if found is not None and name not in {None, "auto", *found.dtypes}:
        yield Conflict(
            setting.where("--dtype"),
            f"cannot be combined with {setting.place('quantization')}.weights {method}, which works with "
            f"{' and '.join(found.dtypes)}. Remove the argument.",
        )


def _dtype_of_hardware(setting: Setting) -> Iterator[Conflict]:
    capability = setting.device.capability
    if setting.given("--dtype") == "bfloat16" and capability is not None and capability < _BRAIN_CAPABILITY:
        yield Conflict(
            setting.where("--dtype"),
            f"needs compute capability {dotted(_BRAIN_CAPABILITY)} or more, and variant {setting.variant.name} runs on "
            f"{setting.device.shown}. Use --dtype=half.",
        )


def _adapter_sources(setting: Setting) -> Iterator[Conflict]:
    for adapter in setting.spec.model.lora.adapters if setting.spec.model.lora is not None else ():
        where = f"spec.model.lora.adapters[{adapter.name}]"
        if not adapter.uri.startswith(("hf://", "pvc://")):
            yield Conflict(
                f"{where}.uri",
                f"is {adapter.uri}: vLLM loads adapters from hf:// and pvc:// only. Copy it to a "
                "PersistentVolumeClaim.",
            )
        if adapter.name == setting.name:
            yield Conflict(
                f"{where}.name", "is the pool's own name, which the engine serves the model by. Rename the adapter."
            )


def _weights(setting: Setting) -> str | None:
    return setting.engine.quantization.weights if setting.engine.quantization is not None else None


_PARSER = "vLLM's configuration"
_MEASURED = "measured on vLLM 0.32"
RULES: Final = (
    Rule("maxBatchedTokens below maxSequences, also where a variant overrides one", _PARSER, _batch_below_sequences),
    Rule("maxSequences above vLLM's own maxBatchedTokens on the hardware", _PARSER, _sequences_above_usual_batch),
    Rule("speculativeDecoding with a draft model and maxBatchedTokens 1", _PARSER, _no_slot_for_drafts),
    Rule(
        "maxBatchedTokens not above speculativeDecoding.tokens, but with ngram",
        _PARSER,
        _batch_within_drafts,
        ("0.33",),
    ),
    Rule(
        "lora, speculativeDecoding and maxBatchedTokens below maxSequences × (tokens + 1)",
        _PARSER,
        _drafts_with_adapters,
    ),
    Rule("lora on a CPU without maxSequences 1", _MEASURED, _adapters_on_cpu, ("0.32",)),
    Rule(
        "--no-enable-chunked-prefill and maxBatchedTokens below maxContextTokens", _PARSER, _whole_prompts_above_batch
    ),
    Rule("--max-num-active-seqs above maxSequences", _PARSER, _active_above_sequences),
    Rule("--long-prefill-token-threshold above maxContextTokens", _PARSER, _threshold_above_context),
    Rule("--async-scheduling and speculativeDecoding with ngram", _PARSER, _async_with_ngram),
    Rule("--per-request-spec-decode-metrics without speculativeDecoding", _PARSER, _draft_metrics_without_drafts),
    Rule("--api-server-count above 1 and lora", "vLLM's server", _servers_with_adapters),
    Rule("--moe-backend of one large kernel and lora", _PARSER, _mega_experts_with_adapters, ("0.33",)),
    Rule("parallelism.pipeline above 1 on a CPU", _MEASURED, _pipeline_on_cpu),
    Rule("--enable-sleep-mode and --kv-offloading-size on a CPU", _PARSER, _gpu_only_on_cpu),
    Rule(f"--block-size that is no multiple of {CPU_BLOCK} on a CPU", _MEASURED, _block_on_cpu),
    Rule(
        "deprecated quantization.weights without --allow-deprecated-quantization, or with mtp",
        _PARSER,
        _deprecated_weights,
    ),
    Rule("quantization.weights online without --quantization-config", _PARSER, _online_without_formats),
    Rule(
        "quantization.kvCache float16 or bfloat16 that is not the type of --dtype or of the weights",
        _PARSER,
        _dtype_of_cache,
        ("0.33",),
    ),
    Rule("--dtype that quantization.weights does not work with", _PARSER, _dtype_of_weights),
    Rule("--dtype=bfloat16 below compute capability 8.0", "vLLM's platform for CUDA", _dtype_of_hardware),
    Rule("an adapter of s3://, gs:// or oci://, or with the pool's name", "vLLM's server", _adapter_sources),
)
