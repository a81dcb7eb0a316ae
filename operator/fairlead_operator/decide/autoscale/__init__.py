"""How many replicas a pool needs: a forecast of demand, what replicas can do, and a price of missed objectives."""

from fairlead_operator.decide.autoscale.law import Memory, step
from fairlead_operator.decide.autoscale.values import (
    STEADY,
    CapBound,
    History,
    Observation,
    Settings,
    VariantState,
    Wish,
)

__all__ = ["STEADY", "CapBound", "History", "Memory", "Observation", "Settings", "VariantState", "Wish", "step"]
