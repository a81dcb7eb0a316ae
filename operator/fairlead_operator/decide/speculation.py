"""Whether drafting tokens ahead of the model pays on a variant's replicas, and what would pay more.

A step with drafts computes the next token of each sequence and the drafted ones, and yields as many tokens as the model
keeps of them, and one more. With b sequences, K context tokens and n drafted tokens for each sequence

    plain = base + per_context_token·K + per_token·b            without drafts
    step  = plain·(1 + n·cost) + per_token·b·n                  with them; ``cost`` of one in steps of the model
    speed-up = kept tokens a step · (plain + prompts) / (step + kept tokens a step · prompts)

where ``prompts`` is the time of the prompt tokens that come with a step's b tokens. The engine's counters say what is
kept at each place of a draft; places beyond those that are drafted now are supposed to go on falling.
What is not known is said by name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, zip_longest
from typing import Final

from fairlead_operator.performance.step import StepTime
from fairlead_router.contract import EngineSignals

HALF_LIFE_S: Final = 120.0
"""Seconds after which a count weighs half."""
LEAST_DRAFTS: Final = 200
"""Below so many, weighed by age, chance moves the shares too much."""
GAIN: Final = 1.03
"""What another setting must promise, times faster, to be advised."""
MOST_TOKENS: Final = 32
BEYOND: Final = 2
"""Up to so many times the tokens drafted now: farther off nothing is known."""
NEAR: Final = 0.8
"""A maxBatchSize within this factor of the one that pays is left as it is."""
MICRO: Final = 1e6
HOUR_S: Final = 3600
MILLION: Final = 1e6


class Advice(StrEnum):
    """What would pay more. ``UNKNOWN``: ``Judgement.missing`` says what is not known."""

    KEEP = "Keep"
    MORE = "MoreTokens"
    FEWER = "FewerTokens"
    OFF = "Off"
    LIMIT = "MaxBatchSize"
    UNKNOWN = "Unknown"


class Missing(StrEnum):
    """What a judgement lacks."""

    NOTHING = ""
    COUNTERS = "NoCounters"
    DRAFTS = "FewDrafts"
    STEP = "NoStepTime"
    COST = "NoDraftCost"


@dataclass(frozen=True, slots=True)
class Counted:
    """What engines counted lately, each count weighed by its age.

    ``steps`` are steps of sequences: a step of b sequences counts b. ``told`` says whether any engine has counters of
    drafts. ``kept`` are the drafted tokens kept, by place. ``step_s``, ``sequences`` and ``context`` are sums over the
    steps: seconds of each, and the sequences and context tokens of its batch. ``prompts`` are prompt tokens computed.
    """

    told: bool = False
    drafts: float = 0.0
    drafted: float = 0.0
    kept: tuple[float, ...] = ()
    steps: float = 0.0
    step_s: float = 0.0
    sequences: float = 0.0
    context: float = 0.0
    prompts: float = 0.0
    watched_s: float = 0.0
    """Seconds in which all this was counted, weighed alike."""

    @property
    def tokens(self) -> float:
        """Output tokens of the steps."""
        return self.steps + sum(self.kept)

    @property
    def tokens_per_step(self) -> float:
        """Mean of a sequence's step, drafted or not: 1 at least."""
        return self.tokens / self.steps if self.steps else 1.0

    @property
    def drafted_per_step(self) -> float:
        """Mean tokens drafted in a sequence's step."""
        return self.drafted / self.steps if self.steps else 0.0

    @property
    def batch(self) -> float:
        """Sequences that a step has, as a token sees it."""
        return self.sequences / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What the spec asks for; ``max_batch`` 0: drafts at every size. ``slots`` is the most sequences of a replica."""

    method: str
    tokens: int
    max_batch: int
    slots: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a variant's drafts, and what would pay more; ``None`` is unknown.

    ``acceptance`` is the share of drafted tokens that is kept, ``length`` the mean tokens of a drafted step,
    ``speed_up`` how many times as fast output comes as it would without drafts at the present ``batch``, and
    ``pays_below`` the batch from which on drafts slow down (0: they always do; inf: they never do). ``tokens`` and
    ``max_batch`` are what is advised, or what is set. USD are of a million output tokens at the present batch: as it
    runs, and as advised; ``usd_per_hour`` is what the present load would cost less if the number of replicas follows.
    """

    advice: Advice
    missing: Missing = Missing.NOTHING
    tokens: int = 0
    max_batch: int = 0
    acceptance: float | None = None
    length: float | None = None
    batch: float | None = None
    speed_up: float | None = None
    speed_up_advised: float | None = None
    pays_below: float | None = None
    usd_per_million: float | None = None
    usd_per_million_advised: float | None = None
    usd_per_hour: float | None = None


def count(counted: Counted, readings: Sequence[tuple[EngineSignals, EngineSignals, float]], passed_s: float) -> Counted:
    """The counts after ``passed_s`` seconds with these readings of engines: before, after, and seconds between."""
    passed_s = max(0.0, passed_s)
    counted = _aged(counted, 0.5 ** (passed_s / HALF_LIFE_S))
    counted = replace(counted, watched_s=counted.watched_s + passed_s)
    for before, after, seconds in readings:
        gained = _gained(before, after, seconds)
        counted = counted if gained is None else _added(counted, gained)
    return counted


def judge(
    counted: Counted, setting: Setting, step: StepTime | None, cost: float | None, usd_per_hour: float | None
) -> Judgement:
    """What the counts say of a setting.

    ``step`` is a step's time as it runs, drafts included (``None``: not known yet); ``cost`` what drafting a token
    takes in steps of the model; ``usd_per_hour`` a replica's price.
    """
    known = _shown(counted, setting)
    if known.missing:
        return known
    if step is None or step.base <= 0 or cost is None:
        return replace(known, missing=Missing.COST if cost is None else Missing.STEP)
    model = _Model(counted, setting, step, cost)
    pays_below = model.pays_below(setting.tokens)
    advice, tokens, max_batch = _advice(model, setting, pays_below)
    speed_up = model.speed_up(_drafted_at(model.batch, setting.tokens, setting.max_batch))
    advised = model.speed_up(0 if advice is Advice.OFF else _drafted_at(model.batch, tokens, max_batch))
    if advised < speed_up:  # a batch between the limit and where drafts cease to pay
        advice, tokens, max_batch, advised = Advice.KEEP, setting.tokens, setting.max_batch, speed_up
    found = replace(
        known,
        advice=advice,
        tokens=tokens,
        max_batch=max_batch,
        speed_up=speed_up,
        speed_up_advised=advised,
        pays_below=pays_below,
    )
    return (
        found
        if usd_per_hour is None
        else _priced(found, model.usd_per_million(usd_per_hour), speed_up / advised, model)
    )


def _priced(found: Judgement, usd: float, times: float, model: "_Model") -> Judgement:
    """With its dollars: ``usd`` a million tokens as it runs, so many times that as advised."""
    saved = usd * (1 - times) * model.million_tokens_per_hour
    return replace(found, usd_per_million=usd, usd_per_million_advised=usd * times, usd_per_hour=saved)


def _shown(counted: Counted, setting: Setting) -> Judgement:
    """What the counters alone say."""
    known = Judgement(Advice.UNKNOWN, tokens=setting.tokens, max_batch=setting.max_batch)
    if not counted.told:
        return replace(known, missing=Missing.COUNTERS)
    if counted.steps:
        known = replace(known, batch=counted.batch)
    if counted.drafts < LEAST_DRAFTS or min(counted.step_s, counted.watched_s) <= 0:
        return replace(known, missing=Missing.DRAFTS)
    kept = sum(counted.kept)
    return replace(known, acceptance=min(1.0, kept / counted.drafted), length=1 + kept / counted.drafts)


def _advice(model: "_Model", setting: Setting, pays_below: float) -> tuple[Advice, int, int]:
    """The advice, and the tokens and maxBatchSize that it comes to."""
    now = setting.tokens, setting.max_batch
    best = model.best()
    drafting = _drafted_at(model.batch, *now) > 0
    if pays_below < 1 and model.speed_up_at(1.0, model.best(1.0)) < 1:
        return Advice.OFF, *now
    if drafting and model.speed_up(best) >= GAIN * max(1.0, model.speed_up(setting.tokens)):
        return (Advice.MORE if best > setting.tokens else Advice.FEWER), best, setting.max_batch
    limit = max(1, min(setting.slots, int(min(pays_below, float(setting.slots)))))
    limited = setting.max_batch or setting.slots
    if not NEAR <= limit / limited <= 1 / NEAR:
        return Advice.LIMIT, setting.tokens, 0 if limit == setting.slots else limit
    return Advice.KEEP, *now


def _drafted_at(batch: float, tokens: int, max_batch: int) -> int:
    """Tokens drafted for each sequence of a batch of this size."""
    return tokens if not max_batch or batch <= max_batch else 0


class _Model:
    """A step's time and yield by the number of drafted tokens, at the mean batch of the counts."""

    def __init__(self, counted: Counted, setting: Setting, step: StepTime, cost: float) -> None:
        share = min(1.0, counted.drafts / counted.steps)
        most = min(MOST_TOKENS, BEYOND * setting.tokens)
        self._fill = min(1.0, counted.drafted / (counted.drafts * setting.tokens))
        # Where no n-gram is found nothing is drafted; other methods draft in every step that may.
        self._share = share if setting.method == "ngram" else 1.0
        shares = place_shares(kept_by_place(counted), max(most, setting.tokens))
        self._kept = [1 + self._share * total for total in accumulate(shares, initial=0.0)]
        """Tokens a step, by the number drafted."""
        self._choices = range(1, most + 1)
        self._cost = cost
        # The time as it runs has the drafts' own in it.
        drafting = 1 + share * setting.tokens * cost
        self._step = StepTime(step.base / drafting, step.per_context_token / drafting, step.per_token)
        self._context = counted.context / max(counted.sequences, 1.0)
        self._prompts = counted.prompts / counted.tokens
        self._counted = counted
        self.batch = min(counted.batch, float(setting.slots))

    def speed_up(self, tokens: int) -> float:
        """At the present batch."""
        return self.speed_up_at(self.batch, tokens)

    def speed_up_at(self, batch: float, tokens: int) -> float:
        """Times as fast as without drafts."""
        plain = self._plain(batch)
        prompts = self._step.per_token * self._prompts * batch
        step = plain * (1 + tokens * self._cost) + self._step.per_token * batch * self._verified(tokens)
        return self._kept[tokens] * (plain + prompts) / (step + self._kept[tokens] * prompts)

    def best(self, batch: float | None = None) -> int:
        """The number of tokens that is fastest."""
        at = self.batch if batch is None else batch
        return max(self._choices, key=lambda tokens: self.speed_up_at(at, tokens))

    def pays_below(self, tokens: int) -> float:
        """The batch at which a step with drafts takes as much longer as it yields more.

        There (kept - 1 - tokens·cost)·(base + each·b) = per_token·b·verified, where ``each`` is a sequence's part of a
        step. What the prompts take is the same on both sides.
        """
        gain = self._kept[tokens] - 1 - tokens * self._cost
        if gain <= 0:
            return 0.0
        each = self._step.per_context_token * self._context + self._step.per_token
        loss = self._step.per_token * self._verified(tokens) - gain * each
        return gain * self._step.base / loss if loss > 0 else math.inf

    @property
    def million_tokens_per_hour(self) -> float:
        """Of all replicas that were watched, at the present load."""
        return self._counted.tokens / self._counted.watched_s * HOUR_S / MILLION

    def usd_per_million(self, usd_per_hour: float) -> float:
        """What a replica costs while it makes a million output tokens at the present batch."""
        seconds = self._counted.step_s / self._counted.steps / (self.batch * self._counted.tokens_per_step)
        return usd_per_hour / HOUR_S * seconds * MILLION

    def _plain(self, batch: float) -> float:
        return self._step.step(batch, 0.0, self._context * batch)

    def _verified(self, tokens: int) -> float:
        return self._share * self._fill * tokens


def kept_by_place(counted: Counted) -> tuple[float, ...]:
    """Of the drafts the share that was kept up to each place and there; never rising."""
    shares: list[float] = []
    for kept in counted.kept:
        shares.append(min(shares[-1] if shares else 1.0, kept / counted.drafts if counted.drafts else 0.0))
    return tuple(shares)


def place_shares(known: Sequence[float], tokens: int) -> list[float]:
    """The shares of the first places; unknown ones fall as at the last known, or as all did, if that is more."""
    shares = list(known[:tokens])
    falling = 0.0
    if known and known[-1] > 0:
        falling = min(known[-1] / (known[-2] if len(known) > 1 else 1.0), known[-1] ** (1 / len(known)))
    while len(shares) < tokens:
        shares.append((shares[-1] if shares else 0.0) * falling)
    return shares


def _tells(told: EngineSignals) -> bool:
    """Whether an engine has counters of drafts, and they agree with each other."""
    numbers = (told.drafts_total, told.draft_tokens_total, told.gaps_total, told.gaps_us_total, told.computed_total)
    return min(numbers) >= 0 and sum(told.accepted_by_position) == told.accepted_total


def _gained(before: EngineSignals, after: EngineSignals, seconds: float) -> Counted | None:
    """What one engine counted between two readings; ``None`` if it tells nothing, began anew, or cannot be right."""
    if not (_tells(before) and _tells(after) and seconds > 0):
        return None
    steps, step_us = after.gaps_total - before.gaps_total, after.gaps_us_total - before.gaps_us_total
    places = zip_longest(after.accepted_by_position, before.accepted_by_position, fillvalue=0)
    kept = tuple(float(last - first) for last, first in places)
    drafts, drafted = after.drafts_total - before.drafts_total, after.draft_tokens_total - before.draft_tokens_total
    prompts = after.computed_total - before.computed_total
    possible = max(kept, default=0) <= drafts <= drafted <= MOST_TOKENS * drafts and sum(kept) <= drafted
    if min(steps, step_us, drafts, prompts, *kept) < 0 or not possible:
        return None
    batch = step_us / MICRO / seconds
    return Counted(
        told=True,
        drafts=drafts,
        drafted=drafted,
        kept=kept,
        steps=steps,
        step_s=step_us / MICRO,
        sequences=steps * batch,
        context=steps * batch * _context_each(before, after),
        prompts=prompts,
    )


def _context_each(before: EngineSignals, after: EngineSignals) -> float:
    """Context tokens of a sequence, by the use of the KV cache."""
    running = max(0, before.running) + max(0, after.running)
    used = sum(max(0, one.kv_permille) * max(0, one.kv_tokens) / 1000 for one in (before, after))
    return used / running if running else 0.0


def _aged(counted: Counted, weight: float) -> Counted:
    return Counted(
        told=counted.told,
        kept=tuple(weight * one for one in counted.kept),
        **{name: weight * getattr(counted, name) for name in _SUMS},
    )


def _added(one: Counted, other: Counted) -> Counted:
    return Counted(
        told=True,
        kept=tuple(mine + theirs for mine, theirs in zip_longest(one.kept, other.kept, fillvalue=0.0)),
        **{name: getattr(one, name) + getattr(other, name) for name in _SUMS},
    )


_SUMS: Final = ("drafts", "drafted", "steps", "step_s", "sequences", "context", "prompts", "watched_s")
