"""One pool's reconcile: what it writes and tells, what it remembers and forgets, and what refuses it."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from prometheus_client import generate_latest

from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.decide.facts import NodeFact, PodFact, pod_fact, time_text
from fairlead_operator.decide.node_prices import OpenCostSource
from fairlead_operator.decide.rates import PoolCard, Rates, card_of
from fairlead_operator.decide.signals import Report
from fairlead_operator.errors import ApiError, LedgerError
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.kube.events import Recorder
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.prices.book import Prices
from fairlead_operator.prices.prometheus import Prometheus, PrometheusError
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.children import Children
from fairlead_operator.reconcile.configuration import Compiler
from fairlead_operator.reconcile.context import Context
from fairlead_operator.reconcile.modelpool import PoolReconciler
from fairlead_operator.reconcile.statuses import Statuses
from fairlead_operator.settings import read_settings
from fairlead_operator.signals.scrape import Scraper
from fairlead_operator.telemetry import Telemetry
from fairlead_router.contract import CardRow, DrainReport, PoolSignals, PutCards, Signals
from tests.builders.decisions import NOW, pod, pod_object
from tests.builders.resources import PoolBuilder, make_pool
from tests.fakes.api_server import FakeApiServer, Fault
from tests.fakes.clock import FakeClock

KEY = Key("ModelPool", "ai-platform", "chat-8b")
PRICES = """
accelerators: [{resourceName: nvidia.com/gpu, perHour: "2.95", effectiveFrom: "2026-01-01", source: c}]
rateCard:
  seeds: {default: {promptTokensPerSecond: 1000, cachedTokensPerSecond: 10000, outputTokensPerSecond: 100}}
"""


OPEN_COST = f"""
openCost: {{url: "http://prometheus:9090"}}
{PRICES.partition("accelerators")[0]}rateCard{PRICES.partition("rateCard")[2]}
"""


class Tokens:
    async def token(self, audience: str) -> str:
        return audience


class View(Cluster):
    """What a test lets the operator see: the pool and its children as the server has them, and these pods."""

    def __init__(self, server: FakeApiServer) -> None:
        self._server = server
        self.pods: list[dict[str, Any]] = []
        self.gone: list[PodFact] = []
        self.nodes: list[NodeFact] = []
        self.updated = 1
        self.builder: PoolBuilder | None = make_pool("chat-8b").variant("h100").autoscaling(8)

    def snapshot(self) -> Snapshot:
        if self.builder is None:
            return Snapshot()
        raw = self._server.get("modelpools", "ai-platform", "chat-8b") or self.builder.obj()
        live = self._server.get("deployments", "ai-platform", "chat-8b-h100")
        if live is not None:
            seen = live["metadata"].get("generation", 0)
            live = {**live, "status": {"observedGeneration": seen, "replicas": 1, "updatedReplicas": self.updated}}
        return Snapshot(
            pools={"ai-platform/chat-8b": self.builder.parsed()},
            raw={KEY: raw},
            nodes={node.name: node for node in self.nodes},
            pods=tuple(pod_fact(body) for body in self.pods),
            gone=tuple(self.gone),
            created_ms={f"ai-platform/{one['metadata']['name']}": one["created"] for one in self.pods},
            children={} if live is None else {("Deployment", "ai-platform", "chat-8b-h100"): live},
        )


class Ledger(LedgerClient):
    def __init__(self) -> None:
        self.answers = True
        self.told: list[CardRow] = []

    async def put_cards(self, cards: PutCards) -> None:
        (card,) = cards.cards
        self.told.append(card)
        if not self.answers:
            raise LedgerError("PUT cards", "no answer")


class FakePrometheus(Prometheus):
    answers = True

    async def ask(self, source: OpenCostSource, queries: Sequence[str]) -> list[Any]:
        if not self.answers:
            raise PrometheusError(f"{source.url}: no answer")
        return [[{"metric": {"node": "gpu-1"}, "value": [1, "12"]}] for _ in queries]


class Desk:
    def __init__(self, server: FakeApiServer, session: aiohttp.ClientSession, folder: Path) -> None:
        self.server, self.clock, self.view, self.ledger = server, FakeClock(NOW), View(server), Ledger()
        api, settings, feed = Api(session, server.url), read_settings({}), ConfigFeed(("ai-platform",), "fairlead")
        self.prices, self.prometheus = folder / "prices.yaml", FakePrometheus()
        self.list_prices(PRICES)
        self.context = Context(
            api=api,
            cluster=self.view,
            compiler=Compiler(self.view, feed, settings, tuple),
            feed=feed,
            scraper=Scraper(session, Tokens(), self.clock),
            prices=Prices(self.prices, self.clock, self.prometheus),
            ledger=self.ledger,
            books=Books(cards_known=True),
            children=Children(api),
            statuses=Statuses(api, self.clock),
            recorder=Recorder(api, "operator-0", self.clock),
            queue=WorkQueue(self.clock, random.Random(1)),  # noqa: S311 - spreads retries
            telemetry=Telemetry(Snapshot, dict, lambda: True, self.clock.now_ms),
            settings=settings,
            clock=self.clock,
        )
        self.reconcile = PoolReconciler(self.context)
        self.served = 0

    def list_prices(self, text: str) -> None:
        self.prices.write_text(text, encoding="utf-8")

    async def serve(self, minutes: int) -> None:
        """Minutes in which one replica's slots are full: output at twice the seeds' speed, nothing else."""
        if not self.view.pods:
            self.has_pod("one", NOW, NOW)
        for _ in range(minutes * 3):
            await self.clock.advance(20)
            self.served += 20 * 200
            pool = PoolSignals(pool="ai-platform/chat-8b", running=256, output_tokens_total=self.served)
            signals = Signals(router="ai-platform/one", config_version="", endpoints_version="", pools=(pool,))
            report = Report("ai-platform/one", self.clock.now_ms(), signals)
            self.context.scraper._reports["ai-platform/one"] = report
            await self.reconcile(KEY)

    @property
    def status(self) -> dict[str, Any]:
        raw = self.server.get("modelpools", "ai-platform", "chat-8b")
        assert raw is not None
        return dict(raw["status"])

    def has_pod(self, name: str, created_ms: int, ready_ms: int) -> None:
        body = pod_object(name)
        body["status"]["conditions"][1]["lastTransitionTime"] = time_text(ready_ms)
        self.view.pods.append({**body, "created": created_ms})

    def condition(self, kind: str) -> tuple[str, str, str]:
        raw = self.server.get("modelpools", "ai-platform", "chat-8b")
        assert raw is not None
        found = next(one for one in raw["status"]["conditions"] if one["type"] == kind)
        return found["status"], found["reason"], found["message"]

    @property
    def events(self) -> list[str]:
        return [body["reason"] for place, body in self.server._objects.items() if place[0] == "events"]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        desk = Desk(server, session, tmp_path)
        assert desk.view.builder is not None
        await server.put("modelpools", desk.view.builder.obj())
        yield desk


async def test_a_new_pool_starts_at_its_minimum_and_says_only_that(desk: Desk) -> None:
    await desk.reconcile(KEY)
    deployment = desk.server.get("deployments", "ai-platform", "chat-8b-h100")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 1
    raw = desk.server.get("modelpools", "ai-platform", "chat-8b")
    assert raw is not None
    assert raw["status"]["scaling"][0]["message"] == "The minimum is 1 (autoscaling.minReplicas)."
    notes = [body["note"] for place, body in desk.server._objects.items() if place[0] == "events"]
    assert "0 to 1 replicas, 0.00 to 2.95 USD/h: the minimum is 1 (autoscaling.minReplicas)" in notes


async def test_a_new_leader_neither_tells_nor_measures_the_starts_of_before(desk: Desk) -> None:
    desk.has_pod("old", NOW - 3_600_000, NOW - 3_500_000)
    desk.has_pod("flapped", NOW - 259_200_000, NOW - 60_000)
    await desk.reconcile(KEY)
    assert "ReplicaReady" not in desk.events
    assert desk.context.books.pools["ai-platform/chat-8b"].starts.measured == {}


async def test_a_start_that_was_watched_is_told_and_measured_once(desk: Desk) -> None:
    await desk.reconcile(KEY)
    await desk.clock.advance(100)
    desk.has_pod("new", NOW, NOW + 90_000)
    desk.has_pod("begun-before", NOW - 50_000, NOW + 90_000)
    for _ in range(2):
        await desk.reconcile(KEY)
    assert desk.events.count("ReplicaReady") == 2
    assert desk.context.books.pools["ai-platform/chat-8b"].starts.measured == {"h100": (90_000,)}


async def test_how_a_drain_went_is_told_once_though_the_pod_is_gone_by_then(desk: Desk) -> None:
    report = DrainReport(requests=61, took_s=191.6, timeout_s=600.0)
    words = msgspec.json.encode(report).decode()
    await desk.reconcile(KEY)
    desk.view.pods.append({**pod_object("ends", last_words=words), "created": NOW})
    await desk.reconcile(KEY)
    desk.view.pods.clear()
    desk.view.gone = [pod("ends", last_words=words), pod("went", last_words=words)]
    for _ in range(70):
        await desk.reconcile(KEY)
        await desk.clock.advance(10)
    notes = [body["note"] for place, body in desk.server._objects.items() if place[0] == "events"]
    assert [note for note in notes if "cut" in note] == [
        "ends: 61 requests ended in 3m12s of 10m, 0 cut",
        "went: 61 requests ended in 3m12s of 10m, 0 cut",
    ]


async def test_each_variant_has_its_own_cold_start_and_callers_hear_of_the_longest(desk: Desk) -> None:
    desk.view.builder = make_pool("chat-8b").variant("h100").variant("l40s").replicas(2)
    await desk.reconcile(KEY)
    await desk.clock.advance(400)
    desk.has_pod("fast", NOW, NOW + 60_000)
    slow = pod_object("slow", variant="l40s")
    slow["status"]["conditions"][1]["lastTransitionTime"] = time_text(NOW + 300_000)
    desk.view.pods.append({**slow, "created": NOW})
    await desk.reconcile(KEY)
    notes = {
        variant: (desk.server.get("deployments", "ai-platform", f"chat-8b-{variant}") or {})["metadata"]["annotations"]
        for variant in ("h100", "l40s")
    }
    assert {name: one["fairlead.dev/cold-start-ms"] for name, one in notes.items()} == {
        "h100": "60000", "l40s": "300000",
    }  # fmt: skip


async def test_a_start_that_took_no_time_is_still_known_to_the_next_leader(desk: Desk) -> None:
    await desk.reconcile(KEY)
    desk.has_pod("new", NOW, NOW)
    await desk.reconcile(KEY)
    before = desk.server.get("deployments", "ai-platform", "chat-8b-h100")
    assert before is not None
    assert before["metadata"]["annotations"]["fairlead.dev/cold-start-ms"] == "5000"
    desk.context.books.close_pool("ai-platform/chat-8b")
    await desk.clock.advance(5)
    await desk.reconcile(KEY)
    assert desk.server.get("deployments", "ai-platform", "chat-8b-h100") == before


async def test_a_deleted_pool_is_forgotten_everywhere(desk: Desk) -> None:
    await desk.reconcile(KEY)
    context = desk.context
    assert b"fairlead_scale_decisions_total{" in _metrics(context)
    desk.view.builder = None
    await desk.reconcile(KEY)
    assert b"fairlead_scale_decisions_total{" not in _metrics(context)
    assert not context.books.pools
    assert not context.children._applied
    assert not any(context.statuses._written.values())


async def test_a_name_that_is_taken_is_a_condition_and_no_replica_is_claimed(desk: Desk) -> None:
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}}
    await desk.server.put("deployments", {**body, "metadata": {"name": "chat-8b-h100", "namespace": "ai-platform"}})
    await desk.reconcile(KEY)
    status, reason, message = desk.condition("Accepted")
    assert (status, reason) == ("False", "NameConflict")
    assert "Rename the pool or the variant" in message
    assert "ScaledUp" not in desk.events


@pytest.mark.parametrize(
    ("code", "reason", "part"),
    [(403, "Forbidden", "Grant it to ServiceAccount fairlead-operator"), (422, "InvalidPodTemplate", "refuses")],
)
async def test_what_the_api_server_refuses_is_a_condition(desk: Desk, code: int, reason: str, part: str) -> None:
    desk.server.faults.append(Fault("PATCH", "deployments", code))
    await desk.reconcile(KEY)
    status, found, message = desk.condition("Accepted")
    assert (status, found) == ("False", reason)
    assert part in message
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[0] == "True"


async def test_an_answer_500_is_the_pod_templates_fault_only_where_there_is_one(desk: Desk) -> None:
    desk.server.faults.append(Fault("PATCH", "deployments", 500))
    with pytest.raises(ApiError):
        await desk.reconcile(KEY)
    assert desk.view.builder is not None
    desk.view.builder = desk.view.builder.pod_template(spec={"priorityClassName": "high"})
    desk.server.faults.append(Fault("PATCH", "deployments", 500))
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[1] == "InvalidPodTemplate"


async def test_a_card_that_the_ledger_has_not_taken_does_not_count_and_blames_no_seeds(desk: Desk) -> None:
    desk.ledger.answers = False
    await desk.reconcile(KEY)
    status, reason, message = desk.condition("PriceKnown")
    assert (status, reason) == ("False", "LedgerUnreachable")
    assert "seeds" not in message
    await desk.reconcile(KEY)
    assert len(desk.ledger.told) == 1, "until the ledger has said what it has, no other card is told"
    desk.ledger.answers = True
    desk.context.books.cards_known = True
    await desk.reconcile(KEY)
    assert desk.condition("PriceKnown")[:2] == ("True", "Priced")


async def test_a_card_is_told_once_until_its_rates_change(desk: Desk) -> None:
    for _ in range(3):
        await desk.reconcile(KEY)
    assert [card.version for card in desk.ledger.told] == [1]
    desk.list_prices(PRICES.replace("2.95", "3.95"))
    for _ in range(3):
        await desk.reconcile(KEY)
    assert [card.version for card in desk.ledger.told] == [1, 2]
    assert desk.status["rate"]["version"] == 2
    assert desk.status["variants"][0]["pricePerAcceleratorHour"] == "3.95"


async def test_a_price_that_is_taken_out_of_the_list_leaves_no_card_until_it_is_back(desk: Desk) -> None:
    await desk.reconcile(KEY)
    desk.list_prices("")
    await desk.reconcile(KEY)
    status, reason, message = desk.condition("PriceKnown")
    assert (status, reason) == ("False", "NoPrice")
    assert "OpenCost is not configured" in message
    assert message.endswith("Add it to prices.accelerators in the chart's values.")
    assert "rate" not in desk.status
    assert "PriceUnknown" in desk.events
    desk.list_prices(PRICES)
    await desk.reconcile(KEY)
    assert desk.condition("PriceKnown")[0] == "True"
    assert [card.version for card in desk.ledger.told] == [1], "the same rates are the same version"


async def test_open_cost_prices_what_the_list_does_not_and_says_so(desk: Desk) -> None:
    desk.view.nodes = [NodeFact("gpu-1", {}, {"nvidia.com/gpu": "4"})]
    desk.list_prices(OPEN_COST)
    await desk.reconcile(KEY)
    assert desk.condition("PriceKnown")[0] == "False"
    await desk.context.prices.refresh()
    await desk.reconcile(KEY)
    (variant,) = desk.status["variants"]
    assert variant["pricePerAcceleratorHour"] == "3.00"
    assert variant["priceSource"] == "OpenCost: 12.000000 USD an hour for node gpu-1 / 4 nvidia.com/gpu"
    assert desk.status["rate"]["version"] == 1


async def test_while_open_cost_is_away_its_prices_hold_and_then_the_pool_has_none(desk: Desk) -> None:
    desk.view.nodes = [NodeFact("gpu-1", {}, {"nvidia.com/gpu": "4"})]
    desk.list_prices(OPEN_COST)
    await desk.context.prices.refresh()
    await desk.reconcile(KEY)
    desk.prometheus.answers = False
    for minutes, status in ((59, "True"), (1, "False")):
        await desk.clock.advance(60 * minutes)
        await desk.context.prices.refresh()
        await desk.reconcile(KEY)
        assert desk.condition("PriceKnown")[0] == status
    assert "OpenCost has given no prices since 11:00:00Z" in desk.condition("PriceKnown")[2]
    assert "rate" not in desk.status
    assert len(desk.ledger.told) == 1


async def test_a_new_leader_keeps_the_card_until_open_cost_has_answered_it_or_its_time_is_over(desk: Desk) -> None:
    desk.view.nodes = [NodeFact("gpu-1", {}, {"nvidia.com/gpu": "4"})]
    desk.list_prices(OPEN_COST)
    desk.prometheus.answers = False
    desk.context.books.cards["ai-platform/chat-8b"] = PoolCard(7, Rates(3, 2, 1), "Seed", NOW - 1)
    await desk.reconcile(KEY)
    status, _, message = desk.condition("PriceKnown")
    assert status == "Unknown"
    assert "Requests are charged by card 7 until OpenCost has answered." in message
    assert desk.status["rate"]["version"] == 7
    assert "PriceUnknown" not in desk.events
    await desk.clock.advance(3600)
    await desk.reconcile(KEY)
    assert desk.condition("PriceKnown")[0] == "False"
    assert "rate" not in desk.status


async def test_a_busy_pool_is_charged_what_it_was_measured_to_do(desk: Desk) -> None:
    """Tokens come twice as fast as the seeds say, in the seeds' own proportions."""
    await desk.serve(minutes=29)
    assert desk.status["rate"]["source"] == "Seed"
    assert "capacity not measured yet, 25m of 30m of busy time" in desk.condition("PriceKnown")[2]
    await desk.serve(minutes=34)
    rate = desk.status["rate"]
    assert (rate["version"], rate["source"]) == (2, "Measured")
    assert rate["outputPerMillionTokens"] == "6.145833", "three quarters of 8.194444, one step towards the half of it"
    assert "0.5 of the seeds'" in desk.condition("PriceKnown")[2]
    assert desk.ledger.told[-1].source.startswith("Measured 750000/750000/750000 ppm of seeds, ")
    await desk.serve(minutes=61)
    assert desk.status["rate"]["outputPerMillionTokens"] == "4.609375"
    assert [card.version for card in desk.ledger.told] == [1, 2, 3], "one message a version"


async def test_a_pool_in_a_teams_namespace_keeps_its_seeds_and_says_so(desk: Desk) -> None:
    desk.context.feed.platform = frozenset({"elsewhere"})
    await desk.serve(minutes=62)
    assert desk.status["rate"]["source"] == "Seed"
    assert "only pools of platform namespaces are measured" in desk.condition("PriceKnown")[2]
    assert [card.version for card in desk.ledger.told] == [1]


async def test_nothing_is_measured_while_pods_are_being_replaced(desk: Desk) -> None:
    desk.view.updated = 0
    await desk.serve(minutes=62)
    assert "0m of 30m of busy time" in desk.condition("PriceKnown")[2]
    assert desk.status["rate"]["source"] == "Seed"


async def test_a_measured_card_survives_a_change_of_the_leader(desk: Desk) -> None:
    await desk.serve(minutes=62)
    stored, books = desk.ledger.told[-1], desk.context.books
    books.pools.clear()
    books.cards = {stored.pool: card_of(stored)}
    await desk.reconcile(KEY)
    assert desk.ledger.told[-1] is stored
    assert desk.status["rate"]["source"] == "Measured"


async def test_other_settings_of_the_engine_are_charged_by_seeds_at_once(desk: Desk) -> None:
    await desk.serve(minutes=62)
    assert desk.view.builder is not None
    desk.view.builder = desk.view.builder.engine(maxContextTokens=1024)
    await desk.reconcile(KEY)
    assert (desk.status["rate"]["version"], desk.status["rate"]["source"]) == (3, "Seed")


def _metrics(context: Context) -> bytes:
    return generate_latest(context.telemetry.registry)


# --- who else writes the number, and who goes ---


async def scale_from_outside(desk: Desk, replicas: int, manager: str = "kube-controller-manager") -> None:
    live = desk.server.get("deployments", "ai-platform", "chat-8b-h100")
    assert live is not None
    fields = {"manager": manager, "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    meta = {**live["metadata"], "managedFields": [fields]}
    await desk.server.put("deployments", {**live, "metadata": meta, "spec": {**live["spec"], "replicas": replicas}})


def replicas_of(desk: Desk) -> int:
    live = desk.server.get("deployments", "ai-platform", "chat-8b-h100")
    assert live is not None
    return int(live["spec"]["replicas"])


async def test_replicas_that_somebody_else_wrote_are_set_back_and_told(desk: Desk) -> None:
    await desk.reconcile(KEY)
    await scale_from_outside(desk, 5, "kubectl")
    await desk.reconcile(KEY)
    assert replicas_of(desk) == 1
    notes = [body["note"] for place, body in desk.server._objects.items() if place[0] == "events"]
    assert any(note.startswith("kubectl set Deployment chat-8b-h100 from 1 to 5 at") for note in notes)
    assert desk.condition("ScalingActive")[1] != "SecondWriter"


async def test_a_controller_that_writes_again_keeps_its_number_until_the_spec_changes(desk: Desk) -> None:
    await desk.reconcile(KEY)
    for number in (5, 6, 7):
        await desk.clock.advance(15)
        await scale_from_outside(desk, number)
        await desk.reconcile(KEY)
        await desk.reconcile(KEY)
    assert replicas_of(desk) == 7
    status, reason, message = desk.condition("ScalingActive")
    assert (status, reason) == ("False", "SecondWriter")
    assert "A HorizontalPodAutoscaler (kube-controller-manager) set Deployment chat-8b-h100 from 1 to 6" in message
    assert desk.events.count("SecondWriter") == 2
    assert desk.view.builder is not None
    desk.view.builder = desk.view.builder.autoscaling(9).metadata(generation=2)
    await desk.reconcile(KEY)
    assert replicas_of(desk) == 7, "more than is needed goes only after a while"
    assert desk.condition("ScalingActive")[1] != "SecondWriter"


async def test_the_emptiest_pods_are_marked_before_the_pool_shrinks(desk: Desk) -> None:
    desk.view.builder = make_pool("chat-8b").variant("h100").replicas(3)
    await desk.reconcile(KEY)
    for name, running in (("a", 7), ("b", 2), ("c", 5)):
        desk.has_pod(name, NOW, NOW)
        await desk.server.put("pods", {**desk.view.pods[-1], "apiVersion": "v1", "kind": "Pod"})
        told = (PoolSignals(pool="ai-platform/chat-8b", running=running),)
        signals = Signals(router=f"ai-platform/{name}", config_version="", endpoints_version="", pools=told)
        desk.context.scraper._reports[signals.router] = Report(signals.router, NOW, signals)
    desk.view.builder = desk.view.builder.replicas(2)
    await desk.reconcile(KEY)
    marks = {
        name: body["metadata"].get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost")
        for (kind, _, name), body in desk.server._objects.items()
        if kind == "pods"
    }
    assert marks == {"a": None, "b": "-1", "c": None}
    assert replicas_of(desk) == 2


async def test_a_variant_without_room_leaves_its_replicas_to_another_one(desk: Desk) -> None:
    desk.view.builder = make_pool("chat-8b").variant("h100").variant("l40s").replicas(2)
    await desk.reconcile(KEY)
    assert replicas_of(desk) == 2
    body = pod_object("stuck", ready=False, unscheduled="0/7 nodes are available: 7 Insufficient nvidia.com/gpu.")
    desk.view.pods.append({**body, "created": NOW})
    desk.has_pod("runs", NOW, NOW)
    await desk.reconcile(KEY)
    assert replicas_of(desk) == 2
    await desk.clock.advance(301)
    await desk.reconcile(KEY)
    assert replicas_of(desk) == 1
    other = desk.server.get("deployments", "ai-platform", "chat-8b-l40s")
    assert other is not None
    assert other["spec"]["replicas"] == 1
    status, reason, message = desk.condition("ScalingLimited")
    assert (status, reason) == ("True", "NoCapacity")
    assert message == (
        "Variant h100 has no room for more than 1 replica: none of 7 nodes takes it: "
        "7 have too little nvidia.com/gpu free. "
        "Other variants serve instead where there are any; it is tried again at 11:20:01Z."
    )


# --- money ---


async def served_rounds(desk: Desk, rounds: int, per_round: int, running: int) -> None:
    """Rounds of five seconds in which so many requests came each, and so many run."""
    if not desk.view.pods:
        desk.has_pod("one", NOW, NOW)
    for turn in range(rounds):
        await desk.clock.advance(5)
        told = (PoolSignals(pool="ai-platform/chat-8b", running=running, arrivals_total=turn * per_round),)
        signals = Signals(router="ai-platform/one", config_version="", endpoints_version="", uptime_s=999, pools=told)
        desk.context.scraper._reports[signals.router] = Report(signals.router, desk.clock.now_ms(), signals)
        desk.reconcile.observe()
    await desk.reconcile(KEY)


@pytest.mark.parametrize(("limit", "replicas"), [("1.64", 2), ("1.63", 1)])
async def test_no_replica_is_added_that_makes_a_thousand_requests_too_dear(
    desk: Desk, limit: str, replicas: int
) -> None:
    desk.view.builder = make_pool("chat-8b").variant("h100").autoscaling(8, maxCostPerThousandRequests=limit)
    await served_rounds(desk, 13, per_round=5, running=300)
    assert replicas_of(desk) == replicas
    status, reason, message = desk.condition("ScalingLimited")
    if replicas == 1:
        assert (status, reason) == ("True", "CostPerRequest")
        assert message.startswith("Wants 2 replicas, autoscaling.maxCostPerThousandRequests allows 1.")
    else:
        assert status == "False"


async def test_what_routers_judged_is_in_the_status(desk: Desk) -> None:
    desk.has_pod("one", NOW, NOW)
    for met, missed in ((0, 0), (995, 5)):
        await desk.clock.advance(5)
        told = (PoolSignals(pool="ai-platform/chat-8b", met_total=met, missed_total=missed, ttft_ms_p99=900),)
        signals = Signals(router="ai-platform/one", config_version="", endpoints_version="", uptime_s=999, pools=told)
        desk.context.scraper._reports[signals.router] = Report(signals.router, desk.clock.now_ms(), signals)
        desk.reconcile.observe()
    await desk.reconcile(KEY)
    assert desk.status["service"] == {
        "window": "5m", "queueDepth": 0, "timeToFirstToken": "900ms", "attainmentPercent": 99,
    }  # fmt: skip


# --- objectives of latency ---


async def timed_rounds(desk: Desk, rounds: int, per_round: int) -> None:
    """Rounds of five seconds in which so many requests of usual sizes came and met the objectives."""
    for _ in range(rounds):
        await desk.clock.advance(5)
        desk.served += per_round
        told = PoolSignals(
            pool="ai-platform/chat-8b", running=20, arrivals_total=desk.served, finished_total=desk.served,
            met_total=desk.served, samples=((1_000, 100),) * 16,
        )  # fmt: skip
        for body in desk.view.pods:
            name, now = f"ai-platform/{body['metadata']['name']}", desk.clock.now_ms()
            pools = (told,) if name.endswith("/one") else ()
            signals = Signals(router=name, config_version="", endpoints_version="", uptime_s=9_999, pools=pools)
            desk.context.scraper._reports[name] = Report(name, now, signals)
        desk.reconcile.observe()
        await desk.reconcile(KEY)
        async with asyncio.timeout(20):
            while desk.reconcile._curves._waiting:  # noqa: ASYNC110 - it is computed elsewhere
                await asyncio.sleep(0.01)


async def test_objectives_of_latency_add_replicas_before_anybody_waits(desk: Desk) -> None:
    objectives = {"timeToFirstToken": "2s", "timePerOutputToken": "50ms"}
    built = make_pool("chat-8b").model(uri="hf://meta-llama/Llama-3.1-8B-Instruct")
    selector = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    desk.view.builder = built.variant("h100", nodeSelector=selector).autoscaling(8, objectives=objectives)
    desk.has_pod("one", NOW, NOW)
    await timed_rounds(desk, 1, 10)
    status, _, message = desk.condition("ScalingActive")
    assert status == "True"
    assert "Objectives of latency do not count yet, queueDepth does: fewer than 8 requests have finished yet" in message
    await timed_rounds(desk, 30, 500)
    assert replicas_of(desk) >= 3
    assert desk.status["scaling"][0]["reason"] in {"Forecast", "Backlog"}
    assert "do not count yet" not in desk.condition("ScalingActive")[2]
    assert b'fairlead_pool_need{pool="ai-platform/chat-8b"}' in _metrics(desk.context)
    await desk.reconcile.close()


async def test_a_rollouts_surge_pods_mark_nobody(desk: Desk) -> None:
    desk.view.builder = make_pool("chat-8b").variant("h100").replicas(1)
    await desk.reconcile(KEY)
    for name in ("old", "new"):
        desk.has_pod(name, NOW, NOW)
        await desk.server.put("pods", {**desk.view.pods[-1], "apiVersion": "v1", "kind": "Pod"})
    desk.view.updated = 0
    await desk.reconcile(KEY)
    assert desk.server.count("PATCH", "/pods/") == 0
    desk.view.updated = 1
    await desk.reconcile(KEY)
    assert desk.server.count("PATCH", "/pods/") == 1


async def test_a_pod_that_cannot_be_marked_keeps_no_pool_from_shrinking(desk: Desk) -> None:
    desk.view.builder = make_pool("chat-8b").variant("h100").replicas(2)
    await desk.reconcile(KEY)
    for name in ("a", "b"):
        desk.has_pod(name, NOW, NOW)
    desk.view.builder = desk.view.builder.replicas(1)
    desk.server.faults.append(Fault("PATCH", "/pods/", 403, times=9))
    await desk.reconcile(KEY)
    assert replicas_of(desk) == 1


# --- what is refused before a pod starts, and who is replaced ---


async def test_a_pool_that_does_not_fit_is_refused_before_a_pod_starts_and_goes_on_if_it_runs(desk: Desk) -> None:
    h100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    large = make_pool("chat-8b").model(uri="hf://meta-llama/Llama-3.1-70B-Instruct").autoscaling(8)
    small = large.model(uri="hf://meta-llama/Llama-3.1-8B-Instruct").variant("h100", nodeSelector=h100)
    desk.view.builder = large.variant("h100", nodeSelector=h100)
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[:2] == ("False", "DoesNotFit")
    assert desk.server.get("deployments", "ai-platform", "chat-8b-h100") is None
    desk.view.builder = small
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[0] == "True"
    desk.view.nodes = [NodeFact("tiny", {**h100, "nvidia.com/gpu.memory": "8192"}, {"nvidia.com/gpu": "8"})]
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[0] == "True", "what was rolled out once is not refused by a later reckoning"
    desk.view.builder = small.engine(maxSequences=64)
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[:2] == ("False", "DoesNotFit")


async def test_what_is_not_known_of_a_model_is_said_where_it_is_accepted(desk: Desk) -> None:
    desk.view.builder = make_pool("chat-8b").model(uri="hf://acme/novel").variant("h100").autoscaling(8)
    await desk.reconcile(KEY)
    status, _, message = desk.condition("Accepted")
    assert status == "True"
    assert "Whether it fits is not known: its nodeSelector does not tell" in message


async def test_a_pod_whose_node_is_about_to_go_is_replaced_once_and_told(desk: Desk) -> None:
    await desk.reconcile(KEY)
    desk.has_pod("spot", NOW, NOW)
    await desk.server.put("pods", {**desk.view.pods[-1], "apiVersion": "v1", "kind": "Pod"})
    desk.view.nodes = [NodeFact("gpu-1", {}, {"nvidia.com/gpu": "8"}, notice="spot interruption")]
    await desk.reconcile(KEY)
    assert desk.server.get("pods", "ai-platform", "spot") is None
    notes = [body["note"] for place, body in desk.server._objects.items() if place[0] == "events"]
    assert "Node gpu-1 is about to go (spot interruption): pod spot drains, another one starts elsewhere." in notes
    await desk.reconcile(KEY)
    assert desk.condition("Accepted")[0] == "True", "a pod that is gone already harms no reconcile"
