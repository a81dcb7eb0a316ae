"""The operator: everything is built here, and nothing elsewhere."""

import argparse
import asyncio
import logging
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import aiohttp

from fairlead_operator import logs
from fairlead_operator.clock import Clock, SystemClock
from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.config_server import ConfigServer, Readiness, serve
from fairlead_operator.errors import FairleadError, ForbiddenError, LeaseLostError
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import Cluster
from fairlead_operator.kube.election import Election, Seat
from fairlead_operator.kube.events import Recorder
from fairlead_operator.kube.issuers import Issuers, key_source
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.kube.resources import COST_BUDGETS, FIELD_MANAGER, MODEL_POOLS, ROUTING_POLICIES
from fairlead_operator.kube.session import Login, login, open_session
from fairlead_operator.kube.tokens import FileTokens, RequestedTokens, TokenSource
from fairlead_operator.kube.wakeups import Wakeups
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.oidc import Providers
from fairlead_operator.prices.book import Prices
from fairlead_operator.reconcile.api_keys import KeyNews
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.budgets import wanted_budgets
from fairlead_operator.reconcile.children import Children
from fairlead_operator.reconcile.configuration import Compiler
from fairlead_operator.reconcile.context import Context, targets_of
from fairlead_operator.reconcile.costbudget import BudgetReconciler
from fairlead_operator.reconcile.ledger_sync import LedgerSync, Parts
from fairlead_operator.reconcile.modelpool import PoolReconciler
from fairlead_operator.reconcile.routingpolicy import PolicyReconciler
from fairlead_operator.reconcile.statuses import Statuses
from fairlead_operator.settings import Settings, read_settings
from fairlead_operator.signals.scrape import Scraper
from fairlead_operator.telemetry import Telemetry
from fairlead_operator.tokens import Verifier

log = logging.getLogger(__name__)

WORKERS = 8
SCRAPE_EVERY_S = 5.0
COMPLAIN_EVERY_S = 60.0
STOP_KOPF_S = 5.0
LOST_LEASE = 3
JSON_DEPTH = 30_000
"""The API server takes objects that are nested 10,000 deep; one of them must not keep the others from being read."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """The two HTTP sessions: to the API server, and to routers and ledger."""

    kube: aiohttp.ClientSession
    fleet: aiohttp.ClientSession

    async def close(self) -> None:
        """Close both."""
        await self.kube.close()
        await self.fleet.close()


class Operator:
    """One process of the operator, composed."""

    def __init__(self, settings: Settings, who: Login, sessions: Sessions, *, outside: bool, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        api = Api(sessions.kube, who.server)
        tokens = _tokens(settings, api, outside=outside, clock=clock)
        self.queue = WorkQueue(clock, random.Random())  # noqa: S311 - spreads retries; guards nothing
        self.cluster = Cluster(api, settings.namespace, self._wake, self._changed, clock)
        self.feed = ConfigFeed(settings.platform_namespaces, settings.namespace)
        self.issuers = Issuers(api, self._changed, clock)
        self.providers = Providers(settings.oidc_file, sessions.fleet, self._changed, clock)
        self.compiler = Compiler(
            self.cluster, self.feed, settings, lambda: (*self.issuers.known, *self.providers.known)
        )
        self.election = Election(api, Seat(settings.namespace, FIELD_MANAGER, settings.instance), clock)
        self.election.heard = self.feed.set_budgets_version
        self.wakeups = Wakeups(who, self._wake)
        scraper = Scraper(sessions.fleet, tokens, clock)
        self.telemetry = Telemetry(
            self.cluster.snapshot, lambda: scraper.reports, self.election.leading.is_set, clock.now_ms
        )
        self.context = Context(
            api=api,
            cluster=self.cluster,
            compiler=self.compiler,
            feed=self.feed,
            scraper=scraper,
            prices=Prices(settings.prices_file, clock),
            ledger=LedgerClient(sessions.fleet, settings.ledger_url, tokens),
            books=Books(ledger_answered_ms=clock.now_ms()),
            children=Children(api),
            statuses=Statuses(api, clock),
            recorder=Recorder(api, settings.instance, clock),
            queue=self.queue,
            telemetry=self.telemetry,
            settings=settings,
            clock=clock,
        )
        self._pools = PoolReconciler(self.context)
        self._reconcilers: dict[str, Callable[[Key], Awaitable[None]]] = {
            MODEL_POOLS.kind: self._pools,
            ROUTING_POLICIES.kind: PolicyReconciler(self.context),
            COST_BUDGETS.kind: BudgetReconciler(self.context),
        }
        self._key_news = KeyNews(self.context)
        self._ledger = LedgerSync(self._ledger_parts())
        self._verifier = Verifier(key_source(api), clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set; hands the Lease over on its way out."""
        self.wakeups.start()
        tasks = [asyncio.create_task(self._stop(stop)), *self._everywhere(), asyncio.create_task(self._lead())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._pools.close()
            await self.election.release()
            await self.wakeups.stop(STOP_KOPF_S)
        for task in done:
            task.result()

    def _everywhere(self) -> list[asyncio.Task[None]]:
        """What every replica does: follow the cluster, compile and serve, stand for election."""
        server = ConfigServer(self.feed, self._verifier, self._readiness, self.telemetry.registry)
        return [
            *(asyncio.create_task(run()) for run in self.cluster.tasks()),
            asyncio.create_task(self.issuers.run()),
            asyncio.create_task(self.providers.run()),
            asyncio.create_task(self.context.prices.run()),
            asyncio.create_task(self._verifier.keep_fresh()),
            asyncio.create_task(self.compiler.run(self._clock)),
            asyncio.create_task(serve(server.app(), *self._settings.listen)),
            asyncio.create_task(self._candidate()),
            asyncio.create_task(self._complain()),
        ]

    async def _candidate(self) -> None:
        """Stand for election only with a whole view: who leads without one can do nothing."""
        await self.cluster.wait_synced()
        await self.election.run()

    async def _lead(self) -> None:
        """What only the holder of the Lease does: scrape, reconcile, talk with the ledger."""
        await self.election.leading.wait()
        self.context.books.ledger_answered_ms = self._clock.now_ms()
        await self._ledger.round()
        snapshot = self.cluster.snapshot()
        for key in snapshot.raw:
            self.queue.add(key)
        workers = (self.queue.work(self._reconcile, self._broken) for _ in range(WORKERS))
        await asyncio.gather(self._scrape(), self._ledger.run(), *workers)

    async def _scrape(self) -> None:
        """Ask all routers every five seconds, then look at everything that their answers are about."""
        while True:
            snapshot = self.cluster.snapshot()
            await self.context.scraper.round(targets_of(snapshot))
            self._pools.observe()
            await self._key_news.round()
            for kind in (ROUTING_POLICIES.kind, COST_BUDGETS.kind):
                for key in snapshot.raw:
                    if key.kind == kind:
                        self.queue.add(key)
            await self._clock.sleep(SCRAPE_EVERY_S)

    async def _reconcile(self, key: Key) -> None:
        await self._reconcilers[key.kind](key)
        self.telemetry.reconciles.labels(key.kind, "ok").inc()

    def _broken(self, key: Key, error: Exception) -> None:
        """One object's work broke off: it is tried again after its back-off, and told ever more rarely."""
        self.telemetry.reconciles.labels(key.kind, "error").inc()
        failures = self.queue.failures(key)
        if failures & (failures - 1) == 0:
            stack = None if isinstance(error, FairleadError) else error
            log.warning("%s, attempt %d: %s %s", key, failures + 1, type(error).__name__, error, exc_info=stack)

    def _wake(self, key: Key) -> None:
        """Something about an object changed. Without the Lease nobody works on the queue, and it would only grow."""
        if self.election.leading.is_set():
            self.queue.add(key)

    def _changed(self) -> None:
        """Something in the cluster changed."""
        self.compiler.kick()
        self._ledger.kick()

    def _ledger_parts(self) -> Parts:
        context = self.context
        return Parts(
            client=context.ledger,
            cluster=context.cluster,
            prices=context.prices,
            books=context.books,
            feed=context.feed,
            election=self.election,
            queue=context.queue,
            clock=context.clock,
            wanted_budgets=lambda: wanted_budgets(context.compiler.refresh()),
        )

    def _readiness(self) -> Readiness:
        """Ready: the configuration can be served. A kind that cannot be followed is named either way."""
        reasons = [f"not listed yet: {kind}" for kind in self.cluster.waiting_for]
        reasons += [f"not allowed: {error}" for error in self.cluster.problems if isinstance(error, ForbiddenError)]
        if not self.issuers.known:
            reasons.append("the cluster's token keys are not known yet")
        if not self.providers.asked:
            reasons.append("the OIDC providers were not asked yet")
        ready = self.feed.published.is_set() and bool(self.issuers.known) and self.providers.asked
        return Readiness(ready, tuple(reasons))

    async def _complain(self) -> None:
        """Once a minute: what keeps this replica from its work, verb and resource by name."""
        while True:
            await self._clock.sleep(COMPLAIN_EVERY_S)
            for error in self.cluster.problems:
                log.warning("cannot %s %s: %s", error.verb, error.what, error.message)
            if self.election.problem is not None:
                log.warning("cannot take the Lease: %s", self.election.problem)

    @staticmethod
    async def _stop(stop: asyncio.Event) -> None:
        await stop.wait()


def _tokens(settings: Settings, api: Api, *, outside: bool, clock: Clock) -> TokenSource:
    """Kubelet's files in a pod; TokenRequests for a process outside the cluster."""
    if outside and not settings.tokens_dir.is_dir():
        return RequestedTokens(api, settings.namespace, FIELD_MANAGER, clock)
    return FileTokens(settings.tokens_dir)


async def operate(settings: Settings, kubeconfig: str) -> None:
    """Log in, build, and run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    who = await login(kubeconfig)
    sessions = Sessions(open_session(who), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)))
    try:
        operator = Operator(settings, who, sessions, outside=bool(kubeconfig), clock=SystemClock())
        log.info("fairlead-operator %s, API server %s", version("fairlead"), who.server)
        await operator.run(stop)
    finally:
        await sessions.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """``fairlead-operator``: 0 after SIGTERM, 3 when the Lease was lost, 1 for anything else."""
    parser = argparse.ArgumentParser(
        prog="fairlead-operator", description="Fairlead's operator; settings are FAIRLEAD_* variables."
    )
    parser.add_argument("--kubeconfig", default="", help="run outside the cluster with this kubeconfig")
    options = parser.parse_args(arguments)
    try:
        settings = read_settings()
        logs.set_up(settings.log_level)
    except ValueError as error:
        sys.exit(f"fairlead-operator: {error}")
    sys.setrecursionlimit(JSON_DEPTH)
    # kopf says at each start that signals are not its own: they are this module's.
    logging.getLogger("kopf").setLevel(logging.ERROR)
    try:
        asyncio.run(operate(settings, options.kubeconfig))
    except LeaseLostError as error:
        log.error("stopping: %s", error)  # noqa: TRY400 - the text says it all
        return LOST_LEASE
    except Exception:
        log.exception("stopping")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
