"""A CostBudget on its way through the real ledger and back into its status: over HTTP, with tokens, on SQLite."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from fairlead_operator.cli.main import main
from fairlead_operator.clock import SystemClock
from fairlead_operator.config_server import serve
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.kube.queue import WorkQueue
from fairlead_operator.ledger import catalog
from fairlead_operator.ledger.app import Rules, Service
from fairlead_operator.ledger.store import Store
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.history import Histories
from fairlead_operator.render.ledger_budgets import ledger_budget
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_operator.status.events import events_of_costbudget
from fairlead_operator.tokens import FileKeys, Verifier
from fairlead_router.contract import (
    BUCKET_MS,
    Ask,
    CostRow,
    Holding,
    PutBudgets,
    PutCosts,
    SyncAnswer,
    SyncRequest,
    UsageLine,
)
from tests.builders.ledger import ISSUER, NOW, jwks, line, token
from tests.builders.resources import BudgetBuilder, make_budget
from tests.fakes.clock import FakeClock
from tests.fakes.served_cluster import ServedCluster
from tests.ports import free_ports

USD = 1_000_000_000
OPERATOR, GATEWAY = token("fairlead-operator", pod="operator-1"), token()
ACTIONS = make_budget("monthly", "team-a").alert(50).action("Pace", 80).action("RejectBatch", 90)


class Tokens:
    async def token(self, audience: str) -> str:
        assert audience == "fairlead.dev/ledger"
        return OPERATOR


class View(Cluster):
    def __init__(self) -> None:
        self.now = Snapshot()

    def snapshot(self) -> Snapshot:
        return self.now


class Desk:
    """The operator's side of one budget, and a router that spends."""

    def __init__(self, url: str, session: aiohttp.ClientSession, clock: FakeClock) -> None:
        self.url, self.session, self.clock = url, session, clock
        self.client, self.view, self.books = LedgerClient(session, url, Tokens()), View(), Books()
        queue = WorkQueue(clock, random.Random(1))  # noqa: S311 - spreads retries
        self.histories = Histories(self.client, self.view, self.books, queue, clock)
        self.status: dict[str, Any] = {}
        self.notes: list[str] = []
        self._written = ACTIONS
        self._version = self._seq = 0

    async def write(self, written: BudgetBuilder) -> None:
        """As the operator tells it."""
        self._written, self._version = written, self._version + 1
        parsed = written.parsed()
        self.view.now = Snapshot(budgets={parsed.key: parsed}, namespaces={"team-a": {}, "ai-platform": {}})
        self._sent = (ledger_budget(parsed, ("team-a",)),)
        await self.client.put_budgets(PutBudgets(version=(1, self._version), budgets=self._sent))

    async def spends(self, dollars: int) -> None:
        """A router leases as much as that and charges all of it."""
        answer = await self._sync(asks=(Ask(budget="team-a/monthly", namespace="team-a", need=1, first=1),))
        (account,) = answer.accounts
        known: dict[str, Any] = {"account": account.account, "granted": account.granted, "returned": account.granted}
        more = Holding(**known, want=dollars * USD, need=dollars * USD, first=dollars * USD)
        (account,) = (await self._sync(holdings=(more,))).accounts
        assert account.verdict == "Granted", account
        done = Holding(account=account.account, granted=account.granted, returned=1, charged=dollars * USD, final=True)
        usage = line(bucket=NOW - NOW % BUCKET_MS, nano_usd=dollars * USD)
        await self._sync(holdings=(done,), usage=(usage,))

    async def looks(self) -> None:
        """The operator reads how it stands and writes the status."""
        for one in (await self.client.spend()).budgets:
            self.books.spend[f"{one.namespace}/{one.name}"] = one
        await self.histories.round(self._sent)
        spend, outlook = self.books.spend["team-a/monthly"], self.books.outlooks.get("team-a/monthly")
        view = BudgetView(self._written.parsed(), spend, 0, 1, 1, outlook=outlook)
        old, self.status = self.status, costbudget_status(view, self.status, self.clock.now_ms())
        self.notes = [one.message for one in events_of_costbudget(old, self.status, view)]

    async def _sync(self, usage: tuple[UsageLine, ...] = (), **message: Any) -> SyncAnswer:
        self._seq += 1
        body = msgspec.json.encode(SyncRequest(session="s1", seq=self._seq, usage=usage, **message))
        headers = {"authorization": f"Bearer {GATEWAY}"}
        async with self.session.post(f"{self.url}/v1/sync", data=body, headers=headers) as response:
            text = await response.read()
            assert response.status == 200, text
            return msgspec.json.decode(text, type=SyncAnswer)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    (tmp_path / "jwks.json").write_text(jwks(), encoding="utf-8")
    clock = FakeClock(NOW)
    store = Store(tmp_path / "ledger.db")
    store.submit(lambda connection: catalog.epoch(connection, lambda: "e1")).result()
    verifier = Verifier(FileKeys(tmp_path / "jwks.json", ISSUER), SystemClock())
    service = Service(store, verifier, clock, Rules("fairlead", frozenset({"ai-platform"}), 30_000))
    (port,) = free_ports(1)
    server = asyncio.create_task(serve(service.app(), "127.0.0.1", port))
    try:
        async with aiohttp.ClientSession() as session:
            made = Desk(f"http://127.0.0.1:{port}", session, clock)
            await _up(session, f"{made.url}/healthz")
            await made.write(ACTIONS)
            yield made
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        store.close()


async def _up(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)


async def test_actions_go_through_the_ledger_into_the_status_one_after_another(desk: Desk) -> None:
    await desk.looks()
    assert (desk.status["activeAction"], desk.notes) == ("None", [])
    await desk.spends(55)
    await desk.looks()
    assert (desk.status["spent"], desk.status["activeAction"], desk.status["activeAtPercent"]) == ("55.00", "Alert", 50)
    assert desk.notes == ["None to Alert: 55.00 of 100 USD (55%)"]
    await desk.spends(27)
    await desk.looks()
    assert (desk.status["activeAction"], desk.status["activeAtPercent"]) == ("Pace", 80)
    (note,) = desk.notes
    assert note.startswith("Alert to Pace: 82.00 of 100 USD (82%); ")
    assert " USD/h are admitted until " in note


async def test_an_increase_begins_at_once_and_ends_by_the_ledgers_clock(desk: Desk) -> None:
    await desk.spends(55)
    await desk.looks()
    until = NOW + 60_000
    await desk.write(ACTIONS.increase(50, "2026-11-21T11:01:00Z"))
    await desk.looks()
    assert (desk.status["limit"], desk.status["increase"], desk.status["activeAction"]) == ("150.00", "50.00", "None")
    assert [note for note in desk.notes if note.startswith("100 to 150 USD until 2026-11-21T11:01Z")]
    await desk.clock.advance((until - NOW) / 1000)
    await desk.looks()
    assert (desk.status["limit"], "increase" in desk.status) == ("100.00", False)
    assert "150 to 100 USD: 0 of the extra 50 USD were used" in desk.notes


async def test_counted_idle_is_the_bill_less_what_was_charged(desk: Desk) -> None:
    await desk.write(ACTIONS.with_idle())
    bucket = NOW - NOW % BUCKET_MS
    row = CostRow(pool="team-a/chat", variant="h100", bucket=bucket, replica_ms=1000, nano_usd=60 * USD)
    await desk.spends(1)
    await desk.client.put_costs(PutCosts(costs=(row,), until=NOW))
    await desk.looks()
    assert (desk.status["idle"], desk.status["spent"], desk.status["usedPercent"]) == ("60.00", "1.00", 61)
    assert desk.status["remaining"] == "39.00"


async def test_another_period_counts_anew_and_the_former_one_is_found_again(desk: Desk) -> None:
    await desk.spends(55)
    await desk.looks()
    await desk.write(ACTIONS.limit(period="Day"))
    await desk.looks()
    assert (desk.status["spent"], desk.status["window"]["id"]) == ("0.00", "2026-11-21")
    assert [note for note in desk.notes if note.startswith("counts by Day in UTC since")]
    await desk.write(ACTIONS)
    await desk.looks()
    assert desk.status["spent"] == "55.00"
    assert [note for note in desk.notes if note.startswith("counts by Month in UTC since")]


async def test_a_budget_that_is_deleted_and_made_again_has_spent_what_it_had(desk: Desk) -> None:
    await desk.spends(55)
    await desk.client.put_budgets(PutBudgets(version=(1, 50)))
    assert (await desk.client.spend()).budgets == ()
    desk._version = 50
    await desk.write(ACTIONS.metadata(uid="another"))
    await desk.looks()
    assert desk.status["spent"] == "55.00"


async def test_usage_by_the_hour_becomes_burn_and_forecast(desk: Desk) -> None:
    await desk.spends(12)
    await desk.looks()
    assert desk.status["burnPerHour"] == "12.00"
    ahead = {name: float(text) for name, text in desk.status["forecast"].items()}
    assert 12 <= ahead["low"] <= ahead["atWindowEnd"] <= ahead["high"]
    others = ACTIONS.for_models("another")
    await desk.write(others)
    await desk.looks()
    assert desk.status["burnPerHour"] == "0.00"


async def test_the_command_line_tells_it_as_the_ledger_and_the_status_have_it(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await desk.spends(82)
    await desk.clock.advance(60)
    await desk.looks()
    served = ServedCluster(tmp_path)
    (tmp_path / "token").write_text(OPERATOR, encoding="utf-8")
    options = ["--kubeconfig", str(served.kubeconfig), "--ledger", desk.url, "--token-file", str(tmp_path / "token")]
    try:
        served.put("costbudgets", ACTIONS.status(**desk.status).obj())
        status = await asyncio.to_thread(main, ["explain", "budget", "monthly", "-n", "team-a", *options])
    finally:
        served.stop()
    printed = capsys.readouterr().out
    assert status == 1
    assert "team-a/monthly: 82.00 of 100 USD (82.0%), " in printed
    assert "settled 82.00 + unreconciled 0.00 = spent 82.00; + leased 0.00 + free 18.00 = 100.00" in printed
    assert re.search(r"about 2026-11-21T\d\d:\d\dZ +80% +80\.00  Pace +in force: admits 0\.08 USD/h", printed)
    assert re.search(r"7 days +\S+ 82\.00 \(100\.0%\) = 82\.00", printed)
