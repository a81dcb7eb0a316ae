"""What the operator renders for an engine is what vLLM's own parser takes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.render.engine_args import engine_arguments, engine_problems
from hack.vllm import environment
from tests.builders.resources import PoolBuilder, make_pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PROGRAM = Path(environment.__file__).with_name("check_arguments.py")
DRAFT = "hf://org/draft"


def pool(**engine: object) -> PoolBuilder:
    return make_pool("chat").engine(**engine)


POOLS = {
    "plain": pool(),
    "sizes": pool(maxContextTokens=16384, maxSequences=256, maxBatchedTokens=8192, memoryUtilizationPercent=85),
    "no prefix cache": pool(prefixCaching="Disabled"),
    **{
        f"weights {value}": pool(quantization={"weights": value})
        for value in ("fp8", "awq", "gptq", "compressed-tensors")
    },
    **{f"kv {value}": pool(quantization={"kvCache": value}) for value in ("fp8", "fp8_e4m3", "fp8_e5m2", "auto")},
    "ngram": pool(speculativeDecoding={"method": "ngram", "tokens": 4}),
    "ngram to a size": pool(maxSequences=64, speculativeDecoding={"method": "ngram", "tokens": 4, "maxBatchSize": 16}),
    "mtp": pool(speculativeDecoding={"method": "mtp", "tokens": 1}),
    **{
        method: pool(speculativeDecoding={"method": method, "tokens": 3, "model": DRAFT})
        for method in ("draft_model", "eagle3")
    },
    "parallel": pool().variant("tp", parallelism={"tensor": 2, "pipeline": 2}),
    "extra": pool(extraArgs=["--reasoning-parser=qwen3", "--enforce-eager"]),
    "revision": pool().model(uri="hf://org/name", revision="0e9e39f249a16976918f6564b8830bc894c89659"),
    "streamed": pool().model(uri="s3://bucket/model"),
}


def rendered(found: ModelPool) -> list[list[str]]:
    return [list(engine_arguments(found.name, found.spec, variant)) for variant in found.spec.variants]


def faults(lines: list[list[str]]) -> list[str]:
    """What vLLM says of each command line; empty where it takes it."""
    env = {**os.environ, **environment.ENGINE_SETTINGS, "VLLM_LOGGING_LEVEL": "ERROR"}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    command = [str(environment.install().python), str(PROGRAM)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=300, env=env)
    return done.stdout.splitlines()


def test_vllm_takes_every_kind_of_line_that_is_rendered_and_refuses_a_wrong_one() -> None:
    found = {name: builder.parsed() for name, builder in POOLS.items()}
    assert {name: [p for p in engine_problems(one.spec) if not p.warning] for name, one in found.items()} == {
        name: [] for name in POOLS
    }
    lines = [(name, line) for name, one in found.items() for line in rendered(one)]
    said = faults([*(line for _, line in lines), ["org/name", "--max-num-seqs=many"]])
    assert len(said) == len(lines) + 1
    assert [(name, words) for (name, _), words in zip(lines, said, strict=False) if words] == []
    assert "max-num-seqs" in said[-1]
