"""Parts that several kinds share: metadata, selectors, conditions."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

from fairlead_operator.api.v1alpha1.base import (
    Generation,
    KubeModel,
    LabelKey,
    Labels,
    LabelValue,
    Message,
    Timestamp,
    Word,
    atomic_list,
    cel,
    map_list,
    rules,
)
from fairlead_operator.api.v1alpha1.conditions import ConditionStatus

GROUP = "fairlead.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class ObjectMeta(KubeModel):
    """What Fairlead reads of an object's metadata."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Resource(KubeModel):
    """Base of the kinds."""

    metadata: ObjectMeta

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """The typed object of what the API server returned; fields of other versions are ignored.

        Raises:
            pydantic.ValidationError: the object does not fit the schema; a server with these CRDs returns none.
        """
        return cls.model_validate(obj)

    @property
    def name(self) -> str:
        """The object's name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """The object's namespace."""
        return self.metadata.namespace

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


class SelectorRequirement(KubeModel):
    """One requirement on the labels of a namespace."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "values are required by In and NotIn, and not allowed with Exists and DoesNotExist",
            )
        )
    )

    key: LabelKey
    """Label key that the requirement is about."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """Relation between the label and values."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=16, json_schema_extra=atomic_list())] = ()
    """Values for In and NotIn. Default: none."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet this requirement, as Kubernetes' label selectors define it."""
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class Selector(KubeModel):
    """A label selector over namespaces; an empty one selects every namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    match_labels: Labels = Field(default_factory=dict)
    """Labels that a namespace must carry, all of them. Default: none."""
    match_expressions: Annotated[
        tuple[SelectorRequirement, ...], Field(max_length=16, json_schema_extra=atomic_list())
    ] = ()
    """Requirements that a namespace must meet, all of them. Default: none."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        carried = all(labels.get(key) == value for key, value in self.match_labels.items())
        return carried and all(requirement.matches(labels) for requirement in self.match_expressions)


class Condition(KubeModel):
    """One aspect of the object's state, as metav1.Condition."""

    type: Word
    """Name of the condition."""
    status: ConditionStatus
    """True, False, or Unknown while it is not decided."""
    observed_generation: Generation = 0
    """Generation of the object that the condition was computed from."""
    last_transition_time: Timestamp
    """When the status last changed."""
    reason: Word
    """Why the condition has this status, as one word for programs."""
    message: Message = ""
    """Why the condition has this status, with the numbers, for people."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=map_list("type"))]


class Status(KubeModel):
    """What the statuses of all kinds begin with."""

    conditions: Conditions = ()
    """Conditions of the object, one of each type."""
    observed_generation: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Generation of the object that this status was computed from."""

    def condition(self, condition_type: str) -> Condition | None:
        """The condition of a type, or None while it was never set."""
        return find_condition(self.conditions, condition_type)


def find_condition(conditions: Sequence[Condition], condition_type: str) -> Condition | None:
    """The condition of a type, or None."""
    return next((condition for condition in conditions if condition.type == condition_type), None)
