"""Typed fields and the options of vLLM that they set, and the options that Fairlead keeps for itself."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fairlead_operator.api.v1alpha1 import Variant
from fairlead_operator.api.v1alpha1.modelpool import SpeculativeDecoding
from fairlead_operator.decide.engine_table.setting import Setting

MODELS_DIR = "/models"
LOADED_ADAPTERS = 64
"""Adapters that stay in the host's memory: all that a pool can list, as a step waits while one is read from a disk."""
USUAL_SEQUENCES = 256
"""What vLLM runs at once on most hardware where maxSequences is not set."""
STREAMED = ("s3://", "gs://")


@dataclass(frozen=True, slots=True)
class Field:
    """One typed field: the option that it sets, where it stands, and its value as vLLM reads it.

    ``value`` is ``None`` where the option is left out, and empty where it takes none. ``others`` are options that set
    the same. ``free``: extraArgs may set the option where the field does not. ``default`` is for people.
    """

    path: str
    option: str
    place: Callable[[Setting], str]
    value: Callable[[Setting], str | None]
    shown: Callable[[Setting], str] = lambda _: "set"
    others: tuple[str, ...] = ()
    default: str = "not set: vLLM's own"
    free: bool = False

    def rendered(self, setting: Setting) -> str | None:
        """The argument as vLLM reads it, or ``None``."""
        value = self.value(setting)
        return value if value is None else f"{self.option}={value}" if value else self.option


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


def _engine(path: str, name: str, option: str, default: str = "not set: vLLM's own") -> Field:
    """A field of the engine that is an option's value as it is."""

    def value(setting: Setting) -> str | None:
        found = getattr(setting.engine, name)
        return None if found is None else str(found)

    return Field(
        f"spec.engine.{path}", option, lambda s: s.place(name), value, lambda s: str(value(s)), default=default
    )


def _format(path: str, name: str, option: str) -> Field:
    def value(setting: Setting) -> str | None:
        chosen = setting.engine.quantization
        return None if chosen is None else getattr(chosen, name)

    return Field(
        f"spec.engine.quantization.{path}",
        option,
        lambda s: f"{s.place('quantization')}.{path}",
        value,
        lambda s: str(value(s)),
        default="not set: what the checkpoint says",
    )


def _parallel(path: str, option: str) -> Field:
    def value(setting: Setting) -> str | None:
        size = int(getattr(setting.variant.parallelism, path))
        return str(size) if size > 1 else None

    return Field(
        f"spec.variants[].parallelism.{path}",
        option,
        lambda s: f"spec.variants[{s.variant.name}].parallelism.{path}",
        value,
        lambda s: str(value(s)),
        default="1",
    )


def _lora(path: str, option: str, value: Callable[[Any], str], default: str) -> Field:
    return Field(
        f"spec.model.lora{path}",
        option,
        lambda _: f"spec.model.lora{path}",
        lambda s: None if s.spec.model.lora is None else value(s.spec.model.lora),
        lambda s: (value(s.spec.model.lora) if s.spec.model.lora is not None else "") or "set",
        default=default,
    )


def model_place(variant: Variant) -> str:
    """Where a variant's checkpoint is named."""
    return f"spec.variants[{variant.name}].model" if variant.model else "spec.model"


def _revision(setting: Setting) -> str | None:
    return setting.source.revision if setting.source.uri.startswith("hf://") else None


def _load_format(setting: Setting) -> str | None:
    return "runai_streamer" if setting.source.uri.startswith(STREAMED) else None


def _speculative(setting: Setting) -> str | None:
    chosen = setting.engine.speculative_decoding
    if chosen is None:
        return None
    config: dict[str, Any] = {"method": chosen.method, "num_speculative_tokens": chosen.tokens}
    if chosen.model is not None:
        config["model"] = model_location(chosen.model, "draft")
        if chosen.model.startswith(STREAMED):
            config["draft_load_config"] = {"load_format": "runai_streamer"}
    if ranges := _drafted_batches(chosen, setting.engine.max_sequences):
        config["num_speculative_tokens_per_batch_size"] = ranges
    return json.dumps(config, separators=(",", ":"), sort_keys=True)


def _drafted_batches(chosen: SpeculativeDecoding, sequences: int | None) -> list[list[int]]:
    """[first batch size, last, tokens]: above maxBatchSize nothing is drafted; vLLM goes on with the last range."""
    limit = chosen.max_batch_size
    if limit is None or (sequences is not None and limit >= sequences):
        return []
    most = sequences or max(USUAL_SEQUENCES, limit + 1)
    return [[1, limit, chosen.tokens], [limit + 1, most, 0]]


FIELDS: Final = (
    Field(
        "spec.model.revision",
        "--revision",
        lambda s: f"{model_place(s.variant)}.revision",
        _revision,
        lambda s: str(s.source.revision),
        default="not set: the source's head when a pod starts",
    ),
    Field(
        "spec.model.uri",
        "--load-format",
        lambda s: f"{model_place(s.variant)}.uri",
        _load_format,
        lambda s: s.source.uri,
        default="runai_streamer for s3:// and gs://, else vLLM's own",
        free=True,
    ),
    _engine("maxContextTokens", "max_context_tokens", "--max-model-len", "not set: the checkpoint's own"),
    _engine("maxSequences", "max_sequences", "--max-num-seqs", "not set: vLLM's own, by hardware"),
    _engine("maxBatchedTokens", "max_batched_tokens", "--max-num-batched-tokens", "not set: vLLM's own, by hardware"),
    Field(
        "spec.engine.memoryUtilizationPercent",
        "--gpu-memory-utilization",
        lambda s: s.place("memory_utilization_percent"),
        lambda s: f"0.{s.engine.memory_utilization_percent:02d}",
        lambda s: str(s.engine.memory_utilization_percent),
        default="0.92",
    ),
    _format("weights", "weights", "--quantization"),
    _format("kvCache", "kv_cache", "--kv-cache-dtype"),
    _parallel("tensor", "--tensor-parallel-size"),
    _parallel("pipeline", "--pipeline-parallel-size"),
    Field(
        "spec.engine.speculativeDecoding",
        "--speculative-config",
        lambda s: s.place("speculative_decoding"),
        _speculative,
        others=("--spec-method", "--spec-model", "--spec-tokens"),
        default="not set: nothing is drafted",
    ),
    _lora(".maxRank", "--max-lora-rank", lambda lora: str(lora.max_rank), "16 with adapters"),
    _lora(".maxActive", "--max-loras", lambda lora: str(lora.max_active), "1 with adapters"),
    _lora("", "--max-cpu-loras", lambda _: str(LOADED_ADAPTERS), f"{LOADED_ADAPTERS} with adapters"),
    Field(
        "spec.engine.prefixCaching",
        "--enable-prefix-caching",
        lambda s: s.place("prefix_caching"),
        lambda s: "" if s.engine.prefix_caching == "Enabled" else None,
        lambda s: s.engine.prefix_caching,
        default="Enabled",
    ),
    Field(
        "spec.engine.prefixCaching",
        "--no-enable-prefix-caching",
        lambda s: s.place("prefix_caching"),
        lambda s: None if s.engine.prefix_caching == "Enabled" else "",
        lambda s: s.engine.prefix_caching,
        default="with Disabled",
    ),
    _lora("", "--enable-lora", lambda _: "", "set with adapters"),
)
"""In the order in which they are rendered: the arguments of a pool must not change with a release for nothing."""

OTHER_FIELDS: Final[Mapping[str, str]] = {"--model": "spec.model.uri"}
"""Options of fields that are rendered in another way."""

OWN: Final[Mapping[str, str]] = {
    "--uds": "the router reaches the engine over it",
    "--host": "the engine has no port",
    "--port": "the engine has no port",
    "--grpc": "the router speaks HTTP",
    "--grpc-port": "the router speaks HTTP",
    "--served-model-name": "the router asks for the pool's name",
    "--enable-prompt-tokens-details": "cached tokens are charged by it",
    "--shutdown-timeout": "rollout.drainTimeout is the time that requests have",
    "--api-key": "the engine has no port, and the router sends no key",
    "--hf-token": "secrets are in spec.model.secretRef, not in arguments",
    "--config": "its values would not be checked against the fields",
    "--headless": "the engine must answer the router",
    "--help": "the engine would print it and end",
    "--disable-log-stats": "the autoscaler reads the engine's metrics",
    "--lora-modules": "adapters are loaded while the engine runs, as spec.model.lora.adapters lists them",
    "--nnodes": "a replica is one pod",
    "--node-rank": "a replica is one pod",
    "--master-addr": "a replica is one pod",
    "--master-port": "a replica is one pod",
}
"""Options that Fairlead sets or that would break what it relies on, with the reason."""

OWN_GROUPS: Final[Mapping[str, str]] = {
    "--data-parallel-": "replicas are pods",
    "--ssl-": "the router speaks plain HTTP over a socket of the pod",
}
"""The same for all options that begin so."""

REMOVED: Final[Mapping[str, str]] = {
    "--task": "Use --runner or --convert.",
    "--swap-space": "Remove it: sequences that are put off are computed again.",
    "--rope-scaling": "Use --hf-overrides.",
    "--rope-theta": "Use --hf-overrides.",
    "--guided-decoding-backend": "Use --structured-outputs-config.backend.",
    "--num-scheduler-steps": "Remove it.",
    "--num-lookahead-slots": "Remove it.",
    "--scheduler-delay-factor": "Remove it.",
    "--preemption-mode": "Remove it: sequences that are put off are computed again.",
    "--use-v2-block-manager": "Remove it.",
    "--max-num-partial-prefills": "Remove it.",
    "--max-long-partial-prefills": "Remove it.",
    "--max-seq-len-to-capture": "Use --max-cudagraph-capture-size.",
    "--calculate-kv-scales": "Remove it: they come from the checkpoint.",
    "--disable-frontend-multiprocessing": "Remove it.",
    "--disable-log-requests": "Remove it: requests are logged only with --enable-log-requests.",
    "--speculative-model": "Set spec.engine.speculativeDecoding.",
    "--num-speculative-tokens": "Set spec.engine.speculativeDecoding.",
    "--speculative-disable-by-batch-size": "Set spec.engine.speculativeDecoding.maxBatchSize.",
    "--ngram-prompt-lookup-max": "Set spec.engine.speculativeDecoding.",
    "--enable-lora-bias": "Remove it.",
    "--lora-extra-vocab-size": "Remove it.",
    "--long-lora-scaling-factors": "Remove it.",
    "--enable-prompt-adapter": "Remove it: there are LoRA adapters only.",
}
"""Options that older versions had, and what to do."""
