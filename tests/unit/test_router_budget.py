"""The wallet: reserving from several budgets at once, settling, returning; invariants under any sequence of steps."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from fairlead_router.budget import (
    CLASS,
    MAX_ASKS,
    MAX_PURSES,
    MAX_RENEWALS,
    MAX_STATEMENTS,
    RENEW_APART_S,
    Claim,
    Purse,
    Reservation,
    Shortage,
    Wallet,
)
from fairlead_router.contract import AccountAnswer, BudgetConfig, Window
from fairlead_router.records import key_of
from tests.builders.router import budget

DAY = 86_400_000
NOW_MS = 10 * DAY
WINDOW = Window(id=1, start=NOW_MS, end=NOW_MS + DAY)


def granted(wallet: Wallet, config: BudgetConfig, amount: int, account: int = 1, **changes: Any) -> Purse:
    """A purse whose account was granted an amount."""
    purse = wallet.purse(config, "support", "")
    fields = {"window": WINDOW, "granted": amount, "limit": amount, **changes}
    label = f"{config.namespace}/{config.name}"
    answer = AccountAnswer(account=account, budget=label, namespace="support", key="", **fields)
    wallet.take(answer, NOW_MS, 0.0)
    return purse


def test_a_request_runs_only_if_every_budget_has_its_bound() -> None:
    wallet = Wallet()
    rich, poor = granted(wallet, budget(name="rich"), 100), granted(wallet, budget(name="poor"), 5, account=2)
    outcome = wallet.reserve([Claim(rich, 10), Claim(poor, 10)], NOW_MS, 0.0)
    assert isinstance(outcome, Shortage)
    assert outcome.purse is poor
    assert rich.current is not None
    assert rich.current.reserved == 0


def test_an_audit_budget_gives_what_it_has_and_never_refuses() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(enforcement="Audit"), 5)
    outcome = wallet.reserve([Claim(purse, 10)], NOW_MS, 0.0)
    assert isinstance(outcome, Reservation)
    wallet.settle(outcome, [8])
    assert purse.current is not None
    assert (purse.current.charged, purse.current.unbacked) == (8, 3)


def test_what_an_audit_budget_charged_before_its_account_was_known_is_told_later() -> None:
    wallet = Wallet()
    config = budget(enforcement="Audit")
    purse = wallet.purse(config, "support", "")
    outcome = wallet.reserve([Claim(purse, 10)], NOW_MS, 0.0)
    assert isinstance(outcome, Reservation)
    wallet.settle(outcome, [7])
    granted(wallet, config, 0)
    assert purse.current is not None
    assert (purse.current.charged, purse.current.unbacked) == (7, 7)


def test_an_amount_of_zero_is_always_admitted() -> None:
    wallet = Wallet()
    purse = wallet.purse(budget(), "support", "")
    assert isinstance(wallet.reserve([Claim(purse, 0)], NOW_MS, 0.0), Reservation)


def test_a_charge_above_the_bound_is_taken_from_what_is_free_and_then_unbacked() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 20)
    outcome = wallet.reserve([Claim(purse, 10)], NOW_MS, 0.0)
    assert isinstance(outcome, Reservation)
    wallet.settle(outcome, [25])
    assert purse.current is not None
    assert (purse.current.charged, purse.current.unbacked, purse.current.out) == (25, 5, 0)


def test_a_reservation_is_settled_once() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 20)
    outcome = wallet.reserve([Claim(purse, 10)], NOW_MS, 0.0)
    assert isinstance(outcome, Reservation)
    wallet.settle(outcome, [3])
    wallet.settle(outcome, [3])
    assert purse.current is not None
    assert (purse.current.charged, purse.current.reserved) == (3, 0)


def test_a_request_over_the_windows_end_is_charged_to_the_window_in_which_it_reserved() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 20)
    old = purse.current
    outcome = wallet.reserve([Claim(purse, 10)], NOW_MS, 0.0)
    assert isinstance(outcome, Reservation)
    late = NOW_MS + DAY + 1
    assert purse.live(late) is None
    assert old is not None
    assert [h.final for h in wallet.statements(late, 0.0, everything=True)] == []
    wallet.settle(outcome, [4])
    (last,) = wallet.statements(late, 0.0, everything=True)
    assert (last.final, last.charged, last.returned) == (True, 4, 16)
    assert not wallet.holdings


def test_the_next_window_is_asked_for_before_the_old_one_ends_and_used_from_its_start() -> None:
    wallet = Wallet()
    config = budget()
    purse = granted(wallet, config, 20)
    wallet.reserve([Claim(purse, 1)], NOW_MS, 0.0)
    shortly = NOW_MS + DAY - 20_000
    assert [ask.at for ask in wallet.asks(shortly, 1.0)] == ["Next"]
    assert list(wallet.asks(shortly, 1.0)) == []
    following = Window(id=2, start=NOW_MS + DAY, end=NOW_MS + 2 * DAY)
    label = f"{config.namespace}/{config.name}"
    wallet.take(AccountAnswer(account=2, budget=label, namespace="support", window=following, granted=9), shortly, 1.0)
    assert purse.live(shortly) is wallet.holdings[key_of(1, CLASS)]
    assert purse.live(NOW_MS + DAY) is wallet.holdings[key_of(2, CLASS)]


def test_the_next_window_of_an_account_that_only_refused_in_this_one_is_asked_for() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 0)
    assert isinstance(wallet.reserve([Claim(purse, 1)], NOW_MS, 1000.0), Shortage)
    assert [ask.at for ask in wallet.asks(NOW_MS + DAY - 20_000, 1001.0)] == ["Next"]


def test_a_request_that_is_refused_keeps_all_its_accounts_in_use() -> None:
    wallet = Wallet()
    poor, other = granted(wallet, budget(name="poor"), 0), wallet.purse(budget(name="new"), "support", "")
    assert isinstance(wallet.reserve([Claim(poor, 1), Claim(other, 1)], NOW_MS, 1000.0), Shortage)
    wallet.forget_idle(NOW_MS, 1001.0)
    assert (poor.gone, other.gone, wallet.changed) == (False, False, False)


def test_a_purse_that_was_let_go_is_named_before_one_that_lacks_money() -> None:
    wallet = Wallet()
    poor, gone = granted(wallet, budget(name="poor"), 0), wallet.purse(budget(name="old"), "support", "")
    poor.used_at = 1000.0
    wallet.forget_idle(NOW_MS, 1001.0)
    outcome = wallet.reserve([Claim(poor, 1), Claim(gone, 1)], NOW_MS, 1002.0)
    assert isinstance(outcome, Shortage)
    assert (outcome.purse is gone, outcome.lack) == (True, "Unknown")


def test_a_recall_gives_back_all_that_is_free_and_keeps_what_is_reserved() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 100, recall=True)
    wallet.reserve([Claim(purse, 30)], NOW_MS, 0.0)
    (told,) = wallet.statements(NOW_MS, 0.0, everything=True)
    assert (told.returned, told.reserved) == (70, 30)


def test_what_a_request_leaves_of_recalled_money_is_told_at_once() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 100, recall=True)
    kept = granted(wallet, budget(name="kept"), 100, account=2)
    outcomes = [wallet.reserve([Claim(one, 30)], NOW_MS, 0.0) for one in (purse, kept)]
    for outcome, recalled in zip(outcomes, (True, False), strict=True):
        assert isinstance(outcome, Reservation)
        wallet.urgent = False
        wallet.settle(outcome, [10])
        assert wallet.urgent == recalled


def idle(wallet: Wallet, config: BudgetConfig, accounts: int = 1, renew_s: float = 1.0) -> list[Purse]:
    """Purses with free money that nothing happened to since they were told of."""
    purses = []
    for account in range(1, accounts + 1):
        purse = wallet.purse(config, "support", f"sa:{account}")
        label = f"{config.namespace}/{config.name}"
        answer = AccountAnswer(
            account=account,
            budget=label,
            namespace="support",
            key=purse.key,
            window=WINDOW,
            granted=10,
            available=1_000,
        )
        wallet.take(answer, NOW_MS, 0.0, renew_s)
        assert purse.current is not None
        purse.current.mean_bound, purse.current.dirty = 10.0, False
        purses.append(purse)
    return purses


def test_free_money_is_told_of_again_without_news_so_that_a_recall_is_heard() -> None:
    wallet = Wallet()
    (purse,) = idle(wallet, budget(per="Caller"), renew_s=2.0)
    assert list(wallet.statements(NOW_MS, 0.5, everything=False)) == []
    assert wallet.renewal_s(0.5) == 1.5
    assert list(wallet.statements(NOW_MS, 1.5, everything=False)) == []
    (told,) = wallet.statements(NOW_MS, 2.0, everything=False)
    assert (told.account, told.returned) == (1, 0)
    assert purse.current is not None
    purse.current.give_back(10)
    assert list(wallet.statements(NOW_MS, 2.0, everything=False)) == []


def test_what_an_audit_budget_holds_is_wanted_by_nobody_who_waits() -> None:
    wallet = Wallet()
    idle(wallet, budget(per="Caller", enforcement="Audit"))
    assert list(wallet.statements(NOW_MS, 60.0, everything=False)) == []
    assert wallet.renewal_s(60.0) == math.inf


def test_many_holdings_without_news_are_told_of_in_turn() -> None:
    wallet = Wallet()
    idle(wallet, budget(per="Caller"), 2 * MAX_RENEWALS)
    rounds = [[told.account for told in wallet.statements(NOW_MS, 60.0, everything=False)] for _ in range(2)]
    assert [len(accounts) for accounts in rounds] == [MAX_RENEWALS] * 2
    assert sorted(rounds[0] + rounds[1]) == list(range(1, 2 * MAX_RENEWALS + 1))
    assert wallet.renewal_s(60.0) == RENEW_APART_S


def test_what_did_not_fit_a_message_waits_for_no_heartbeat() -> None:
    wallet = Wallet()
    for purse in idle(wallet, budget(per="Caller", enforcement="Audit"), MAX_STATEMENTS + 1):
        assert purse.current is not None
        purse.current.dirty = True
    assert len(list(wallet.statements(NOW_MS, 0.0, everything=False))) == MAX_STATEMENTS
    assert wallet.renewal_s(0.0) == RENEW_APART_S


def test_of_the_budgets_that_lack_money_the_one_with_least_is_named() -> None:
    wallet = Wallet()
    rich = granted(wallet, budget(name="rich"), 0, limit=1_000, used=900, available=1)
    poor = granted(wallet, budget(name="poor"), 0, account=2, limit=1_000, used=991, available=9)
    new, served = wallet.purse(budget(name="new"), "support", ""), granted(wallet, budget(name="served"), 50, account=3)
    named = wallet.scarcest([Claim(purse, 10) for purse in (new, rich, poor, served)], NOW_MS, 0.0)
    assert named is not None
    assert named.purse is poor
    assert wallet.scarcest([Claim(served, 10), Claim(rich, 0)], NOW_MS, 0.0) is None


def test_an_account_that_nobody_used_for_a_while_is_given_back_whole() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(per="Workflow"), 100)
    wallet.forget_idle(NOW_MS, purse.used_at + 31.0)
    (told,) = wallet.statements(NOW_MS, 31.0, everything=True)
    assert (told.final, told.returned) == (True, 100)
    assert not wallet.purses


def test_a_budget_that_counts_in_other_windows_asks_again() -> None:
    wallet = Wallet()
    granted(wallet, budget(), 100)
    purse = wallet.purse(budget(time_zone="Europe/Berlin"), "support", "")
    assert purse.current is None
    (told,) = wallet.statements(NOW_MS, 0.0, everything=True)
    assert told.final


def test_a_verdict_is_about_what_was_asked_for_before_it_and_not_about_what_is_being_asked_for() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 0, limit=100)
    for amount, lack in ((10, "Exhausted"), (3, "Waiting")):
        purse.waiting = purse.first = amount
        assert [told.first for told in wallet.statements(NOW_MS, 0.0, everything=False)] == [amount]
        if lack == "Exhausted":
            granted(wallet, budget(), 0, limit=100, verdict="Exhausted")
        outcome = wallet.reserve([Claim(purse, amount)], NOW_MS, 0.1)
        assert isinstance(outcome, Shortage)
        assert outcome.lack == lack


def test_a_fresh_verdict_refuses_what_it_was_about_and_nothing_smaller() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 0)
    purse.waiting = purse.first = 50
    list(wallet.statements(NOW_MS, 0.0, everything=True))
    granted(wallet, budget(), 0, verdict="Exhausted")
    lacks = [wallet.reserve([Claim(purse, amount)], NOW_MS, 0.1) for amount in (50, 49)]
    assert [lack.lack for lack in lacks if isinstance(lack, Shortage)] == ["Exhausted", "Waiting"]
    stale = wallet.reserve([Claim(purse, 50)], NOW_MS, 0.6)
    assert isinstance(stale, Shortage)
    assert stale.lack == "Waiting"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 120)), max_size=20), st.integers(0, 300))
def test_charges_and_what_is_out_add_up_to_the_grant(requests: list[tuple[int, int]], grant: int) -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), grant)
    holding = purse.current
    assert holding is not None
    for bound, charge in requests:
        outcome = wallet.reserve([Claim(purse, bound)], NOW_MS, 0.0)
        if isinstance(outcome, Reservation):
            wallet.settle(outcome, [charge])
    assert holding.out + holding.charged - holding.unbacked + holding.returned == grant


class WalletMachine(RuleBasedStateMachine):
    """Any sequence of grants, reservations, extensions, settlements, recalls and messages keeps I4."""

    open_ones = Bundle("open_ones")

    def __init__(self) -> None:
        super().__init__()
        self.wallet = Wallet()
        self.totals: dict[int, int] = {1: 0, 2: 0}
        self.claims: dict[int, list[Claim]] = {}

    @initialize(first=st.integers(0, 100), second=st.integers(0, 100))
    def begin(self, first: int, second: int) -> None:
        self.configs = {1: budget(name="a"), 2: budget(name="b", enforcement="Audit")}
        self.purses = {account: self.wallet.purse(config, "support", "") for account, config in self.configs.items()}
        for account, amount in ((1, first), (2, second)):
            self.grant(account, amount, recall=False)

    @rule(account=st.sampled_from([1, 2]), amount=st.integers(0, 100), recall=st.booleans())
    def grant(self, account: int, amount: int, recall: bool) -> None:
        if key_of(account, CLASS) in self.wallet.holdings or self.totals[account] == 0:
            self.totals[account] += amount
            granted(self.wallet, self.configs[account], self.totals[account], account, recall=recall)

    @rule(target=open_ones, first=st.integers(0, 60), second=st.integers(0, 60))
    def reserve(self, first: int, second: int) -> Reservation | None:
        claims = [Claim(self.purses[1], first), Claim(self.purses[2], second)]
        outcome = self.wallet.reserve(claims, NOW_MS, 0.0)
        if isinstance(outcome, Shortage):
            assert outcome.purse is self.purses[1]
            return None
        self.claims[id(outcome)] = claims
        return outcome

    @rule(reservation=open_ones, more=st.integers(0, 60))
    def extend(self, reservation: Reservation | None, more: int) -> None:
        if reservation is not None and not reservation.settled:
            claims = [Claim(claim.purse, claim.amount + more) for claim in self.claims[id(reservation)]]
            self.wallet.extend(reservation, claims, NOW_MS, 0.0)

    @rule(reservation=open_ones, charge=st.integers(0, 150))
    def settle(self, reservation: Reservation | None, charge: int) -> None:
        if reservation is not None:
            self.wallet.settle(reservation, [charge, charge])

    @rule(everything=st.booleans(), waiting=st.integers(0, 50))
    def seal(self, everything: bool, waiting: int) -> None:
        self.purses[1].waiting = self.purses[1].first = waiting
        before = {account: holding.out for account, holding in self.wallet.holdings.items()}
        for told in self.wallet.statements(NOW_MS, 0.0, everything=everything):
            assert told.granted - told.returned - told.charged + told.unbacked >= told.reserved
            assert not told.final
            assert key_of(told.account, told.klass) in before

    @invariant()
    def out_covers_what_is_reserved(self) -> None:
        for holding in self.wallet.holdings.values():
            assert holding.out >= holding.reserved >= 0
            assert holding.free >= 0
            assert holding.open >= 0
            assert 0 <= holding.unbacked <= holding.charged


TestWalletMachine = WalletMachine.TestCase
TestWalletMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("key", ["", "wf-1"])
def test_a_purse_is_found_again_by_its_name(key: str) -> None:
    wallet = Wallet()
    assert wallet.purse(budget(), "support", key) is wallet.purse(budget(), "support", key)


def test_holdings_that_do_not_fit_one_message_come_with_the_next_and_those_that_are_waited_for_come_first() -> None:
    wallet = Wallet()
    config = budget(per="Caller")
    for account in range(1, MAX_STATEMENTS + 101):
        key = f"sa:{account}"
        wallet.purse(config, "support", key)
        answer = AccountAnswer(
            account=account, budget="support/support", namespace="support", key=key, window=WINDOW, granted=5, limit=5
        )
        wallet.take(answer, NOW_MS, 0.0)
    last = wallet.purses["support/support", "support", f"sa:{MAX_STATEMENTS + 100}", CLASS]
    last.waiting = last.first = 50
    told = list(wallet.statements(NOW_MS, 0.0, everything=False))
    assert (len(told), told[0].account, told[0].need) == (MAX_STATEMENTS, MAX_STATEMENTS + 100, 50)
    last.waiting = last.first = 0
    for holding in wallet.holdings.values():
        holding.dirty = True
    again = {holding.account for holding in wallet.statements(NOW_MS, 0.0, everything=False)}
    assert again | {holding.account for holding in told} == {held.account for held in wallet.holdings.values()}


def test_actions_of_keys_without_end_do_not_fill_memory() -> None:
    wallet, config = Wallet(), budget(per="Workflow")
    for number in range(MAX_PURSES + 10):
        answer = AccountAnswer(
            account=1, budget="support/support", namespace="support", key=f"w{number}", window=WINDOW, granted=0,
            active=("Deprioritize",),
        )  # fmt: skip
        wallet.take(answer, NOW_MS, 0.0)
    assert len(wallet._acting) == MAX_PURSES
    assert wallet.acting(config, "support", f"w{MAX_PURSES + 9}") == ("Deprioritize",)


def test_a_window_that_went_by_unused_does_not_keep_the_next_one_from_being_asked_for() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 100)
    following = Window(id=2, start=WINDOW.end, end=WINDOW.end + DAY)
    granted(wallet, budget(), 100, account=2, window=following)
    assert purse.upcoming is not None
    assert purse.live(following.end) is None
    assert purse.upcoming is None


def test_accounts_that_requests_wait_for_are_asked_for_before_others() -> None:
    wallet = Wallet()
    config = budget(per="Caller")
    for number in range(MAX_ASKS + 1):
        wallet.purse(config, "support", f"sa:{number}").used_at = 100.0
    last = wallet.purse(config, "support", f"sa:{MAX_ASKS}")
    last.waiting = last.first = 7
    asks = list(wallet.asks(NOW_MS, 100.0))
    assert (len(asks), asks[0].key, asks[0].need) == (MAX_ASKS, last.key, 7)


def test_an_account_that_counts_for_no_budget_any_more_is_given_back_and_the_right_one_asked_for() -> None:
    wallet = Wallet()
    purse = granted(wallet, budget(), 100)
    purse.used_at = 10.0
    wallet.take(AccountAnswer(account=1, namespace="support", window=WINDOW, granted=100), NOW_MS, 10.0)
    assert purse.current is None
    (told,) = wallet.statements(NOW_MS, 10.0, everything=True)
    assert (told.final, told.returned) == (True, 100)
    assert [ask.at for ask in wallet.asks(NOW_MS, 10.0)] == ["Now"]
    wallet.take(AccountAnswer(account=1, namespace="support", window=WINDOW), NOW_MS, 10.0)
    assert not wallet.holdings


def test_what_was_owed_is_told_even_if_the_account_was_known_through_another_key() -> None:
    wallet = Wallet()
    config = budget(enforcement="Audit", per="Caller")
    first, second = wallet.purse(config, "support", "sa:a"), wallet.purse(config, "support", "sa:b")
    second.owed = 3
    for asked in ("sa:a", "sa:b"):
        answer = AccountAnswer(
            account=1, budget="support/support", namespace="support", key="~other", asked_key=asked, window=WINDOW
        )
        wallet.take(answer, NOW_MS, 0.0)
        told = list(wallet.statements(NOW_MS, 0.0, everything=False))
        owed = 3 if asked == "sa:b" else 0
        assert [(holding.charged, holding.unbacked) for holding in told] == [(owed, owed)]
    assert first.current is second.current
