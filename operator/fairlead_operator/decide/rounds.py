"""What a pool's routers counted from one round of scrapes to the next: differences of their totals, router by router.

A total that fell was begun anew, and so was that of a router younger than the last round: then all of it is new. One
that is seen for the first time and is older is only remembered. An answer that came twice or late counts nothing twice,
because differences are taken of what was counted, not of when it was heard; what a router tells after a silence is
spread over the silence, and only the last round's share of it counts, or it would look like a burst.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter

from fairlead_operator.decide.autoscale.mix import mixed
from fairlead_operator.decide.signals import STALE_MS, Report, Router, heard_from
from fairlead_operator.performance.step import Mix
from fairlead_router.contract import PoolSignals

MOST = 1_000_000
"""Requests of one router in one round; a hundred times what the fastest of them can serve."""
MOST_TOKENS = 1_000_000_000
WINDOW_MS = 300_000
"""How long the figures of ``status.service`` reach back."""
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
_TOKENS = frozenset({"arrived_tokens", "output_tokens"})


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests and tokens, as totals or as differences of totals."""

    arrivals: int = 0
    arrived_tokens: int = 0
    finished: int = 0
    output_tokens: int = 0
    met: int = 0
    missed: int = 0
    met_ttft: int = 0
    missed_ttft: int = 0
    met_tpot: int = 0
    missed_tpot: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(_values(self), _values(other), strict=True)))


_NAMES = tuple(one.name for one in fields(Counts))
_values = attrgetter(*_NAMES)


@dataclass(frozen=True, slots=True)
class Heard:
    """A router's totals as they were last heard, when that was, and by when its process had begun."""

    counts: Counts
    at_ms: int
    begun_ms: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what happened in it, and what is of now. ``samples`` are (uncached prompt, output) tokens."""

    at_ms: int
    counts: Counts = field(default_factory=Counts)
    samples: tuple[tuple[int, int], ...] = ()
    waiting_tokens: int = 0
    decoding: int = 0
    context_tokens: int = 0
    ttft_ms: int = 0
    tpot_ms: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered of a pool's rounds: each router's totals, the last minutes' rounds, and the mix of sizes."""

    at_ms: int = 0
    routers: Mapping[str, Heard] = field(default_factory=dict)
    recent: tuple[Round, ...] = ()
    mix: Mix = ()

    @property
    def last(self) -> Round:
        """The newest round."""
        return self.recent[-1] if self.recent else Round(self.at_ms)


def counting(routers: Iterable[Router], reports: Mapping[str, Report]) -> dict[str, list[Router]]:
    """The routers that have counted something for a pool, by pool; only those whose word on it counts."""
    found: dict[str, list[Router]] = {}
    for router in routers:
        report = reports.get(router.router)
        for told in report.signals.pools if report is not None and report.signals is not None else ():
            if (told.arrivals_total or told.missed_total) and router.may_tell_of(told.pool):
                found.setdefault(told.pool, []).append(router)
    return found


def look(  # noqa: PLR0917 - what is known, what is new, and when
    seen: Seen,
    pool: str,
    routers: Sequence[Router],
    reports: Mapping[str, Report],
    now_ms: int,
    heard: Collection[str] = (),
) -> Seen:
    """What is known after one more round. Only routers whose word on the pool counts are asked.

    ``heard`` are all that were heard in the round before: one of them that is new here had counted nothing yet.
    """
    told = heard_from(routers, pool, reports)
    gained = {router: _gained(seen, router, report, pool, heard) for router, report in told.items()}
    fresh = [report.of(pool) for report in told.values() if now_ms - report.received_ms <= STALE_MS]
    samples = tuple(sample for router, report in told.items() for sample in _samples(gained[router], report, pool))
    done = Round(
        at_ms=now_ms,
        counts=sum(gained.values(), Counts()),
        samples=samples,
        waiting_tokens=_sum(one.waiting_tokens for one in fresh),
        decoding=_sum(one.decoding for one in fresh),
        context_tokens=_sum(one.context_tokens for one in fresh),
        ttft_ms=max((one.ttft_ms_p99 for one in fresh), default=0),
        tpot_ms=max((one.tpot_ms_p99 for one in fresh), default=0),
    )
    recent = tuple(one for one in seen.recent if one.at_ms > now_ms - WINDOW_MS)
    routers_now = {router: _heard(report, pool) for router, report in told.items()}
    mix = mixed(seen.mix, samples, (now_ms - seen.at_ms) / 1000)
    return Seen(now_ms, routers_now, (*recent, done), mix)


def attainment_percent(rounds: Sequence[Round]) -> int | None:
    """Whole percent of the judged requests that met all objectives, rounded down; ``None`` if none was judged."""
    met = sum(one.counts.met for one in rounds)
    judged = met + sum(one.counts.missed for one in rounds)
    return met * 100 // judged if judged else None


def requests_per_hour(rounds: Sequence[Round]) -> int | None:
    """What is asked for now: the higher of the last minute's rate and that of all rounds; ``None`` in the first one."""
    if not rounds or rounds[-1].at_ms - rounds[0].at_ms < MINUTE_MS:
        return None
    late = [one for one in rounds if one.at_ms > rounds[-1].at_ms - MINUTE_MS]
    return max(_rate(rounds[1:], rounds[-1].at_ms - rounds[0].at_ms), _rate(late, MINUTE_MS))


def _rate(rounds: Iterable[Round], took_ms: int) -> int:
    return sum(one.counts.arrivals for one in rounds) * HOUR_MS // took_ms


def _gained(seen: Seen, router: str, report: Report, pool: str, heard: Collection[str]) -> Counts:
    now, before = _heard(report, pool), seen.routers.get(router)
    if before is None:
        # Who began after the last round has counted nothing that was counted before.
        young = 0 < seen.at_ms < now.begun_ms
        return _bounded(now.counts) if young or router in heard else Counts()
    gained = Counts(*(after - first for after, first in zip(_values(now.counts), _values(before.counts), strict=True)))
    if min(_values(gained)) < 0:
        return _bounded(now.counts)
    silence = now.at_ms - before.at_ms
    if silence > STALE_MS:
        share = max(0, now.at_ms - max(seen.at_ms, before.at_ms))
        gained = Counts(*(value * min(share, silence) // silence for value in _values(gained)))
    return _bounded(gained)


def _bounded(counts: Counts) -> Counts:
    """No more than a router can count in a round, whatever it tells."""
    bounds = ((name, MOST_TOKENS if name in _TOKENS else MOST) for name in _NAMES)
    return Counts(*(max(0, min(getattr(counts, name), most)) for name, most in bounds))


def _heard(report: Report, pool: str) -> Heard:
    signals, told = report.signals, report.of(pool)
    uptime_ms = (signals.uptime_s if signals is not None else 0) * 1000
    return Heard(_counts(told), report.received_ms, report.received_ms - uptime_ms)


def _counts(told: PoolSignals) -> Counts:
    return Counts(
        arrivals=told.arrivals_total,
        arrived_tokens=told.arrived_tokens_total,
        finished=told.finished_total,
        output_tokens=told.output_tokens_total,
        met=told.met_total,
        missed=told.missed_total,
        met_ttft=told.met_ttft_total,
        missed_ttft=told.missed_ttft_total,
        met_tpot=told.met_tpot_total,
        missed_tpot=told.missed_tpot_total,
    )


def _samples(gained: Counts, report: Report, pool: str) -> tuple[tuple[int, int], ...]:
    """Sizes of requests that finished in this round: the newest of those told, as many as finished."""
    told = report.of(pool).samples
    new = told[-gained.finished :] if gained.finished else ()
    return tuple((max(1, prompt), max(1, output)) for prompt, output in new)


def _sum(values: Iterable[int]) -> int:
    return max(0, min(sum(values), MOST_TOKENS))
