"""What ``fairlead explain pool`` says of tokens that are drafted ahead of the model."""

import math
import re
from collections.abc import Mapping

from fairlead_operator.api.v1alpha1 import ModelPoolSpec
from fairlead_operator.api.v1alpha1.modelpool import SpeculativeDecoding
from fairlead_operator.decide.speculation import GAIN, LEAST_DRAFTS, Advice, Judgement, Missing
from fairlead_operator.telemetry import DRAFTING

MORE = " " * 11
_SAMPLE = re.compile(r"^fairlead_pool_draft_([a-z_]+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_FIELDS: Mapping[str, str] = {suffix: field for suffix, _, field in DRAFTING}
_COUNTS = frozenset({"tokens", "max_batch"})
_MISSING: Mapping[Missing, str] = {
    Missing.COUNTERS: "unknown: no engine has told yet what it drafted",
    Missing.DRAFTS: f"unknown: fewer than {LEAST_DRAFTS} drafts in the last minutes",
    Missing.STEP: "how much faster that is is unknown: no engine has shown yet how long its steps take",
    Missing.COST: (
        "how much faster that is is unknown: what drafting takes cannot be told from the names of the model, "
        "the draft model and the accelerator"
    ),
}


def parse_drafts(text: str, pool: str) -> dict[str, Judgement]:
    """What an exposition of the operator's metrics says of a pool's drafts, by variant; nothing if it names none."""
    figures: dict[str, dict[str, float]] = {}
    verdicts: dict[str, tuple[Advice, Missing]] = {}
    for name, labels, value in _SAMPLE.findall(text):
        read = dict(_LABEL.findall(labels))
        if read.get("pool") != pool:
            continue
        try:
            number, variant = float(value), read["variant"]
            if math.isnan(number):
                continue
            if name == "advice":
                verdicts[variant] = Advice(read["advice"]), Missing(read["missing"])
            elif name in _FIELDS:
                figures.setdefault(variant, {})[_FIELDS[name]] = number
        except (ValueError, KeyError):
            continue
    return {variant: _judgement(*verdict, figures.get(variant, {})) for variant, verdict in verdicts.items()}


def _judgement(advice: Advice, missing: Missing, figures: Mapping[str, float]) -> Judgement:
    counts = {name: int(max(0.0, min(figures.get(name, 0.0), 1e6))) for name in _COUNTS}
    rest = {name: value for name, value in figures.items() if name not in _COUNTS}
    return Judgement(advice, missing, tokens=counts["tokens"], max_batch=counts["max_batch"], **rest)


def draft_lines(spec: ModelPoolSpec, drafts: Mapping[str, Judgement] | None) -> list[str]:
    """The lines of every variant that drafts; ``None``: nobody was asked what comes of it."""
    lines: list[str] = []
    for variant in spec.variants:
        chosen = spec.engine_of(variant).speculative_decoding
        if chosen is None:
            continue
        limit = f" up to batch {chosen.max_batch_size}" if chosen.max_batch_size is not None else ""
        lines.append(f"  drafts   {variant.name}: {chosen.method}, {_tokens(chosen.tokens)} at a time{limit}")
        if drafts is None:
            lines.append(f"{MORE}what comes of it is shown with --metrics")
        else:
            judged = drafts.get(variant.name, Judgement(Advice.UNKNOWN, Missing.COUNTERS))
            lines += [f"{MORE}{text}" for text in _words(judged, chosen)]
    return lines


def _words(judged: Judgement, chosen: SpeculativeDecoding) -> list[str]:
    kept = []
    if judged.acceptance is not None and judged.length is not None:
        kept = [f"{100 * judged.acceptance:.0f}% of the drafted tokens are kept, {judged.length:.2f} tokens a step"]
    if judged.missing:
        idle = judged.batch is not None and chosen.max_batch_size is not None and judged.batch > chosen.max_batch_size
        why = f"; at batch {judged.batch:.1f} nothing is drafted" if idle else ""
        return [*kept, f"{_MISSING[judged.missing]}{why}"]
    return [*kept, _speed(judged), _advice(judged, chosen)]


def _speed(judged: Judgement) -> str:
    cost = f", {judged.usd_per_million:.2f} USD a million output tokens" if judged.usd_per_million is not None else ""
    times = f"{judged.speed_up or 0:.2f} times as fast as without at batch {judged.batch or 0:.1f}, estimated{cost}"
    match judged.pays_below:
        case None:
            return times
        case below if below >= 1e6:  # noqa: PLR2004 - more than any engine runs at once
            return f"{times}; faster at every batch"
        case below if below < 1:
            return f"{times}; slower at every batch"
        case below:
            return f"{times}; slower above batch {below:.0f}"


def _advice(judged: Judgement, chosen: SpeculativeDecoding) -> str:
    field = "speculativeDecoding"
    match judged.advice:
        case Advice.MORE:
            guess = f"; what is kept beyond {chosen.tokens} is guessed"
            return f"ADVICE   {field}.tokens: {judged.tokens}: {_gain(judged)}{guess}"
        case Advice.FEWER:
            return f"ADVICE   {field}.tokens: {judged.tokens}: {_gain(judged)}"
        case Advice.OFF:
            return f"ADVICE   remove {field}: even a single sequence is slower with drafts: {_gain(judged)}"
        case Advice.LIMIT if judged.max_batch:
            return f"ADVICE   {field}.maxBatchSize: {judged.max_batch}, up to which drafts pay: {_gain(judged)}"
        case Advice.LIMIT:
            return f"ADVICE   remove {field}.maxBatchSize: drafts pay at every batch: {_gain(judged)}"
        case Advice.KEEP | Advice.UNKNOWN:
            return f"keep it: no other number of tokens is {100 * (GAIN - 1):.0f}% faster"


def _gain(judged: Judgement) -> str:
    """What the advice promises now; money only where it is more than nothing."""
    if judged.speed_up_advised == judged.speed_up:
        return "the same at the present batch"
    text = f"{judged.speed_up_advised or 0:.2f} times as fast"
    if judged.usd_per_million_advised is None or judged.usd_per_hour is None:
        return f"{text}, cost unknown"
    return (
        f"{text}, {judged.usd_per_million_advised:.2f} USD a million output tokens, "
        f"{judged.usd_per_hour:.2f} USD/h less at the present load if the replicas follow"
    )


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
