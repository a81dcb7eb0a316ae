"""Whether a variant's replicas can start: weights, one request's KV cache and vLLM's reserve in each accelerator.

    memory × memoryUtilizationPercent  ≥  weights + KV cache of one request of full context + reserve

is what vLLM asks at its start (v1/worker/gpu_worker.py, v1/core/kv_cache_utils.py of 0.32). The weights and the cache
are arithmetic; the reserve, which vLLM measures, is estimated. So a spec is refused only if it would not start with
``LEAST_RESERVE`` of the estimate either, and only by facts that were read or are on record; else it is warned of.
What is not known is said as such, and stops nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from fairlead_operator.api.v1alpha1 import Engine, EventReason, Reason
from fairlead_operator.api.v1alpha1.modelpool import Parallelism
from fairlead_operator.decide.engine_table.hardware import default_batch
from fairlead_operator.decide.problems import Problem
from fairlead_operator.performance.seeds import ModelFacts, Unknown

GIB: Final = 2**30
MIB: Final = 2**20
BLOCK_TOKENS: Final = 16
LEAST_CONTEXT: Final = 128
"""The API takes no smaller one."""
TYPICAL_TOKENS: Final = 1024
"""Prompt and output of a request, where there is only a hint to give."""
RUNTIME: Final = 0.6 * GIB
"""Of an accelerator: what libraries and communication take beside PyTorch's allocator."""
HIDDEN_BYTES: Final = 6
SHARED_HIDDEN_BYTES: Final = 34
"""Of activations, for each token of a step and value of the hidden size: kept whole, and shared by tensor parallelism.

Fitted with the other constants of the reserve to the profiles that vLLM prints at its start (tests/unit/test_decide_fit
has them): 1.3 GiB for 8192 tokens of Llama 3 8B."""
LOGIT_BYTES: Final = 9.6
"""Of sampling, for each request of a step and word of the vocabulary."""
GRAPH_BYTES: Final = 10 * MIB
"""Of CUDA graphs, for each layer."""
LEAST_RESERVE: Final = 0.6
"""The share of the estimate that vLLM reserves at least."""
WIDEST: Final = 8
"""Accelerators of one node, as far as advice goes."""
UNCOUNTED: Final = (
    "--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--cpu-offload-gb", "--offload-backend", "--hf-overrides",
    "--dtype", "--quantization-config", "--kv-cache-dtype-skip-layers", "--decode-context-parallel-size",
    "--prefill-context-parallel-size", "--nnodes",
)  # fmt: skip
"""Arguments that change what fits in ways that are not computed here."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One accelerator's memory as its driver reports it; ``fp8``: it computes in that format."""

    name: str
    mib: int
    fp8: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant to be judged.

    ``certain``: the model is read or on record, not taken for what its name resembles. ``fault`` says why the method
    of the spec's weights cannot load the checkpoint, empty if it can or that is not known; ``doubt`` the same by no
    more than the model's name.
    """

    variant: str
    engine: Engine
    parallelism: Parallelism
    model: ModelFacts | Unknown
    memory: Memory | Unknown
    certain: bool = True
    fault: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What does not fit, and in ``note`` what is not known, as a sentence; empty if all is."""

    problems: tuple[Problem, ...] = ()
    note: str = ""


def judge(candidates: Iterable[Candidate]) -> Verdict:
    """What keeps the variants' replicas from starting, each said once."""
    problems: list[Problem] = []
    unknown: dict[str, list[str]] = {}
    for one in candidates:
        problems += _doubts(one)
        found = _judged(one)
        if isinstance(found, Unknown):
            unknown.setdefault(found.reason, []).append(one.variant)
        else:
            problems += found
    clauses = [f"{reason.rstrip('.')} ({_variants(names)})" for reason, names in unknown.items()]
    note = f"Whether it fits is not known: {'; '.join(clauses)}." if clauses else ""
    return Verdict(tuple(problems), note)


def _variants(names: list[str]) -> str:
    return f"variant{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _judged(one: Candidate) -> list[Problem] | Unknown:
    if one.fault:
        return [_fault_problem(one)]
    setup = _setup(one)
    if isinstance(setup, Unknown):
        return setup
    shape = _shape_problem(one, setup)
    if shape is not None:
        return [shape]
    short = _short_problem(one, setup)
    if short is not None:
        return [short]
    return [*_few_problems(one, setup)]


def _fault_problem(one: Candidate) -> Problem:
    text = f"{_weights_text(one)}, and {one.fault}. Leave it out to use what the checkpoint says."
    return Problem(Reason.UNSUPPORTED_QUANTIZATION, text, f"spec.variants[{one.variant}]")


def _doubts(one: Candidate) -> Iterable[Problem]:
    if one.doubt:
        text = (
            f"{_weights_text(one)}, and by its name {one.doubt}: then vLLM ends when it starts. Leave it out, or name "
            "a build of the model in this format."
        )
        yield Problem(EventReason.MAY_NOT_LOAD, text, f"spec.variants[{one.variant}]", warning=True)


def _weights_text(one: Candidate) -> str:
    quantization = one.engine.quantization
    return f"Variant {one.variant}: engine.quantization.weights is {quantization and quantization.weights}"


@dataclass(frozen=True, slots=True)
class _Setup:
    """What decides about the memory of one accelerator. ``context`` is ``None`` where the model's own is not known."""

    model: ModelFacts
    memory: Memory
    tensor: int
    pipeline: int
    percent: int
    context: int | None
    cache_bytes: float
    tokens: int
    sequences: int
    graphs: bool

    @property
    def allowed(self) -> float:
        """Bytes that vLLM may use."""
        return self.memory.mib * MIB * self.percent / 100

    @property
    def stage(self) -> float:
        """The largest share of the layers that one pipeline stage has."""
        return math.ceil(self.model.layers / self.pipeline) / self.model.layers

    @property
    def weights(self) -> float:
        """Of the stage that has most: its layers, and one of the tables where there are several stages."""
        model = self.model
        table = model.embedding * 2
        tables = table * (1 if model.tied else 2)
        kept = tables if self.pipeline == 1 else table
        return (max(0.0, model.weight_bytes - tables) * self.stage + kept) / self.tensor

    @property
    def reserve(self) -> float:
        """Activations of a step and of sampling, CUDA graphs and libraries: an estimate."""
        model = self.model
        hidden = self.tokens * model.hidden * (HIDDEN_BYTES + SHARED_HIDDEN_BYTES / self.tensor)
        logits = self.sequences * (model.embedding / model.hidden) * LOGIT_BYTES
        graphs = model.layers * self.stage * GRAPH_BYTES if self.graphs else 0.0
        return RUNTIME + max(hidden, logits) + graphs

    @property
    def token_bytes(self) -> float:
        """KV cache of one token that all layers keep."""
        return self.model.kv_bytes(self.tensor, self.cache_bytes) / self.tensor * self.stage

    def cache(self, tokens: int) -> float:
        """KV cache of one request, in whole blocks; layers with a window keep it and the step's own tokens."""
        model, blocks = self.model, math.ceil(tokens / BLOCK_TOKENS) * BLOCK_TOKENS
        share = model.windowed / model.layers
        kept = min(blocks, model.window + self.tokens) if model.windowed else 0
        return self.token_bytes * (blocks * (1 - share) + kept * share)

    def room(self, reserve_share: float = 1.0) -> float:
        """Bytes that are left for the KV cache; may be negative."""
        return self.allowed - self.weights - self.reserve * reserve_share

    def fits(self, reserve_share: float = 1.0) -> bool:
        """Whether vLLM would start."""
        room = self.room(reserve_share)
        return room > 0 and (self.context is None or self.cache(self.context) <= room)

    @property
    def needed(self) -> float:
        """Bytes to start with."""
        return self.weights + self.reserve + (0.0 if self.context is None else self.cache(self.context))

    @property
    def most_context(self) -> int:
        """Tokens of the longest request that fits, in whole blocks; 0 = none."""
        room, low, high = self.room(), 0, (self.context or 0) // BLOCK_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cache(middle * BLOCK_TOKENS) <= room else (low, middle - 1)
        return low * BLOCK_TOKENS


def _setup(one: Candidate) -> _Setup | Unknown:
    """The candidate's, unless something that counts is not known."""
    if isinstance(one.memory, Unknown):
        return one.memory
    if isinstance(one.model, Unknown):
        return one.model
    odd = next((name for name in map(_name, one.engine.extra_args) if name in UNCOUNTED), None)
    if odd is not None:
        return Unknown(f"extraArgs {odd} changes it")
    quantization = one.engine.quantization
    cache_bytes = _cache_bytes(quantization.kv_cache if quantization is not None else None, one.model)
    if cache_bytes is None:
        return Unknown("how much this type of KV cache takes is not on record")
    sequences, tokens = default_batch(one.memory.name, one.memory.mib * MIB)
    return _Setup(
        model=one.model,
        memory=one.memory,
        tensor=one.parallelism.tensor,
        pipeline=one.parallelism.pipeline,
        percent=one.engine.memory_utilization_percent,
        context=one.engine.max_context_tokens or one.model.context,
        cache_bytes=cache_bytes,
        tokens=one.engine.max_batched_tokens or tokens,
        sequences=one.engine.max_sequences or sequences,
        graphs="--enforce-eager" not in one.engine.extra_args,
    )


def _name(argument: str) -> str:
    return argument.partition("=")[0]


def _cache_bytes(kind: str | None, model: ModelFacts) -> float | None:
    """Of one value; ``None`` for types that are not known."""
    match kind:
        case None | "auto":
            return model.kv_value_bytes
        case "bfloat16" | "float16":
            return 2.0
        case _ if kind.startswith(("fp8", "int8")):
            return 1.0
        case _ if kind.startswith("nvfp4"):
            return 0.5625
        case _:
            return 0.5 if kind.startswith("int4") else None


def _shape_problem(one: Candidate, setup: _Setup) -> Problem | None:
    """What cannot be shared evenly, whatever the memory."""
    heads, layers, tensor = setup.model.heads, setup.model.layers, setup.tensor
    where, whose = f"spec.variants[{one.variant}].parallelism", f"Variant {one.variant}: parallelism"
    if heads is not None and heads % tensor:
        ways = ", ".join(str(size) for size in range(1, WIDEST + 1) if heads % size == 0)
        text = f"{whose}.tensor is {tensor}, and the model's {heads} attention heads are no multiple of it. "
        return _problem(one, f"{text}Set it to one of {ways}.", f"{where}.tensor", Reason.DOES_NOT_FIT)
    if layers < setup.pipeline:
        text = f"{whose}.pipeline is {setup.pipeline}, and the model has {layers} layers. Set it to {layers} or less."
        return _problem(one, text, f"{where}.pipeline", Reason.DOES_NOT_FIT)
    return None


def _short_problem(one: Candidate, setup: _Setup) -> Problem | None:
    if setup.fits():
        return None
    reason = EventReason.MAY_NOT_FIT if setup.fits(LEAST_RESERVE) else Reason.DOES_NOT_FIT
    return _problem(one, f"{_sum_text(one, setup)} {_advice(setup)}", f"spec.variants[{one.variant}]", reason)


def _problem(one: Candidate, text: str, where: str, reason: Reason | EventReason) -> Problem:
    if reason is Reason.DOES_NOT_FIT and one.certain:
        return Problem(reason, text, where)
    doubt = (
        "" if one.certain else " The model is known only by what its name resembles, so this is no more than a hint."
    )
    return Problem(EventReason.MAY_NOT_FIT, text + doubt, where, warning=True)


def _sum_text(one: Candidate, setup: _Setup) -> str:
    parts = [f"weights {_gib(setup.weights)}"]
    if setup.context is not None:
        parts.append(f"KV cache of one {setup.context}-token request {_gib(setup.cache(setup.context))}")
    parts.append(f"activations and graphs {_gib(setup.reserve)}")
    each = " on each accelerator" if setup.tensor * setup.pipeline > 1 else ""
    return (
        f"Variant {one.variant}: {' + '.join(parts)} = {_gib(setup.needed)} GiB{each}; vLLM may use "
        f"{_gib(setup.allowed)} ({setup.percent}% of {setup.memory.mib * MIB / GIB:.2f}, {setup.memory.name})."
    )


def _advice(setup: _Setup) -> str:
    """What of the usual remedies would do, each by itself."""
    ways = [*_context_way(setup), *_format_ways(setup), *_spread_way(setup)]
    larger = f"take an accelerator with {math.ceil(setup.needed / GIB * 100 / setup.percent)} GiB"
    return f"Set {', or '.join(ways)}, or {larger}." if ways else f"{larger[0].upper()}{larger[1:]}."


def _context_way(setup: _Setup) -> Iterable[str]:
    most = setup.most_context
    if most >= LEAST_CONTEXT:
        yield f"engine.maxContextTokens to {most} or less"


def _format_ways(setup: _Setup) -> Iterable[str]:
    if not setup.memory.fp8:
        return
    smaller = replace(setup, cache_bytes=1.0)
    if setup.cache_bytes > 1 and smaller.fits():
        yield "engine.quantization.kvCache to fp8"
    if setup.model.quantization.name == "none":
        fp8 = replace(setup.model, quantization=replace(setup.model.quantization, name="fp8", bytes=1))
        if replace(setup, model=fp8).fits():
            yield "engine.quantization.weights to fp8"


def _spread_way(setup: _Setup) -> Iterable[str]:
    """The fewest accelerators that hold it, in the powers of two that nodes come in."""
    wider = setup.tensor * 2
    while wider * setup.pipeline <= WIDEST:
        even = setup.model.heads is None or setup.model.heads % wider == 0
        if even and replace(setup, tensor=wider).fits():
            yield f"parallelism.tensor to {wider}"
            return
        wider *= 2


def _few_problems(one: Candidate, setup: _Setup) -> Iterable[Problem]:
    """A hint where far fewer requests run at once than are asked for; vLLM starts all the same."""
    wanted = one.engine.max_sequences
    if wanted is None:
        return
    size = min(TYPICAL_TOKENS, setup.context or TYPICAL_TOKENS)
    held = int(setup.room() / setup.cache(size))
    if held < wanted:
        text = (
            f"Variant {one.variant}: the KV cache has room for about {held} requests of {size} tokens, and "
            f"maxSequences is {wanted}: the others wait in the engine, or are computed again. Lower maxSequences to "
            f"{max(1, held)}, or leave it if requests are shorter."
        )
        yield Problem(EventReason.FITS_FEW, text, f"spec.variants[{one.variant}]", warning=True)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
