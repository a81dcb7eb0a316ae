"""A model's shape from what is published with it: its config.json, or no more than its name.

What cannot be read is ``Unknown`` with its reason; what is supposed because it is usual is named in the result.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Final

from fairlead_operator.performance.seeds import (
    QUANTIZATIONS,
    UNQUANTIZED,
    VALUE_BYTES,
    ModelFacts,
    Quantization,
    Unknown,
)

MAX_CONFIG_NUMBER: Final = 10**9
MAX_LAYERS: Final = 10_000

# fmt: off
GATED: Final = frozenset({
    "llama", "mistral", "mistral3", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma",
    "gemma2", "gemma3", "gemma3_text", "phi3", "phimoe", "deepseek_v2", "deepseek_v3", "kimi_k2", "gpt_oss", "glm",
    "glm4", "glm4_moe", "granite", "granitemoe", "olmo2", "olmo3", "olmoe", "cohere", "cohere2", "exaone4",
    "smollm3", "internlm2", "internlm3", "minimax_m2", "seed_oss",
})
# fmt: on
"""Model types whose feed-forward layers are three matrices: gate, up, down."""
_PATTERNS: Final[Mapping[str, int]] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
"""Of this many layers one sees all tokens, in the model types whose configs may leave it out."""


def model_from_config(
    config: Mapping[str, object], *, parameters: int | None = None, quantization: str | None = None
) -> ModelFacts | Unknown:
    """A model's shape from its Hugging Face config.json.

    ``parameters`` is their number where it is known (the index of its files says it); otherwise they are counted from
    the shape. ``quantization`` is vLLM's flag and goes before what the config says.
    """
    text = config.get("text_config")
    shape = {**config, **text} if isinstance(text, Mapping) else dict(config)
    numbers = _Numbers(shape)
    layers, hidden = numbers.of("num_hidden_layers", most=MAX_LAYERS), numbers.of("hidden_size")
    heads, vocabulary = numbers.of("num_attention_heads"), numbers.of("vocab_size")
    if layers is None or hidden is None or heads is None or vocabulary is None:
        return Unknown(f"config.json does not say {numbers.missing}, or not as a whole number above 0.")
    kind = _quantization(config, quantization)
    if isinstance(kind, Unknown):
        return kind
    head_dim = numbers.of("head_dim") or max(1, hidden // heads)
    model_type = str(shape.get("model_type"))
    windowed = _windowed(shape, numbers, layers)
    if isinstance(windowed, Unknown):
        return windowed
    facts = ModelFacts(
        parameters=0,
        active_parameters=0,
        layers=layers,
        hidden=hidden,
        kv_heads=numbers.of("num_key_value_heads") or heads,
        head_dim=head_dim,
        embedding=vocabulary * hidden,
        tied=_tied(shape),
        latent=_latent(numbers),
        quantization=kind,
        heads=heads,
        context=_context(shape, numbers),
        windowed=windowed,
        window=numbers.of("sliding_window") or 0 if windowed else 0,
        kv_value_bytes=_kv_value_bytes(config),
    )
    return _counted(facts, numbers, model_type, parameters)


def _context(shape: Mapping[str, object], numbers: "_Numbers") -> int | None:
    """Tokens of one request; ``None`` where they are stretched, which vLLM does in other ways for each kind."""
    scaling = shape.get("rope_scaling") or shape.get("rope_parameters")
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else "default"
    return numbers.of("max_position_embeddings") if kind in {"default", "llama3", "yarn", "longrope"} else None


def _windowed(shape: Mapping[str, object], numbers: "_Numbers", layers: int) -> int | Unknown:
    """Layers that see only a window of the last tokens; unknown where layers are of a kind that keeps other states."""
    kinds = shape.get("layer_types")
    if isinstance(kinds, list):
        odd = {str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}
        if len(kinds) != layers:
            return Unknown(f"config.json has {len(kinds)} layer_types for {layers} layers.")
        if odd:
            return Unknown(f"config.json has layers of a kind that is not known: {', '.join(sorted(odd))[:80]}.")
        return kinds.count("sliding_attention")
    if numbers.of("sliding_window") is None or shape.get("use_sliding_window") is False:
        return 0
    pattern = numbers.of("sliding_window_pattern") or _PATTERNS.get(str(shape.get("model_type")))
    return layers if pattern is None else layers - layers // pattern


def _kv_value_bytes(config: Mapping[str, object]) -> float:
    """Of a checkpoint with a quantised KV cache, one."""
    stated = config.get("quantization_config")
    if not isinstance(stated, Mapping):
        return VALUE_BYTES
    return 1 if stated.get("kv_cache_scheme") or stated.get("kv_cache_quant_algo") else VALUE_BYTES


def _counted(facts: ModelFacts, numbers: "_Numbers", model_type: str, parameters: int | None) -> ModelFacts | Unknown:
    """The facts with their parameters: as given, or counted where the feed-forward layers are known to be gated."""
    counted = _count(facts, numbers) if model_type in GATED else None
    if counted is None and parameters is None:
        return Unknown(
            f"The parameters of model type {model_type!r} cannot be counted from its config.json; give their number."
        )
    if counted is None or (parameters is not None and counted[0] == counted[1]):
        total = active = parameters or 0
    else:
        total = parameters or counted[0]
        active = min(total, counted[1])
    return replace(facts, parameters=total, active_parameters=active)


def _count(facts: ModelFacts, numbers: "_Numbers") -> tuple[int, int] | None:
    """All parameters and those that a token meets."""
    wide = numbers.of("intermediate_size")
    experts = numbers.of("num_local_experts") or numbers.of("n_routed_experts") or numbers.of("num_experts")
    narrow = numbers.of("moe_intermediate_size") or wide
    if (wide is None and narrow is None) or (wide is None and experts is None):
        return None
    matrix = 3 * facts.hidden
    dense = facts.layers if experts is None else min(facts.layers, numbers.of("first_k_dense_replace") or 0)
    shared = (numbers.of("n_shared_experts") or 0) * (narrow or 0)
    always = facts.layers * _attention(facts, numbers) + facts.embedding * (1 if facts.tied else 2)
    always += matrix * (dense * (wide or 0) + (facts.layers - dense) * shared)
    each = (facts.layers - dense) * matrix * (narrow or 0)
    used = min(experts or 0, numbers.of("num_experts_per_tok") or numbers.of("num_experts_per_token") or 0)
    return always + each * (experts or 0), always + each * used


def _attention(facts: ModelFacts, numbers: "_Numbers") -> int:
    """Parameters of a layer's attention."""
    heads = numbers.of("num_attention_heads") or 1
    rank = numbers.of("kv_lora_rank")
    if rank is None:
        return 2 * facts.hidden * facts.head_dim * (heads + facts.kv_heads)
    rope, plain = numbers.of("qk_rope_head_dim") or 0, numbers.of("qk_nope_head_dim") or 0
    value = numbers.of("v_head_dim") or plain
    asked = heads * (rope + plain)
    low = numbers.of("q_lora_rank")
    queries = facts.hidden * asked if low is None else low * (facts.hidden + asked)
    return queries + facts.hidden * (rank + rope) + rank * heads * (plain + value) + heads * value * facts.hidden


def _latent(numbers: "_Numbers") -> int | None:
    rank = numbers.of("kv_lora_rank")
    return None if rank is None else rank + (numbers.of("qk_rope_head_dim") or 0)


def _tied(shape: Mapping[str, object]) -> bool:
    """Configs leave it out where it is as usual: tied for Gemma, not for the others."""
    tied = shape.get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else str(shape.get("model_type", "")).startswith("gemma")


def _quantization(config: Mapping[str, object], flag: str | None) -> Quantization | Unknown:
    """The flag's, or the config's."""
    stated = config.get("quantization_config")
    if flag is None and not isinstance(stated, Mapping):
        return UNQUANTIZED
    method = flag if flag is not None else str(stated.get("quant_method", "")) if isinstance(stated, Mapping) else ""
    details = json.dumps(stated, default=str).lower() if isinstance(stated, Mapping) else ""
    return _quantization_named(method.lower(), details)


def _quantization_named(method: str, details: str) -> Quantization | Unknown:
    """By vLLM's name of the method and, where that is a family of formats, by the details of the config."""
    if method in QUANTIZATIONS:
        return QUANTIZATIONS[method]
    for found, name in (
        ("nvfp4" in details or "nvfp4" in method or method == "modelopt_fp4", "nvfp4"),
        ("fp8" in method, "fp8"),
        ("gptq" in method and _has_bits(details, 8), "w8a16"),
        (_has_bits(details, 4) or method in {"awq", "awq_marlin", "gptq", "gptq_marlin"}, "int4"),
        ("fp8" in details or (_has_bits(details, 8) and '"type": "float"' in details), "fp8"),
        (_has_bits(details, 8), "int8"),
    ):
        if found:
            return QUANTIZATIONS[name]
    return Unknown(f"Quantization {method!r} is not known; known are {', '.join(QUANTIZATIONS)}, awq and gptq.")


def _has_bits(details: str, bits: int) -> bool:
    return f'"load_in_{bits}bit": true' in details or (
        re.search(rf'"(?:bits|w_bit|num_bits)": {bits}\b', details) is not None
    )


class _Numbers:
    """Whole numbers above 0 of a config; remembers the first that it lacks."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self._config = config
        self.missing = ""

    def of(self, key: str, most: int = MAX_CONFIG_NUMBER) -> int | None:
        value = self._config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
            return value
        self.missing = self.missing or key
        return None


SHAPES: Final[tuple[tuple[float, int, int, int, int, bool], ...]] = (
    (0.5, 24, 896, 2, 64, True),
    (1.5, 28, 1536, 2, 128, True),
    (3.0, 36, 2048, 2, 128, True),
    (8.0, 32, 4096, 8, 128, False),
    (14.0, 48, 5120, 8, 128, False),
    (32.0, 64, 5120, 8, 128, False),
    (70.0, 80, 8192, 8, 128, False),
    (123.0, 88, 12288, 8, 128, False),
    (405.0, 126, 16384, 8, 128, False),
)
"""Billions of parameters, layers, hidden size, KV heads, their size, tied: of Qwen2.5, Llama 3 and Mistral Large."""
USUAL_VOCABULARY: Final = 128_256
_NAMED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("nvfp4", "fp4"), "nvfp4"),
    "fp8": "fp8",
    **dict.fromkeys(("awq", "gptq", "w4a16", "int4", "4bit", "bnb"), "int4"),
    "w8a16": "w8a16",
    **dict.fromkeys(("w8a8", "int8", "8bit"), "int8"),
}
"""Words by which names tell a quantization."""
_USUAL_WORD = re.compile(
    rf"instruct|chat|it|base|hf|thinking|dynamic|block|v0\.[2-9]|[0-9]{{4}}|(?:quantized\.)?(?:{'|'.join(_NAMED)})"
)
"""Words of names that change nothing that memory depends on, or what ``_NAMED`` has."""
_PREFIX = re.compile(r"^meta-(?=llama)")
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d{1,5}(?:\.\d{1,3})?)([BbMm])(?![A-Za-z0-9])")
_ACTIVE = re.compile(r"(?<![A-Za-z0-9.])A(\d{1,5}(?:\.\d{1,3})?)([BbMm])(?![A-Za-z0-9])")


def model_from_name(
    name: str, *, parameters: int | None = None, quantization: str | None = None
) -> ModelFacts | Unknown:
    """A model's shape by its name, with or without what stands before the last slash.

    Of well-known models the shape is on record, and supposed only in so far as the name may mislead; of others it is
    the usual shape of their number of parameters, given or in the name: an estimate. ``quantization`` is vLLM's flag.
    """
    last = name.rsplit("/", 1)[-1]
    kind = _quantization({}, quantization or _named_quantization(last))
    if isinstance(kind, Unknown):
        return kind
    known = _well_known(last)
    if known is not None:
        return replace(known, quantization=kind)
    size = _SIZE.search(last)
    total = parameters or (_parameters(size) if size else None)
    if total is None or total < 1:
        return Unknown(f"The name {name!r} does not say how many parameters the model has; give it, or a config.json.")
    active = _ACTIVE.search(last)
    return _usual(total, _parameters(active) if active else total, kind)


def _usual(total: int, active: int, kind: Quantization) -> ModelFacts:
    """The shape of the model nearest in size."""
    _, layers, hidden, kv_heads, head_dim, tied = min(SHAPES, key=lambda one: abs(math.log(one[0] * 1e9 / total)))
    return ModelFacts(
        parameters=total,
        active_parameters=min(total, active),
        layers=layers,
        hidden=hidden,
        kv_heads=kv_heads,
        head_dim=head_dim,
        embedding=min(total // 4, USUAL_VOCABULARY * hidden),
        tied=tied,
        quantization=kind,
        estimated=(
            f"layers, hidden size and KV heads, as usual in a dense model of {total / 1e9:.3g} billion parameters",
        ),
    )


@functools.cache
def _models() -> Mapping[str, ModelFacts]:
    """The models of models.json by each of their names."""
    document = json.loads(files(__package__).joinpath("models.json").read_text(encoding="utf-8"))
    return {
        alias: ModelFacts(
            parameters=entry["parameters"],
            active_parameters=entry["active_parameters"],
            layers=entry["layers"],
            hidden=entry["hidden"],
            kv_heads=entry["kv_heads"],
            head_dim=entry["head_dim"],
            embedding=entry["vocabulary"] * entry["hidden"],
            tied=entry["tied"],
            estimated=(f"the shape, as of {name}",),
            heads=entry["heads"],
            context=entry.get("contexts", {}).get(alias, entry["context"]),
            windowed=entry.get("windowed", 0),
            window=entry.get("window", 0),
        )
        for name, entry in document["models"].items()
        for alias in (name, *entry["also"])
    }


def well_known(name: str, *, quantization: str | None = None) -> tuple[ModelFacts, bool] | Unknown:
    """A well-known model by its name, and whether each word of the name is accounted for.

    With a word of unknown meaning it may be a model of another shape, context or number format. A quantised checkpoint
    may have a quantised KV cache too: its values count as one byte.
    """
    last = name.rsplit("/", 1)[-1]
    named, known = _named_quantization(last), _known_name(last)
    stated = quantization or named
    kind = _quantization({}, stated)
    if isinstance(kind, Unknown) and named is not None:
        # Methods such as compressed-tensors are families: which of its formats it is, the name tells.
        kind = _quantization({}, named)
    if isinstance(kind, Unknown):
        return kind
    if known is None:
        return Unknown(f"the model {last[:80]!r} is not on record")
    rest = [word for word in _words(last).removeprefix(known).split("-") if word]
    facts = replace(_models()[known], quantization=kind, kv_value_bytes=VALUE_BYTES if stated is None else 1)
    return facts, all(_USUAL_WORD.fullmatch(word) for word in rest)


def _words(name: str) -> str:
    return _PREFIX.sub("", name.lower().replace("_", "-"))


def _known_name(name: str) -> str | None:
    """The known name that this one begins with; the longest, and not in the midst of a word."""
    words = _words(name)
    found = [known for known in _models() if words == known or words.startswith(f"{known}-")]
    return max(found, key=len, default=None)


def _well_known(name: str) -> ModelFacts | None:
    known = _known_name(name)
    return None if known is None else _models()[known]


def _parameters(found: re.Match[str]) -> int:
    return round(float(found.group(1)) * (1e9 if found.group(2) in "Bb" else 1e6))


def _named_quantization(name: str) -> str | None:
    """Names of quantised models say so by custom."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((kind for word, kind in _NAMED.items() if word in words), None)
