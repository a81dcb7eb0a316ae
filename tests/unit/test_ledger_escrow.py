"""Named cases of the decisions, and of the transaction around them."""

from typing import Any

import msgspec
import pytest

from fairlead_operator.ledger.access import MAX_LINES, caller_of, objection
from fairlead_operator.ledger.escrow import Refusal, action_at, recalling
from fairlead_operator.ledger.places import Resolver
from fairlead_operator.tokens import Identity
from fairlead_router.contract import (
    OTHER,
    AccountAnswer,
    Ask,
    BudgetAction,
    Close,
    Holding,
    LedgerBudget,
    SyncAnswer,
    SyncRequest,
    TemporaryIncrease,
    Unknown,
)
from tests.builders.ledger import HOUR, NOW, TTL_MS, SqliteLedger, budget, caller, line


@pytest.fixture
def ledger() -> Any:
    made = SqliteLedger()
    made.put(1, budget())
    yield made
    made.close()


def ask(need: int = 0, **changes: Any) -> Ask:
    base = Ask(budget="team-a/monthly", namespace="", need=need, first=need)
    return msgspec.structs.replace(base, **changes)


def answered(outcome: SyncAnswer | Refusal) -> SyncAnswer:
    assert isinstance(outcome, SyncAnswer), outcome
    return outcome


def refused(outcome: SyncAnswer | Refusal) -> Refusal:
    assert isinstance(outcome, Refusal), outcome
    return outcome


class Talker:
    """A router that says what a test tells it to."""

    def __init__(self, ledger: SqliteLedger, name: str = "s1", **who: Any) -> None:
        self.ledger = ledger
        self.name = name
        self.seq = 0
        self.who = caller(name, **who)

    def raw(self, **message: Any) -> SyncAnswer | Refusal:
        self.seq += 1
        return self.ledger.sync(self.who, SyncRequest(session=self.name, seq=self.seq, **message))

    def say(self, *holdings: Holding, **message: Any) -> SyncAnswer:
        return answered(self.raw(holdings=holdings, **message))

    def ask(self, need: int = 0, **changes: Any) -> AccountAnswer:
        answer = self.say(asks=(ask(need, **changes),))
        assert len(answer.accounts) == 1, answer
        return answer.accounts[0]

    def again(self, **message: Any) -> SyncAnswer | Refusal:
        return self.ledger.sync(self.who, SyncRequest(session=self.name, seq=self.seq, **message))


def test_a_grant_counts_as_spent_until_it_is_given_back(ledger: SqliteLedger) -> None:
    one, two = Talker(ledger, "one"), Talker(ledger, "two")
    assert one.ask(700).granted == 700
    assert two.ask(400).verdict == "Wait"
    one.say(Holding(account=1, granted=700, returned=500, charged=100))
    assert two.ask(400).granted == 400
    assert ledger.upkeep() == 0


def test_a_waiter_recalls_what_others_hold(ledger: SqliteLedger) -> None:
    one, two = Talker(ledger, "one"), Talker(ledger, "two")
    one.ask(700)
    two.ask(400)
    answer = one.say(Holding(account=1, granted=700))
    assert answer.accounts[0].recall
    assert answer.sync_after_ms == 1_000

    assert recalling(ledger.books()[0].account, NOW + 1_999)
    ledger.now += 2_000
    assert not one.say(Holding(account=1, granted=700)).accounts[0].recall


def test_a_session_that_idles_on_more_than_its_share_is_heard_every_second(ledger: SqliteLedger) -> None:
    idle = Talker(ledger, "idle")
    assert idle.say(asks=(ask(need=5),)).sync_after_ms == 5_000
    assert idle.say(asks=(ask(need=200),)).sync_after_ms == 1_000


def test_a_lowered_limit_recalls_what_is_leased(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(700)
    ledger.put(2, budget(limit=500))
    answer = one.say(Holding(account=1, granted=700, want=100)).accounts[0]
    assert (answer.recall, answer.granted, answer.limit) == (True, 700, 500)


def test_what_cannot_come_back_is_exhausted_until_the_window_ends(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(950)
    one.say(Holding(account=1, granted=950, charged=950))
    answer = one.say(Holding(account=1, granted=950, charged=950, need=100, first=100)).accounts[0]
    assert (answer.verdict, answer.retry_after_ms, answer.used) == ("Exhausted", HOUR, 950)


def test_a_request_beyond_the_whole_limit_is_too_large(ledger: SqliteLedger) -> None:
    assert Talker(ledger).ask(1_001).verdict == "TooLarge"


def test_a_limit_of_nothing_is_exhausted_and_not_too_large(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(limit=0))
    assert Talker(ledger).ask(1).verdict == "Exhausted"


def test_a_part_of_what_is_needed_is_granted_if_it_serves_somebody(ledger: SqliteLedger) -> None:
    one, two = Talker(ledger, "one"), Talker(ledger, "two")
    one.ask(800)
    assert two.ask(500, first=150).granted == 200


def test_what_is_only_wanted_shrinks_with_the_number_of_holders(ledger: SqliteLedger) -> None:
    assert Talker(ledger, "one").ask(want=1_000).granted == 500
    assert Talker(ledger, "two").ask(want=1_000).granted == 125


def test_a_temporary_increase_ends(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(temporary_increase=TemporaryIncrease(amount=500, until=NOW + 5_000)))
    one = Talker(ledger)
    assert one.ask(1_400).granted == 1_400
    ledger.now += 5_000
    assert one.say(Holding(account=1, granted=1_400, need=10, first=10)).accounts[0].verdict == "Wait"


def test_deleting_and_recreating_a_budget_does_not_refund(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(600)
    one.say(Holding(account=1, granted=600, charged=600))
    ledger.put(2)
    gone = one.say(Holding(account=1, granted=600, charged=600, need=1, first=1)).accounts[0]
    assert (gone.verdict, gone.limit) == ("Exhausted", 0)
    ledger.put(3, budget(uid="b2"))
    assert Talker(ledger, "two").ask(500).verdict == "Exhausted"


def test_another_unit_counts_anew_and_changing_back_finds_the_old_counters(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(600)
    ledger.put(2, budget(unit="Requests"))
    assert one.ask(600).account == 2
    assert one.say(Holding(account=1, granted=600, need=1, first=1)).accounts[0].limit == 0
    ledger.put(3, budget())
    assert one.ask(100).granted == 700


def test_an_unknown_budget_is_listed_and_nothing_else_fails(ledger: SqliteLedger) -> None:
    answer = Talker(ledger).say(asks=(ask(5), ask(5, budget="team-a/none"), ask(5, budget="odd")))
    assert answer.unknown_budgets == ("odd", "team-a/none")
    assert [account.granted for account in answer.accounts] == [5]


# --- sessions


def test_the_answer_to_a_repeated_message_counts_as_heard(ledger: SqliteLedger) -> None:
    """Else the router's fence, renewed by that answer, would outlast the ledger's patience."""
    one = Talker(ledger)
    one.ask(100)
    ledger.now += TTL_MS
    answered(one.again(asks=(ask(100),)))
    ledger.now += TTL_MS
    ledger.upkeep()
    assert ledger.books()[0].account.unreconciled == 0


def test_a_repeated_message_is_applied_once_and_tells_what_was_granted(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.raw(asks=(ask(100),), usage=(line(),))
    answer = answered(one.again(asks=(ask(100),), usage=(line(),)))
    assert (answer.accounts[0].granted, answer.seq, ledger.usage()) == (100, 1, 100)


def test_a_grant_whose_answer_was_lost_is_told_even_in_the_next_window(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.raw(asks=(ask(100),))
    ledger.now += HOUR
    assert [account.granted for account in answered(one.again(asks=(ask(100),))).accounts] == [100]


def test_a_missing_message_is_asked_for(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.say()
    one.seq = 4
    assert (refused(one.raw()).status, refused(one.again()).expected) == (409, 2)
    assert refused(ledger.sync(caller("x"), SyncRequest(session="new", seq=7))).expected == 1


def test_rewound_messages_do_not_ask(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    assert one.say(rewind=True, asks=(ask(100),)).accounts == ()
    one.ask(100)
    assert one.say(Holding(account=1, granted=100, need=50, first=50), rewind=True).accounts[0].granted == 100


def test_the_pod_is_the_tokens_and_not_the_bodys(ledger: SqliteLedger) -> None:
    Talker(ledger).say()
    stranger = ledger.sync(caller("other"), SyncRequest(session="s1", seq=2))
    assert refused(stranger).status == 403


def test_a_successor_waits_while_its_predecessor_may_live_and_is_then_told_to_begin_anew(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(100)
    replay = SyncRequest(session="s1", seq=2, replay=True)
    ledger.now += 1_000
    early = refused(ledger.sync(caller("other"), replay))
    assert (early.status, early.retry_after_ms) == (425, TTL_MS * 11 // 10 - 1_000)
    ledger.now += early.retry_after_ms
    assert refused(ledger.sync(caller("other"), replay)).status == 410
    assert refused(ledger.sync(caller("s1"), replay)).status == 410


def test_a_closed_session_is_gone_also_for_repeated_messages(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(100)
    one.say(Holding(account=1, granted=100, charged=30), close=Close(complete=True))
    assert refused(one.again(close=Close(complete=True))).reason == "Closed"
    assert refused(one.raw()).status == 410
    account = ledger.books()[0].account
    assert (account.held, account.charged, account.holders) == (30, 30, 0)


def test_what_a_closing_session_cannot_account_for_stays_counted(ledger: SqliteLedger) -> None:
    one, two = Talker(ledger, "one"), Talker(ledger, "two")
    one.ask(500)
    two.ask(400)
    one.say(close=Close(complete=True, unknown=(Unknown(account=1, amount=120),)))
    two.say(close=Close(complete=False))
    account = ledger.books()[0].account
    assert (account.held, account.unreconciled) == (520, 520)
    assert ledger.upkeep() == 0


def test_a_silent_session_is_lost_and_heals_without_moving_money(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(300)
    ledger.now += TTL_MS + 1
    assert ledger.upkeep() == 0
    lost = ledger.books()[0].account
    assert (lost.held, lost.unreconciled) == (300, 300)
    one.say(Holding(account=1, granted=300, charged=10))
    healed = ledger.books()[0].account
    assert (healed.held, healed.unreconciled, healed.charged) == (300, 0, 10)
    assert ledger.upkeep() == 0


def test_a_lost_session_that_says_goodbye_gives_everything_back(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(300)
    ledger.now += TTL_MS + 1
    ledger.upkeep()
    one.say(close=Close(complete=True))
    assert ledger.books()[0].account.held == 0


def test_books_that_do_not_add_up_close_the_session_and_stay_counted(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(300)
    bad = refused(one.raw(holdings=(Holding(account=1, granted=300, charged=301),)))
    assert (bad.status, "charged 301" in bad.reason) == (422, True)
    assert refused(one.raw()).status == 410
    assert ledger.books()[0].account.unreconciled == 300
    assert ledger.upkeep() == 0


def test_a_final_holding_is_forgotten_and_can_be_asked_for_again_in_the_same_message(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(300)
    answer = one.say(Holding(account=1, granted=300, returned=250, charged=50, final=True), asks=(ask(20),)).accounts[0]
    assert (answer.granted, answer.holders) == (20, 1)
    assert ledger.books()[0].account.held == 70
    assert ledger.upkeep() == 0


def test_unbacked_charges_are_held(ledger: SqliteLedger) -> None:
    """An Audit budget, or a bound that was too low: later grants must see the money."""
    one = Talker(ledger)
    one.ask(900)
    one.say(Holding(account=1, granted=900, charged=960, unbacked=60))
    more = Holding(account=1, granted=900, charged=960, unbacked=60, need=50, first=50)
    assert one.say(more).accounts[0].verdict == "Exhausted"
    assert ledger.books()[0].account.held == 960


def test_a_session_that_knows_of_more_grants_than_the_ledger_is_believed(ledger: SqliteLedger) -> None:
    """The database may be an older copy: counting too much is the safe side, and the audit reports it."""
    one = Talker(ledger)
    one.ask(100)
    one.say(Holding(account=1, granted=5_000))
    assert ledger.books()[0].account.held == 5_000
    assert ledger.upkeep() == 1


# --- windows and keys


def test_the_next_window_can_be_asked_for_before_it_begins(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    coming = one.ask(100, at="Next")
    assert coming.window.start == NOW + HOUR
    ledger.now += HOUR
    assert one.ask(want=0).account == coming.account


def test_a_window_in_use_keeps_its_edges_when_the_calendar_changes(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(1)
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE budget_window SET end_ms = end_ms + 600000")
    ledger.now += HOUR
    assert Talker(ledger, "two").ask(1).account == 1
    ledger.now += 600_000
    late = Talker(ledger, "three").ask(1)
    assert (late.window.start, late.window.end) == (NOW + HOUR + 600_000, NOW + 2 * HOUR)


def test_holdings_of_windows_long_ended_are_dropped(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(100)
    ledger.now += 7 * 24 * HOUR + HOUR
    assert ledger.upkeep() == 0
    assert not ledger.out()
    gone = refused(one.raw(holdings=(Holding(account=1, granted=100, charged=100),)))
    assert (gone.status, gone.reason) == (410, "WindowArchived")
    assert ledger.books()[0].account.unreconciled == 100


def keyed(**changes: Any) -> LedgerBudget:
    return budget(per="Workflow", unit="Requests", **changes)


def test_keys_belong_to_their_namespace(ledger: SqliteLedger) -> None:
    ledger.put(2, keyed(namespaces=("team-a", "team-b")))
    one = Talker(ledger)
    first = one.ask(1, namespace="team-a", key="loop")
    second = one.ask(1, namespace="team-b", key="loop")
    assert first.account != second.account
    assert one.say(asks=(ask(1, namespace="team-a"),)).unknown_budgets == ("team-a/monthly",)


def test_keys_beyond_the_bound_share_one_account(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead_operator.ledger.places.MAX_WORKFLOWS", 2)
    ledger.put(2, keyed())
    one = Talker(ledger)
    asks = tuple(ask(1, namespace="team-a", key=f"w{number}") for number in range(4))
    accounts = one.say(asks=asks).accounts
    assert [(account.key, account.asked_key) for account in accounts] == [
        ("w0", None),
        ("w1", None),
        (OTHER, "w2"),
        (OTHER, "w3"),
    ]
    assert accounts[2].granted == 2
    repeated = answered(one.again(asks=asks)).accounts
    assert [(account.key, account.asked_key) for account in repeated] == [
        (account.key, account.asked_key) for account in accounts
    ]
    assert one.ask(1, namespace="team-b", key="w9").key == "w9"


def test_a_key_that_is_too_long_is_counted_with_the_rest(ledger: SqliteLedger) -> None:
    ledger.put(2, keyed())
    assert Talker(ledger).ask(1, namespace="team-a", key="k" * 300).key == OTHER


def test_looking_an_ask_up_opens_nothing(ledger: SqliteLedger) -> None:
    with ledger.engine.begin() as connection:
        found = Resolver(connection, NOW, create=False).resolve((ask(1),), caller())
    assert [item.account for item in found] == [None]
    assert ledger.books() == []


# --- who may say what


def outsider(ledger: SqliteLedger, name: str = "s1", namespace: str = "team-a") -> Talker:
    return Talker(ledger, name, namespace=namespace, trusted=False)


def test_a_budget_that_names_no_namespaces_covers_its_own(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(namespaces=()))
    assert outsider(ledger).ask(10).granted == 10
    assert outsider(ledger, "s2", "team-b").say(asks=(ask(10),)).unknown_budgets == ("team-a/monthly",)


def test_a_router_leases_the_one_account_of_a_total_that_covers_its_namespace(ledger: SqliteLedger) -> None:
    assert outsider(ledger).ask(10).granted == 10
    stranger = outsider(ledger, "s2", "team-b")
    assert stranger.say(asks=(ask(10),)).unknown_budgets == ("team-a/monthly",)
    assert refused(stranger.raw(holdings=(Holding(account=1, need=5, first=5),))).status == 403


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"asks": (ask(1, namespace="team-b"),)}, "asks[0] is of namespace team-b"),
        ({"usage": (line(), line(namespace="team-b"))}, "usage[1] is of namespace team-b"),
    ],
)
def test_a_router_speaks_only_for_its_own_namespace(part: dict[str, Any], named: str) -> None:
    message = SyncRequest(session="s1", seq=1, **part)
    refusal = objection(caller(namespace="team-a", trusted=False), message)
    assert refusal is not None
    assert (refusal.status, named in refusal.reason) == (403, True)
    assert objection(caller(), message) is None


@pytest.mark.parametrize(
    ("part", "status", "named"),
    [
        ({"holdings": (Holding(account=1, klass=0),)}, 422, "holdings[0]: class 0"),
        ({"asks": (ask(1, klass=2),)}, 422, "asks[0]: class 2"),
        ({"asks": (ask(-1),)}, 422, "asks[0]: amounts are -1"),
        ({"holdings": (Holding(account=1, charged=1 << 61),)}, 422, "holdings[0]: amounts"),
        ({"holdings": (Holding(account=1, final=True, reserved=1),)}, 422, "something is reserved"),
        ({"holdings": (Holding(account=1), Holding(account=1))}, 422, "named twice"),
        ({"usage": (line(bins={"x": 1}),)}, 422, "usage[0]: bins"),
        ({"usage": (line(feature="f" * 600),)}, 422, "usage[0]: names"),
        ({"asks": (ask(),) * (MAX_LINES + 1)}, 413, "10001 lines"),
    ],
)
def test_what_no_router_may_say_is_refused_before_anything_is_applied(
    part: dict[str, Any], status: int, named: str
) -> None:
    refusal = objection(caller(), SyncRequest(session="s1", seq=1, **part))
    assert refusal is not None
    assert (refusal.status, named in refusal.reason) == (status, True), refusal


def test_a_token_without_a_pod_may_not_lease() -> None:
    unbound = caller_of(Identity("fairlead", "fairlead-gateway"), "fairlead", frozenset())
    refusal = objection(unbound, SyncRequest(session="s1", seq=1))
    assert refusal is not None
    assert refusal.status == 403


def test_trust_comes_from_the_namespace_and_the_gateways_account() -> None:
    def who(namespace: str, account: str) -> tuple[bool, bool]:
        made = caller_of(Identity(namespace, account, "p", "u"), "fairlead", frozenset({"ai-platform"}))
        return made.trusted, made.operator

    assert who("fairlead", "fairlead-gateway") == (True, False)
    assert who("fairlead", "fairlead-operator") == (False, True)
    assert who("ai-platform", "default") == (True, False)
    assert who("team-a", "fairlead-gateway") == (False, False)
    assert who("team-a", "fairlead-operator") == (False, False)


def test_the_active_action_is_the_highest_share_reached() -> None:
    actions = (BudgetAction(at_percent=80, action="Alert"), BudgetAction(at_percent=90, action="Pace"))
    assert [action_at(actions, used, 1_000) for used in (799, 800, 899, 900, 999, 1_000)] == [
        "None",
        "Alert",
        "Alert",
        "Pace",
        "Pace",
        "Reject",
    ]


def test_an_account_that_counts_for_no_budget_any_more_is_answered_without_one(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    assert one.ask(100).budget == "team-a/monthly"
    ledger.put(2, budget(time_zone="Europe/Berlin"))
    old = Holding(account=1, granted=100)
    (stated, asked) = one.say(old, asks=(ask(50),)).accounts
    assert (stated.account, stated.budget) == (1, "")
    assert (asked.budget, asked.granted) == ("team-a/monthly", 50)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"holdings": (Holding(account=1 << 70),)}, "holdings[0]"),
        ({"close": Close(complete=True, unknown=(Unknown(account=1, amount=-5),))}, "close.unknown[0]"),
        ({"close": Close(complete=True, unknown=(Unknown(account=1 << 70),))}, "close.unknown[0]"),
    ],
)
def test_numbers_that_no_account_has_are_refused(message: dict[str, Any], named: str) -> None:
    refusal = objection(caller(), SyncRequest(session="s", seq=1, **message))
    assert refusal is not None
    assert (refusal.status, named in refusal.reason) == (422, True)


def test_a_goodbye_has_no_more_lines_than_any_message() -> None:
    unknown = tuple(Unknown(account=number) for number in range(MAX_LINES + 1))
    refusal = objection(caller(), SyncRequest(session="s", seq=1, close=Close(complete=True, unknown=unknown)))
    assert refusal is not None
    assert refusal.status == 413


def test_sessions_and_workflows_that_are_over_are_forgotten_and_what_is_held_is_not(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(per="Workflow"), budget("yearly", period="Year"))
    gone, lost, lives = Talker(ledger, "gone"), Talker(ledger, "lost"), Talker(ledger, "lives")
    gone.ask(10, namespace="team-a", key="wf-1")
    gone.say(close=Close(complete=True))
    lost.ask(10, budget="team-a/yearly")
    ledger.now += 31 * 24 * HOUR
    lives.ask(10, namespace="team-a", key="wf-2")
    assert ledger.upkeep() == 0
    assert [row[0] for row in ledger.query("SELECT id FROM session ORDER BY id")] == ["lives", "lost"]
    assert [row[0] for row in ledger.query("SELECT key FROM account ORDER BY key")] == ["", "wf-2"]
    ledger.now += 500 * 24 * HOUR
    for _ in range(2):
        assert ledger.upkeep() == 0
    for table in ("account", "budget_window", "window_ns", "session", "holding"):
        assert ledger.query(f"SELECT count(*) FROM {table}")[0][0] == 0  # noqa: S608 - constants
