"""CostBudget: what a namespace, caller, feature or workflow may spend in a calendar window."""

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from fairlead_operator import units
from fairlead_operator.api.v1alpha1.base import (
    Amount,
    Count,
    KubeModel,
    ModelName,
    Money,
    Timestamp,
    Word,
    cel,
    map_list,
    rules,
    set_list,
)
from fairlead_operator.api.v1alpha1.common import Resource, Selector, Status
from fairlead_router.contract import Action as ActionName
from fairlead_router.contract import Enforcement, Per, Period, Unit

AccountKey = Annotated[str, Field(max_length=320)]
UsedPercent = Annotated[int, Field(ge=0, le=units.MAX_PERCENT)]
STRENGTH: tuple[str, ...] = ("None", *get_args(ActionName), "Reject")
"""What a budget may do now, from the weakest to the strongest."""


class Limit(KubeModel):
    """How much, of what, for whom and how often."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.unit == 'USD' || !string(self.amount).contains('.')",
                "amount must be a whole number unless unit is USD",
            ),
            cel(
                "self.unit == oldSelf.unit && self.per == oldSelf.per",
                "unit and per are immutable; create another CostBudget",
            ),
        )
    )

    amount: Money
    """Most that a window admits: an integer, or a quoted decimal with at most six places; 0 closes."""
    unit: Unit
    """What is counted."""
    per: Per
    """Who has the amount: all callers together, or each namespace, caller, feature or workflow."""
    period: Period
    """Length of the calendar window; weeks are ISO weeks."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64)] = "UTC"
    """IANA name of the time zone that windows begin in. Default: UTC."""

    @property
    def units(self) -> int:
        """The amount as routers and ledger count it: nano-USD, tokens or requests."""
        return self.counted(self.amount)

    def counted(self, amount: Money) -> int:
        """Another amount of this budget as routers and ledger count it."""
        return amount.nano if self.unit == "USD" else amount.nano // units.NANO_PER_USD


class AppliesTo(KubeModel):
    """Whose requests the budget covers."""

    namespace_selector: Selector | None = None
    """Labels of the namespaces that are covered; for platform namespaces only. Default: the budget's own."""
    models: Annotated[tuple[ModelName, ...], Field(max_length=64, json_schema_extra=set_list())] = ()
    """Model names, as clients send them, whose requests are covered. Default: all."""


class Action(KubeModel):
    """What happens from a share of the limit on."""

    at_percent: Annotated[int, Field(ge=1, le=99)]
    """Share of the limit that the action begins at."""
    action: ActionName
    """What happens: Alert tells it by an Event, Pace spreads what is left over the rest of the window, Deprioritize
    serves as priority Batch, Downgrade takes the fallbacks for Downgraded, RejectBatch keeps the rest for others."""


class TemporaryIncrease(KubeModel):
    """An addition to the limit that ends by itself."""

    amount: Money
    """What is added to the limit, in its unit."""
    until: Timestamp
    """When it ends: the limit is what it was before."""
    reason: Annotated[str, Field(min_length=1, max_length=256)]
    """Why, for whoever reads the Events."""

    @property
    def until_ms(self) -> int | None:
        """The end in epoch milliseconds; None if the text is no time, such as one with a leap second."""
        try:
            return int(datetime.fromisoformat(self.until).timestamp() * 1000)
        except (ValueError, OverflowError):
            return None


class CostBudgetSpec(KubeModel):
    """What may be spent."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.idleCost == 'Excluded' || (self.limit.unit == 'USD' && self.limit.per in ['Total', 'Namespace']"
                " && !has(self.appliesTo.models))",
                "idleCost: Included needs unit USD, per Total or Namespace, and no models or backends",
            ),
            cel(
                "self.limit.unit == 'USD' || !has(self.temporaryIncrease)"
                " || !string(self.temporaryIncrease.amount).contains('.')",
                "temporaryIncrease.amount must be a whole number unless unit is USD",
            ),
        )
    )

    limit: Limit
    """How much, of what, for whom and how often."""
    applies_to: AppliesTo = AppliesTo()
    """Whose requests the budget covers. Default: those of its own namespace."""
    idle_cost: Literal["Excluded", "Included"] = "Excluded"
    """Whether the idle cost of the pools in the covered namespaces counts as spent. Default: Excluded."""
    actions: Annotated[tuple[Action, ...], Field(max_length=8, json_schema_extra=map_list("atPercent", "action"))] = ()
    """What happens before the limit is reached; at 100 % requests are refused, always. Default: none."""
    enforcement: Enforcement = "Enforce"
    """Whether requests above the limit are refused; Audit decides and reports, and lets them pass. Default: Enforce."""
    temporary_increase: TemporaryIncrease | None = None
    """An addition to the limit until a time; status.limit shows the sum while it lasts. Default: none."""


class BudgetWindow(KubeModel):
    """The current calendar window."""

    id: Annotated[str, Field(max_length=32)]
    """Name of the window, such as 2026-11 or 2026-11-20."""
    start: Timestamp
    """When the window began."""
    end: Timestamp
    """When the window ends and the next one begins."""
    counted_from: Timestamp | None = None
    """Since when it is counted; later than start when the budget is younger than the window."""


class AccountSpend(KubeModel):
    """One account of the budget."""

    key: AccountKey
    """The namespace; for callers, features and workflows followed by / and their name."""
    spent: Amount
    """What it has spent in this window."""
    used_percent: UsedPercent
    """Share of the limit, rounded down."""


class Allowances(KubeModel):
    """The accounts of the budget: one for each value of per."""

    total: Count
    """Accounts with spending in this window."""
    limited: Count
    """Accounts that have used up their limit."""
    top: Annotated[tuple[AccountSpend, ...], Field(max_length=10, json_schema_extra=map_list("key"))] = ()
    """The fullest accounts."""


class BudgetRouters(KubeModel):
    """How many routers enforce the budget."""

    total: Count
    """Routers that serve callers of the budget."""
    enforcing: Count
    """Routers that have confirmed it."""


class BudgetForecast(KubeModel):
    """What will have been spent when the window ends, if no action holds it back."""

    at_window_end: Amount
    """The expected spending of the whole window."""
    low: Amount
    """Four times of five it will be between low and high."""
    high: Amount
    """Four times of five it will be between low and high."""


class CostBudgetStatus(Status):
    """What was spent."""

    limit: Amount | None = None
    """Limit that the ledger counts against, the temporary increase included."""
    increase: Amount | None = None
    """Part of limit that is a temporary increase."""
    window: BudgetWindow | None = None
    """Current calendar window."""
    fullest: AccountKey | None = None
    """Value of per that the following numbers are about."""
    spent: Amount | None = None
    """Settled and unreconciled spending of this window."""
    reserved: Amount | None = None
    """What running requests may still cost."""
    unreconciled: Amount | None = None
    """What a lost router left unknown; counted as spent."""
    idle: Amount | None = None
    """Idle cost of the covered namespaces' pools in this window, where idleCost: Included counts it."""
    remaining: Amount | None = None
    """What is left of the limit."""
    used_percent: UsedPercent | None = None
    """Share of the limit that is spent, rounded down; while Reject is active, what routers hold counts as well."""
    burn_per_hour: Amount | None = None
    """Spending of the last hour."""
    forecast: BudgetForecast | None = None
    """What will have been spent when the window ends, if no action holds it back."""
    active_action: Word | None = None
    """The strongest of what the budget does now: None, an action of the spec, or Reject."""
    active_at_percent: Annotated[int | None, Field(ge=1, le=99)] = None
    """The highest atPercent of the actions in force."""
    allowances: Allowances | None = None
    """Accounts of the budget, one for each value of per."""
    routers: BudgetRouters | None = None
    """How many routers enforce the budget."""


class CostBudget(Resource):
    """A CostBudget says what its callers may spend in a calendar window, and holds them to it."""

    spec: CostBudgetSpec
    status: CostBudgetStatus = CostBudgetStatus()
