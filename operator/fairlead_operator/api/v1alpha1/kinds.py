"""The three kinds as the API server registers them: names, columns and subresources."""

from dataclasses import dataclass
from typing import Any, Literal

from fairlead_operator.api.v1alpha1.base import KubeModel, cel
from fairlead_operator.api.v1alpha1.common import GROUP, Resource
from fairlead_operator.api.v1alpha1.costbudget import CostBudget, CostBudgetSpec, CostBudgetStatus
from fairlead_operator.api.v1alpha1.modelpool import ModelPool, ModelPoolSpec, ModelPoolStatus
from fairlead_operator.api.v1alpha1.routingpolicy import RoutingPolicy, RoutingPolicySpec, RoutingPolicyStatus

CATEGORY = "fairlead"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``kubectl get``; one with a priority above 0 is shown by ``-o wide``."""

    name: str
    path: str
    description: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind: its models and how the API server serves it."""

    kind: str
    plural: str
    short_name: str
    resource: type[Resource]
    spec: type[KubeModel]
    status: type[KubeModel]
    columns: tuple[Column, ...]
    rules: tuple[dict[str, str], ...] = ()
    scale: tuple[tuple[str, Any], ...] = ()

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


AGE = Column("AGE", ".metadata.creationTimestamp", "Time since the object was created.", "date")


def _condition(condition_type: str, field: str) -> str:
    return f".status.conditions[?(@.type=='{condition_type}')].{field}"


MODEL_POOL = Kind(
    kind="ModelPool",
    plural="modelpools",
    short_name="mpool",
    resource=ModelPool,
    spec=ModelPoolSpec,
    status=ModelPoolStatus,
    rules=(
        cel(
            "size(self.metadata.name) <= 40",
            "the name must be at most 40 characters: Deployment and Service names are built from it",
        ),
    ),
    columns=(
        Column("READY", ".status.readyReplicas", "Replicas that take requests.", "integer"),
        Column("DESIRED", ".status.desiredReplicas", "Replicas that are wanted.", "integer"),
        Column("$/HOUR", ".status.costPerHour", "USD an hour of the pods that exist."),
        Column("$/1K", ".status.costPerThousandRequests", "USD of a thousand requests, last hour, idle included."),
        Column("QUEUE", ".status.service.queueDepth", "Requests that wait now.", "integer"),
        Column("TTFT", ".status.service.timeToFirstToken", "Time to the first token, 99th percentile."),
        Column("REASON", ".status.scaling[0].reason", "Why the number of replicas was last changed."),
        AGE,
        Column("TPOT", ".status.service.timePerOutputToken", "Time between tokens, 99th percentile.", wide=True),
        Column(
            "MET%",
            ".status.service.attainmentPercent",
            "Share of requests that met every latency objective.",
            "integer",
            wide=True,
        ),
    ),
    scale=(
        ("specReplicasPath", ".spec.replicas"),
        ("statusReplicasPath", ".status.replicas"),
        ("labelSelectorPath", ".status.selector"),
    ),
)

ROUTING_POLICY = Kind(
    kind="RoutingPolicy",
    plural="routingpolicies",
    short_name="rpolicy",
    resource=RoutingPolicy,
    spec=RoutingPolicySpec,
    status=RoutingPolicyStatus,
    columns=(
        Column("MODELS", ".spec.models", "Model names that clients send."),
        Column("READY", _condition("Ready", "status"), "Whether the policy is in force."),
        Column("REASON", _condition("Ready", "reason"), "Why it is or is not in force."),
        AGE,
        Column("NAMESPACES", ".status.namespaces", "Number of namespaces that may call.", "integer", wide=True),
        Column("ADDRESS", ".status.address", "URL that callers use.", wide=True),
    ),
)

COST_BUDGET = Kind(
    kind="CostBudget",
    plural="costbudgets",
    short_name="cbudget",
    resource=CostBudget,
    spec=CostBudgetSpec,
    status=CostBudgetStatus,
    columns=(
        Column("LIMIT", ".spec.limit.amount", "Most that a window admits."),
        Column("UNIT", ".spec.limit.unit", "What is counted."),
        Column("PER", ".spec.limit.per", "Who has the amount."),
        Column("SPENT", ".status.spent", "Spending of this window, unreconciled included."),
        Column("USED%", ".status.usedPercent", "Share of the limit that is spent.", "integer"),
        Column("FORECAST", ".status.forecast.atWindowEnd", "Spending at the window's end, if no action holds it back."),
        Column("ACTION", ".status.activeAction", "What the budget does now."),
        Column("ENFORCED", _condition("Enforced", "status"), "Whether every serving router has confirmed it."),
        AGE,
        Column("FULLEST", ".status.fullest", "Value of per that the numbers are about.", wide=True),
    ),
)

KINDS = (MODEL_POOL, ROUTING_POLICY, COST_BUDGET)
