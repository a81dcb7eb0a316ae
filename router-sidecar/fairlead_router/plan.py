"""What is the same for all requests of a caller, its labels and a model: prepared once, looked up for each request.

An ``Owner`` is a caller with what it says of its requests; its ``Plan`` for a model holds a ``Lane`` for each pool that
may serve it: the pool's line and card, the purses of the budgets that must admit, the counters, and the bytes that do
not change. Owners of one namespace whose budgets' accounts are the same share their plans; what is counted by caller is
the owner's own. All of it is dropped when the configuration or an action of a budget changes; a request under way keeps
the lane that it began with, and so its rate card.

An owner refers to its plans and a plan to its lanes, never the other way round: the collector of cycles runs so seldom
that what it alone could free would stay.
"""

from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary
from zlib import crc32

from fairlead_router import refusals
from fairlead_router.answers import Refusal, remaining_text
from fairlead_router.budget import BATCH_CLASS, CLASS, Holding, Purse, Wallet
from fairlead_router.contract import (
    NANO_PER_USD,
    Action,
    Attempt,
    Basis,
    BudgetConfig,
    PolicyConfig,
    PoolConfig,
    Priority,
    RouteConfig,
)
from fairlead_router.metering import Dimension, Row
from fairlead_router.policy import BudgetMatch, Caller, Labels
from fairlead_router.queueing import Line
from fairlead_router.retries import RetryBudget
from fairlead_router.sizing import UNIT_AT, Calibration
from fairlead_router.structs import Shared
from fairlead_router.telemetry import PoolTally, Series, Telemetry

_CENT: Final = NANO_PER_USD // 100
MAX_PLANS: Final = 64
"""Of one owner: models that it asked for."""


class Owner:
    """A caller and what it says of its requests. ``plans`` are by model."""

    __slots__ = ("_rows", "_shared", "caller", "labels", "plans")

    def __init__(self, caller: Caller, labels: Labels) -> None:
        self.caller = caller
        self.labels = labels
        self.plans: dict[str, Plan] = {}
        self._shared: dict[str, Shared] = {}
        self._rows: dict[tuple[Lane, str, Basis], Row] = {}

    def keep(self, shared: Shared) -> None:
        """Serve requests for a model by this plan from now on."""
        if len(self.plans) >= MAX_PLANS:
            self.plans.clear()
            self._shared.clear()
            self._rows.clear()
        plan = shared.plan
        self._shared[plan.model] = shared
        self.plans[plan.model] = plan

    def row(self, lane: "Lane", variant: str, basis: Basis) -> Row:
        """Where the usage of this caller's requests that a variant served is counted."""
        found = self._rows.get((lane, variant, basis))
        if found is None:
            caller, card = self.caller, lane.card
            dimension = Dimension(
                caller.namespace, caller.name, self.labels.feature or "", lane.model, lane.pool, variant,
                lane.route.name, basis, card.version if card is not None else 0, lane.attempt,
            )  # fmt: skip
            found = self._rows[lane, variant, basis] = Row(dimension)
        return found


class Shown:
    """A budget of the caller's own namespace, as answers show what is left of it.

    The text holds until the ledger answers anew, or more than ``until`` was charged: from a dollar on, what is left is
    shown in cents.
    """

    __slots__ = ("answered_at", "holding", "name", "purse", "until")

    def __init__(self, purse: Purse) -> None:
        self.purse = purse
        self.name = purse.budget.name
        self.holding: Holding | None = None
        self.until = 0
        self.answered_at = 0.0

    def text(self) -> str:
        """What is left; empty while that is not known."""
        holding = self.holding = self.purse.current
        if holding is None:
            return ""
        left, unit = holding.remaining(), self.purse.budget.unit
        spare = left % _CENT if unit == "USD" and left >= NANO_PER_USD else 0
        self.until, self.answered_at = holding.charged + spare, holding.verdict_at
        return remaining_text(left, unit)


class Parts:
    """What lanes are made of, beside the configuration; one for the whole router."""

    __slots__ = ("calibration", "line", "retries", "telemetry", "wallet")

    def __init__(
        self,
        line: Callable[[str], Line],
        calibration: Callable[[str], Calibration],
        retries: Callable[[str], RetryBudget],
        wallet: Wallet,
        telemetry: Telemetry,
    ) -> None:
        self.line = line
        self.calibration = calibration
        self.retries = retries
        self.wallet = wallet
        self.telemetry = telemetry


class Lane:
    """One pool of one route, for the owners and the model of a plan; ``adapter``: that of the pool, or empty."""

    __slots__ = (
        "_lines", "adapter", "asked", "attempt", "calibration", "card", "config", "context", "index", "line", "model",
        "pool", "purses", "refusal", "retries", "route", "salt", "series", "served", "shown", "tally", "text_only",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - made in one place, below
        self, parts: Parts, plan: "Plan", index: int, pool: str, attempt: Attempt = "Primary", adapter: str = ""
    ) -> None:
        self.model = plan.model
        self.index = index
        self.route: RouteConfig = plan.policy.routes[index]
        self.attempt = attempt
        self.line = parts.line(pool)
        self.config: PoolConfig = self.line.config
        self.card = self.config.card
        self.context = self.config.max_context_tokens
        self.pool = pool
        self.served = pool.partition("/")[2]
        self.adapter = adapter
        self.asked = adapter or self.served
        """The model by the engine's name for it."""
        self.salt = crc32(adapter.encode())
        """Keeps an adapter's prompts apart from those of others: engines cache them apart. 0 without an adapter."""
        self.calibration = parts.calibration(pool)
        self.retries = parts.retries(pool)
        self.series: Series = parts.telemetry.series(plan.namespace, pool, self.route.name, plan.priority)
        self.tally: PoolTally = parts.telemetry.pool(pool)
        purses = [
            parts.wallet.purse(match.budget, match.namespace, match.key, class_of(match.budget, plan.priority))
            for match in plan.matches
        ]
        self.purses = tuple((purse, UNIT_AT[purse.budget.unit]) for purse in purses)
        """The budgets' accounts, and where their units are in ``sizing.amounts_of``."""
        self.shown = tuple(Shown(purse) for purse in purses if purse.budget.namespace == plan.namespace)
        self.refusal = self._refusal(purses)
        self.text_only = next((p.label for p in purses if p.enforced and p.budget.unit != "Requests"), "")
        """The budget that admits only what has a bound."""
        self._lines = b""

    def _refusal(self, purses: list[Purse]) -> Refusal | None:
        """A USD budget cannot admit what has no price."""
        for purse in purses:
            budget = purse.budget
            if purse.enforced and budget.unit == "USD" and (self.card is None or not budget.price_known):
                return refusals.price_unknown(purse.label, self.pool)
        return None

    def remaining(self) -> list[tuple[str, str]]:
        """What is left of the budgets of the caller's own namespace, as far as that is known."""
        return [(shown.name, text) for shown in self.shown if (text := shown.text())]

    def lines(self) -> bytes:
        """The headers that tell the pool and what is left of the budgets."""
        for shown in self.shown:
            holding = shown.purse.current
            if holding is None or holding is not shown.holding or holding.charged > shown.until:
                return self._rendered()
            if holding.verdict_at != shown.answered_at:
                return self._rendered()
        return self._lines or self._rendered()

    def _rendered(self) -> bytes:
        left = ", ".join(f"{name}={text}" for name, text in self.remaining()).encode()
        lines = b"x-fairlead-pool: %b\r\nx-fairlead-cache: off\r\n" % self.served.encode()
        self._lines = lines + b"x-fairlead-budget-remaining: %b\r\n" % left if left else lines
        return self._lines


class Plan:
    """How requests for a model are served, of a namespace's owners to whom the same applies."""

    __slots__ = (
        "_lanes", "_parts", "actions", "calibration", "downgraded", "lanes", "matches", "model",
        "namespace", "policy", "priority",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - made in one place, below
        self,
        parts: Parts,
        namespace: str,
        model: str,
        policy: PolicyConfig,
        priority: Priority,
        matches: tuple[BudgetMatch, ...],
        actions: tuple[Action, ...],
    ) -> None:
        self.namespace = namespace
        self.model = model
        self.policy = policy
        self.priority: Priority = priority
        self.matches = matches
        """The budgets that must admit the requests."""
        self.actions = actions
        """What the budgets do about these requests; ``priority`` has it already."""
        self.downgraded = "Downgrade" in actions
        self.calibration = parts.calibration(policy.routes[0].pools[0].pool)
        """That of the smallest route decides about the route."""
        self.lanes: list[Lane | None] = [None] * len(policy.routes)
        """By route: its lane, if it has one pool and was asked for."""
        self._parts = parts
        self._lanes: dict[tuple[int, str, str], Lane] = {}

    def lane(self, index: int, pool: str, attempt: Attempt = "Primary", adapter: str = "") -> Lane:
        """The lane of a route's pool, or of an adapter there."""
        found = self._lanes.get((index, pool, adapter))
        if found is None:
            found = self._lanes[index, pool, adapter] = Lane(self._parts, self, index, pool, attempt, adapter)
            if len(found.route.pools) == 1 and attempt == "Primary" and not self.downgraded:
                self.lanes[index] = found
        return found


class Plans:
    """The plans in use, each once. One that no owner keeps is gone."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._kept: WeakValueDictionary[tuple[object, ...], Shared] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, owner: Owner, model: str, policy: PolicyConfig, matches: tuple[BudgetMatch, ...]) -> Plan:
        """The plan for an owner's requests, which the owner keeps from now on.

        ``policy`` and ``matches`` are what the configuration says of them; it is the same until ``forget``.
        """
        namespace, actions = owner.caller.namespace, acting(self._parts.wallet, matches)
        priority = lowered(policy.priority, "Batch" if "Deprioritize" in actions else owner.labels.priority)
        accounts = [(match.budget.namespace, match.budget.name, match.key) for match in matches]
        key = (namespace, model, priority, actions, *accounts)
        shared = self._kept.get(key)
        if shared is None:
            plan = Plan(self._parts, namespace, model, policy, priority, matches, actions)
            shared = self._kept[key] = Shared(plan)
        owner.keep(shared)
        return shared.plan

    def forget(self) -> None:
        """The configuration or an action changed, or accounts were let go: plans are made anew from now on."""
        self._kept.clear()


ACTED_ON: Final[tuple[Action, ...]] = ("Deprioritize", "Downgrade")
"""Pacing is the ledger's verdict; headroom for others is a class."""
_RANK: Final[dict[Priority, int]] = {"Interactive": 0, "Standard": 1, "Batch": 2}


def class_of(budget: BudgetConfig, priority: Priority) -> int:
    """In which class of a budget requests lease: Batch apart from the others only where headroom is kept for them."""
    return BATCH_CLASS if budget.batch_apart and priority == "Batch" else CLASS


def acting(wallet: Wallet, matches: tuple[BudgetMatch, ...]) -> tuple[Action, ...]:
    """What the budgets that may refuse do about requests now, in a fixed order: those that a router acts on."""
    enforced = [match for match in matches if match.budget.enforcement == "Enforce"]
    found = {action for match in enforced for action in wallet.acting(match.budget, match.namespace, match.key)}
    return tuple([action for action in ACTED_ON if action in found])


def lowered(highest: Priority, asked: Priority | None) -> Priority:
    """The priority of a request: what it asks for, never above what its policy gives."""
    return highest if asked is None or _RANK[asked] < _RANK[highest] else asked
