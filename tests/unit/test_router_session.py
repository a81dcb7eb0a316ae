"""The session with the ledger: what happens when messages or answers are lost, and when the ledger lost something."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import pytest

from fairlead_router.budget import CLASS, Claim, Reservation, Shortage, Wallet
from fairlead_router.contract import AccountAnswer, SyncAnswer, SyncRequest, Window
from fairlead_router.lease import Clocks, Outcome, Session, Waiter
from fairlead_router.local_lease import LocalLease
from fairlead_router.metering import Dimension, Row, Spent, UsageBook
from tests.builders.router import budget, until

TALK = "the session's talk with the ledger"


@dataclass
class Network:
    """Carries messages to a ledger, and loses or answers some as told."""

    ledger: LocalLease
    sent: list[bytes] = field(default_factory=list)
    applied: list[SyncRequest] = field(default_factory=list)
    plan: deque[str | tuple[int, bytes]] = field(default_factory=deque)

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        self.sent.append(body)
        step = self.plan.popleft() if self.plan else "pass"
        if isinstance(step, tuple):
            return step
        if step == "lose request":
            raise ConnectionResetError
        message = msgspec.json.decode(body, type=SyncRequest)
        if not self.applied or self.applied[-1].seq < message.seq or self.applied[-1].session != message.session:
            self.applied.append(message)
        answer = await self.ledger.sync(body)
        if step == "lose answer":
            raise TimeoutError
        return answer


@dataclass
class Desk:
    """A session with its network."""

    session: Session
    network: Network
    book: UsageBook
    boot: list[float]

    async def reserve(self, amount: int) -> Outcome:
        """Reserve, waiting if needed."""
        claims = [Claim(self.session.wallet.purse(budget(), "support", ""), amount)]
        outcome = self.session.reserve(claims, self.session._clocks.now())
        if isinstance(outcome, Reservation) or outcome is None:
            return outcome
        told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        assert self.session.wait(claims, told.set_result) is not None
        return await told


@contextlib.asynccontextmanager
async def desk(limit: int = 1_000) -> AsyncIterator[Desk]:
    loop = asyncio.get_running_loop()
    network = Network(LocalLease({"support/support": limit}, lambda: int(time.time() * 1000)))
    boot = [0.0]
    book, ids = UsageBook(), iter(f"s{index}" for index in range(99))
    session = Session(
        transport=network,
        wallet=Wallet(),
        clocks=Clocks(loop.time, lambda: loop.time() + boot[0], time.time),
        new_id=lambda: next(ids),
        usage=book.take,
        report=lambda _: None,
    )
    task = asyncio.create_task(session.run(), name=TALK)
    try:
        yield Desk(session, network, book, boot)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("fault", ["lose request", "lose answer"])
async def test_a_message_that_was_not_answered_is_sent_again_with_the_same_bytes(fault: str) -> None:
    async with desk() as at:
        await until(lambda: at.network.applied, "the first message")
        at.network.plan.append(fault)
        outcome = await at.reserve(100)
        assert isinstance(outcome, Reservation)
        lost = at.network.sent[1]
        assert at.network.sent[2] == lost
        assert [message.seq for message in at.network.applied] == list(range(1, len(at.network.applied) + 1))


async def test_usage_is_told_once_although_its_answer_was_lost() -> None:
    async with desk() as at:
        await until(lambda: at.network.applied, "the first message")
        dimension = Dimension("support", "sa:web", "", "chat", "a/b", "h100", "all", "Usage", 1)
        at.book.add(Row(dimension), 0, Spent(1, 0, 1, 7))
        at.network.plan.append("lose answer")
        at.session.kick()
        await until(lambda: len(at.network.sent) > 3, "the messages after it")
        assert [line.nano_usd for message in at.network.applied for line in message.usage] == [7]


async def test_a_ledger_that_lost_messages_is_told_them_again_without_asking() -> None:
    async with desk() as at:
        assert isinstance(await at.reserve(100), Reservation)
        await until(lambda: len(at.network.sent) >= 2, "the second message")
        at.network.plan.append((409, b'{"expected":2}'))
        at.session.kick()
        await until(lambda: any(b'"rewind":true' in body for body in at.network.sent), "the rewound message")
        again = [msgspec.json.decode(body, type=SyncRequest) for body in at.network.sent if b'"rewind":true' in body]
        assert again[0].seq == 2
        assert {message.session for message in again} == {"s0"}


async def test_an_answer_to_what_is_told_again_brings_back_no_money_that_was_given_back_since() -> None:
    async with desk() as at:
        assert isinstance(await at.reserve(100), Reservation)
        (holding,) = at.session.wallet.holdings.values()
        before = holding.granted
        then = AccountAnswer(
            account=holding.account, budget="support/support", namespace="support", window=holding.window, granted=999
        )
        at.session._rewind(1)
        told = at.session._outstanding[0].seq
        accounts = (then, msgspec.structs.replace(then, account=77))
        assert at.session._accept(SyncAnswer(epoch="e2", seq=told, now=1, accounts=accounts))
        assert [one.granted for one in at.session.wallet.holdings.values()] == [before]


async def test_a_session_that_the_ledger_closed_is_followed_by_a_new_one_that_holds_nothing() -> None:
    async with desk() as at:
        reservation = await at.reserve(100)
        assert isinstance(reservation, Reservation)
        at.network.plan.append((410, b'{"reason":"Taken"}'))
        at.session.kick()
        await until(lambda: any(message.session == "s1" for message in at.network.applied), "the new session")
        assert all(holding.granted == 0 for holding in at.session.wallet.holdings.values())
        at.session.settle(reservation, [50])
        first = next(message for message in at.network.applied if message.session == "s1")
        assert first.seq == 1


async def test_a_lease_that_ran_out_is_not_spent() -> None:
    async with desk() as at:
        assert isinstance(await at.reserve(100), Reservation)
        at.network.plan.extend(["lose request"] * 50)
        at.boot[0] = 301.0
        at.session.tick()
        at.session.kick()
        await until(lambda: not at.session.reachable(), "the ledger's absence")
        assert await at.reserve(1) is None


async def test_a_fenced_session_waits_for_a_ledger_that_is_there() -> None:
    async with desk() as at:
        assert isinstance(await at.reserve(100), Reservation)
        at.boot[0] = 301.0
        at.session.tick()
        assert isinstance(await at.reserve(1), Reservation)


async def test_money_that_another_request_gives_back_serves_who_waits_first() -> None:
    async with desk(100) as at:
        first = await at.reserve(100)
        assert isinstance(first, Reservation)
        claims = [Claim(at.session.wallet.purse(budget(), "support", ""), 60)]
        told: list[Outcome] = []
        assert at.session.wait(claims, told.append) is not None
        at.session.settle(first, [10])
        assert isinstance(told[0], Reservation)


async def test_a_goodbye_returns_everything_and_says_so() -> None:
    async with desk() as at:
        reservation = await at.reserve(100)
        assert isinstance(reservation, Reservation)
        at.session.settle(reservation, [40])
        task = next(task for task in asyncio.all_tasks() if task.get_name() == TALK)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await at.session.close(1)
        last = at.network.applied[-1]
        assert last.close is not None
        assert last.close.complete
        assert sum(holding.charged for holding in last.holdings) == 40
        assert sum(holding.reserved for holding in last.holdings) == 0


async def test_a_waiter_that_is_served_while_another_one_is_told_is_told_once() -> None:
    async with desk(100) as at:
        first = await at.reserve(100)
        assert isinstance(first, Reservation)
        claims = [Claim(at.session.wallet.purse(budget(), "support", ""), 40)]
        told: list[Outcome] = []

        def gives_back_at_once(outcome: Outcome) -> None:
            assert isinstance(outcome, Reservation)
            at.session.settle(outcome, [0])

        assert at.session.wait(claims, gives_back_at_once) is not None
        assert at.session.wait(claims, told.append) is not None
        at.session.settle(first, [0])
        assert len(told) == 1
        assert sum(holding.open for holding in at.session.wallet.holdings.values()) == 1


@pytest.mark.parametrize("status", [403, 413, 422])
async def test_a_message_that_the_ledger_will_never_take_is_not_sent_for_ever(status: int) -> None:
    async with desk() as at:
        await until(lambda: at.network.applied, "the first message")
        at.network.plan.append((status, b"{}"))
        at.session.kick()
        await until(lambda: at.network.applied[-1].session == "s1", "the new session")
        assert isinstance(await at.reserve(10), Reservation)


async def test_a_request_that_waits_for_one_budget_keeps_what_is_held_of_the_others() -> None:
    async with desk(0) as at:
        await until(lambda: at.network.applied, "the first message")
        wallet, workflow = at.session.wallet, budget(name="loop", per="Workflow", unit="Requests")
        rich, poor = wallet.purse(workflow, "support", "wf"), wallet.purse(budget(), "support", "")
        window = Window(id=1, start=0, end=1 << 50)
        known = AccountAnswer(
            account=9, budget="support/loop", namespace="support", key="wf", window=window, granted=5, limit=5
        )
        wallet.take(known, 1, 0.0)
        assert at.session.wait([Claim(rich, 1), Claim(poor, 10)], lambda _: None) is not None
        count = len(at.network.applied)
        await until(lambda: len(at.network.applied) > count, "the next message")
        assert wallet.purses["support/loop", "support", "wf", CLASS] is rich


async def test_a_wait_that_the_ledger_never_heard_of_ends_without_a_verdict() -> None:
    async with desk() as at:
        await until(lambda: at.network.applied, "the first message")
        assert isinstance(await at.reserve(100), Reservation)
        at.network.plan.extend(["lose request"] * 60)
        assert await at.reserve(5_000) is None


async def test_a_wait_of_which_the_ledger_heard_ends_with_what_it_said() -> None:
    async with desk() as at:
        assert isinstance(await at.reserve(900), Reservation)
        outcome = await at.reserve(500)
        assert isinstance(outcome, Shortage)
        assert outcome.lack == "Exhausted"


async def hush() -> None:
    """End the session's own talk with the ledger."""
    task = next(task for task in asyncio.all_tasks() if task.get_name() == TALK)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_wait_that_ends_names_the_budget_whose_account_has_least() -> None:
    async with desk() as at:
        await until(lambda: at.session._answered, "the first answer")
        wallet, claims = at.session.wallet, []
        window = Window(id=1, start=0, end=1 << 60)
        for account, (name, used) in enumerate({"rich": 900, "poor": 991}.items(), 1):
            claims.append(Claim(wallet.purse(budget(name=name), "support", ""), 10))
            label = f"support/{name}"
            answer = AccountAnswer(
                account=account, budget=label, namespace="support", window=window, granted=0, limit=1_000, used=used
            )
            wallet.take(answer, 1, 0.0)
        told: list[Outcome] = []
        at.session._time_is_up(Waiter(claims, told.append))
        assert [outcome.purse.label for outcome in told if isinstance(outcome, Shortage)] == ["support/poor"]


@contextlib.asynccontextmanager
async def waiting_at_the_turn() -> AsyncIterator[tuple[Desk, Waiter, list[Outcome], Window]]:
    """A request that waited until shortly after its window ended, heard by the ledger; what it was told; the window."""
    async with desk() as at:
        await until(lambda: at.session._answered, "the first answer")
        await hush()
        session, told = at.session, list[Outcome]()
        purse, ledger_ms = session.wallet.purse(budget(), "support", ""), session.ledger_ms()
        window = Window(id=1, start=ledger_ms - 30_000, end=ledger_ms + 30_000)
        session.wallet.take(answer_of(window), ledger_ms, 0.0)
        waiter = session.wait([Claim(purse, 10)], told.append)
        assert waiter is not None
        session._ledger_ms += 60_000
        session._answered = session._seq = waiter.after + 1
        session._time_is_up(waiter)
        yield at, waiter, told, window
        session.cancel(waiter)


def answer_of(window: Window, granted: int = 0) -> AccountAnswer:
    return AccountAnswer(
        account=window.id, budget="support/support", namespace="support", window=window, granted=granted, limit=100
    )


async def test_a_request_that_waits_while_its_window_ends_is_served_from_the_next_one() -> None:
    async with waiting_at_the_turn() as (at, _, told, window):
        assert told == []
        following = Window(id=2, start=window.end, end=window.end + 60_000)
        at.session.wallet.take(answer_of(following, 10), at.session.ledger_ms(), 0.0)
        at.session._serve()
        assert [type(outcome) for outcome in told] == [Reservation]


async def test_a_request_waits_anew_once() -> None:
    async with waiting_at_the_turn() as (at, waiter, told, window):
        following = Window(id=2, start=window.end, end=window.end + 60_000)
        at.session.wallet.take(answer_of(following), at.session.ledger_ms(), 0.0)
        at.session._answered = waiter.after + 1
        at.session._time_is_up(waiter)
        assert [outcome.lack for outcome in told if isinstance(outcome, Shortage)] == ["Waiting"]


async def test_a_request_that_waits_anew_and_hears_nothing_is_not_told_of_the_window_before() -> None:
    async with waiting_at_the_turn() as (at, waiter, told, _):
        at.session._time_is_up(waiter)
        assert told == [None]


async def test_free_money_is_told_of_as_often_as_the_ledger_wants_while_nothing_happens() -> None:
    async with desk() as at:
        ledger = at.network.ledger.sync

        async def hurry(body: bytes) -> tuple[int, bytes]:
            status, answer = await ledger(body)
            hurried = msgspec.structs.replace(msgspec.json.decode(answer, type=SyncAnswer), sync_after_ms=20)
            return status, msgspec.json.encode(hurried)

        at.network.ledger = SimpleNamespace(sync=hurry)  # type: ignore[assignment]
        outcome = await at.reserve(100)
        assert isinstance(outcome, Reservation)
        at.session.settle(outcome, [1])
        before = len(at.network.applied)
        await until(lambda: len(at.network.applied) > before + 4, "messages of a session that nobody uses")
        assert all(message.holdings for message in at.network.applied[before + 1 :])


class Recalling:
    """A ledger that recalls whatever it is told of, and meanwhile grants only what requests wait for."""

    def __init__(self, ledger: LocalLease) -> None:
        self._ledger = ledger

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        message = msgspec.json.decode(body, type=SyncRequest)
        holdings = tuple(msgspec.structs.replace(holding, want=holding.need) for holding in message.holdings)
        status, body = await self._ledger.sync(msgspec.json.encode(msgspec.structs.replace(message, holdings=holdings)))
        answer = msgspec.json.decode(body, type=SyncAnswer)
        accounts = tuple(msgspec.structs.replace(account, recall=True) for account in answer.accounts)
        return status, msgspec.json.encode(msgspec.structs.replace(answer, accounts=accounts))


async def test_a_recall_is_answered_once_for_what_is_free_and_once_for_what_a_request_leaves() -> None:
    async with desk() as at:
        at.network.ledger = Recalling(at.network.ledger)  # type: ignore[assignment]
        outcome = await at.reserve(100)
        assert isinstance(outcome, Reservation)
        count = len(at.network.applied)
        await asyncio.sleep(0.3)
        assert len(at.network.applied) <= count + 2
        at.session.settle(outcome, [40])
        count = len(at.network.applied)
        await until(lambda: len(at.network.applied) > count, "the message that gives back the rest")
        (told,) = at.network.applied[count].holdings
        assert (told.charged, told.returned) == (40, told.granted - 40)
        await asyncio.sleep(0.3)
        assert len(at.network.applied) <= count + 2


async def test_a_goodbye_is_said_again_until_it_is_heard() -> None:
    async with desk() as at:
        assert isinstance(await at.reserve(100), Reservation)
        await hush()
        at.network.plan.extend(["lose request", "lose answer"])
        assert await at.session.close(5)
        assert at.network.applied[-1].close is not None


async def test_a_goodbye_that_nobody_hears_ends_in_time() -> None:
    async with desk() as at:
        await hush()
        at.network.plan.extend(["lose request"] * 99)
        assert not await at.session.close(0.5)


async def test_what_was_returned_with_a_goodbye_is_not_spent() -> None:
    async with desk() as at:
        running = await at.reserve(100)
        assert isinstance(running, Reservation)
        await hush()
        assert await at.session.close(1)
        holding = running.pieces[0].holding
        assert holding is not None
        holding.grant(holding.granted + 500)
        assert not at.session.fresh()
        claims = [Claim(running.pieces[0].purse, 150)]
        assert not isinstance(at.session.reserve(claims, at.session._clocks.now()), Reservation)
        assert at.session.extend(running, claims) is not None


async def test_usage_that_the_ledger_refused_is_told_apart_from_what_came_since() -> None:
    async with desk() as at:
        await until(lambda: bool(at.network.applied), "the first message")
        await hush()
        session = at.session
        row = Row(Dimension("support", "sa:web", "f", "chat", "ai-platform/chat-8b", "h100", "short", "Usage", 7))
        at.book.add(row, 0, Spent(1, 0, 1, 5))
        at.network.plan.append((413, b'{"reason":"too many lines"}'))
        session._seal()
        assert not await session._send_all()
        at.book.add(row, 0, Spent(1, 0, 1, 7))
        for _ in range(2):
            session._seal()
            assert await session._send_all()
        assert [[line.nano_usd for line in message.usage] for message in at.network.applied[-2:]] == [[5], [7]]
