"""Budget bugs that users reported of other gateways, each as a test here: the real router on the real ledger.

The numbers are those of github.com/BerriAI/litellm unless the name says otherwise.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from fairlead_operator.ledger.escrow import Refusal
from fairlead_router.app import Place
from fairlead_router.contract import (
    AUDIENCE_CALLER,
    BudgetConfig,
    FallbackConfig,
    LedgerBudget,
    Per,
    PoolConfig,
    RouterConfig,
    SyncRefusal,
    SyncRequest,
)
from tests.builders import ledger as books
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Answer,
    Station,
    budget,
    chat,
    configuration,
    policy,
    post,
    route,
    station,
    token,
    until,
)
from tests.fakes.engine import Behaviour, FakeEngine

ONE = 704
"""Nano-USD of one request of the fake engine: 10 × 32 + 4 × 96."""
FREE = msgspec.structs.replace(CARD, prompt_pico=0, cached_pico=0, output_pico=0)
DEAR = msgspec.structs.replace(CARD, prompt_pico=10_000_000)


class Shared:
    """One ledger for several routers of one test, at a clock that the test may move; ``away``: nobody answers."""

    def __init__(self) -> None:
        self.ledger = books.SqliteLedger()
        self.away = False
        self.version = 0
        self._start_ms = self.ledger.now
        self._start = time.monotonic()
        self._skipped_ms = 0

    def skip(self, milliseconds: int) -> None:
        self._skipped_ms += milliseconds

    def now(self) -> int:
        return self._start_ms + self._skipped_ms + int((time.monotonic() - self._start) * 1000)

    def put(self, *budgets: LedgerBudget) -> None:
        self.version += 1
        self.ledger.put(self.version, *budgets)

    def answer(self, uid: str, body: bytes) -> tuple[int, bytes]:
        if self.away:
            raise OSError("the ledger is away")
        self.ledger.now = self.now()
        answer = self.ledger.sync(books.caller(uid), msgspec.json.decode(body, type=SyncRequest))
        if isinstance(answer, Refusal):
            told = SyncRefusal(expected=answer.expected, reason=answer.reason, retry_after_ms=answer.retry_after_ms)
            return answer.status, msgspec.json.encode(told)
        return 200, msgspec.json.encode(answer)

    def charged(self) -> int:
        return sum(book.account.charged for book in self.ledger.books())


class Line:
    """A router's way to the shared ledger."""

    def __init__(self, shared: Shared, uid: str) -> None:
        self._shared = shared
        self._uid = uid

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        return self._shared.answer(self._uid, body)


def pair(
    limit: int, name: str = "support", per: Per = "Namespace", **changes: object
) -> tuple[BudgetConfig, LedgerBudget]:
    """A budget of namespace support as routers and ledger know it."""
    told = LedgerBudget(
        namespace="support", name=name, uid="u", unit="USD", per=per, period="Hour", time_zone="UTC", limit=limit,
        namespaces=("support",),
    )  # fmt: skip
    changed = msgspec.structs.replace(told, **changes)
    return budget(name=name, per=per, unit=changed.unit, window_ms=books.HOUR), changed


@contextlib.asynccontextmanager
async def fleet(
    shared: Shared, config: RouterConfig, addresses: dict[str, tuple[str, ...]], count: int = 1
) -> AsyncIterator[list[Station]]:
    """So many routers on one ledger."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                station(
                    config, addresses, place=Place(pod=f"fairlead/gateway-{index}"), transport=Line(shared, f"u{index}")
                )
            )
            for index in range(count)
        ]
        shared.ledger.close()


async def flood(stations: Sequence[Station], count: int) -> list[Answer]:
    """That many requests at once, spread over the routers."""
    return list(await asyncio.gather(*(stations[index % len(stations)].ask(chat()) for index in range(count))))


def served(answers: Sequence[Answer]) -> int:
    return sum(answer.status == 200 for answer in answers)


async def told_all(shared: Shared, stations: Sequence[Station]) -> None:
    """Until the ledger knows of everything that was charged."""
    for at in stations:
        at.session.kick()
    spent = sum(holding.charged for at in stations for holding in at.router.wallet.holdings.values())
    await until(lambda: shared.charged() >= spent, "the ledger being told")


async def test_34732_40095_26672_concurrent_requests_do_not_pass_before_spend_lands(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(first_s=0.05)
    shared, (routers, ledgers) = Shared(), pair(12 * 12_000)
    shared.put(ledgers)
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=100, card=CARD),)
    config = configuration(pools=pools, budgets=(routers,))
    async with fleet(shared, config, {POOL: (await engine.start(),)}) as (at,):
        answers = await flood([at], 60)
        assert 0 < len(engine.receipts) <= 60
        await told_all(shared, [at])
        assert {answer.code for answer in answers if answer.status != 200} <= {"budget_exhausted"}
        assert served(answers) * ONE == shared.charged() <= ledgers.limit


async def test_38111_27639_a_reservation_whose_client_left_is_released(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=1_000, gap_s=0.005)
    shared, (routers, ledgers) = Shared(), pair(40_000)
    shared.put(ledgers)
    async with fleet(shared, configuration(budgets=(routers,)), {POOL: (await engine.start(),)}) as (at,):
        for _ in range(6):
            wire = await at.connect()
            await wire.send(post(chat(stream=True, max_tokens=16)))
            await wire.head()
            wire.close()
            await until(lambda: not at.session.wallet.holdings or not reserved(at), "the release")
        engine.behaviour = Behaviour()
        assert (await at.ask(chat())).status == 200


def reserved(at: Station) -> int:
    return sum(holding.reserved for holding in at.router.wallet.holdings.values())


async def test_40291_10555_6288_many_routers_share_one_limit_and_not_one_each(engine: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(100_000)
    shared.put(ledgers)
    config = configuration(
        pools=(PoolConfig(pool=POOL, max_context_tokens=4096, slots=100, card=CARD),), budgets=(routers,)
    )
    async with fleet(shared, config, {POOL: (await engine.start(),)}, count=8) as stations:
        for _ in range(4):
            await flood(stations, 80)
        assert ONE < len(engine.receipts) * ONE <= ledgers.limit


async def test_pr_40940_a_new_window_opens_at_every_router(engine: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(60_000)
    shared.put(ledgers)
    async with fleet(shared, configuration(budgets=(routers,)), {POOL: (await engine.start(),)}, count=3) as stations:
        for at in stations:
            while (await at.ask(chat())).status == 200:
                pass
        shared.skip(books.HOUR)
        for at in stations:
            at.session.kick()
            await until(lambda at=at: knows(at, shared), "the new time")  # type: ignore[misc]
            assert (await at.ask(chat())).status == 200


def knows(at: Station, shared: Shared) -> bool:
    """Whether a router's clock went along with the ledger's."""
    return at.session.ledger_ms() > shared.now() - 60_000


async def test_33732_a_budgets_period_is_the_one_that_it_states(engine: FakeEngine) -> None:
    shared = Shared()
    (routers, ledgers), (other_routers, other_ledgers) = pair(12_500, "hour"), pair(10**9, "day", period="Day")
    shared.put(ledgers, other_ledgers)
    config = configuration(budgets=(routers, other_routers))
    async with fleet(shared, config, {POOL: (await engine.start(),)}) as (at,):
        while (await at.ask(chat())).status == 200:
            pass
        await told_all(shared, [at])
        shared.skip(books.HOUR)
        at.session.kick()
        await until(lambda: knows(at, shared), "the next hour")
        assert (await at.ask(chat())).status == 200
        await until(lambda: len(shared.ledger.books()) == 3, "two hours and one day")


async def test_41344_a_free_model_with_a_paid_fallback_stops_at_the_budget(other: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(30_000)
    shared.put(ledgers)
    config = configuration(
        pools=(PoolConfig(pool=POOL, slots=4, card=FREE), PoolConfig(pool=LONG_POOL, slots=4, card=DEAR)),
        policies=(
            policy(routes=(route(fallbacks=(FallbackConfig(pool=LONG_POOL, when=("Unavailable", "ScaledToZero")),)),)),
        ),
        budgets=(routers,),
    )
    addresses = {POOL: (), LONG_POOL: (await other.start(),)}
    async with fleet(shared, config, addresses) as (at,):
        answers = [await at.ask(chat()) for _ in range(4)]
        assert {answer.code for answer in answers} <= {"budget_exhausted", "request_exceeds_budget"}
        assert not other.receipts


async def test_any_llm_786_a_spent_budget_still_reaches_free_models(engine: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(0)
    shared.put(ledgers)
    config = configuration(pools=(PoolConfig(pool=POOL, slots=4, card=FREE),), budgets=(routers,))
    async with fleet(shared, config, {POOL: (await engine.start(),)}) as (at,):
        assert (await at.ask(chat())).status == 200


async def test_33923_what_cannot_be_reserved_does_not_run(engine: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(10**9)
    shared.put(ledgers)
    shared.away = True
    async with fleet(shared, configuration(budgets=(routers,)), {POOL: (await engine.start(),)}) as (at,):
        await until(lambda: not at.session.reachable(), "the ledger's absence")
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (503, "ledger_unreachable")
        assert not engine.receipts


async def test_40002_the_reservation_is_at_the_dearest_rate_that_may_apply(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(first_s=0.2)
    shared, (routers, ledgers) = Shared(), pair(10**9)
    shared.put(ledgers)
    async with fleet(shared, configuration(budgets=(routers,)), {POOL: (await engine.start(),)}) as (at,):
        await at.ask(chat())
        running = asyncio.create_task(at.ask(chat()))
        await until(lambda: reserved(at), "the reservation")
        uncached = len(chat()) * CARD.prompt_pico // 1000 + 16 * CARD.output_pico // 1000
        assert reserved(at) >= uncached
        assert (await running).status == 200


async def test_36926_the_counter_and_the_usage_lines_are_the_same_money(engine: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(10**7)
    shared.put(ledgers)
    config = configuration(
        pools=(PoolConfig(pool=POOL, max_context_tokens=4096, slots=100, card=CARD),), budgets=(routers,)
    )
    async with fleet(shared, config, {POOL: (await engine.start(),)}, count=4) as stations:
        answers = await flood(stations, 100)
        await told_all(shared, stations)
        await until(lambda: shared.ledger.usage() == shared.charged(), "the usage lines")
        assert shared.charged() == served(answers) * ONE == len(engine.receipts) * ONE


async def test_32460_any_one_budget_that_is_used_up_refuses_though_others_have_money(engine: FakeEngine) -> None:
    shared = Shared()
    (wide, wide_ledger), (tight, tight_ledger) = pair(10**9, "wide"), pair(12_500, "tight")
    shared.put(wide_ledger, tight_ledger)
    async with fleet(shared, configuration(budgets=(wide, tight)), {POOL: (await engine.start(),)}) as (at,):
        answers = [await at.ask(chat()) for _ in range(12)]
        assert 0 < served(answers) < 12
        assert "support/tight" in answers[-1].json()["error"]["message"]


async def test_aibrix_a_tenant_header_that_a_client_writes_changes_nobody_s_budget(engine: FakeEngine) -> None:
    shared, (routers, ledgers) = Shared(), pair(12_500)
    shared.put(ledgers)
    async with fleet(shared, configuration(budgets=(routers,)), {POOL: (await engine.start(),)}) as (at,):
        claimed = {"x_fairlead_namespace": "search", "x_fairlead_tenant": "search", "x_fairlead_hop": "1"}
        answers = [await at.ask(chat(), **claimed) for _ in range(12)]
        assert 0 < served(answers) < 12
        assert (await at.ask(chat(), bearer=token("search", audience=AUDIENCE_CALLER))).status == 200
