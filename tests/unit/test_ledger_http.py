"""The ledger over HTTP: routes, statuses, who may do what, reports."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import select

from fairlead_operator.clock import SystemClock
from fairlead_operator.ledger import app, catalog, places, reports
from fairlead_operator.ledger import postgres as dialect
from fairlead_operator.ledger.app import MAX_BODY, Rules, Service
from fairlead_operator.ledger.places import account_id
from fairlead_operator.ledger.schema import audit
from fairlead_operator.ledger.store import OverloadError, Store
from fairlead_operator.ledger.usage import MAX_DIMS
from fairlead_operator.tokens import FileKeys, Verifier
from fairlead_router.contract import (
    BUCKET_MS,
    OTHER,
    Ask,
    BudgetAction,
    CardRow,
    Close,
    CostRow,
    Holding,
    LedgerBudget,
    PutBudgets,
    PutCards,
    PutCosts,
    SpendAnswer,
    SpendList,
    SyncAnswer,
    SyncRefusal,
    SyncRequest,
    UsageAnswer,
    WriteOff,
    bin_upper_nano,
    cost_bin,
)
from tests.builders import postgres
from tests.builders.ledger import HOUR, ISSUER, NOW, budget, jwks, line, token

OPERATOR = token("fairlead-operator", pod="operator-1")
GATEWAY = token()
PLATFORM = token("default", "ai-platform", "chat-1")
TEAM = token("default", "team-a", "web-1")


ONE = account_id(budget(), NOW, "", "")
"""The account of the budget that most tests are about, in its first window."""


class Clock:
    """A wall clock that a test sets, beside one that stands still; waiting never ends."""

    def __init__(self) -> None:
        self.wall = NOW

    def now_ms(self) -> int:
        return self.wall

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


class Ledger:
    """The service in this process, spoken to over ASGI."""

    def __init__(self, service: Service, clock: Clock, client: httpx.AsyncClient) -> None:
        self.service = service
        self.clock = clock
        self.client = client

    async def send(self, method: str, path: str, who: str = OPERATOR, body: Any = None, **query: Any) -> httpx.Response:
        content = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        headers = {"authorization": f"Bearer {who}"}
        return await self.client.request(method, path, content=content, headers=headers, params=query)

    async def put_budgets(self, *budgets: LedgerBudget, version: tuple[int, int] = (1, 1)) -> httpx.Response:
        return await self.send("PUT", "/v1/budgets", body=PutBudgets(version=version, budgets=budgets))

    async def sync(self, who: str = GATEWAY, session: str = "s1", seq: int = 1, **message: Any) -> SyncAnswer:
        response = await self.send("POST", "/v1/sync", who, SyncRequest(session=session, seq=seq, **message))
        assert response.status_code == 200, response.text
        return msgspec.json.decode(response.content, type=SyncAnswer)

    async def spend(self, who: str = OPERATOR, **query: Any) -> SpendAnswer:
        response = await self.send("GET", "/v1/spend", who, name="monthly", namespace="team-a", **query)
        assert response.status_code == 200, response.text
        return msgspec.json.decode(response.content, type=SpendAnswer)

    async def usage(self, who: str = OPERATOR, **query: Any) -> UsageAnswer:
        response = await self.send("GET", "/v1/usage", who, **query)
        assert response.status_code == 200, response.text
        return msgspec.json.decode(response.content, type=UsageAnswer)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.db")
        return
    monkeypatch.setattr(dialect, "now", lambda _connection: None)  # the time is the tests' own
    url = postgres.fresh_url()
    yield url
    postgres.drop(url)


@pytest.fixture
async def ledger(tmp_path: Path, database: str) -> AsyncIterator[Ledger]:
    (tmp_path / "jwks.json").write_text(jwks())
    clock = Clock()
    verifier = Verifier(FileKeys(tmp_path / "jwks.json", ISSUER), SystemClock())
    store = Store(database)
    store.submit(lambda connection: catalog.epoch(connection, lambda: "e1")).result()
    service = Service(store, verifier, clock, Rules("fairlead", frozenset({"ai-platform"}), 30_000))
    transport = httpx.ASGITransport(app=service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://ledger") as client:
        yield Ledger(service, clock, client)
    store.close()


def ask(need: int, **changes: Any) -> Ask:
    return msgspec.structs.replace(Ask(budget="team-a/monthly", namespace="", need=need, first=need), **changes)


def refusal(response: httpx.Response) -> SyncRefusal:
    return msgspec.json.decode(response.content, type=SyncRefusal)


# --- sync


async def test_a_router_leases_and_charges(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    first = await ledger.sync(asks=(ask(300),))
    assert (first.epoch, first.now, first.ttl_ms, first.budgets_version) == ("e1", NOW, 30_000, (1, 1))
    assert (first.accounts[0].budget, first.accounts[0].granted) == ("team-a/monthly", 300)
    told = Holding(account=ONE, granted=300, charged=100, reserved=50)
    await ledger.sync(seq=2, holdings=(told,), usage=(line(),))
    spend = await ledger.spend()
    assert (spend.charged, spend.leased, spend.reserved, spend.remaining) == (100, 200, 50, 850)
    assert spend.sessions[0].pod == "fairlead/gateway-1"


@pytest.mark.parametrize(
    ("who", "status"), [("", 401), ("abc", 401), (token(aud=["fairlead.dev"]), 401), (token(pod=""), 403)]
)
async def test_a_caller_without_the_right_token_is_refused(ledger: Ledger, who: str, status: int) -> None:
    response = await ledger.send("POST", "/v1/sync", who, SyncRequest(session="s1", seq=1))
    assert response.status_code == status
    assert refusal(response).reason


async def test_refusals_carry_what_the_router_needs(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    await ledger.sync(asks=(ask(10),))

    async def status(who: str = GATEWAY, **message: Any) -> tuple[int, SyncRefusal]:
        response = await ledger.send("POST", "/v1/sync", who, SyncRequest(**message))
        return response.status_code, refusal(response)

    code, body = await status(session="s1", seq=5)
    assert (code, body.expected) == (409, 2)
    code, body = await status(token(pod="other"), session="s1", seq=2, replay=True)
    assert (code, body.retry_after_ms) == (425, 33_000)
    code, body = await status(session="s1", seq=2, asks=(ask(1, klass=2),))
    assert (code, "class 2" in body.reason) == (422, True)
    code, body = await status(TEAM, session="s2", seq=1, usage=(line(namespace="team-b"),))
    assert (code, "usage[0]" in body.reason) == (403, True)
    await ledger.sync(seq=2, close=Close(complete=True))
    code, body = await status(session="s1", seq=3)
    assert (code, body.reason) == (410, "Closed")


async def test_a_body_beyond_the_bound_is_refused(ledger: Ledger) -> None:
    response = await ledger.send("POST", "/v1/sync", GATEWAY, b" " * (MAX_BODY + 1))
    assert response.status_code == 413
    lines = SyncRequest(session="s1", seq=1, usage=(line(),) * 10_001)
    assert (await ledger.send("POST", "/v1/sync", GATEWAY, lines)).status_code == 413


async def test_a_body_that_is_not_understood_is_refused(ledger: Ledger) -> None:
    response = await ledger.send("POST", "/v1/sync", GATEWAY, b'{"session": 7}')
    assert (response.status_code, "session" in refusal(response).reason) == (422, True)


async def test_an_overloaded_writer_answers_503_and_when_to_come_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_job: Any, **_how: Any) -> Any:
        raise OverloadError("1000 messages wait to be written; nothing was applied")

    monkeypatch.setattr(ledger.service.store, "apply", full)
    response = await ledger.send("POST", "/v1/sync", GATEWAY, SyncRequest(session="s1", seq=1))
    assert (response.status_code, refusal(response).retry_after_ms) == (503, app.BUSY_RETRY_MS)


# --- the operator


async def test_an_older_version_of_the_budgets_is_refused(ledger: Ledger) -> None:
    assert (await ledger.put_budgets(budget(), version=(2, 5))).status_code == 200
    assert (await ledger.put_budgets(budget(limit=1), version=(2, 4))).status_code == 409
    assert (await ledger.put_budgets(budget(limit=1), version=(1, 900))).status_code == 409
    assert (await ledger.put_budgets(budget(limit=2), version=(2, 5))).status_code == 200
    assert (await ledger.spend()).limit == 2


@pytest.mark.parametrize(
    ("bad", "named"), [({"time_zone": "Mars/Olympus"}, "Mars/Olympus"), ({"limit": -1}, "-1"), ({"limit": 1 << 62}, "")]
)
async def test_a_budget_that_cannot_be_kept_is_named(ledger: Ledger, bad: dict[str, Any], named: str) -> None:
    response = await ledger.put_budgets(budget(**bad))
    assert response.status_code == 422
    assert "team-a/monthly" in refusal(response).reason
    assert named in refusal(response).reason


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/budgets"),
        ("PUT", "/v1/cards"),
        ("PUT", "/v1/costs"),
        ("GET", "/v1/cards"),
        ("GET", "/v1/costs"),
        ("POST", "/v1/write-off"),
    ],
)
async def test_only_the_operator_writes_budgets_and_prices(ledger: Ledger, method: str, path: str) -> None:
    for who in (GATEWAY, PLATFORM, TEAM, token("fairlead-operator", "team-a")):
        response = await ledger.send(method, path, who)
        assert (response.status_code, "fairlead/fairlead-operator may" in refusal(response).reason) == (403, True)


async def test_a_stored_card_never_changes_and_the_newest_is_answered(ledger: Ledger) -> None:
    card = CardRow(pool="m/p", version=1, prompt_pico=1, cached_pico=2, output_pico=3, source="Seed", at_ms=4)
    other = msgspec.structs.replace(card, prompt_pico=9)
    newer = msgspec.structs.replace(card, version=2)
    for cards, status in (((card,), 200), ((newer, other), 409), ((newer, card), 200)):
        assert (await ledger.send("PUT", "/v1/cards", body=PutCards(cards=cards))).status_code == status
    newest = await ledger.send("GET", "/v1/cards")
    assert msgspec.json.decode(newest.content, type=PutCards).cards == (newer,)
    every = await ledger.send("GET", "/v1/cards", pool="m/p")
    assert msgspec.json.decode(every.content, type=PutCards).cards == (newer, card)


def cost(nano_usd: int, replica_ms: int = 1_000, **changes: Any) -> CostRow:
    base = CostRow(pool="models/chat-8b", variant="h100", bucket=NOW, replica_ms=replica_ms, nano_usd=nano_usd)
    return msgspec.structs.replace(base, **changes)


async def test_costs_merge_by_their_maximum(ledger: Ledger) -> None:
    for nano, until in ((500, 10), (700, 30), (600, 20)):
        body = PutCosts(costs=(cost(nano),), until=until)
        assert (await ledger.send("PUT", "/v1/costs", body=body)).status_code == 200
    response = await ledger.send("GET", "/v1/costs", since=NOW, until=NOW + 1)
    assert msgspec.json.decode(response.content, type=PutCosts) == PutCosts(costs=(cost(700),), until=30)


@pytest.mark.parametrize("bad", [{"bucket": NOW + 1}, {"nano_usd": -1}, {"replica_ms": -1}])
async def test_costs_that_cannot_be_are_refused(ledger: Ledger, bad: dict[str, Any]) -> None:
    body = PutCosts(costs=(msgspec.structs.replace(cost(1), **bad),))
    assert (await ledger.send("PUT", "/v1/costs", body=body)).status_code == 422


async def test_what_a_dead_router_held_can_be_written_off(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    await ledger.sync(asks=(ask(300),))
    body = WriteOff(namespace="team-a", name="monthly", window=1, session="s1", reason="the node burnt")
    assert (await ledger.send("POST", "/v1/write-off", body=body)).status_code == 409
    ledger.clock.wall += 31_000
    await ledger.service.upkeep()
    assert (await ledger.spend()).unreconciled == 300
    done = await ledger.send("POST", "/v1/write-off", body=body)
    assert (done.status_code, done.json()) == (200, {"amount": 300})
    assert (await ledger.spend()).remaining == 1_000
    assert (await ledger.send("POST", "/v1/write-off", body=body)).status_code == 404
    rows = ledger.service.store.read(lambda connection: connection.execute(select(audit)).all())
    assert [(row.who, row.what, row.at_ms) for row in rows] == [
        ("fairlead/fairlead-operator", "WrittenOff", NOW + 31_000)
    ]
    assert "the node burnt" in rows[0].detail


async def test_idle_replicas_lower_what_a_budget_that_counts_them_may_hold(ledger: Ledger) -> None:
    await ledger.put_budgets(budget(idle_namespaces=("models",)))
    await ledger.sync(asks=(ask(10),), usage=(line(nano_usd=100),))
    body = PutCosts(costs=(cost(600), cost(77, pool="other/chat"), cost(900, bucket=NOW - BUCKET_MS)))
    assert (await ledger.send("PUT", "/v1/costs", body=body)).status_code == 200
    answer = await ledger.sync(seq=2, holdings=(Holding(account=ONE, granted=10, need=495, first=495),))
    assert (answer.accounts[0].limit, answer.accounts[0].verdict) == (500, "Wait")
    answer = await ledger.sync(seq=3, holdings=(Holding(account=ONE, granted=10, need=490, first=490),))
    assert answer.accounts[0].granted == 500


# --- reports


async def test_a_budget_nobody_used_is_all_zeros_in_its_calendar_window(ledger: Ledger) -> None:
    await ledger.put_budgets(budget(period="Month", time_zone="Europe/Berlin"))
    spend = await ledger.spend()
    assert (spend.charged, spend.leased, spend.remaining, spend.keys, spend.window.id) == (0, 0, 1_000, (), 0)
    assert (spend.window_label, spend.counted_from, spend.action) == ("2026-11", NOW, "None")


async def test_the_numbers_are_those_of_the_fullest_account(ledger: Ledger) -> None:
    actions = (BudgetAction(at_percent=80, action="Alert"),)
    await ledger.put_budgets(budget(per="Namespace", namespaces=("team-a", "team-b"), actions=actions))
    asks = tuple(ask(need, namespace=name) for name, need in (("team-a", 100), ("team-b", 850)))
    answer = await ledger.sync(asks=asks)
    granted = {account.account: account.granted for account in answer.accounts}
    holdings = tuple(Holding(account=id_, granted=amount, charged=amount) for id_, amount in granted.items())
    await ledger.sync(seq=2, holdings=holdings)
    spend = await ledger.spend()
    assert [(key.namespace, key.charged) for key in spend.keys] == [("team-b", 850), ("team-a", 100)]
    assert (spend.charged, spend.remaining, spend.action) == (850, 150, "Alert")
    assert (spend.keys_total, spend.keys_limited) == (2, 0)


async def test_a_refused_request_shows_as_reject_for_a_while(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    await ledger.sync(asks=(ask(950),))
    holding = Holding(account=ONE, granted=950, charged=950)
    await ledger.sync(seq=2, holdings=(msgspec.structs.replace(holding, need=100, first=100),))
    spend = await ledger.spend()
    assert (spend.action, spend.keys_limited, spend.remaining) == ("Reject", 1, 50)
    ledger.clock.wall += reports.LIMITED_MS
    assert (await ledger.spend()).action == "None"


async def test_past_windows_can_be_read(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    await ledger.sync(asks=(ask(100),))
    ledger.clock.wall += HOUR
    assert (await ledger.spend()).leased == 0
    assert (await ledger.spend(at=NOW)).leased == 100


async def test_a_team_sees_its_own_budgets_only(ledger: Ledger) -> None:
    await ledger.put_budgets(budget(), budget("fleet", namespace="ai-platform"))

    async def names(who: str) -> list[str]:
        response = await ledger.send("GET", "/v1/spend", who)
        return [item.name for item in msgspec.json.decode(response.content, type=SpendList).budgets]

    assert await names(OPERATOR) == ["fleet", "monthly"]
    assert await names(TEAM) == ["monthly"]
    assert (await ledger.send("GET", "/v1/spend", TEAM, name="fleet", namespace="ai-platform")).status_code == 403
    assert (await ledger.send("GET", "/v1/spend", TEAM, name="none")).status_code == 404
    assert (await ledger.send("GET", "/v1/spend", TEAM, name="monthly", at="soon")).status_code == 422


async def test_charged_and_idle_are_the_bill(ledger: Ledger) -> None:
    lines = (line(), line(namespace="team-b", nano_usd=250), line(pool="models/other", nano_usd=50))
    await ledger.sync(usage=lines)
    bills = (cost(1_000), cost(400, variant="a100"), cost(90, pool="models/other"), cost(5, bucket=NOW - BUCKET_MS))
    await ledger.send("PUT", "/v1/costs", body=PutCosts(costs=bills))
    usage = await ledger.usage(by="namespace,pool", since=NOW, until=NOW + 1)
    assert (usage.since, usage.until) == (NOW, NOW + BUCKET_MS)
    assert [(row.group, row.nano_usd) for row in usage.rows] == [
        (("team-b", "models/chat-8b"), 250),
        (("team-a", "models/chat-8b"), 100),
        (("team-a", "models/other"), 50),
    ]
    bill = sum(row.nano_usd for row in usage.costs)
    charged = sum(row.nano_usd for row in usage.rows)
    assert (bill, charged, bill - charged) == (1_490, 400, 1_090)


async def test_a_team_sees_its_own_usage_and_its_own_pools_only(ledger: Ledger) -> None:
    await ledger.sync(usage=(line(), line(namespace="team-b")))
    bills = (cost(7), cost(9, pool="team-a/own"))
    await ledger.send("PUT", "/v1/costs", body=PutCosts(costs=bills))
    usage = await ledger.usage(TEAM, by="namespace", since=NOW)
    assert [row.group for row in usage.rows] == [("team-a",)]
    assert [row.pool for row in usage.costs] == ["team-a/own"]


async def test_a_team_cannot_ask_for_the_usage_of_another(ledger: Ledger) -> None:
    await ledger.sync(usage=(line(), line(namespace="team-b")))
    assert (await ledger.send("GET", "/v1/usage", TEAM, namespace="team-b")).status_code == 403
    assert len((await ledger.usage(TEAM, by="namespace", namespace="team-a", since=NOW)).rows) == 1


async def test_usage_is_told_by_time_for_what_is_asked(ledger: Ledger) -> None:
    lines = (line(), line(bucket=NOW - HOUR, nano_usd=70), line(feature="chat", nano_usd=9))
    await ledger.sync(usage=lines)
    usage = await ledger.usage(by="time", step=HOUR, feature="search", since=NOW - HOUR, until=NOW + HOUR)
    assert [(row.group, row.nano_usd) for row in usage.rows] == [((str(NOW),), 100), ((str(NOW - HOUR),), 70)]
    assert (await ledger.send("GET", "/v1/usage", by="time", step=5)).status_code == 422


async def test_percentiles_come_from_the_bins_of_all_routers(ledger: Ledger) -> None:
    cheap, dear = cost_bin(1_000), cost_bin(900_000)
    await ledger.sync(usage=(line(requests=96, bins={str(cheap): 96}), line(requests=4, bins={str(dear): 4})))
    row = (await ledger.usage(by="", since=NOW)).rows[0]
    assert (row.group, row.requests) == ((), 100)
    assert (row.cost_p50_nano, row.cost_p95_nano) == (bin_upper_nano(cheap), bin_upper_nano(cheap))
    assert row.cost_p99_nano == bin_upper_nano(dear)


async def test_groups_beyond_the_bound_are_one_row_and_totals_stay(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_USAGE_ROWS", 2)
    await ledger.sync(usage=tuple(line(feature=f"f{number}", nano_usd=100 - number) for number in range(4)))
    usage = await ledger.usage(by="feature", since=NOW)
    assert [(row.group, row.nano_usd) for row in usage.rows] == [(("f0",), 100), ((OTHER,), 294)]


async def test_dimensions_beyond_the_bound_lose_caller_and_feature(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_DIMS == places.MAX_KEYS
    monkeypatch.setattr("fairlead_operator.ledger.usage.MAX_DIMS", 2)
    await ledger.sync(usage=tuple(line(feature=f"f{number}") for number in range(4)))
    await ledger.sync(seq=2, usage=(line(feature="f1"), line(feature="f3"), line(namespace="team-b")))
    usage = await ledger.usage(by="namespace,feature", since=NOW)
    assert sorted((*row.group, row.requests) for row in usage.rows) == [
        ("team-a", "f0", 1),
        ("team-a", "f1", 2),
        ("team-a", OTHER, 3),
        ("team-b", "search", 1),
    ]


async def test_a_bucket_that_cannot_be_right_is_counted_now(ledger: Ledger) -> None:
    await ledger.sync(usage=(line(bucket=5), line(bucket=NOW + 90 * HOUR), line(bucket=NOW - HOUR)))
    assert (await ledger.usage(since=NOW)).rows[0].requests == 2


@pytest.mark.parametrize("query", [{"by": "colour"}, {"since": "x"}, {"since": 5, "until": 4}])
async def test_a_question_that_cannot_be_answered_is_refused(ledger: Ledger, query: dict[str, Any]) -> None:
    assert (await ledger.send("GET", "/v1/usage", **query)).status_code == 422


# --- the house


async def test_it_is_ready_once_tokens_can_be_verified(ledger: Ledger) -> None:
    assert (await ledger.client.get("/readyz")).status_code == 503
    await ledger.service.verifier.refresh()
    assert (await ledger.client.get("/readyz")).status_code == 200
    assert (await ledger.client.get("/healthz")).text == "ok"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_it_is_not_ready_while_the_disk_refuses_writes(ledger: Ledger) -> None:
    await ledger.service.verifier.refresh()
    await ledger.put_budgets(budget())
    store = ledger.service.store

    def ready_only(connection: Any, value: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={value}")

    pages = store.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    await asyncio.wrap_future(store.submit(lambda connection: ready_only(connection, pages)))
    many = tuple(line(feature=f"f{number}" * 40) for number in range(2_000))
    refused = await ledger.send("POST", "/v1/sync", GATEWAY, SyncRequest(session="s1", seq=1, usage=many))
    assert refused.status_code == 503
    ready = await ledger.client.get("/readyz")
    assert (ready.status_code, "full" in ready.text) == (503, True)
    await asyncio.wrap_future(store.submit(lambda connection: ready_only(connection, 1 << 30)))
    await ledger.sync(usage=many)
    assert (await ledger.client.get("/readyz")).status_code == 200


async def test_metrics_count_what_was_asked_for_in_vain_and_what_was_lost(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    await ledger.sync(asks=(ask(1_001),))
    for seq in (9, 10):
        await ledger.send("POST", "/v1/sync", GATEWAY, SyncRequest(session="s1", seq=seq))
    text = (await ledger.client.get("/metrics")).text
    assert 'fairlead_ledger_refused_demands_total{verdict="TooLarge"} 1.0' in text
    assert 'fairlead_ledger_syncs_total{status="409"} 2.0' in text
    assert "fairlead_ledger_losses_total 2.0" in text
    assert "fairlead_ledger_recoveries_total 1.0" in text


@pytest.mark.parametrize(
    "message",
    [
        SyncRequest(session="a", seq=1, sent_at=-(10**17)),
        SyncRequest(session="a\0", seq=1),
        SyncRequest(session="a", seq=1, asks=(ask(10, key="\x1b[2J"),)),
        SyncRequest(session="a", seq=1, usage=(line(feature="\0"),)),
    ],
    ids=["a time before all calendars", "a session", "a key", "a feature"],
)
async def test_what_no_database_or_terminal_takes_is_refused(ledger: Ledger, message: SyncRequest) -> None:
    await ledger.put_budgets(budget())
    assert (await ledger.send("POST", "/v1/sync", GATEWAY, message)).status_code == 422


async def test_a_message_that_is_told_again_opens_no_window_of_long_ago(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    retold = SyncRequest(session="a", seq=1, rewind=True, sent_at=1, asks=(ask(10),))
    assert (await ledger.send("POST", "/v1/sync", GATEWAY, retold)).status_code == 200
    found = ledger.service.store.read(
        lambda c: c.exec_driver_sql("SELECT min(start_ms) FROM budget_window").scalar_one()
    )
    assert found is None or found > NOW - 8 * 24 * HOUR


async def test_a_time_after_all_calendars_is_refused(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    found = await ledger.send("GET", "/v1/spend", name="monthly", namespace="team-a", at="9999999999999999")
    assert found.status_code == 422


async def test_a_team_s_pods_have_no_say_about_the_clock(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    for number in range(20):
        message = SyncRequest(session=f"false-{number}", seq=1, sent_at=NOW - 5 * HOUR)
        assert (await ledger.send("POST", "/v1/sync", TEAM, message)).status_code == 200
    assert (await ledger.sync(session="s0", sent_at=NOW, asks=(ask(10),))).accounts[0].granted == 10


async def test_a_clock_that_all_routers_contradict_opens_no_window(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    for number in range(3):
        await ledger.sync(session=f"s{number}", sent_at=NOW)
    ledger.clock.wall += HOUR
    late = [await ledger.sync(session=f"s{number}", seq=2, sent_at=NOW, asks=(ask(10),)) for number in range(3)]
    assert [answer.unknown_budgets for answer in late] == [("team-a/monthly",)] * 3
    await ledger.service.upkeep()
    assert "fairlead_ledger_clock_suspect 1.0" in (await ledger.client.get("/metrics")).text
    ledger.clock.wall = NOW
    for number in range(3):
        await ledger.sync(session=f"s{number}", seq=3, sent_at=NOW)
    assert (await ledger.sync(session="s0", seq=4, sent_at=NOW, asks=(ask(10),))).accounts[0].granted == 10
    await ledger.service.upkeep()
    assert "fairlead_ledger_clock_suspect 0.0" in (await ledger.client.get("/metrics")).text


async def test_metrics_tell_what_upkeep_found(ledger: Ledger) -> None:
    await ledger.put_budgets(budget())
    await ledger.sync(asks=(ask(100),))
    await ledger.service.upkeep()
    text = (await ledger.client.get("/metrics")).text
    assert "fairlead_ledger_invariant_violations 0.0" in text
    assert 'fairlead_ledger_sessions{state="Open"} 1.0' in text
    assert "fairlead_ledger_accounts 1.0" in text
    assert 'fairlead_ledger_syncs_total{status="200"} 1.0' in text
    assert "fairlead_ledger_transaction_seconds_bucket" in text


async def test_usage_older_than_the_retention_is_dropped(ledger: Ledger) -> None:
    await ledger.sync(usage=(line(),))
    ledger.clock.wall += 401 * 24 * HOUR
    await ledger.service.upkeep()
    assert (await ledger.usage(since=0)).rows == ()


async def test_the_interface_describes_itself(ledger: Ledger) -> None:
    document = (await ledger.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/v1/sync",
        "/v1/budgets",
        "/v1/cards",
        "/v1/costs",
        "/v1/spend",
        "/v1/usage",
        "/v1/write-off",
    }
    assert {"SyncRequest", "AccountAnswer", "LedgerBudget"} <= set(document["components"]["schemas"])
