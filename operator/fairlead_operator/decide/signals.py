"""A pool's load, summed over what its routers report; what is not known stays unknown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_router.contract import PoolSignals, Signals

STALE_MS = 15_000
"""Three scrapes: after that a router's last answer says nothing about now."""


@dataclass(frozen=True, slots=True)
class Report:
    """The last answer of one router to a scrape, and when it came."""

    router: str
    received_ms: int
    signals: Signals | None
    _by_pool: dict[str, PoolSignals] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Every pool asks every report: a search in each would cost routers times pools squared a round.
        told = () if self.signals is None else self.signals.pools
        object.__setattr__(self, "_by_pool", {one.pool: one for one in reversed(told)})

    def of(self, pool: str) -> PoolSignals:
        """What it says of a pool, the first if it names it twice; nothing but zeros if it does not name it."""
        return self._by_pool.get(pool) or PoolSignals(pool=pool)


@dataclass(frozen=True, slots=True)
class Router:
    """A router that is ready and therefore should report. ``pool`` is empty for a gateway.

    A router that is not the ``platform``'s sends requests only to pools of its own namespace, so what it says of others
    is not believed: it would be a way to run up somebody else's bill.
    """

    router: str
    pool: str = ""
    terminating: bool = False
    platform: bool = True

    def may_tell_of(self, pool: str) -> bool:
        """Whether its word on a pool counts."""
        return self.platform or self.router.partition("/")[0] == pool.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Missing:
    """A router without a fresh report; ``last_ms`` is when the last one came, 0 = never."""

    router: str
    last_ms: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a pool now. With routers missing it is a lower bound: good for adding, never for removing."""

    running: int = 0
    """Requests in the engines' slots."""
    waiting: int = 0
    """Requests at the engines beyond their slots, or that the engines say wait: for room in their KV cache."""
    held: int = 0
    """Requests that entry routers hold back."""
    peak: int = 0
    """The most at once since the previous scrape."""
    last_request_ms: int = 0
    missing: tuple[Missing, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every router that could know of a request has reported."""
        return not self.missing

    @property
    def demand(self) -> int:
        """Requests that want a slot now."""
        return self.running + self.waiting + self.held


def pool_load(pool: str, slots: int, routers: Sequence[Router], reports: Mapping[str, Report], now_ms: int) -> Load:
    """The load of ``pool``, summed over fresh routers.

    Complete only with every gateway and every sidecar of the pool: other pools' sidecars may hold requests for it too
    and are counted, but one of them being silent must not stop this pool from shrinking. Requests at a draining
    engine end there and ask for no other replica.
    """
    believed = [router for router in routers if router.may_tell_of(pool)]
    fresh = [(router, report) for router in believed if (report := _fresh(router, reports, now_ms))]
    seen = [(router, report.of(pool), report.signals) for router, report in fresh if report.signals is not None]
    taken = [(one, signals) for router, one, signals in seen if _counts_engine(router, pool, signals)]
    engines, entries = [one for one, _ in taken], [one for _, one, _ in seen]
    waiting = sum(_waiting(one.running, slots, signals) for one, signals in taken)
    return Load(
        running=sum(one.running for one in engines) - waiting,
        waiting=waiting,
        held=sum(one.held for one in entries),
        peak=sum(max(one.running, one.peak_running) for one in engines)
        + sum(max(one.held, one.peak_held) for one in entries),
        last_request_ms=max((one.last_request_ms for one in entries), default=0),
        missing=_missing(pool, routers, reports, now_ms),
    )


def told_of(
    pool: str, routers: Iterable[Router], reports: Mapping[str, Report], now_ms: int
) -> tuple[PoolSignals, ...]:
    """What fresh routers, whose word counts, say of a pool."""
    believed = (_fresh(router, reports, now_ms) for router in routers if router.may_tell_of(pool))
    return tuple(one.of(pool) for one in believed if one is not None)


def heard_from(routers: Iterable[Router], pool: str, reports: Mapping[str, Report]) -> dict[str, Report]:
    """The last answer, old or new, of every router that has answered and whose word on the pool counts."""
    believed = (one.router for one in routers if one.may_tell_of(pool))
    return {name: report for name in believed if (report := reports.get(name)) is not None and report.signals}


def _fresh(router: Router, reports: Mapping[str, Report], now_ms: int) -> Report | None:
    report = reports.get(router.router)
    if report is None or report.signals is None or now_ms - report.received_ms > STALE_MS:
        return None
    return report


def _waiting(running: int, slots: int, signals: Signals) -> int:
    """Of the requests at one engine those that do not run, by its own word as far as it gives it."""
    told = signals.engine.waiting if signals.engine is not None else 0
    return max(0, running - slots, min(running, told))


def _counts_engine(router: Router, pool: str, signals: Signals) -> bool:
    return router.pool == pool and not router.terminating and not signals.draining


def _missing(pool: str, routers: Iterable[Router], reports: Mapping[str, Report], now_ms: int) -> tuple[Missing, ...]:
    wanted = [one for one in routers if one.pool in {"", pool} and not one.terminating]
    if not wanted:
        return (Missing("", 0),)
    silent = [one for one in wanted if _fresh(one, reports, now_ms) is None]
    return tuple(Missing(one.router, _last(reports.get(one.router))) for one in silent)


def _last(report: Report | None) -> int:
    return report.received_ms if report is not None and report.signals is not None else 0
