"""Budgets on a request's way: who is refused with which words; two routers on the real ledger never overspend."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fairlead_router.contract import (
    AccountAnswer,
    LedgerBudget,
    PolicyConfig,
    PoolConfig,
    PutBudgets,
    SpendAnswer,
    Verdict,
)
from fairlead_router.control import LedgerPeer, Peer, Token
from fairlead_router.lease import BUDGET_WAIT_S
from fairlead_router.local_lease import LocalLease
from tests.builders import ledger as ledger_builders
from tests.builders.router import (
    CARD,
    POOL,
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
    until_async,
)
from tests.fakes.engine import Behaviour, FakeEngine

ONE = 704
"""Nano-USD of one request of the fake engine: 10 × 32 + 4 × 96."""


async def test_a_request_under_a_budget_is_charged_and_told_what_remains(engine: FakeEngine) -> None:
    config = configuration(budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}) as at:
        answer = await at.ask(chat())
        assert answer.status == 200
        assert answer.headers["x-fairlead-budget-remaining"] == "support=0.999999"
        stream = await at.ask(chat(stream=True))
        assert b": fairlead cost_usd=0.000001 budget_remaining=support:0.999998 pool=chat-8b" in stream.body
        assert held(at) == (2 * ONE, 0)


async def test_amounts_of_other_namespaces_budgets_are_not_told(engine: FakeEngine) -> None:
    config = configuration(budgets=(budget("ai-platform", "fleet", per="Total"),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"ai-platform/fleet": ONE}) as at:
        answer = await at.ask(chat())
        assert answer.status in {400, 429}
        assert "USD" not in answer.json()["error"]["message"].split("fleet")[1].split("Lower")[0]


def held(at: Station) -> tuple[int, int]:
    """(charged, reserved) over all holdings."""
    holdings = at.router.wallet.holdings.values()
    return sum(holding.charged for holding in holdings), sum(holding.reserved for holding in holdings)


async def test_a_budget_that_is_used_up_refuses_with_numbers_and_the_windows_end(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(prompt_tokens=300, output_tokens=16)
    config = configuration(budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 20_000}) as at:
        assert (await at.ask(chat())).status == 200
        answer = await at.ask(chat())
    assert (answer.status, answer.code) == (429, "budget_exhausted")
    assert answer.headers["x-should-retry"] == "false"
    assert int(answer.headers["retry-after"]) > 86_400
    error = answer.json()["error"]
    assert error["type"] == "insufficient_quota"
    assert set(error["fairlead"]) == {"budget", "needed", "missing", "unit", "opens", "request"}
    assert re.fullmatch(
        r"Budget support/support is used up: 0\.000009 of 0\.00002 USD left, this request can cost 0\.00001\d\. "
        r"It opens again at \S+Z\. Owners of namespace support can raise it\.",
        error["message"],
    )


async def test_a_workflow_that_loops_is_stopped_and_others_are_not(engine: FakeEngine) -> None:
    loop = budget(name="agent-loop", unit="Requests", per="Workflow")
    config = configuration(budgets=(loop,))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/agent-loop": 3}) as at:
        answers = [await at.ask(chat(), x_fairlead_workflow="wf-7f3a") for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert answers[3].code == "workflow_cap"
        assert answers[3].json()["error"]["message"].startswith("Workflow wf-7f3a made 3 of 3 requests ")
        assert (await at.ask(chat(), x_fairlead_workflow="wf-2")).status == 200
        assert (await at.ask(chat())).status == 200


async def test_a_request_that_no_window_could_pay_for_is_a_400(engine: FakeEngine) -> None:
    config = configuration(budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10}) as at:
        answer = await at.ask(chat())
    assert (answer.status, answer.code) == (400, "request_exceeds_budget")
    assert "retry-after" not in answer.headers


async def test_without_a_ledger_enforced_budgets_refuse_and_others_pass(engine: FakeEngine) -> None:
    config = configuration(budgets=(budget(), budget(name="audit", enforcement="Audit", namespaces=("search",))))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        await until(lambda: not at.session.reachable(), "the ledger's absence")
        refused = await at.ask(chat())
        assert (refused.status, refused.code) == (503, "ledger_unreachable")
        assert (await at.ask(chat(), bearer=token("search"))).status == 200
        assert (await at.ask(chat(), bearer=token("eval"))).status == 200


async def test_a_pool_without_a_price_is_refused_by_usd_budgets_only(engine: FakeEngine) -> None:
    config = configuration(
        pools=(PoolConfig(pool=POOL, max_context_tokens=4096),),
        budgets=(budget(), budget(name="tokens", unit="Tokens", namespaces=("search",))),
    )
    lease = {"support/support": 10**9, "support/tokens": 10**6}
    async with station(config, {POOL: (await engine.start(),)}, lease=lease) as at:
        refused = await at.ask(chat())
        assert (refused.status, refused.code) == (503, "price_unknown")
        assert (await at.ask(chat(), bearer=token("search"))).status == 200
        assert held(at) == (14, 0)


async def test_content_without_a_bound_is_refused_under_an_enforced_budget(engine: FakeEngine) -> None:
    unknown = PoolConfig(pool=POOL, slots=4, card=CARD)
    config = configuration(pools=(unknown,), budgets=(budget(),))
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}) as at:
        refused = await at.ask(chat(messages=image))
        assert refused.status == 400
        assert "content that is not text" in refused.json()["error"]["message"]
        assert (await at.ask(chat(messages=image), bearer=token("search"))).status == 200


async def test_a_namespace_without_a_budget_is_refused_where_the_platform_says_so(engine: FakeEngine) -> None:
    config = configuration(unbudgeted_namespaces="Reject", budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat(), bearer=token("search"))
    assert (answer.status, answer.code) == (403, "no_budget")


@pytest.mark.parametrize(
    ("behaviour", "charged"),
    [(Behaviour(status=500), 0), (Behaviour(status=400), 0), (Behaviour(cut_after=0), 0), (Behaviour(), ONE)],
    ids=["engine error", "refused request", "engine dead", "answered"],
)
async def test_only_what_ran_is_charged_and_nothing_stays_reserved(
    engine: FakeEngine, behaviour: Behaviour, charged: int
) -> None:
    engine.behaviour = behaviour
    config = configuration(budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}) as at:
        await at.ask(chat())
        assert held(at) == (charged, 0)


async def test_an_answer_without_usage_is_charged_at_its_bound(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(without_usage=True)
    config = configuration(budgets=(budget(unit="Tokens"),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**6}) as at:
        await at.ask(chat())
        assert held(at) == (len(chat()) + 256 + 16, 0)


async def test_a_client_that_leaves_is_charged_for_what_was_streamed(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=1_000, gap_s=0.005)
    config = configuration(
        budgets=(budget(unit="Tokens"),), policies=(policy(routes=(route(),), default_output_tokens=1_000),)
    )
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**6}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await wire.head()
        for _ in range(3):
            await wire.chunk()
        wire.close()
        await until(lambda: held(at)[1] == 0, "the settlement")
        assert 20 < held(at)[0] < 200


@pytest.mark.parametrize(("limit", "status"), [(10**9, 200), (1_000_000, 400)], ids=["enough", "too little"])
async def test_a_larger_route_reserves_what_it_costs_before_it_runs(
    engine: FakeEngine, limit: int, status: int
) -> None:
    engine.plan.append(Behaviour(status=400, error="maximum context length is 512"))
    dear = msgspec.structs.replace(CARD, prompt_pico=10_000_000)
    config = configuration(
        pools=(PoolConfig(pool=POOL, card=CARD), PoolConfig(pool="ai-platform/long", card=dear)),
        policies=(policy(routes=(route("short", 512), route("long", 4096, "ai-platform/long"))),),
        budgets=(budget(),),
    )
    address = (await engine.start(),)
    async with station(config, {POOL: address, "ai-platform/long": address}, lease={"support/support": limit}) as at:
        assert (await at.ask(chat())).status == status
        assert len(engine.receipts) == (2 if status == 200 else 1)
        assert held(at) == (10 * 10_000 + 4 * 96 if status == 200 else 0, 0)


class Verdicts(LocalLease):
    """A ledger that grants nothing and says why."""

    def __init__(self, verdict: Verdict, used: int = 85, retry_after_ms: int = 0) -> None:
        super().__init__({"support/support": 10**9}, lambda: int(time.time() * 1000))
        self._said = {
            "verdict": verdict, "used": used * 10**7, "retry_after_ms": retry_after_ms, "granted": 0,
            "pace_per_hour": 1_380_000_000,
        }  # fmt: skip

    def _grant(self, account: int, klass: int, want: int, first: int) -> AccountAnswer:
        answer = super()._grant(account, klass, 0 * want, 0 * first)
        return msgspec.structs.replace(answer, **self._said)


async def test_a_budget_that_is_paced_says_when_to_come_back(engine: FakeEngine) -> None:
    config = configuration(budgets=(budget(),))
    ledger = Verdicts("Paced", retry_after_ms=12_400)
    async with station(config, {POOL: (await engine.start(),)}, transport=ledger) as at:
        answer = await at.ask(chat())
        again = await at.ask(chat())
    assert [(found.status, found.code) for found in (answer, again)] == [(429, "budget_pacing")] * 2
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("13", "12400")
    assert answer.headers["x-should-retry"] == "true"
    error = answer.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert re.fullmatch(
        r"Budget support/support is at 85% and is spread over the time until \S+Z at 1\.380000 USD an hour; "
        r"this request can cost 0\.\d{6} USD\. Try again in 13s\. Priority Batch waits first\.",
        error["message"],
    )
    assert not engine.receipts


async def test_a_ledger_that_recovers_is_waited_for_and_then_counts_as_unreachable(engine: FakeEngine) -> None:
    config = configuration(budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, transport=Verdicts("Recovering")) as at:
        await until(at.session.fresh, "the session")
        before = at.router.now()
        answer = await at.ask(chat())
        assert at.router.now() - before >= BUDGET_WAIT_S
    assert (answer.status, answer.code) == (503, "ledger_unreachable")
    assert answer.headers["retry-after"] == "2"
    assert not engine.receipts


# --- with the real ledger ---


class OperatorSays:
    """Calls to the ledger in the operator's name."""

    def __init__(self, url: str, folder: Path) -> None:
        now = asyncio.get_running_loop().time
        self.peer = Peer(url, Token(write_token(folder, "operator", "fairlead-operator"), now), now)

    async def budgets(self, *budgets: LedgerBudget) -> None:
        body = msgspec.json.encode(PutBudgets(version=(1, int(time.time() * 1000)), budgets=budgets))

        async def taken() -> bool:
            reply = await self.peer.call("PUT", "/v1/budgets", body, 5)
            assert reply.status in {200, 503}, reply.body
            return reply.status == 200  # until the ledger has read its keys it answers 503

        await until_async(taken, "the ledger taking the budgets")

    async def spend(self, namespace: str, name: str) -> SpendAnswer:
        reply = await self.peer.call("GET", f"/v1/spend?namespace={namespace}&name={name}", b"", 5)
        assert reply.status == 200, reply.body
        return msgspec.json.decode(reply.body, type=SpendAnswer)


def write_token(folder: Path, pod: str, account: str = "fairlead-gateway") -> Path:
    path = folder / f"token-{pod}"
    path.write_text(ledger_builders.token(account, pod=pod))
    return path


def ledger_peer(url: str, folder: Path, pod: str) -> LedgerPeer:
    now = asyncio.get_running_loop().time
    return LedgerPeer(Peer(url, Token(write_token(folder, pod), now), now))


@contextlib.asynccontextmanager
async def real_ledger(folder: Path) -> AsyncIterator[str]:
    """The ledger's own process; yields its URL."""
    (folder / "jwks.json").write_text(ledger_builders.jwks())
    arguments = (
        "--database",
        str(folder / "ledger.db"),
        "--listen",
        "127.0.0.1:0",
        "--jwks",
        str(folder / "jwks.json"),
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fairlead_operator.ledger.main", *arguments, "--issuer", ledger_builders.ISSUER,
        stderr=asyncio.subprocess.PIPE, env={"PYTHONPATH": "operator:router-sidecar", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while (match := re.search(rb"listens on (http://\S+?),", await process.stderr.readline())) is None:
                assert process.returncode is None
        drain = asyncio.create_task(process.stderr.read())
        yield match[1].decode()
        drain.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


MINI = LedgerBudget(
    namespace="support", name="support", uid="u1", unit="USD", per="Namespace", period="Day", time_zone="UTC",
    limit=120_000, namespaces=("support",),
)  # fmt: skip


def two_slots() -> tuple[PoolConfig, ...]:
    return (PoolConfig(pool=POOL, max_context_tokens=4096, slots=8, card=CARD),)


def cheap() -> PolicyConfig:
    return policy(default_output_tokens=4)


async def test_two_routers_on_the_real_ledger_spend_a_budget_to_its_end_and_never_beyond(
    engine: FakeEngine, tmp_path: Path
) -> None:
    address = {POOL: (await engine.start(),)}
    config = configuration(budgets=(budget(),), pools=two_slots(), policies=(cheap(),))
    async with real_ledger(tmp_path) as url:
        operator = OperatorSays(url, tmp_path)
        await operator.budgets(MINI)
        async with (
            station(config, address, transport=ledger_peer(url, tmp_path, "gateway-1")) as first,
            station(config, address, transport=ledger_peer(url, tmp_path, "gateway-2")) as second,
        ):
            counts = await asyncio.gather(*(ask_until_refused(at) for at in (first, second) for _ in range(6)))
            answered = sum(counts)
            assert await first.goodbye()
            assert await second.goodbye()
            spend = await operator.spend("support", "support")
        operator.peer.close()
    assert spend.charged == answered * ONE == len(engine.receipts) * ONE
    assert spend.charged <= spend.limit
    # What one request may need at most is all that is left: nothing is stranded in a router.
    assert spend.limit - spend.charged < 12_000 + ONE
    assert (spend.leased, spend.unreconciled, spend.unbacked) == (0, 0, 0)


async def ask_until_refused(at: Station) -> int:
    """How many requests were answered before the budget said no."""
    count = 0
    while True:
        answer = await at.ask(chat())
        if answer.status != 200:
            assert answer.code == "budget_exhausted", answer.body
            if answer.headers["x-should-retry"] == "false":
                return count
        else:
            count += 1


async def test_a_raised_limit_opens_the_budget_again_within_a_sync(engine: FakeEngine, tmp_path: Path) -> None:
    config = configuration(budgets=(budget(),), policies=(cheap(),))
    async with real_ledger(tmp_path) as url:
        operator = OperatorSays(url, tmp_path)
        await operator.budgets(msgspec.structs.replace(MINI, limit=12_000))
        peer = ledger_peer(url, tmp_path, "gateway-1")
        async with station(config, {POOL: (await engine.start(),)}, transport=peer) as at:
            await ask_until_refused(at)
            await operator.budgets(msgspec.structs.replace(MINI, limit=1_000_000))
            await asyncio.sleep(0.6)  # a verdict is remembered for half a second
            assert (await at.ask(chat())).status == 200
        operator.peer.close()


async def test_a_ledger_that_comes_late_opens_enforced_budgets(engine: FakeEngine, tmp_path: Path) -> None:
    config = configuration(budgets=(budget(),), policies=(cheap(),))
    peer: list[LedgerPeer] = []

    class Late:
        async def sync(self, body: bytes) -> tuple[int, bytes]:
            if not peer:
                raise ConnectionRefusedError
            return await peer[0].sync(body)

    async with station(config, {POOL: (await engine.start(),)}, transport=Late()) as at:
        assert (await at.ask(chat())).code == "ledger_unreachable"
        async with real_ledger(tmp_path) as url:
            operator = OperatorSays(url, tmp_path)
            await operator.budgets(MINI)
            peer.append(ledger_peer(url, tmp_path, "gateway-1"))
            await until(at.session.reachable, "the ledger's first answer", 10)
            assert (await at.ask(chat())).status == 200
            operator.peer.close()
