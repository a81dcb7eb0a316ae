"""Types and statuses of the conditions that Fairlead writes."""

from enum import StrEnum


class ConditionStatus(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class PoolCondition(StrEnum):
    """Conditions of a ModelPool, in the order in which they are written."""

    READY = "Ready"
    """Accepted and Available."""
    ACCEPTED = "Accepted"
    """The spec can run: what cannot is refused before a pod starts."""
    AVAILABLE = "Available"
    """The pool answers, or is at zero on purpose."""
    PROGRESSING = "Progressing"
    """A rollout is under way."""
    UP_TO_DATE = "UpToDate"
    """The pods run what this release would render."""
    SCALING_ACTIVE = "ScalingActive"
    """The autoscaler has the signals that it decides from."""
    SCALING_LIMITED = "ScalingLimited"
    """Something keeps the number of replicas from what is wanted."""
    PRICE_KNOWN = "PriceKnown"
    """Every variant has a price."""


class PolicyCondition(StrEnum):
    """Conditions of a RoutingPolicy, in the order in which they are written."""

    READY = "Ready"
    """Accepted, ResolvedRefs and Programmed."""
    ACCEPTED = "Accepted"
    """The policy owns its model names."""
    RESOLVED_REFS = "ResolvedRefs"
    """Everything that the policy names exists and fits."""
    PROGRAMMED = "Programmed"
    """All routers have confirmed this generation."""


class BudgetCondition(StrEnum):
    """Conditions of a CostBudget, in the order in which they are written."""

    READY = "Ready"
    """Accepted and Enforced, or Audit as asked."""
    ACCEPTED = "Accepted"
    """The budget can be counted as it is written."""
    ENFORCED = "Enforced"
    """Every serving router has confirmed this budget."""
    WITHIN_BUDGET = "WithinBudget"
    """No account of the budget has used up its limit."""
    FORECAST_WITHIN_BUDGET = "ForecastWithinBudget"
    """What is spent when the window ends will be within the limit."""
    PRICE_KNOWN = "PriceKnown"
    """Every pool that the budget covers has a price."""
