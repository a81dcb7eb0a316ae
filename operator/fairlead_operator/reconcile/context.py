"""What every reconciler works with."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

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
    """The routers that have something to say of a pool, by pool: put together once for a snapshot and a round.

    They are all gateways, the pool's own sidecars, and whoever else may name it and does. To ask all routers about each
    pool would cost pools times routers.
    """

    def __init__(self, platform: Collection[str]) -> None:
        self._platform = platform
        self._made: tuple[Snapshot, tuple[Router, ...], dict[str, list[Router]]] | None = None

    def forget(self) -> None:
        """There are newer reports."""
        self._made = None

    def of(self, snapshot: Snapshot, reports: Mapping[str, Report], pool: str) -> tuple[Router, ...]:
        """Those of one pool, the gateways first."""
        if self._made is None or self._made[0] is not snapshot:
            routers = routers_of(snapshot, self._platform)
            gateways = tuple(one for one in routers if not one.pool)
            self._made = (snapshot, gateways, sidecars_by_pool(routers, reports))
        _, gateways, sidecars = self._made
        return (*gateways, *sidecars.get(pool, ()))


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


def confirmations(context: Context, namespaces: Iterable[str], has: Callable[[str, Signals], bool]) -> Confirmed:
    """Ask the last report of every router in these namespaces; a router without a fresh one has confirmed nothing."""
    snapshot, now, reports = context.cluster.snapshot(), context.clock.now_ms(), context.scraper.reports
    places = frozenset(namespaces)
    present = routers_of(snapshot, context.feed.platform)
    routers = [one.router for one in present if not one.terminating and _namespace(one.router) in places]
    told = [(router, reports[router].signals) for router in routers if fresh(reports.get(router), now, STALE_MS)]
    confirmed = sum(signals is not None and has(_namespace(router), signals) for router, signals in told)
    return Confirmed(len(routers), confirmed)


def _namespace(router: str) -> str:
    return router.partition("/")[0]
