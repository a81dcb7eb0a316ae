"""One budget's reconcile: what it writes and tells, also when it starts, changes hands or cannot be written."""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.config_feed import ConfigFeed, Have
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.signals import Report
from fairlead_operator.errors import ApiError
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.kube.events import Recorder
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.prices.book import Prices
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.children import Children
from fairlead_operator.reconcile.configuration import Compiler
from fairlead_operator.reconcile.context import Context
from fairlead_operator.reconcile.costbudget import SETTLE_MS, BudgetReconciler
from fairlead_operator.reconcile.statuses import Statuses
from fairlead_operator.settings import read_settings
from fairlead_operator.signals.scrape import Scraper
from fairlead_operator.telemetry import Telemetry
from fairlead_router.contract import Signals, SpendAnswer
from tests.builders.decisions import NOW, USD, pod, spend
from tests.builders.resources import BudgetBuilder, make_budget
from tests.fakes.api_server import FakeApiServer, Fault
from tests.fakes.clock import FakeClock

KEY = Key("CostBudget", "support", "support")
SUPPORT = make_budget("support", "support").limit(2300).alert(70)
GATEWAY = "fairlead/gateway-0"


class Tokens:
    async def token(self, audience: str) -> str:
        return audience


def gateway(name: str) -> PodFact:
    """A pod of the gateway that takes requests."""
    return replace(pod(name), namespace="fairlead", pool="", variant="")


class View(Cluster):
    """One budget as the server has it, and one gateway."""

    def __init__(self, server: FakeApiServer) -> None:
        self._server = server
        self._last: tuple[Any, Snapshot] = (None, Snapshot())
        self.gateways: tuple[PodFact, ...] = (gateway("gateway-0"),)

    def snapshot(self) -> Snapshot:
        seen = (self._server.get("costbudgets", "support", "support"), self.gateways)
        if seen != self._last[0]:
            self._last = (seen, self._snapshot_of(seen[0]))
        return self._last[1]

    def _snapshot_of(self, raw: Any) -> Snapshot:
        return Snapshot(
            budgets={} if raw is None else {"support/support": CostBudget.parse(raw)},
            raw={} if raw is None else {KEY: raw},
            namespaces={"support": {}, "fairlead": {}},
            gateways=self.gateways,
        )


class Leader:
    """One process that leads; another one knows nothing but what the server has."""

    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession, folder: Path, clock: FakeClock) -> None:
        self.server, self.clock = server, clock
        api, settings, view = Api(session, server.url), read_settings({}), View(server)
        self.view = view
        self.feed = ConfigFeed((), "fairlead")
        self.context = Context(
            api=api,
            cluster=view,
            compiler=Compiler(view, self.feed, settings, tuple),
            feed=self.feed,
            scraper=Scraper(session, Tokens(), clock),
            prices=Prices(folder / "prices.yaml", clock),
            ledger=LedgerClient(session, "", Tokens()),
            books=Books(ledger_answered_ms=clock.now_ms(), led_since_ms=clock.now_ms()),
            children=Children(api),
            statuses=Statuses(api, clock),
            recorder=Recorder(api, "operator-0", clock),
            queue=WorkQueue(clock, random.Random(1)),  # noqa: S311 - spreads retries
            telemetry=Telemetry(Snapshot, dict, lambda: True, clock.now_ms),
            settings=settings,
            clock=clock,
        )
        self.reconcile = BudgetReconciler(self.context)

    def hears(self, sent: SpendAnswer | None = None, version: tuple[int, int] = (3, 1)) -> None:
        """The ledger answered: it has the budget since this version, and it stands so."""
        books = self.context.books
        books.spend["support/support"] = sent or spend()
        books.ledger_answered_ms = self.clock.now_ms()
        books.budget_in.setdefault("support/support", version)
        self.feed.set_budgets_version(version)

    async def confirmed(self, version: tuple[int, int] = (3, 1)) -> None:
        """The gateway was asked and has the present configuration and this version of the budgets."""
        self.context.compiler.refresh()
        config = (await self.feed.answer("fairlead", Have("", "", GATEWAY), 0)).version
        signals = Signals(router=GATEWAY, config_version=config, endpoints_version="", budgets_version=version)
        self.context.scraper._reports[GATEWAY] = Report(GATEWAY, self.clock.now_ms(), signals)
        self.context.scraper.rounds += 1

    async def runs(self, sent: SpendAnswer | None = None) -> None:
        """Hear, have it confirmed, reconcile."""
        self.hears(sent)
        await self.confirmed()
        await self.reconcile(KEY)


class Place:
    """A server, and the leaders that follow one another."""

    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession, folder: Path) -> None:
        self.server, self._session, self._folder = server, session, folder
        self.clock = FakeClock(NOW)

    def leader(self) -> Leader:
        return Leader(self.server, self._session, self._folder, self.clock)

    async def write(self, written: BudgetBuilder) -> None:
        old = self.server.get("costbudgets", "support", "support") or {}
        await self.server.put("costbudgets", {**written.obj(), "status": old.get("status", {})})

    @property
    def status(self) -> dict[str, Any]:
        raw = self.server.get("costbudgets", "support", "support")
        assert raw is not None
        status: dict[str, Any] = raw["status"]
        return status

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(one for one in self.status["conditions"] if one["type"] == kind)
        return found["status"], found["reason"]

    @property
    def notes(self) -> list[tuple[str, str]]:
        stored = self.server._objects.items()
        return [(body["reason"], body["note"]) for place, body in stored if place[0] == "events"]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    (tmp_path / "prices.yaml").write_text("{}", encoding="utf-8")
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        made = Place(server, session, tmp_path)
        await made.write(SUPPORT)
        yield made


def paced(charged: int = 1955 * USD, **fields: Any) -> SpendAnswer:
    return spend(charged, action="Alert", active=("Alert",), **fields)


async def test_a_change_of_leader_does_not_turn_enforced_even_for_a_moment(place: Place) -> None:
    await place.leader().runs()
    assert place.condition("Enforced") == ("True", "Enforced")
    before = place.status
    successor = place.leader()
    await successor.reconcile(KEY)
    successor.hears(version=(4, 1))
    await successor.reconcile(KEY)
    await successor.confirmed((3, 9))
    await successor.reconcile(KEY)
    assert place.status == before
    await place.clock.advance(SETTLE_MS / 1000 - 1)
    successor.hears()
    await successor.confirmed((4, 1))
    await successor.reconcile(KEY)
    await place.clock.advance(2)
    await successor.reconcile(KEY)
    assert place.condition("Enforced") == ("True", "Enforced")
    turned = [one["lastTransitionTime"] for one in place.status["conditions"] if one["type"] == "Enforced"]
    assert turned == ["2026-11-20T11:00:00Z"]


async def test_a_router_that_never_confirms_to_the_new_leader_is_told_in_time(place: Place) -> None:
    await place.leader().runs()
    successor = place.leader()
    successor.hears(version=(4, 1))
    await successor.confirmed((3, 9))
    await place.clock.advance(SETTLE_MS / 1000)
    successor.hears()
    await successor.confirmed((3, 9))
    await successor.reconcile(KEY)
    assert place.condition("Enforced") == ("False", "RoutersLagging")


@pytest.fixture
async def growing(place: Place) -> Leader:
    """An enforced budget; a second gateway has been created, and runs nothing yet."""
    leader = place.leader()
    leader.context.scraper.asked = frozenset({GATEWAY})
    await leader.runs()
    await place.clock.advance(SETTLE_MS / 1000)
    leader.view.gateways += (replace(gateway("gateway-1"), ip="", ready=False, router_ready=False, phase="Pending"),)
    await leader.runs()
    return leader


async def test_a_router_that_has_just_come_is_not_waited_for_before_it_was_asked(place: Place, growing: Leader) -> None:
    growing.view.gateways = (gateway("gateway-0"), gateway("gateway-1"))
    await growing.runs()
    assert place.condition("Enforced") == ("True", "Enforced")
    assert place.status["routers"] == {"total": 1, "enforcing": 1}
    growing.context.scraper.asked = frozenset({GATEWAY, "fairlead/gateway-1"})
    await growing.runs()
    assert place.condition("Enforced") == ("False", "RoutersLagging")
    assert place.status["routers"] == {"total": 2, "enforcing": 1}


async def test_a_router_that_came_before_an_edit_is_waited_for_even_before_it_was_asked(
    place: Place, growing: Leader
) -> None:
    await place.write(SUPPORT.for_models("chat"))
    growing.view.gateways = (gateway("gateway-0"), gateway("gateway-1"))
    await growing.runs()
    assert place.condition("Enforced") == ("False", "RoutersLagging")
    assert place.status["routers"] == {"total": 2, "enforcing": 1}


async def test_a_router_that_came_before_the_ledger_had_the_budget_is_waited_for(place: Place, growing: Leader) -> None:
    growing.context.books.budget_in["support/support"] = (3, 2)
    growing.view.gateways = (gateway("gateway-0"), gateway("gateway-1"))
    growing.hears()
    await growing.confirmed((3, 2))
    await growing.reconcile(KEY)
    assert place.status["routers"] == {"total": 2, "enforcing": 1}


async def test_a_router_of_which_nothing_is_known_is_waited_for(place: Place) -> None:
    leader = place.leader()
    leader.context.scraper.asked = frozenset({GATEWAY})
    await leader.runs()
    await place.clock.advance(SETTLE_MS / 1000)
    leader.view.gateways += (gateway("gateway-1"),)
    await leader.runs()
    assert place.condition("Enforced") == ("False", "RoutersLagging")


async def test_an_edit_waits_for_every_router_also_under_a_new_leader(place: Place) -> None:
    await place.leader().runs()
    await place.write(SUPPORT.limit(1000))
    successor = place.leader()
    successor.hears(version=(4, 1))
    await successor.confirmed((3, 9))
    await successor.reconcile(KEY)
    assert place.condition("Enforced") == ("False", "RoutersLagging")


async def test_models_wait_for_the_configuration_that_names_them(place: Place) -> None:
    leader = place.leader()
    await leader.runs()
    await place.clock.advance(SETTLE_MS / 1000)
    leader.hears()
    await leader.confirmed()
    await place.write(SUPPORT.for_models("chat"))
    await leader.reconcile(KEY)
    assert place.condition("Enforced") == ("False", "RoutersLagging")
    await leader.confirmed()
    await leader.reconcile(KEY)
    assert place.condition("Enforced") == ("True", "Enforced")


async def test_an_action_is_told_once_whoever_leads_and_whatever_moves(place: Place) -> None:
    first = place.leader()
    await first.runs()
    await first.runs(paced(1610 * USD))
    for charged in range(1611, 1616):
        await place.clock.advance(3)
        await first.runs(paced(charged * USD))
    await place.leader().runs(paced(1620 * USD))
    assert place.notes == [("BudgetAction", "None to Alert: 1610.50 of 2300 USD (70%)")]


async def test_a_status_that_could_not_be_written_does_not_have_its_events_told_twice(place: Place) -> None:
    leader = place.leader()
    await leader.runs()
    place.server.faults.append(Fault("PATCH", "/status", 503))
    with pytest.raises(ApiError):
        await leader.runs(paced(1610 * USD))
    await leader.runs(paced(1611 * USD))
    assert place.notes == [("BudgetAction", "None to Alert: 1611.50 of 2300 USD (70%)")]


async def test_an_increase_names_who_wrote_it_when_the_server_says(place: Place) -> None:
    leader = place.leader()
    await leader.runs()
    fields: dict[str, Any] = {"f:spec": {"f:temporaryIncrease": {}}}
    written = SUPPORT.increase(500).metadata(managedFields=[{"manager": "kubectl-edit", "fieldsV1": fields}])
    await place.write(written)
    await leader.runs(spend(extra=500 * USD))
    text = "2300 to 2800 USD until 2026-12-01T08:00Z (temporaryIncrease: launch; written by kubectl-edit)"
    assert place.notes == [("LimitRaised", text)]
    assert (place.status["limit"], place.status["increase"]) == ("2800.00", "500.00")


async def test_an_increase_is_told_also_when_its_writer_cannot_be_read(place: Place) -> None:
    leader = place.leader()
    await leader.runs()
    await place.write(SUPPORT.increase(500))
    place.server.faults.append(Fault("GET", "/costbudgets/support", 503))
    await leader.runs(spend(extra=500 * USD))
    assert [note for note in place.notes if "(temporaryIncrease: launch)" in note[1]]


async def test_a_budget_that_is_made_again_shows_what_was_spent_before(place: Place) -> None:
    leader = place.leader()
    await leader.runs(paced())
    await place.server.remove("costbudgets", "support", "support")
    await leader.reconcile(KEY)
    await place.server.put("costbudgets", SUPPORT.metadata(uid="another").obj())
    await leader.runs(paced())
    assert place.status["spent"] == "1955.50"


async def test_an_increase_that_cannot_be_counted_is_told_and_the_budget_counts_without_it(place: Place) -> None:
    await place.write(SUPPORT.increase("999999999999"))
    await place.leader().runs()
    assert place.condition("Accepted") == ("False", "InvalidArgument")
    assert place.condition("Enforced") == ("True", "Enforced")
    assert place.status["spent"] == "1610.50"
