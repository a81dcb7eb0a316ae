"""vLLM's own word on command lines: its parser, and its configuration where a folder stands in for the model."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide.engine_table.hardware import device_of
from fairlead_operator.decide.engine_table.versions import KNOWN, version_of
from fairlead_operator.render.engine_args import engine_arguments
from hack.vllm import environment, newer
from tests.bench.engine_args.folders import EAGLE, MTP, NOT_HERE, checkpoint, folder

PROGRAM = Path(environment.__file__).with_name("check_arguments.py")
SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Line:
    """A rendered command line, and the folders that stand in; without ``model`` it is only parsed."""

    arguments: tuple[str, ...]
    model: Path | None = None
    draft: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As the program reads it."""
        put_in = {"model": str(self.model), "draft": str(self.draft), "defaults": self.defaults} if self.model else {}
        return json.dumps({"arguments": self.arguments, **put_in})


@dataclass(frozen=True, slots=True)
class Folders:
    """Where folders are made, from a small model of hack/models."""

    root: Path
    tiny: Path


def line(pool: ModelPool, folders: Folders) -> Line:
    """The line of a pool's first variant as it is rendered, with the folders that fit it."""
    spec, variant = pool.spec, pool.spec.variants[0]
    engine = spec.engine_of(variant)
    arguments = engine_arguments(pool.name, spec, variant)
    weights = engine.quantization.weights if engine.quantization else None
    if weights in NOT_HERE:
        return Line(arguments)
    drafting = engine.speculative_decoding
    shape = MTP if drafting is not None and drafting.method == "mtp" else None
    drafted = EAGLE if drafting is not None and drafting.method == "eagle3" else None
    model = folder(folders.root, folders.tiny, checkpoint(weights), shape)
    return Line(arguments, model, folder(folders.root, folders.tiny, None, drafted), _defaults(pool))


def _defaults(pool: ModelPool) -> Mapping[str, Any]:
    """What vLLM would take by itself on the pool's hardware, which is not here, and the type of the model."""
    spec, variant = pool.spec, pool.spec.variants[0]
    engine, device = spec.engine_of(variant), device_of(variant)
    cache = engine.quantization.kv_cache if engine.quantization else None
    halved = cache == "float16" and version_of(engine.image or "") != KNOWN[0]
    sequences, tokens = device.default_batches[0]
    sequences = min(sequences, engine.max_batched_tokens or sequences)
    times = variant.parallelism.accelerators if device.platform == "cpu" else 1
    sizes = {"max_num_seqs": sequences * times, "max_num_batched_tokens": tokens * times}
    return {**sizes, "dtype": "float16" if halved else "bfloat16"}


def settings(version: str) -> Mapping[str, str]:
    """Environment variables under which the interpreter of the CPU build has that version."""
    return environment.ENGINE_SETTINGS if environment.VERSION.startswith(version) else newer.settings(newer.install())


def faults(version: str, lines: Sequence[Line], cache: Path) -> list[str]:
    """What vLLM says against each line; empty where it takes it."""
    env = {**os.environ, **settings(version), "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CACHE_ROOT": str(cache / version)}
    command: list[Any] = [str(environment.install().python), str(PROGRAM)]
    text = "".join(f"{one.text}\n" for one in lines)
    done = subprocess.run(
        ["nice", *command], input=text, capture_output=True, text=True, check=True, timeout=SECONDS, env=env
    )
    said = done.stdout.splitlines()
    if len(said) != len(lines):
        raise RuntimeError(f"vLLM {version} answered {len(said)} of {len(lines)} lines: {done.stderr[-500:]}")
    return said
