"""Named cases of the decisions, and of the transaction around them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.ledger.access import MAX_LINES, caller_of, objection
from fairlead_operator.ledger.catalog import ended_increases
from fairlead_operator.ledger.escrow import (
    MAX_AMOUNT,
    NOTHING,
    Account,
    Demand,
    Refusal,
    Terms,
    act,
    active,
    cap,
    ceiling,
    grant,
    horizon,
    in_force,
    recalling,
    standing,
)
from fairlead_operator.ledger.exchange import patient
from fairlead_operator.ledger.places import Resolver, account_id
from fairlead_operator.ledger.write_off import write_off
from fairlead_operator.tokens import Identity
from fairlead_router.contract import (
    OTHER,
    AccountAnswer,
    Action,
    Ask,
    BudgetAction,
    Close,
    Holding,
    LedgerBudget,
    SyncAnswer,
    SyncRequest,
    TemporaryIncrease,
    Unknown,
    WriteOff,
)
from tests.builders.ledger import HOUR, NOW, TTL_MS, SqliteLedger, budget, caller, line

ONE = account_id(budget(), NOW, "", "")
"""The account of the budget that most tests are about, in its first window."""


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


def refused(outcome: object) -> Refusal:
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
    one.say(Holding(account=ONE, granted=700, returned=500, charged=100))
    assert two.ask(400).granted == 400
    assert ledger.upkeep() == 0


def test_a_waiter_recalls_what_others_hold(ledger: SqliteLedger) -> None:
    one, two = Talker(ledger, "one"), Talker(ledger, "two")
    one.ask(700)
    two.ask(400)
    answer = one.say(Holding(account=ONE, granted=700))
    assert answer.accounts[0].recall
    assert answer.sync_after_ms == 1_000

    assert recalling(ledger.books()[0].account, NOW + 1_999)
    ledger.now += 2_000
    assert not one.say(Holding(account=ONE, granted=700)).accounts[0].recall


def test_a_session_that_idles_on_more_than_its_share_is_heard_every_second(ledger: SqliteLedger) -> None:
    idle = Talker(ledger, "idle")
    assert idle.say(asks=(ask(need=5),)).sync_after_ms == 5_000
    assert idle.say(asks=(ask(need=200),)).sync_after_ms == 1_000


def test_in_a_window_of_a_minute_every_holder_of_free_money_is_heard_every_second(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(period="Minute"))
    idle = Talker(ledger, "idle")
    assert idle.say(asks=(ask(need=5),)).sync_after_ms == 1_000


def test_a_lowered_limit_recalls_what_is_leased(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(700)
    ledger.put(2, budget(limit=500))
    answer = one.say(Holding(account=ONE, granted=700, want=100)).accounts[0]
    assert (answer.recall, answer.granted, answer.limit) == (True, 700, 500)


def test_what_cannot_come_back_is_exhausted_until_the_window_ends(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(950)
    one.say(Holding(account=ONE, granted=950, charged=950))
    answer = one.say(Holding(account=ONE, granted=950, charged=950, need=100, first=100)).accounts[0]
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
    assert one.say(Holding(account=ONE, granted=1_400, need=10, first=10)).accounts[0].verdict == "Wait"


def test_deleting_and_recreating_a_budget_does_not_refund(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(600)
    one.say(Holding(account=ONE, granted=600, charged=600))
    ledger.put(2)
    gone = one.say(Holding(account=ONE, granted=600, charged=600, need=1, first=1)).accounts[0]
    assert (gone.verdict, gone.limit) == ("Exhausted", 0)
    ledger.put(3, budget(uid="b2"))
    assert Talker(ledger, "two").ask(500).verdict == "Exhausted"


def test_another_unit_counts_anew_and_changing_back_finds_the_old_counters(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(600)
    ledger.put(2, budget(unit="Requests"))
    assert one.ask(600).account != ONE
    assert one.say(Holding(account=ONE, granted=600, need=1, first=1)).accounts[0].limit == 0
    ledger.put(3, budget())
    assert one.ask(100).granted == 700


def test_an_unknown_budget_is_listed_and_nothing_else_fails(ledger: SqliteLedger) -> None:
    answer = Talker(ledger).say(asks=(ask(5), ask(5, budget="team-a/none"), ask(5, budget="odd")))
    assert answer.unknown_budgets == ("odd", "team-a/none")
    assert [account.granted for account in answer.accounts] == [5]


@given(st.data())
def test_pacing_only_ever_releases_more_up_to_the_whole_at_the_windows_end(data: st.DataObject) -> None:
    limit, length = (
        data.draw(st.integers(0, 10**15)),
        data.draw(st.sampled_from([60_000, HOUR, 24 * HOUR, 31 * 24 * HOUR])),
    )
    begun, base = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 2 * limit))
    batch = data.draw(st.integers(1, 100))
    idle = data.draw(st.integers(0, limit))
    terms = Terms(limit, 0, length, idle, batch)
    paced = Account(held=base, pace_from=begun, pace_base=base)
    times = sorted(data.draw(st.lists(st.integers(begun, length), min_size=2)))
    for klass in (0, 1):
        caps = [cap(terms, paced, klass, now) for now in times]
        assert caps == sorted(caps)
        assert caps[-1] <= ceiling(terms, klass) == cap(terms, paced, klass, length)
    assert cap(terms, paced, 0, times[0]) <= cap(terms, paced, 1, times[0])


@given(st.data())
def test_what_is_paced_fits_when_it_was_said_to(data: st.DataObject) -> None:
    limit, length = data.draw(st.integers(100, 10**12)), data.draw(st.sampled_from([60_000, HOUR, 31 * 24 * HOUR]))
    begun = data.draw(st.integers(0, length - 1))
    base = data.draw(st.integers(0, limit - 1))
    used = data.draw(st.integers(0, base))
    now = data.draw(st.integers(begun, length - 1))
    first = data.draw(st.integers(1, limit))
    account = Account(held=used, charged=used, pace_from=begun, pace_base=base)
    terms = Terms(limit, 0, length)
    outcome = grant(account, NOTHING, Demand(first=first), terms=terms, klass=1, now=now)
    assert outcome.verdict in {"Granted", "Paced", "Exhausted"}
    if outcome.verdict == "Paced":
        later = now + outcome.retry_after_ms
        assert grant(account, NOTHING, Demand(first=first), terms=terms, klass=1, now=later).verdict == "Granted"
        assert grant(account, NOTHING, Demand(first=first), terms=terms, klass=1, now=later - 1).verdict == "Paced"


@given(st.lists(st.integers(0, 1_300)), st.lists(st.integers(1, 99), max_size=8))
def test_actions_begin_at_their_share_and_end_two_percent_below_it(uses: list[int], shares: list[int]) -> None:
    actions = tuple(BudgetAction(at_percent=share, action="Alert") for share in sorted(shares))
    terms = Terms(1_000, 0, HOUR, actions=actions)
    acted = 0
    for used in uses:
        before, acted = acted, in_force(terms, acted, used)
        assert all(share <= acted for share in shares if used >= share * 10)
        assert acted == 0 or used >= (acted - 2) * 10
        assert acted <= before or used >= acted * 10
        assert len(active(terms, acted)) == sum(share <= acted for share in shares)


def test_a_window_that_a_two_hundredth_of_does_not_fit_is_paced_by_seconds_or_minutes() -> None:
    lengths = (60_000, HOUR, 24 * HOUR, 31 * 24 * HOUR)
    assert [horizon(Terms(1, 0, length)) for length in lengths] == [2_000, 18_000, 300_000, 300_000]


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


@pytest.mark.parametrize(
    "hurry",
    [
        {"holdings": (Holding(account=ONE, charged=3), Holding(account=ONE, klass=0, need=1, first=1))},
        {"asks": (Ask(budget="team-a/monthly", namespace="", need=1, first=1),)},
        {"close": Close(complete=True)},
        {"replay": True},
        {"rewind": True},
    ],
)
def test_only_a_message_that_nobody_waits_for_is_patient(hurry: dict[str, Any]) -> None:
    report = SyncRequest(session="s1", seq=2, holdings=(Holding(account=ONE, charged=3, want=50),), usage=(line(),))
    assert patient(report)
    assert not patient(msgspec.structs.replace(report, **hurry))


def test_rewound_messages_do_not_ask(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    assert [account.granted for account in one.say(rewind=True, asks=(ask(100),)).accounts] == [0]
    one.ask(100)
    assert one.say(Holding(account=ONE, granted=100, need=50, first=50), rewind=True).accounts[0].granted == 100


def test_the_pod_is_the_tokens_and_not_the_bodys(ledger: SqliteLedger) -> None:
    Talker(ledger).say()
    stranger = ledger.sync(caller("other"), SyncRequest(session="s1", seq=2))
    assert refused(stranger).status == 403


def replayed(ledger: SqliteLedger, pod: str = "s1", seq: int = 2, **message: Any) -> SyncAnswer | Refusal:
    """What a successor of session s1 says from its journal."""
    return ledger.sync(caller(pod), SyncRequest(session="s1", seq=seq, replay=True, **message))


def test_a_successor_in_another_pod_waits_while_its_predecessor_may_live(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(100)
    ledger.now += 1_000
    early = refused(replayed(ledger, "other"))
    assert (early.status, early.retry_after_ms) == (425, TTL_MS * 11 // 10 - 1_000)
    ledger.now += early.retry_after_ms - 1
    assert refused(replayed(ledger, "other")).retry_after_ms == 1
    ledger.now += 1
    assert answered(replayed(ledger, "other")).seq == 2


def test_a_successor_in_the_same_pod_need_not_wait(ledger: SqliteLedger) -> None:
    """The kubelet starts a container after the one before it is dead."""
    Talker(ledger).ask(100)
    assert answered(replayed(ledger)).seq == 2


def test_a_journal_that_is_being_told_may_be_taken_over_at_once(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(100)
    replayed(ledger)
    assert answered(replayed(ledger, "other", seq=3)).seq == 3


def test_a_successor_does_not_come_from_another_namespace(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(100)
    ledger.now += 10 * TTL_MS
    who = caller("other", "team-b")
    stranger = ledger.sync(who, SyncRequest(session="s1", seq=2, replay=True, close=Close(complete=True)))
    assert refused(stranger).status == 403


def test_a_takeover_latches_so_that_the_zombie_is_not_let_back_in(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(100)
    replayed(ledger)
    for outcome in (one.raw(), one.again()):
        assert (refused(outcome).status, refused(outcome).reason) == (410, "Taken")
    ledger.now += TTL_MS * 2
    ledger.upkeep()
    assert refused(one.raw()).reason == "Taken"


def test_what_a_successor_tells_moves_no_money_until_it_closes(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(500)
    told = Holding(account=ONE, granted=500, charged=120)
    answered(replayed(ledger, holdings=(told,), usage=(line(nano_usd=120),)))
    account = ledger.books()[0].account
    assert (account.held, account.charged, account.unreconciled) == (500, 120, 380)
    assert ledger.upkeep() == 0
    answered(replayed(ledger, seq=2, holdings=(told,), usage=(line(nano_usd=120),)))
    assert (ledger.books()[0].account.unreconciled, ledger.usage()) == (380, 120)
    assert ledger.upkeep() == 0
    unknown = (Unknown(account=ONE, amount=80),)
    answered(replayed(ledger, seq=3, holdings=(told,), close=Close(complete=True, unknown=unknown)))
    account = ledger.books()[0].account
    assert (account.held, account.charged, account.unreconciled) == (200, 120, 80)
    assert ledger.upkeep() == 0


def test_a_successor_may_begin_with_the_first_message(ledger: SqliteLedger) -> None:
    """A router that was killed before its first message has usage to tell."""
    answered(replayed(ledger, seq=1, usage=(line(),), close=Close(complete=True)))
    assert ledger.usage() == 100
    assert refused(replayed(ledger, seq=1)).reason == "Closed"


def test_a_successor_that_the_ledger_knows_less_of_is_asked_for_the_rest(ledger: SqliteLedger) -> None:
    assert refused(replayed(ledger, seq=7)).expected == 1


def test_a_successor_is_granted_nothing(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(100)
    told = Holding(account=ONE, granted=100, need=50, first=50)
    answer = answered(replayed(ledger, holdings=(told,), asks=(ask(70),)))
    assert [account.granted for account in answer.accounts] == [100]


def test_a_lost_session_can_be_told_by_a_successor(ledger: SqliteLedger) -> None:
    Talker(ledger).ask(100)
    ledger.now += 2 * TTL_MS
    ledger.upkeep()
    answered(replayed(ledger, "other"))
    assert ledger.books()[0].account.unreconciled == 100
    assert ledger.upkeep() == 0
    answered(replayed(ledger, "other", seq=3, close=Close(complete=True)))
    assert ledger.books()[0].account.held == 0
    assert ledger.upkeep() == 0


def test_a_closed_session_is_gone_also_for_repeated_messages(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(100)
    one.say(Holding(account=ONE, granted=100, charged=30), close=Close(complete=True))
    assert refused(one.again(close=Close(complete=True))).reason == "Closed"
    assert refused(one.raw()).status == 410
    account = ledger.books()[0].account
    assert (account.held, account.charged, account.holders) == (30, 30, 0)


def test_what_a_closing_session_cannot_account_for_stays_counted(ledger: SqliteLedger) -> None:
    one, two = Talker(ledger, "one"), Talker(ledger, "two")
    one.ask(500)
    two.ask(400)
    one.say(close=Close(complete=True, unknown=(Unknown(account=ONE, amount=120),)))
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
    one.say(Holding(account=ONE, granted=300, charged=10))
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
    bad = refused(one.raw(holdings=(Holding(account=ONE, granted=300, charged=301),)))
    assert (bad.status, "charged 301" in bad.reason) == (422, True)
    assert refused(one.raw()).status == 410
    assert ledger.books()[0].account.unreconciled == 300
    assert ledger.upkeep() == 0


def test_a_final_holding_is_forgotten_and_can_be_asked_for_again_in_the_same_message(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(300)
    answer = one.say(Holding(account=ONE, granted=300, returned=250, charged=50, final=True), asks=(ask(20),)).accounts[
        0
    ]
    assert (answer.granted, answer.holders) == (20, 1)
    assert ledger.books()[0].account.held == 70
    assert ledger.upkeep() == 0


def test_unbacked_charges_are_held(ledger: SqliteLedger) -> None:
    """An Audit budget, or a bound that was too low: later grants must see the money."""
    one = Talker(ledger)
    one.ask(900)
    one.say(Holding(account=ONE, granted=900, charged=960, unbacked=60))
    more = Holding(account=ONE, granted=900, charged=960, unbacked=60, need=50, first=50)
    assert one.say(more).accounts[0].verdict == "Exhausted"
    assert ledger.books()[0].account.held == 960


# --- recovery


def losing(ledger: SqliteLedger, name: str = "loser", **who: Any) -> Refusal:
    """A message that cannot be, unless commits were lost."""
    return refused(ledger.sync(caller(name, **who), SyncRequest(session=name, seq=7)))


def test_a_missing_message_stops_grants_for_one_ttl(ledger: SqliteLedger) -> None:
    """The database may be an older copy: others hold grants that it does not know."""
    one = Talker(ledger)
    one.ask(100)
    assert losing(ledger).expected == 1
    answer = one.say(Holding(account=ONE, granted=100, need=10, first=10)).accounts[0]
    assert (answer.verdict, answer.retry_after_ms, answer.granted) == ("Recovering", TTL_MS, 100)
    ledger.now += TTL_MS - 1
    assert one.ask(10).verdict == "Recovering"
    ledger.now += 1
    assert one.ask(10).verdict == "Granted"


def test_grants_that_nobody_remembers_stop_grants_and_are_believed(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(100)
    answer = one.say(Holding(account=ONE, granted=400, need=10, first=10)).accounts[0]
    assert (answer.verdict, answer.granted) == ("Recovering", 400)
    assert Talker(ledger, "two").ask(10).verdict == "Recovering"
    assert ledger.books()[0].account.held == 400


def test_a_restored_ledger_is_told_again_by_accounts_that_it_opens_anew(ledger: SqliteLedger) -> None:
    """Their ids say what they count, so that no router's money is booked on another account."""
    restored = SqliteLedger()
    restored.put(1, budget(), budget("other"))
    Talker(restored, "earlier").ask(5, budget="team-a/other")
    one = Talker(ledger)
    first = one.ask(300)
    restored.now += HOUR
    one.ledger, one.seq = restored, 0
    one.say(asks=(ask(300),), rewind=True, sent_at=NOW)
    answer = one.say(Holding(account=first.account, granted=300, charged=40), rewind=True).accounts[0]
    assert (answer.budget, answer.window.start, answer.granted) == ("team-a/monthly", NOW, 300)
    assert sorted(book.account.held for book in restored.books()) == [5, 300]
    assert restored.upkeep() == 0
    restored.close()


@pytest.mark.parametrize("how", ["rewind", "replay"])
def test_what_is_told_again_of_unknown_accounts_is_left_out_and_the_rest_counts(ledger: SqliteLedger, how: str) -> None:
    one = Talker(ledger)
    one.ask(100)
    holdings = (Holding(account=ONE, granted=100, charged=30), Holding(account=77, granted=50, charged=50))
    assert refused(Talker(ledger, "two").raw(holdings=holdings)).reason == "WindowArchived"
    answer = answered(one.raw(holdings=holdings, usage=(line(nano_usd=30),), **{how: True}))
    assert [account.account for account in answer.accounts] == [ONE]
    assert (ledger.books()[0].account.charged, ledger.usage()) == (30, 30)
    assert ledger.upkeep() == 0


@given(st.lists(st.tuples(st.sampled_from(["a", "b/c"]), st.sampled_from(["", "x"]), st.integers(0, 3)), min_size=2))
def test_two_accounts_have_one_id_only_if_they_count_the_same(places: list[tuple[str, str, int]]) -> None:
    ids = [account_id(budget(name), NOW + opens, namespace, "k") for name, namespace, opens in places]
    assert len(set(ids)) == len(set(places))
    assert all(0 < id_ < MAX_AMOUNT for id_ in ids)


def test_a_router_that_always_skips_messages_cannot_stop_the_ledger_for_good(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    verdicts = []
    for _ in range(8):
        losing(ledger)
        verdicts.append(one.ask(1).verdict)
        ledger.now += TTL_MS // 2
    assert verdicts == ["Recovering", "Recovering", "Granted", "Granted"] * 2


def test_a_team_cannot_stop_the_ledger_for_others(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(per="Namespace", namespaces=("team-a", "team-b")))
    losing(ledger, namespace="team-b", trusted=False)
    one = Talker(ledger)
    assert one.ask(10, namespace="team-a").verdict == "Granted"
    assert one.ask(10, namespace="team-b").verdict == "Recovering"


def test_a_session_that_knows_of_more_grants_than_the_ledger_is_believed(ledger: SqliteLedger) -> None:
    """The database may be an older copy: counting too much is the safe side."""
    one = Talker(ledger)
    one.ask(100)
    one.say(Holding(account=ONE, granted=5_000))
    assert ledger.books()[0].account.held == 5_000
    assert ledger.upkeep() == 0


# --- classes and actions


def acting(*actions: tuple[int, Action], **changes: Any) -> LedgerBudget:
    return budget(actions=tuple(BudgetAction(at_percent=share, action=name) for share, name in actions), **changes)


def charge(talker: Talker, amount: int) -> AccountAnswer:
    """Lease and charge so that the session has charged that much in all."""
    talker.ask(amount)
    return talker.say(Holding(account=ONE, granted=amount, charged=amount)).accounts[0]


def test_batch_leaves_headroom_for_the_others_from_the_beginning(ledger: SqliteLedger) -> None:
    ledger.put(2, acting((70, "RejectBatch")))
    batch, others = Talker(ledger, "batch"), Talker(ledger, "others")
    assert batch.ask(701, klass=0).verdict == "TooLarge"
    assert batch.ask(700, klass=0).granted == 700
    assert batch.ask(1, klass=0).verdict == "Wait"
    assert others.ask(300).granted == 300
    assert ledger.upkeep() == 0


def test_batch_is_exhausted_where_the_others_go_on(ledger: SqliteLedger) -> None:
    ledger.put(2, acting((70, "RejectBatch")))
    one = Talker(ledger)
    answer = charge(one, 700)
    assert (answer.active, answer.action) == (("RejectBatch",), "RejectBatch")
    refusal = one.ask(1, klass=0)
    assert (refusal.verdict, refusal.limit, refusal.retry_after_ms) == ("Exhausted", 700, HOUR)
    assert one.ask(1).verdict == "Granted"
    assert ledger.books()[0].account.refused_ms == 0


def test_a_session_holds_an_account_in_both_classes(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.say(asks=(ask(100), ask(50, klass=0)))
    told = (Holding(account=ONE, granted=100, charged=100), Holding(account=ONE, klass=0, granted=50, charged=20))
    answers = one.say(*told).accounts
    assert [(answer.klass, answer.granted, answer.holders) for answer in answers] == [(0, 50, 2), (1, 100, 2)]
    assert ledger.upkeep() == 0
    one.say(*told, close=Close(complete=True, unknown=(Unknown(account=ONE, klass=0, amount=10),)))
    account = ledger.books()[0].account
    assert (account.held, account.charged, account.unreconciled) == (130, 120, 10)
    assert ledger.upkeep() == 0


def test_within_a_message_batch_is_served_last(ledger: SqliteLedger) -> None:
    answers = Talker(ledger).say(asks=(ask(800, klass=0), ask(800))).accounts
    assert [(answer.klass, answer.verdict) for answer in answers] == [(0, "Wait"), (1, "Granted")]


def test_pacing_releases_what_is_left_over_the_rest_of_the_window(ledger: SqliteLedger) -> None:
    ledger.put(2, acting((50, "Pace")))
    one = Talker(ledger)
    answer = charge(one, 520)
    assert (answer.active, answer.pace_per_hour, answer.available) == (("Pace",), 480, 2)
    paced = one.ask(100)
    assert paced.verdict == "Paced"
    ledger.now += paced.retry_after_ms - 1
    assert one.ask(100).verdict == "Paced"
    ledger.now += 1
    assert one.ask(100).verdict == "Granted"
    assert one.ask(481).verdict == "Exhausted"
    ledger.now = NOW + HOUR - 1
    assert one.ask(380).verdict == "Granted"


def test_pacing_ends_with_a_temporary_increase_and_begins_anew(ledger: SqliteLedger) -> None:
    ledger.put(2, acting((50, "Pace")))
    one = Talker(ledger)
    charge(one, 520)
    increase = TemporaryIncrease(amount=1_000, until=NOW + 60_000)
    ledger.put(3, acting((50, "Pace"), temporary_increase=increase))
    assert one.ask(300).verdict == "Granted"
    assert ledger.books()[0].account.pace_from is None
    ledger.now += 60_000
    assert one.ask(400).verdict == "Paced"
    assert (ledger.books()[0].account.pace_from, ledger.books()[0].account.pace_base) == (NOW + 60_000, 820)


def test_an_action_in_force_stays_until_the_use_falls_two_percent_below(ledger: SqliteLedger) -> None:
    ledger.put(2, acting((80, "Alert"), (90, "Deprioritize")))
    one = Talker(ledger)
    assert charge(one, 900).active == ("Alert", "Deprioritize")
    edits = ((1_010, 90), (1_022, 90), (1_023, 80), (1_000, 90), (1_200, 0))
    for version, (limit, expected) in enumerate(edits, start=3):
        ledger.put(version, acting((80, "Alert"), (90, "Deprioritize"), limit=limit))
        one.say(Holding(account=ONE, granted=900, charged=900))
        assert ledger.books()[0].account.acted == expected


def test_a_new_window_begins_without_actions(ledger: SqliteLedger) -> None:
    ledger.put(2, acting((50, "Pace")))
    one = Talker(ledger)
    charge(one, 600)
    ledger.now += HOUR
    answer = one.ask(400)
    assert (answer.active, answer.action, answer.granted) == ((), "None", 400)


# --- what operators and people do


def audited(ledger: SqliteLedger) -> list[str]:
    return [row[0] for row in ledger.query("SELECT what FROM audit ORDER BY id")]


def test_edits_that_change_what_may_be_spent_are_written_down(ledger: SqliteLedger) -> None:
    short = TemporaryIncrease(amount=500, until=NOW + 5_000)
    longer = TemporaryIncrease(amount=500, until=NOW + 9_000)
    ledger.put(2, budget(limit=900))
    assert audited(ledger) == []
    ledger.put(3, budget(temporary_increase=short))
    ledger.put(4, budget(temporary_increase=longer))
    ledger.now += 9_000
    ledger.put(5, budget())
    ledger.put(6, budget(time_zone="Europe/Berlin"))
    ledger.put(7)
    assert audited(ledger) == [
        "TemporaryIncreaseBegan",
        "TemporaryIncreaseWithdrawn",
        "TemporaryIncreaseBegan",
        "CountingRestarted",
        "BudgetDeleted",
    ]


def test_a_temporary_increase_is_written_down_when_its_time_is_over(ledger: SqliteLedger) -> None:
    ledger.put(2, budget(temporary_increase=TemporaryIncrease(amount=500, until=NOW + 5_000)))
    with ledger.engine.begin() as connection:
        found = [ended_increases(connection, NOW + a, NOW + b) for a, b in ((0, 4_999), (4_999, 5_000), (5_000, 9_000))]
    assert [len(notes) for notes in found] == [0, 1, 0]


def wrote_off(ledger: SqliteLedger, session: str, **changes: Any) -> int | Refusal:
    message = WriteOff(namespace="team-a", name="monthly", window=1, session=session, reason="r")
    with ledger.engine.begin() as connection:
        return write_off(connection, msgspec.structs.replace(message, **changes), "me", ledger.now, TTL_MS)


def test_only_what_dead_sessions_hold_of_that_window_is_written_off(ledger: SqliteLedger) -> None:
    dead, alive = Talker(ledger, "dead"), Talker(ledger, "alive")
    dead.say(asks=(ask(300), ask(20, klass=0), ask(5, at="Next")))
    ledger.now += TTL_MS + 1
    alive.ask(200)
    ledger.upkeep()
    refusals = [refused(outcome) for outcome in (wrote_off(ledger, "alive"), wrote_off(ledger, "dead", window=9))]
    assert [refusal.status for refusal in refusals] == [409, 404]
    assert wrote_off(ledger, "fairlead/router-dead") == 320
    now, following = (book.account for book in ledger.books())
    assert (now.held, now.unreconciled, following.unreconciled) == (200, 0, 5)
    assert ledger.upkeep() == 0
    assert refused(dead.raw()).reason == "Closed"


def test_a_journal_whose_successor_died_as_well_can_be_written_off(ledger: SqliteLedger) -> None:
    first, second = Talker(ledger, "s1"), Talker(ledger, "s1")
    first.ask(300)
    second.seq = 1
    answered(second.raw(replay=True))
    assert refused(wrote_off(ledger, "s1")).status == 409
    ledger.now += TTL_MS + 1
    assert wrote_off(ledger, "s1") == 300
    assert ledger.upkeep() == 0


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
    assert Talker(ledger, "two").ask(1).account == ONE
    ledger.now += 600_000
    late = Talker(ledger, "three").ask(1)
    assert (late.window.start, late.window.end) == (NOW + HOUR + 600_000, NOW + 2 * HOUR)


def test_holdings_of_windows_long_ended_are_dropped(ledger: SqliteLedger) -> None:
    one = Talker(ledger)
    one.ask(100)
    ledger.now += 7 * 24 * HOUR + HOUR
    assert ledger.upkeep() == 0
    assert not ledger.out()
    gone = refused(one.raw(holdings=(Holding(account=ONE, granted=100, charged=100),)))
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
    assert refused(stranger.raw(holdings=(Holding(account=ONE, need=5, first=5),))).status == 403


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
        ({"holdings": (Holding(account=ONE, klass=-1),)}, 422, "holdings[0]: class -1"),
        ({"asks": (ask(1, klass=2),)}, 422, "asks[0]: class 2"),
        ({"asks": (ask(-1),)}, 422, "asks[0]: amounts are -1"),
        ({"holdings": (Holding(account=ONE, charged=1 << 61),)}, 422, "holdings[0]: amounts"),
        ({"holdings": (Holding(account=ONE, final=True, reserved=1),)}, 422, "something is reserved"),
        ({"holdings": (Holding(account=ONE), Holding(account=ONE))}, 422, "named twice"),
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


@pytest.mark.parametrize("seq", [0, -1, 1 << 61])
def test_messages_are_numbered_from_one(seq: int) -> None:
    refusal = objection(caller(), SyncRequest(session="s1", seq=seq))
    assert refusal is not None
    assert (refusal.status, f"not {seq}" in refusal.reason) == (422, True)


def test_one_account_may_be_named_once_in_each_class() -> None:
    both = (Holding(account=ONE, klass=0), Holding(account=ONE, klass=1))
    assert objection(caller(), SyncRequest(session="s1", seq=1, holdings=both)) is None


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


def test_the_standing_is_the_action_that_began_last_and_idle_counts() -> None:
    actions = (BudgetAction(at_percent=80, action="Alert"), BudgetAction(at_percent=90, action="Pace"))
    terms = Terms(1_000, 0, HOUR, idle=100, actions=actions)
    assert [standing(terms, act(Account(charged=used), terms, NOW)) for used in (699, 700, 799, 800, 899, 900)] == [
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
    old = Holding(account=ONE, granted=100)
    accounts = one.say(old, asks=(ask(50),)).accounts
    (stated, asked) = sorted(accounts, key=lambda account: account.account != ONE)
    assert (stated.account, stated.budget) == (ONE, "")
    assert (asked.budget, asked.granted) == ("team-a/monthly", 50)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"holdings": (Holding(account=1 << 70),)}, "holdings[0]"),
        ({"close": Close(complete=True, unknown=(Unknown(account=ONE, amount=-5),))}, "close.unknown[0]"),
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
