"""fairlead.dev/v1alpha1: the kinds ModelPool, RoutingPolicy and CostBudget."""

from fairlead_operator.api.v1alpha1.base import Duration, KubeModel, Money
from fairlead_operator.api.v1alpha1.common import API_VERSION, GROUP, VERSION, Condition, ObjectMeta, Resource, Selector
from fairlead_operator.api.v1alpha1.conditions import BudgetCondition, ConditionStatus, PolicyCondition, PoolCondition
from fairlead_operator.api.v1alpha1.costbudget import CostBudget, CostBudgetSpec, CostBudgetStatus
from fairlead_operator.api.v1alpha1.kinds import COST_BUDGET, KINDS, MODEL_POOL, ROUTING_POLICY, Column, Kind
from fairlead_operator.api.v1alpha1.modelpool import (
    Engine,
    ModelPool,
    ModelPoolSpec,
    ModelPoolStatus,
    Variant,
)
from fairlead_operator.api.v1alpha1.reasons import EventReason, Reason, ScalingReason
from fairlead_operator.api.v1alpha1.routingpolicy import RoutingPolicy, RoutingPolicySpec, RoutingPolicyStatus

__all__ = [
    "API_VERSION",
    "COST_BUDGET",
    "GROUP",
    "KINDS",
    "MODEL_POOL",
    "ROUTING_POLICY",
    "VERSION",
    "BudgetCondition",
    "Column",
    "Condition",
    "ConditionStatus",
    "CostBudget",
    "CostBudgetSpec",
    "CostBudgetStatus",
    "Duration",
    "Engine",
    "EventReason",
    "Kind",
    "KubeModel",
    "ModelPool",
    "ModelPoolSpec",
    "ModelPoolStatus",
    "Money",
    "ObjectMeta",
    "PolicyCondition",
    "PoolCondition",
    "Reason",
    "Resource",
    "RoutingPolicy",
    "RoutingPolicySpec",
    "RoutingPolicyStatus",
    "ScalingReason",
    "Selector",
    "Variant",
]
