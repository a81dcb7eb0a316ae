"""Pools that must be refused, each with words of the reason, and what vLLM itself does with the line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fairlead_operator.api.v1alpha1 import ModelPool
from tests.bench.engine_args.good import ADAPTER
from tests.builders.resources import PoolBuilder, make_pool

Does = Literal["refuses", "takes", "cannot say"]
"""vLLM refuses the line; takes it and misbehaves, or breaks what Fairlead relies on; or would have to have a GPU."""
LORA = {"adapters": [ADAPTER]}


@dataclass(frozen=True, slots=True)
class Bad:
    """One pool. ``words``: of our message. ``does``: what vLLM does. ``kind``: the checkpoint that stands in."""

    title: str
    pool: ModelPool
    words: str
    does: Does = "refuses"
    version: str = "0.32"


def bad() -> Iterator[Bad]:
    """Every pool."""
    yield from _taken()
    yield from _written_wrongly()
    yield from _formats()
    yield from _combined()
    yield from _sources()


def _pool(version: str = "0.32", **engine: Any) -> PoolBuilder:
    return make_pool("chat").engine(image=f"vllm/vllm-openai:v{version}.0", **engine)


def _on(builder: PoolBuilder, label: str = "", resource: str = "nvidia.com/gpu", **fields: Any) -> PoolBuilder:
    labels = {"nodeSelector": {"nvidia.com/gpu.product": label}} if label else {}
    return builder.variant("only", accelerator={"resourceName": resource}, **labels, **fields)


def _extra(argument: str, words: str, does: Does, version: str = "0.32", **engine: Any) -> Bad:
    pool = _pool(version, extraArgs=[argument], **engine)
    return Bad(f"extraArgs {argument}", pool.parsed(), words, does, version)


def _taken() -> Iterator[Bad]:
    """Arguments that a field or Fairlead sets."""
    for argument in (
        "--uds=/tmp/other", "--host=0.0.0.0", "--port=8000", "--served-model-name=other", "--shutdown-timeout=600",
        "--no-enable-prompt-tokens-details", "--api-key=secret", "--hf-token=secret", "--data-parallel-size=2",
        "--headless", "--disable-log-stats", "--ssl-keyfile=/k", "--node-rank=0", "--grpc",
        "--lora-modules=sql=/adapters/sql", "--shutdown=600", "--served=other",
    ):  # fmt: skip
        yield _extra(argument, "is set by Fairlead", "takes")
    yield _extra("--help", "is set by Fairlead", "refuses")
    yield _extra("--config=/x.yaml", "is set by Fairlead", "takes")
    yield _extra("--nnodes=2", "is set by Fairlead", "refuses")
    yield _extra("--data-parallel-rank=0", "is set by Fairlead", "refuses")
    yield _extra("--disable-prompt-tokens-details", "is set by Fairlead", "takes", "0.33")
    sizes: dict[str, Any] = {"maxSequences": 64, "maxContextTokens": 2048}
    for argument in (
        "--max-num-seqs=8", "--max-num-se=8", "--max-model-len=512", "--max-mod=512", "--gpu-memory-utilization=0.5",
        "--device-memory-utilization=0.5", "--no-enable-prefix-caching",
    ):  # fmt: skip
        yield _extra(argument, "is already set by", "takes", **sizes)
    yield _extra("--disable-prefix-caching", "is already set by", "takes", "0.33")
    for argument in (
        "--quantization=fp8", "--kv-cache-dtype=fp8", "--tensor-parallel-size=2", "--pipeline-parallel-size=2",
        '--speculative-config={"method":"ngram","num_speculative_tokens":2}', "--spec-method=ngram", "--enable-lora",
        "--max-loras=2", "--max-cpu-loras=2", "--model=org/other",
    ):  # fmt: skip
        does: Does = "refuses" if argument == "--spec-method=ngram" else "takes"
        yield _extra(argument, "has a field of its own", does)


def _written_wrongly() -> Iterator[Bad]:
    """Arguments that vLLM's parser does not take."""
    for argument, words in (
        ("--log=info", "may mean"),
        ("--max-sequences=8", "is no argument of vLLM 0.32, which ends with an error"),
        ("--reasoning-praser=qwen3", "Did you mean --reasoning-parser?"),
        ("--swap-space=4", "is no argument of vLLM 0.32 any more"),
        ("--task=generate", "Use --runner or --convert"),
        ("--rope-theta=10000", "Use --hf-overrides"),
        ("--speculative-model=org/draft", "Set spec.engine.speculativeDecoding"),
        ("--disable-log-requests", "is no argument of vLLM 0.32 any more"),
        ("--watchdog-config={}", "is no argument of vLLM 0.32"),
        ("--enforce-eager=true", "takes no value"),
        ("--seed=abc", "takes a whole number"),
        ("--max-num-queued-reqs=1.5", "takes a whole number"),
        ("--cpu-offload-gb=lots", "takes a number"),
        ("--kv-cache-memory-bytes=many", "takes a whole number"),
        ("--compilation-config={", "takes JSON"),
        ("--scheduling-policy=fair", "takes one of fcfs, priority"),
        ("--dtype=int8", "takes one of"),
        ("--reasoning-parser", "needs a value"),
    ):
        yield _extra(argument, words, "refuses")
    twice = _pool(extraArgs=["--seed=1", "--seed=2"])
    yield Bad("an argument twice", twice.parsed(), "is given twice", "takes")


def _formats() -> Iterator[Bad]:
    """Number formats that do not exist, or that the hardware does not run."""
    for method in ("bitsandbytes", "gguf", "marlin"):
        pool = _pool(quantization={"weights": method})
        yield Bad(f"weights {method}", pool.parsed(), "is no method of vLLM 0.32 any more")
    for cache, version in (("octave_k3v4", "0.32"), ("int8", "0.32")):
        pool = _pool(version, quantization={"kvCache": cache})
        yield Bad(f"kvCache {cache}", pool.parsed(), "is no type of vLLM 0.32", "refuses", version)
    for label, field, value in (
        ("Tesla-T4", "weights", "mxfp4"), ("Tesla-T4", "weights", "modelopt"), ("Tesla-T4", "kvCache", "fp8"),
        ("Tesla-T4", "kvCache", "bfloat16"), ("NVIDIA-A10G", "weights", "nvfp4_per_token"),
        ("NVIDIA-A100-SXM4-80GB", "kvCache", "fp8_per_token_head"), ("NVIDIA-L40S", "kvCache", "nvfp4_4over6"),
        ("NVIDIA-L40S", "kvCache", "fp8_ds_mla"),
    ):  # fmt: skip
        pool = _on(_pool(quantization={field: value}), label)
        yield Bad(f"{field} {value} on {label}", pool.parsed(), "needs compute capability", "cannot say")
    for value in ("gptq_marlin", "humming", "experts_int8"):
        pool = _on(_pool(quantization={"weights": value}), "AMD_Instinct_MI300X_OAM", "amd.com/gpu")
        yield Bad(f"weights {value} on MI300X", pool.parsed(), "does not run on", "cannot say")
    for field, value in (
        ("weights", "fp8"), ("weights", "mxfp8"), ("weights", "mxfp4"), ("kvCache", "fp8_inc"),
        ("kvCache", "int8_per_token_head"), ("kvCache", "nvfp4"),
    ):  # fmt: skip
        pool = _on(_pool(quantization={field: value}), resource="cpu")
        yield Bad(f"{field} {value} on a CPU", pool.parsed(), "does not run on a CPU", "takes")
    deprecated = _pool(quantization={"weights": "fbgemm_fp8"})
    yield Bad("deprecated weights", deprecated.parsed(), "is about to drop")
    yield Bad("online without formats", _pool(quantization={"weights": "online"}).parsed(), "which says no format")


def _combined() -> Iterator[Bad]:
    """Settings that exclude each other."""
    ngram = {"method": "ngram", "tokens": 4}
    draft = {"method": "draft_model", "tokens": 4, "model": "hf://acme/draft"}
    yield Bad(
        "a variant's sequences above the pool's batch",
        _pool(maxBatchedTokens=256).variant("only", engine={"maxSequences": 512}).parsed(),
        "less than spec.variants[only].engine.maxSequences, 512",
    )
    small = _on(_pool(maxSequences=4096), "NVIDIA-L40S")
    yield Bad("sequences above a small GPU's batch", small.parsed(), "more than the 2048 tokens of a step")
    one = _pool(maxSequences=1, maxBatchedTokens=1, speculativeDecoding=draft)
    yield Bad("no slot for drafts", one.parsed(), "leaves no room for drafts")
    eagle = {"method": "eagle3", "tokens": 4, "model": "hf://acme/eagle"}
    yield Bad(
        "a batch within the drafts",
        _pool("0.33", maxSequences=1, maxBatchedTokens=4, speculativeDecoding=eagle).parsed(),
        "not more than spec.engine.speculativeDecoding.tokens, 4",
        version="0.33",
    )
    wide = _pool(maxSequences=512, maxBatchedTokens=2048, speculativeDecoding=ngram).model(lora=LORA)
    yield Bad("drafts and adapters above the batch", wide.parsed(), "needs steps of 2560 tokens")
    yield _extra(
        "--no-enable-chunked-prefill",
        "has prompts computed in one step",
        "refuses",
        maxBatchedTokens=256,
        maxContextTokens=512,
    )
    yield _extra("--max-num-active-seqs=9", "is more than spec.engine.maxSequences, 8", "refuses", maxSequences=8)
    yield _extra(
        "--long-prefill-token-threshold=600",
        "is more than spec.engine.maxContextTokens",
        "refuses",
        maxContextTokens=512,
    )
    yield _extra("--async-scheduling", "cannot be combined with", "refuses", speculativeDecoding=ngram)
    yield _extra("--async-scheduling", "cannot be combined with", "refuses", "0.33", speculativeDecoding=ngram)
    yield _extra("--per-request-spec-decode-metrics=summary", "needs spec.engine.speculativeDecoding", "refuses")
    yield _extra(
        "--dtype=float32",
        "cannot be combined with spec.engine.quantization.weights fp8",
        "refuses",
        quantization={"weights": "fp8"},
    )
    yield _extra("--dtype=half", "which works with bfloat16", "refuses", quantization={"weights": "mxfp4"})
    yield _extra("--dtype=bfloat16", "kvCache float16", "refuses", "0.33", quantization={"kvCache": "float16"})
    servers = _pool(extraArgs=["--api-server-count=2"]).model(lora=LORA)
    yield Bad("servers and adapters", servers.parsed(), "adapters are loaded in one server", "takes")
    mega = _pool("0.33", extraArgs=["--moe-backend=deep_gemm_mega_moe"]).model(lora=LORA)
    yield Bad("one large kernel and adapters", mega.parsed(), "cannot be combined with spec.model.lora", version="0.33")
    turing = _on(_pool(extraArgs=["--dtype=bfloat16"]), "Tesla-T4")
    yield Bad("bfloat16 on a T4", turing.parsed(), "Use --dtype=half", "cannot say")
    pipeline = _on(_pool(), resource="cpu", parallelism={"pipeline": 2})
    yield Bad("a pipeline on a CPU", pipeline.parsed(), "fails the first request", "takes")
    adapters = _on(_pool(maxSequences=2).model(lora=LORA), resource="cpu")
    yield Bad("adapters on a CPU", adapters.parsed(), "with an adapter's weights", "takes")
    verdicts: tuple[tuple[str, str, Does], ...] = (
        ("--enable-sleep-mode", "needs a GPU", "refuses"),
        ("--kv-offloading-size=4", "needs a GPU", "takes"),
        ("--block-size=16", "is no multiple of 32", "takes"),
    )
    for argument, words, does in verdicts:
        pool = _on(_pool(extraArgs=[argument]), resource="cpu")
        yield Bad(f"{argument} on a CPU", pool.parsed(), words, does)


def _sources() -> Iterator[Bad]:
    """Addresses that nothing is loaded from; the lines of these are not shown to vLLM, which has no such model."""
    for uri in (
        "hf://https://hub.example/org/name", "hf://org/name@main", "hf://a/b/c", "pvc://Claim/path", "pvc://claim/../x",
        "s3://B", "oci://Registry/x",
    ):  # fmt: skip
        yield Bad(uri, _pool().model(uri=uri, revision=None).parsed(), "is no address of a checkpoint", "cannot say")
    for adapter, words in (
        ({"name": "sql", "uri": "s3://bucket/sql"}, "from hf:// and pvc:// only"),
        ({"name": "chat", "uri": "hf://acme/sql"}, "is the pool's own name"),
    ):
        pool = _pool().model(lora={"adapters": [adapter]})
        yield Bad(f"adapter {adapter['name']}", pool.parsed(), words, "cannot say")
