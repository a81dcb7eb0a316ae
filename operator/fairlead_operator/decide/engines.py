"""How fast a replica of each variant is: a seed from the model's name and the accelerator's data sheet, then a fit.

Every engine tells its own router how long its steps took, what it computed and how large its KV cache is; from two such
readings follows one round of the fit. What no engine has told is unknown, and without any of it there is no engine to
decide by. Where tokens are drafted ahead of the model, an engine's step is taken as long as it is and divided by the
tokens that its sequences get from it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead_operator.api.v1alpha1 import ModelPoolSpec, Variant
from fairlead_operator.api.v1alpha1.modelpool import SpeculativeDecoding
from fairlead_operator.decide.engine_table.hardware import BATCHES, default_batch
from fairlead_operator.decide.replicas import sequences_of
from fairlead_operator.decide.signals import Report
from fairlead_operator.decide.speculation import LEAST_DRAFTS, Counted, count
from fairlead_operator.performance.drafting import draft_cost
from fairlead_operator.performance.fit import Memory, Round, Sample, fitted, observe, round_between, start
from fairlead_operator.performance.model_config import model_from_name
from fairlead_operator.performance.seeds import (
    HardwareFacts,
    ModelFacts,
    Seed,
    Unknown,
    engine_of,
    hardware_named,
)
from fairlead_operator.performance.step import Engine, StepTime
from fairlead_router.contract import EngineSignals

SMALL_BUDGET = BATCHES[-1][1]
"""Tokens of a step that vLLM's server takes by itself at least: where the hardware is not known."""
LONGEST_MS = 30_000
"""Between two readings of one round."""
MICRO = 1e6
PERMILLE = 1000
KEY_CHARS = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """What one engine told, and when."""

    at_ms: int
    told: EngineSignals


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of a variant's engine. ``key`` names the settings that it holds for; ``readings`` are by pod.

    ``kv_tokens`` is -1 until an engine has told it. ``seeded`` says what the seed rests on, or why there is none.
    """

    key: str
    seed: Engine | None
    seeded: str
    memory: Memory
    kv_tokens: int = -1
    cost: float | None = 0.0
    """Of drafting a token, in steps of the model; ``None``: not known."""
    counted: Counted = field(default_factory=Counted)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    at_ms: int = 0

    @property
    def reason(self) -> str:
        """What the engine rests on, for people."""
        return f"{self.seeded}; {fitted(self.memory).reason}"


def engine_key(spec: ModelPoolSpec, variant: Variant) -> str:
    """Names everything that the speed of a variant's replicas depends on."""
    parts = (spec.model_of(variant), spec.engine_of(variant), variant.parallelism, variant.accelerator)
    text = "\n".join([*(part.model_dump_json() for part in parts), str(sorted(variant.node_selector.items()))])
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARS]


def begin(spec: ModelPoolSpec, variant: Variant, labels: Sequence[str]) -> Learned:
    """What is known before an engine has told anything. ``labels``: values of labels of the variant's nodes."""
    settings, key = spec.engine_of(variant), engine_key(spec, variant)
    model, hardware = _model(spec, variant), _hardware((*variant.node_selector.values(), *labels))
    cost = _cost(settings.speculative_decoding, model, hardware, variant)
    seed = _seed(spec, variant, model, hardware)
    if isinstance(seed, Unknown):
        return Learned(key, None, seed.reason.rstrip("."), start(None), cost=cost)
    tokens = settings.speculative_decoding.tokens if settings.speculative_decoding is not None else 0
    engine = replace(seed.engine, step=_longer(seed.engine.step, 1 + tokens * (cost or 0.0)))
    return Learned(key, engine, "; ".join(seed.reasons), start(engine.step), cost=cost)


def learn(known: Learned, reports: Mapping[str, Report], now_ms: int) -> Learned:
    """What is known after the engines' newest readings; ``reports`` are those of the variant's pods that serve."""
    readings = {
        pod: Reading(report.received_ms, report.signals.engine)
        for pod, report in reports.items()
        if report.signals is not None and report.signals.engine is not None
    }
    pairs = [(before, after) for pod, after in readings.items() if (before := known.readings.get(pod)) is not None]
    pairs = [(before, after) for before, after in pairs if 0 < after.at_ms - before.at_ms <= LONGEST_MS]
    rounds = [one for pair in pairs if (one := _round(*pair)) is not None]
    passed_s = max(0, now_ms - known.at_ms) / 1000 if known.at_ms else 0.0
    told = [reading.told.kv_tokens for reading in readings.values() if reading.told.kv_tokens > 0]
    return replace(
        known,
        memory=observe(known.memory, rounds, passed_s),
        counted=count(
            known.counted, [(one.told, two.told, (two.at_ms - one.at_ms) / 1000) for one, two in pairs], passed_s
        ),
        kv_tokens=min(told, default=known.kv_tokens),
        readings=readings,
        at_ms=now_ms,
    )


def engine_now(known: Learned, spec: ModelPoolSpec, variant: Variant) -> Engine | None:
    """The engine to decide by; ``None`` while its steps or its KV cache are not known.

    With a maxBatchSize below the sequences of a replica it is the engine without drafts, as it is when it is full.
    """
    step = fitted(known.memory).step
    tokens = known.kv_tokens if known.kv_tokens > 0 else known.seed.kv_tokens if known.seed is not None else 0
    if step is None or tokens <= 0 or step.base <= 0:
        return None
    settings = spec.engine_of(variant)
    budget = settings.max_batched_tokens or (known.seed.token_budget if known.seed is not None else SMALL_BUDGET)
    engine = Engine(step, tokens, budget, sequences_of(spec, variant))
    drafts = settings.speculative_decoding
    return engine if drafts is None else _yielding(engine, known, drafts)


def _yielding(engine: Engine, known: Learned, drafts: SpeculativeDecoding) -> Engine:
    """The engine with its step divided by the tokens that a sequence gets from it; one, until enough were drafted."""
    if drafts.max_batch_size is not None and drafts.max_batch_size < engine.max_sequences:
        return replace(engine, step=_longer(engine.step, 1 / (1 + drafts.tokens * (known.cost or 0.0))))
    counted, known_yield = known.counted, known.counted.drafts >= LEAST_DRAFTS
    tokens = counted.tokens_per_step if known_yield else 1.0
    computed = 1 + (counted.drafted_per_step if known_yield else drafts.tokens)
    each = StepTime(
        engine.step.base / tokens, engine.step.per_context_token / tokens, engine.step.per_token * computed / tokens
    )
    return replace(engine, step=each, token_budget=max(1, int(engine.token_budget / tokens)))


def _longer(step: StepTime, times: float) -> StepTime:
    """A step whose reading of weights and context takes so many times as long."""
    return StepTime(step.base * times, step.per_context_token * times, step.per_token)


def _model(spec: ModelPoolSpec, variant: Variant) -> ModelFacts | Unknown:
    words = spec.engine_of(variant).quantization
    return model_from_name(spec.model_of(variant).uri, quantization=words.weights if words is not None else None)


def _cost(
    drafts: SpeculativeDecoding | None, model: ModelFacts | Unknown, hardware: HardwareFacts | Unknown, variant: Variant
) -> float | None:
    """Of drafting a token; ``None`` where a model or the hardware is not known."""
    if drafts is None or drafts.method == "ngram":
        return 0.0
    if isinstance(model, Unknown) or isinstance(hardware, Unknown):
        return None
    draft = model_from_name(drafts.model) if drafts.model is not None else None
    found = draft_cost(drafts.method, model, draft, hardware, variant.parallelism.accelerators)
    return None if isinstance(found, Unknown) else found


def _seed(
    spec: ModelPoolSpec, variant: Variant, model: ModelFacts | Unknown, hardware: HardwareFacts | Unknown
) -> Seed | Unknown:
    if isinstance(model, Unknown):
        return model
    if isinstance(hardware, Unknown):
        return hardware
    settings = spec.engine_of(variant)
    words = settings.quantization
    return engine_of(
        model,
        hardware,
        accelerators=variant.parallelism.accelerators,
        kv_value_bytes=1 if words is not None and (words.kv_cache or "").startswith("fp8") else 2,
        token_budget=settings.max_batched_tokens or default_batch(hardware.name, hardware.memory)[1],
        max_sequences=sequences_of(spec, variant),
    )


def _hardware(labels: Iterable[str]) -> HardwareFacts | Unknown:
    """By the first label that names an accelerator."""
    named = [hardware_named(label) for label in labels]
    found = next((one for one in named if not isinstance(one, Unknown)), None)
    return found or Unknown("No label of the variant's nodes names an accelerator whose data sheet is known.")


def _round(before: Reading, after: Reading) -> Round | None:
    """What an engine did between two readings that follow each other; ``None`` if it did not tell."""
    first, last = _sample(before.told), _sample(after.told)
    if first is None or last is None:
        return None
    return round_between(first, last, (after.at_ms - before.at_ms) / 1000)


def _sample(told: EngineSignals) -> Sample | None:
    numbers = (told.gaps_total, told.gaps_us_total, told.computed_total, told.running, told.kv_permille)
    if min(numbers) < 0 or told.kv_tokens <= 0:
        return None
    gaps, gaps_us, computed, running, permille = numbers
    # A step computes the tokens that were drafted in it, beside one for each sequence, like those of prompts.
    computed += max(0, told.draft_tokens_total)
    return Sample(gaps_us / MICRO, gaps, computed, running, permille * told.kv_tokens / PERMILLE)
