"""What every reconciler works with."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fairlead_operator.clock import Clock
from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.signals import STALE_MS, Report, Router
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.kube.events import Recorder
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.kube.resources import Resource
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.prices.book import Prices
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.children import Children
from fairlead_operator.reconcile.configuration import Compiler
from fairlead_operator.reconcile.statuses import Statuses
from fairlead_operator.settings import Settings
from fairlead_operator.signals.scrape import Scraper, Target
from fairlead_operator.status.events import Event
from fairlead_operator.telemetry import Telemetry
from fairlead_router.contract import Signals

SECOND_MS = 1000


@dataclass(slots=True)
class Alike:
    """Routers of a namespace that have the same, as their last reports say; ``has`` is one of these reports.

    It is ``None`` for those that are not heard. Of those that are not ``heard`` yet, as they have just come, it is what
    they have at least.
    """

    namespace: str
    has: Signals | None
    heard: bool
    count: int = 0


class Census:
    """Who has what: counted once for a change of pods and a round of scrapes, not for each policy and each budget."""

    def __init__(self) -> None:
        self._when: tuple[object, ...] = ()
        self._found: tuple[Alike, ...] = ()

    def of(self, context: "Context") -> tuple[Alike, ...]:
        """All routers that take requests, at most a second ago."""
        snapshot, scraper, now = context.cluster.snapshot(), context.scraper, context.clock.now_ms()
        when = (snapshot.pods, snapshot.gateways, scraper.rounds, now // SECOND_MS)
        if when != self._when:
            routers = routers_of(snapshot, context.feed.platform)
            told = Told(scraper.asked, scraper.reports, context.compiler.newcomers)
            self._when, self._found = when, counted(routers, told, now)
        return self._found


@dataclass(frozen=True, slots=True)
class Context:
    """The parts, built once in main.py."""

    api: Api
    cluster: Cluster
    compiler: Compiler
    feed: ConfigFeed
    scraper: Scraper
    prices: Prices
    ledger: LedgerClient
    books: Books
    children: Children
    statuses: Statuses
    recorder: Recorder
    queue: WorkQueue
    telemetry: Telemetry
    settings: Settings
    clock: Clock
    census: Census = field(default_factory=Census)


async def publish(
    context: Context, resource: Resource, raw: Object, status: Mapping[str, object], events: Iterable[Event]
) -> None:
    """Tell an object's Events and write its status; what may not be written yet is looked at again in time."""
    await publish_events(context, raw, events)
    again = await context.statuses.write(resource, raw, status)
    if again:
        meta = raw["metadata"]
        context.queue.add_after(Key(resource.kind, meta["namespace"], meta["name"]), again)


async def publish_events(context: Context, raw: Object, events: Iterable[Event]) -> None:
    """Tell an object's Events."""
    for event in events:
        await context.recorder.tell(raw, event)


def routers_of(snapshot: Snapshot, platform: Collection[str]) -> tuple[Router, ...]:
    """The routers that take requests and therefore should report: gateways, and the sidecars of pools' pods."""
    gateways = [Router(pod.key, "", pod.terminating) for pod in snapshot.gateways if pod.ready]
    sidecars = [
        Router(pod.key, pod.pool, pod.terminating, pod.namespace in platform) for pod in snapshot.pods if _serves(pod)
    ]
    return (*gateways, *sidecars)


class Telling:
    """The routers that have something to say of a pool, by pool: put together once for a change of pods and a round.

    They are all gateways, the pool's own sidecars, and whoever else may name it and does. To ask all routers about each
    pool would cost pools times routers.
    """

    def __init__(self, platform: Collection[str]) -> None:
        self._platform = platform
        self._pods: tuple[object, object] = (None, None)
        self._made: tuple[tuple[Router, ...], dict[str, list[Router]]] | None = None

    def forget(self) -> None:
        """There are newer reports."""
        self._made = None

    def of(self, snapshot: Snapshot, reports: Mapping[str, Report], pool: str) -> tuple[Router, ...]:
        """Those of one pool, the gateways first."""
        pods, gateways = self._pods
        if self._made is None or pods is not snapshot.pods or gateways is not snapshot.gateways:
            routers = routers_of(snapshot, self._platform)
            self._pods = (snapshot.pods, snapshot.gateways)
            self._made = (tuple(one for one in routers if not one.pool), sidecars_by_pool(routers, reports))
        entries, sidecars = self._made
        return (*entries, *sidecars.get(pool, ()))


def sidecars_by_pool(routers: Iterable[Router], reports: Mapping[str, Report]) -> dict[str, list[Router]]:
    """The sidecars that are a pool's own, or name it and are believed."""
    found: dict[str, list[Router]] = {}
    for router in routers:
        report = reports.get(router.router)
        told = report.signals.pools if report is not None and report.signals is not None else ()
        named = {one.pool for one in told if router.may_tell_of(one.pool)}
        for pool in {router.pool, *named} if router.pool else ():
            found.setdefault(pool, []).append(router)
    return found


def targets_of(snapshot: Snapshot) -> list[Target]:
    """Every router that may answer, those that start or drain too."""
    pods = (*snapshot.gateways, *snapshot.pods)
    return [Target(pod.key, pod.ip) for pod in pods if pod.ip and pod.phase == "Running"]


def fresh(report: Report | None, now_ms: int, stale_ms: int) -> bool:
    """Whether a router's last answer still says something about now."""
    return report is not None and report.signals is not None and now_ms - report.received_ms <= stale_ms


def _serves(pod: PodFact) -> bool:
    return pod.ready or (pod.router_ready and pod.phase == "Running")


@dataclass(frozen=True, slots=True)
class Confirmed:
    """How many routers there are, and how many of them have what they should."""

    total: int
    confirmed: int


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of routers: who was asked, what they answered, and what newcomers have at least."""

    asked: Collection[str]
    reports: Mapping[str, Report]
    newcomers: Mapping[str, Signals]


def counted(routers: Iterable[Router], told: Told, now_ms: int) -> tuple[Alike, ...]:
    """The routers that stay, by what they have."""
    found: dict[tuple[object, ...], Alike] = {}
    for router in routers:
        if not router.terminating:
            one = _standing(router.router, told, now_ms)
            has = None if one.has is None else (one.has.config_version, one.has.budgets_version)
            found.setdefault((one.namespace, one.heard, has), one).count += 1
    return tuple(found.values())


def _standing(router: str, told: Told, now_ms: int) -> Alike:
    """What one router has. A newcomer is one until it has been asked, with a configuration at that time."""
    namespace, report = router.partition("/")[0], told.reports.get(router)
    if router in told.newcomers and not (router in told.asked and _configured(report)):
        return Alike(namespace, told.newcomers[router], heard=False)
    return Alike(
        namespace, report.signals if report is not None and fresh(report, now_ms, STALE_MS) else None, heard=True
    )


def confirmations(context: Context, namespaces: Iterable[str], has: Callable[[str, Signals], bool]) -> Confirmed:
    """How many routers of these namespaces have something; ``has`` is asked of a namespace and a report there.

    A router that is not heard has confirmed nothing. Left out are newcomers that began when what is asked for was in
    force already: to wait for the first report of each would turn the conditions of all policies and budgets back and
    forth with every new pod. Where there are only such, all are waited for.
    """
    places = frozenset(namespaces)
    groups = [
        (one, one.has is not None and has(one.namespace, one.has))
        for one in context.census.of(context)
        if one.namespace in places
    ]
    waited = [(one, good) for one, good in groups if one.heard or not good] or groups
    return Confirmed(sum(one.count for one, _ in waited), sum(one.count for one, good in waited if good and one.heard))


def _configured(report: Report | None) -> bool:
    """False for an answer from before the router had its first configuration."""
    return report is None or report.signals is None or report.signals.config_version != ""
