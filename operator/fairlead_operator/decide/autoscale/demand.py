"""What will be asked of a pool when a replica that is started now is ready: a rate with the spread of its errors.

Several forecasters run side by side: the mean of the last seconds, of minutes, of ten minutes, since the last step,
along the trend, and like the same time of past days. Each is judged by how far it was off at the horizon that matters,
and the one that was nearest lately is believed. The spread is that of its own errors, not an assumed distribution.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final

from fairlead_operator.decide.autoscale.values import History

RECENT_S: Final = 60.0
"""What a forecast is judged by: the mean rate over so many seconds."""
TAUS: Final = (30.0, 120.0, 600.0)
"""Time constants of the levels, in seconds."""
STEP_WINDOWS: Final = (15.0, 30.0, 60.0)
STEP_SIGMAS: Final = 4.5
STEP_MEMORY_S: Final = 1800.0
STEPS_HALF_LIFE_S: Final = 1800.0
RESTLESS: Final = 20.0
"""So many, counted so, are one every two minutes: steps of which none lasts are how the pool is used."""
DISPERSION_S: Final = 1200.0
MOST_DISPERSION: Final = 4.0
"""More than so many times the usual scatter says nothing about it: it may be a step that is not yet seen."""
TREND_FROM_S: Final = 1500.0
TOLD_EVERY_S: Final = 30.0
MAX_TOLD: Final = 48
RECENT_KEPT_S: Final = 2.5 * STEP_WINDOWS[-1]
"""How much a window scatters is told by the one before it, which may begin late."""
MAX_RECENT: Final = 128
DAY_MS: Final = 86_400_000
DAYS_OF_TEMPLATE: Final = 2

BIN: Final = 0.05
LOWEST: Final = -20
BINS: Final = 61
"""Errors are counted in units of the geometric mean of the forecast and the pool's usual rate: the demand of one client
more is the same at every rate, that of every client twice as active is in proportion to it."""
SCATTER: Final = 20.0
"""Requests/s that are added to the usual rate there: of a pool much slower than this errors go rather with the root of
its rate, as chance does, so that those of a quiet night do not count as much of a busy day's rate."""
USUAL_S: Final = 7200.0
HEADROOM: Final = 1.3
"""No more than so many times the highest rate of about a day is expected, whatever the errors were."""
PEAK_HALF_LIFE_S: Final = 86_400.0
HALF_LIVES_S: Final = (1800.0, 21600.0)
"""An error counts half after so long, in the two memories whose mean is the spread: that of now and that of the day."""
SCORE_HALF_LIFE_S: Final = 7200.0
PRIOR_WEIGHT: Final = 6.0
PRIOR_SCORE: Final = 0.15
PRIOR: Final = (
    (-0.6, 0.01), (-0.4, 0.02), (-0.3, 0.02), (-0.2, 0.04), (-0.1, 0.12), (-0.05, 0.18), (0.0, 0.26), (0.05, 0.16),
    (0.1, 0.08), (0.2, 0.03), (0.3, 0.025), (0.4, 0.025), (0.5, 0.015), (0.6, 0.01), (0.7, 0.005),
)  # fmt: skip
"""Errors of a pool of which nothing is known yet, with their weights."""
SMALLEST: Final = 5e-4

Spread = tuple[float, ...]
_AT: Final = attrgetter("at_s")


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that arrived within so many seconds before ``at_s``."""

    at_s: float
    seconds: float
    arrivals: int


@dataclass(frozen=True, slots=True)
class Run:
    """The rounds since the rate last stepped, and how much more than by chance it scatters in each step window.

    ``levels``: exponential means, plain ones while younger than their time constant.
    """

    seconds: float = 0.0
    arrivals: float = 0.0
    since_s: float = 0.0
    levels: tuple[float, ...] = (0.0,) * (len(TAUS) + 1)
    dispersion: tuple[float, ...] = (1.2,) * len(STEP_WINDOWS)

    @property
    def rate(self) -> float:
        """Requests a second since the step."""
        return self.arrivals / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Forecaster:
    """How one way of forecasting did: its errors by bin in two memories, and its mean absolute error."""

    spreads: tuple[Spread, ...]
    score: float = PRIOR_SCORE
    weight: float = 4.0


@dataclass(frozen=True, slots=True)
class Told:
    """Forecasts that wait for what really comes."""

    at_s: float
    rates: tuple[float | None, ...]
    usual: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What is remembered of a pool's demand."""

    at_s: float
    age_s: float = 0.0
    recent: tuple[Round, ...] = ()
    usual: float = 0.0
    peak: float = 0.0
    run: Run = field(default_factory=Run)
    steps: float = 0.0
    """Those of half an hour ago count half."""
    told: tuple[Told, ...] = ()
    forecasters: tuple[Forecaster, ...] = ()

    @property
    def restless(self) -> bool:
        """Whether the rate steps so often that it is never the same for long."""
        return self.steps >= RESTLESS

    @property
    def minute(self) -> tuple[float, int]:
        """Seconds and arrivals of the rounds of a minute, to the last one that is known."""
        return _total(_last(self.recent, RECENT_S))

    @property
    def rate(self) -> float:
        """Requests a second over the last minute."""
        seconds, arrivals = self.minute
        return arrivals / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """Rates at the horizon with their weights, which sum to 1, ascending."""

    points: tuple[tuple[float, float], ...]

    def quantile(self, share: float) -> float:
        """The lowest rate that is not exceeded with this probability."""
        total = 0.0
        for rate, weight in self.points:
            total += weight
            if total >= share:
                return rate
        return self.points[-1][0]


def prior() -> Spread:
    """The spread of a forecaster of which nothing is known."""
    weights = [0.0] * BINS
    for error, weight in PRIOR:
        weights[bin_of(error)] += weight * PRIOR_WEIGHT
    return tuple(weights)


def bin_of(error: float) -> int:
    """The bin of an error."""
    return min(BINS - 1, max(0, round(error / BIN) - LOWEST))


def started(at_s: float) -> Demand:
    """The memory of a pool of which nothing is known."""
    one = Forecaster((prior(),) * len(HALF_LIVES_S))
    return Demand(at_s, forecasters=(one,) * (len(TAUS) + 3))


def observe(demand: Demand, at_s: float, arrivals: int, horizon_s: float, history: History | None = None) -> Demand:
    """The memory after one round; a round that is not later than the last one is left out."""
    seconds = at_s - demand.at_s
    if seconds <= 0:
        return demand
    kept = [one for one in demand.recent if one.at_s > at_s - RECENT_KEPT_S][1 - MAX_RECENT :]
    recent = (*kept, Round(at_s, seconds, arrivals))
    age, run = demand.age_s + seconds, _run(demand.run, recent)
    demand = replace(
        demand,
        at_s=at_s,
        age_s=age,
        recent=recent,
        usual=demand.usual + (arrivals / seconds - demand.usual) * max(seconds / age, min(1.0, seconds / USUAL_S)),
        run=run,
        steps=demand.steps * 0.5 ** (seconds / STEPS_HALF_LIFE_S) + (run.since_s == at_s),
    )
    if age >= RECENT_S:
        peak = max(demand.rate, demand.peak * 0.5 ** (seconds / PEAK_HALF_LIFE_S))
        demand = replace(demand, peak=peak)
    last = demand.told[-1].at_s if demand.told else -math.inf
    if at_s - last < max(TOLD_EVERY_S, (horizon_s + RECENT_S) / (MAX_TOLD - 2)):
        return demand
    return _judge(
        replace(demand, told=(*demand.told, Told(at_s, forecasts(demand, horizon_s, history), demand.usual))), horizon_s
    )


def forecasts(demand: Demand, horizon_s: float, history: History | None) -> tuple[float | None, ...]:
    """What each forecaster expects at the horizon; the last one is None without two known days."""
    run = demand.run
    slow, slower = run.levels[-2:]
    trend = slow
    if run.seconds > TREND_FROM_S:
        ahead = (horizon_s + RECENT_S / 2) / TAUS[-1]
        trend = max(0.0, min(2 * slow, 2 * slow - slower + (slow - slower) * ahead))
    return (*run.levels[:-1], run.rate, trend, _like_past_days(demand, horizon_s, history))


def outlook(demand: Demand, horizon_s: float, history: History | None = None, extra: float = 0.0) -> Outlook:
    """The rates to expect at the horizon, ``extra`` requests/s above what arrives."""
    rates = forecasts(demand, horizon_s, history)
    known = [place for place, rate in enumerate(rates) if rate is not None]
    best = min(known, key=lambda place: demand.forecasters[place].score)
    rate, spreads = rates[best] or 0.0, demand.forecasters[best].spreads
    now, day = spreads
    now_share, day_share = 0.5 / sum(now), 0.5 / sum(day)
    weights = [one * now_share + other * day_share for one, other in zip(now, day, strict=True)]
    unit = _unit(rate, demand.usual) * BIN
    highest = max(rate, HEADROOM * max(demand.peak, demand.rate))
    kept = [
        (min(highest, max(0.0, rate + (place + LOWEST) * unit)) + extra, weight)
        for place, weight in enumerate(weights)
        if weight > SMALLEST
    ]
    total = sum(weight for _, weight in kept)
    return Outlook(tuple((one, weight / total) for one, weight in kept))


def _unit(rate: float, usual: float) -> float:
    """Requests/s by which errors of such a forecast are measured."""
    return math.sqrt(rate * (usual + SCATTER))


def _levels(levels: Sequence[float], rate: float, seconds: float, age: float) -> tuple[float, ...]:
    """The means with one more round; the last one is twice as slow as the one before."""
    return tuple(
        level + (rate - level) * min(1.0, max(seconds / age, 1 - math.exp(-seconds / tau)))
        for level, tau in zip(levels, (*TAUS, 2 * TAUS[-1]), strict=True)
    )


def _run(run: Run, recent: Sequence[Round]) -> Run:
    """The run with one more round, or a new one when the last seconds are not of the same rate.

    The count of a window is compared with what the run before it makes expect. A count of independent arrivals has a
    variance equal to its mean; where the pool scatters more than that, a step must stand out from this scatter. That is
    measured between a window and the one before it: beside the run, a rate that drifts would look like scatter, and the
    next step would be hidden by it.
    """
    newest = recent[-1]
    seconds, arrivals = run.seconds + newest.seconds, run.arrivals + newest.arrivals
    dispersion = list(run.dispersion)
    for place, window in enumerate(STEP_WINDOWS):
        inside = _last(recent, window)
        long, count = _total(inside)
        if seconds - long < STEP_WINDOWS[1]:
            continue
        if _square(count, long, arrivals - count, seconds - long) > STEP_SIGMAS**2 * dispersion[place]:
            return _stepped(seconds, arrivals, inside, tuple(dispersion))
        span, other = _before(recent[: -len(inside)], long)
        if span >= long:
            seen = min(_square(count, long, other, span), MOST_DISPERSION * dispersion[place]) - dispersion[place]
            dispersion[place] = max(1.0, dispersion[place] + seen * min(1.0, newest.seconds / DISPERSION_S))
    kept = min(1.0, STEP_MEMORY_S / seconds)
    levels = _levels(run.levels, newest.arrivals / newest.seconds, newest.seconds, seconds)
    return Run(seconds * kept, arrivals * kept, run.since_s, levels, tuple(dispersion))


def _last(rounds: Sequence[Round], seconds: float) -> Sequence[Round]:
    """Those of the last so many seconds, to the newest."""
    return rounds[bisect_right(rounds, rounds[-1].at_s - seconds, key=_AT) :] if rounds else ()


def _total(rounds: Sequence[Round]) -> tuple[float, int]:
    """Seconds and arrivals."""
    return sum(one.seconds for one in rounds), sum(one.arrivals for one in rounds)


def _before(rounds: Sequence[Round], least_s: float) -> tuple[float, int]:
    """Seconds and arrivals of the last of these rounds that make up so long; of all if they are shorter."""
    seconds, arrivals = 0.0, 0
    for one in reversed(rounds):
        if seconds >= least_s:
            break
        seconds, arrivals = seconds + one.seconds, arrivals + one.arrivals
    return seconds, arrivals


def _square(count: float, long: float, other: float, span: float) -> float:
    """Squared deviation of a count within ``long`` seconds from what ``other`` within ``span`` makes expect.

    In units of its variance, if arrivals are independent.
    """
    expected = other / span * long
    return (count - expected) ** 2 / (max(1.0, expected) * (1 + long / span))


def _stepped(seconds: float, arrivals: float, inside: Sequence[Round], dispersion: tuple[float, ...]) -> Run:
    """The run that begins where, within the window, what follows differs most from what was before."""
    best, found, long, count = -1.0, Run(), 0.0, 0
    for one in reversed(inside):
        long, count = long + one.seconds, count + one.arrivals
        square = _square(count, long, arrivals - count, seconds - long)
        if square > best:
            levels = (count / long,) * (len(TAUS) + 1)
            best, found = square, Run(long, count, inside[-1].at_s, levels, dispersion)
    return found


def _like_past_days(demand: Demand, horizon_s: float, history: History | None) -> float | None:
    """The level of now, changed as the same hours of past days changed; None while fewer than two are known."""
    if history is None:
        return None
    now_ms, ahead_ms = round(demand.at_s * 1000), round((horizon_s + RECENT_S / 2) * 1000)
    days = range(1, len(history.rates) * history.step_ms // DAY_MS + 1)
    pairs = [(history.at(now_ms - day * DAY_MS), history.at(now_ms + ahead_ms - day * DAY_MS)) for day in days]
    both = [(then, later) for then, later in pairs if then is not None and later is not None]
    base = sum(then for then, _ in both)
    if len(both) < DAYS_OF_TEMPLATE or base <= 0:
        return None
    return demand.run.levels[1] * sum(later for _, later in both) / base


def _judge(demand: Demand, horizon_s: float) -> Demand:
    """Forecasts whose time has come are compared with the last minute."""
    due = [one for one in demand.told if one.at_s <= demand.at_s - horizon_s - RECENT_S]
    if not due:
        return replace(demand, told=demand.told[-MAX_TOLD:])
    seconds, _ = demand.minute
    told = due[-1]
    if seconds >= RECENT_S / 2:
        rate, least = demand.rate, 0.5 / seconds  # half a request: a rate of 0 is no unit
        errors = [None if one is None else (rate - one) / _unit(one + least, told.usual) for one in told.rates]
        passed = TOLD_EVERY_S if len(demand.told) == 1 else demand.told[-1].at_s - demand.told[-2].at_s
        judged = tuple(_judged(*pair, passed) for pair in zip(demand.forecasters, errors, strict=True))
        demand = replace(demand, forecasters=judged)
    return replace(demand, told=demand.told[len(due) :][-MAX_TOLD:])


def _judged(one: Forecaster, error: float | None, seconds: float) -> Forecaster:
    if error is None:
        return one
    place = bin_of(error)
    spreads = tuple(
        _with(spread, place, 0.5 ** (seconds / half_life))
        for spread, half_life in zip(one.spreads, HALF_LIVES_S, strict=True)
    )
    before = one.weight * 0.5 ** (seconds / SCORE_HALF_LIFE_S)
    return Forecaster(spreads, (one.score * before + abs(error)) / (before + 1), before + 1)


def _with(spread: Spread, place: int, kept: float) -> Spread:
    faded = [weight * kept for weight in spread]
    faded[place] += 1.0
    return tuple(faded)
