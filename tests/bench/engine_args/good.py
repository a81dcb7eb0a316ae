"""What can be set, dimension by dimension, and the pools that set every two of it together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide.engine_table.formats import CACHE_TYPES, WEIGHTS
from fairlead_operator.decide.engine_table.versions import KNOWN
from fairlead_operator.decide.problems import errors
from fairlead_operator.render.engine_args import engine_problems
from tests.bench.engine_args.pairs import Choice, rows
from tests.builders.resources import make_pool

Patch = Mapping[str, Any]
"""Fields by part of the pool: model, engine, variant."""
ADAPTER = {"name": "sql", "uri": "hf://acme/sql"}


def _engine(**fields: Any) -> Patch:
    return {"engine": fields}


def _hardware(product_label: str = "", resource: str = "nvidia.com/gpu") -> Patch:
    labels = {"nodeSelector": {"nvidia.com/gpu.product": product_label}} if product_label else {}
    return {"variant": {"accelerator": {"resourceName": resource}, **labels}}


def _drafting(**fields: Any) -> Patch:
    return _engine(speculativeDecoding=fields)


NEEDED = {
    "online": ['--quantization-config={"linear":"fp8_per_block"}'],
    "fbgemm_fp8": ["--allow-deprecated-quantization"],
    "fp_quant": ["--allow-deprecated-quantization"],
}
"""What some weights need in extraArgs."""

DIMENSIONS: Mapping[str, Mapping[str, Patch]] = {
    "hardware": {
        "unknown": {},
        "H100": _hardware("NVIDIA-H100-80GB-HBM3"),
        "L40S": _hardware("NVIDIA-L40S"),
        "A100": _hardware("NVIDIA-A100-SXM4-80GB"),
        "T4": _hardware("Tesla-T4"),
        "B200": _hardware("NVIDIA-B200"),
        "MI300X": _hardware("AMD_Instinct_MI300X_OAM", "amd.com/gpu"),
        "cpu": _hardware(resource="cpu"),
    },
    "weights": {"none": {}, **{name: _engine(weights=name) for name in WEIGHTS}},
    "kvCache": {"none": {}, **{name: _engine(kvCache=name) for name in CACHE_TYPES}},
    "source": {
        "hf": {},
        "hf, a commit": {"model": {"revision": "0e9e39f249a16976918f6564b8830bc894c89659"}},
        "pvc": {"model": {"uri": "pvc://weights/llama/8b", "revision": None}},
        "s3": {"model": {"uri": "s3://bucket/llama", "revision": None}},
        "gs": {"model": {"uri": "gs://bucket/llama", "revision": None}},
        "oci": {"model": {"uri": "oci://registry.example/llama:v1", "revision": None}},
    },
    "context": {"none": {}, **{str(size): _engine(maxContextTokens=size) for size in (128, 2048)}},
    "sequences": {"none": {}, **{str(size): _engine(maxSequences=size) for size in (1, 64, 2048)}},
    "batched": {"none": {}, **{str(size): _engine(maxBatchedTokens=size) for size in (1, 2048, 16384)}},
    "memory": {"92": {}, **{str(size): _engine(memoryUtilizationPercent=size) for size in (10, 99)}},
    "caching": {"Enabled": {}, "Disabled": _engine(prefixCaching="Disabled")},
    "drafting": {
        "none": {},
        "ngram": _drafting(method="ngram", tokens=4),
        "ngram to 16": _drafting(method="ngram", tokens=4, maxBatchSize=16),
        "ngram to 512": _drafting(method="ngram", tokens=32, maxBatchSize=512),
        "draft hf": _drafting(method="draft_model", tokens=1, model="hf://acme/draft"),
        "draft s3": _drafting(method="draft_model", tokens=8, model="s3://bucket/draft", maxBatchSize=8),
        "eagle3": _drafting(method="eagle3", tokens=3, model="pvc://weights/eagle"),
        "mtp": _drafting(method="mtp", tokens=1),
    },
    "parallel": {
        "1": {},
        **{f"{t}x{p}": {"variant": {"parallelism": {"tensor": t, "pipeline": p}}} for t, p in ((2, 1), (1, 2), (2, 2))},
    },
    "lora": {
        "none": {},
        "small": {"model": {"lora": {"adapters": [ADAPTER]}}},
        "large": {"model": {"lora": {"maxRank": 256, "maxActive": 64, "adapters": [ADAPTER]}}},
    },
    "extraArgs": {
        "none": {},
        "parser": _engine(
            extraArgs=["--reasoning-parser=qwen3", "--enable-auto-tool-choice", "--tool-call-parser=hermes"]
        ),
        "eager": _engine(extraArgs=["--enforce-eager", "--kv-cache-memory-bytes=16M", "--seed=1"]),
        "half": _engine(extraArgs=["--dtype=half"]),
        "float": _engine(extraArgs=["--dtype=float32"]),
        "priority": _engine(extraArgs=["--scheduling-policy=priority", "--max-num-queued-reqs=8"]),
        "async off": _engine(extraArgs=["--no-async-scheduling", "--stream-interval=4"]),
        "json": _engine(extraArgs=["--compilation-config.mode=0", '--override-generation-config={"temperature":0}']),
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A pool for one version of vLLM, and what it sets by dimension."""

    chosen: Mapping[str, str]
    version: str
    pool: ModelPool


def built(chosen: Mapping[str, str], version: str) -> ModelPool:
    """The pool that sets these values."""
    patches = [DIMENSIONS[name][value] for name, value in chosen.items()]
    model = {key: value for patch in patches for key, value in patch.get("model", {}).items()}
    engine = {key: value for patch in patches for key, value in patch.get("engine", {}).items()}
    variant = {key: value for patch in patches for key, value in patch.get("variant", {}).items()}
    quantization = {key: engine.pop(key) for key in ("weights", "kvCache") if key in engine}
    extra = [*engine.pop("extraArgs", []), *NEEDED.get(quantization.get("weights", ""), [])]
    pool = make_pool("chat").engine(
        image=f"vllm/vllm-openai:v{version}.0",
        **engine,
        **({"quantization": quantization} if quantization else {}),
        extraArgs=extra,
    )
    return pool.model(**model).variant("only", **variant).parsed()


def accepted(pool: ModelPool) -> bool:
    """Whether nothing is refused."""
    return not errors(engine_problems(pool.spec, pool.name))


def cases(*, small: bool = False) -> Iterator[Case]:
    """Every two values that go together, in some pool, for each version; ``small``: without the two long dimensions."""
    names = [name for name in DIMENSIONS if not (small and name in {"weights", "kvCache"})]
    values = {name: list(DIMENSIONS[name]) for name in names}
    for version in KNOWN:
        found = rows([len(values[name]) for name in names], partial(_fit, names, values, version))
        chosen = [{name: values[name][number] for name, number in zip(names, row, strict=True)} for row in found]
        pools = [(one, built(one, version)) for one in chosen]
        # What three values exclude is shown two by two, without the third.
        alone = {pair for one, pool in pools if not accepted(pool) for pair in combinations(one.items(), 2)}
        alone -= {pair for one, pool in pools if accepted(pool) for pair in combinations(one.items(), 2)}
        pools += [(dict(pair), built(dict(pair), version)) for pair in sorted(alone)]
        yield from (Case(one, version, pool) for one, pool in pools if accepted(pool))


def refused_pairs() -> Iterator[tuple[str, dict[str, str]]]:
    """Every two values that do not go together, by version."""
    names = list(DIMENSIONS)
    for version, (one, other) in product(KNOWN, _pairs(names)):
        for left, right in product(DIMENSIONS[one], DIMENSIONS[other]):
            if not accepted(built({one: left, other: right}, version)):
                yield version, {one: left, other: right}


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]


def _fit(names: list[str], values: Mapping[str, list[str]], version: str, one: Choice, other: Choice) -> bool:
    chosen = {names[dimension]: values[names[dimension]][value] for dimension, value in (one, other)}
    return accepted(built(chosen, version))
