"""Who may call which model name, and which policy answers when two export the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead_operator.api.v1alpha1 import Reason, RoutingPolicy
from fairlead_operator.decide.problems import Problem

NAMED_NAMESPACES = 3
"""How many namespaces a message names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A model name that another, older policy answers in these namespaces."""

    model: str
    namespaces: tuple[str, ...]
    winner: str
    """namespace/name of the policy that answers."""
    since: str
    """Day on which the winner was created."""
    own: bool = False
    """Whether both policies are of the one namespace that they disagree about."""

    @property
    def message(self) -> str:
        """The conflict as a condition says it."""
        where = _namespaces_text(self.namespaces)
        verb = "answered in" if self.own else "exported to"
        return (
            f"Model {self.model} is {verb} {where} by {self.winner} ({self.since}, older). "
            "This policy gets no requests from there. Choose another name in spec.models."
        )


@dataclass(frozen=True, slots=True)
class Callers:
    """Whose requests a policy gets. ``namespaces``: ``None`` = all; ``excluded``: (namespace, model) that it lost."""

    namespaces: tuple[str, ...] | None
    excluded: tuple[tuple[str, str], ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    problem: Problem | None = None

    def count(self, total: int) -> int:
        """Number of namespaces that may call, of ``total``."""
        return total if self.namespaces is None else len(self.namespaces)


def resolve_models(
    policies: Sequence[RoutingPolicy],
    namespaces: Mapping[str, Mapping[str, str]],
    platform_namespaces: Sequence[str],
) -> Mapping[str, Callers]:
    """The callers of each policy, by namespace/name.

    A namespace's own policy always answers its own callers, so it conflicts with no export. Of two policies that reach
    a caller in the same way, both its own or both exported to it, the older one answers.
    """
    ordered = sorted(policies, key=lambda one: (one.metadata.creation_timestamp, one.key))
    reach = {one.key: _reach(one, namespaces, platform_namespaces) for one in ordered}
    owners = _owners(ordered, reach)
    by_key = {one.key: one for one in ordered}
    return {one.key: _callers(one, reach[one.key], owners, by_key, platform_namespaces) for one in ordered}


def may_export(policy: RoutingPolicy, platform_namespaces: Sequence[str]) -> bool:
    """Whether the policy's wish to be called from other namespaces counts."""
    return policy.spec.allowed_namespaces.from_ == "Same" or policy.namespace in platform_namespaces


def _reach(
    policy: RoutingPolicy, namespaces: Mapping[str, Mapping[str, str]], platform: Sequence[str]
) -> tuple[str, ...]:
    if not may_export(policy, platform):
        return (policy.namespace,)
    allowed = policy.spec.allowed_namespaces
    admitted = {name for name, labels in namespaces.items() if allowed.admits(name == policy.namespace, labels)}
    return tuple(sorted(admitted | {policy.namespace}))


_Owners = Mapping[tuple[str, str, bool], str]
"""(caller's namespace, model, whether the policy is the namespace's own) → the policy that answers."""


def _owners(ordered: Sequence[RoutingPolicy], reach: Mapping[str, tuple[str, ...]]) -> _Owners:
    owners: dict[tuple[str, str, bool], str] = {}
    for policy in ordered:
        for namespace in reach[policy.key]:
            for model in policy.spec.models:
                owners.setdefault((namespace, model, namespace == policy.namespace), policy.key)
    return owners


def _callers(
    policy: RoutingPolicy,
    reach: tuple[str, ...],
    owners: _Owners,
    by_key: Mapping[str, RoutingPolicy],
    platform: Sequence[str],
) -> Callers:
    everyone = policy.spec.allowed_namespaces.from_ == "All" and policy.namespace in platform
    lost = [
        (namespace, model, winner)
        for namespace in reach
        for model in policy.spec.models
        if (winner := owners[namespace, model, namespace == policy.namespace]) != policy.key
    ]
    return Callers(
        namespaces=None if everyone else reach,
        excluded=tuple(sorted((namespace, model) for namespace, model, _ in lost)),
        conflicts=_conflicts(policy, lost, by_key),
        problem=None if may_export(policy, platform) else _not_allowed(policy),
    )


def _conflicts(
    policy: RoutingPolicy, lost: Sequence[tuple[str, str, str]], by_key: Mapping[str, RoutingPolicy]
) -> tuple[Conflict, ...]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for namespace, model, winner in lost:
        grouped.setdefault((model, winner), []).append(namespace)
    return tuple(
        Conflict(
            model=model,
            namespaces=tuple(sorted(names)),
            winner=winner,
            since=by_key[winner].metadata.creation_timestamp[:10],
            own=names == [policy.namespace],
        )
        for (model, winner), names in sorted(grouped.items())
    )


def _not_allowed(policy: RoutingPolicy) -> Problem:
    wish = policy.spec.allowed_namespaces.from_
    text = (
        f"spec.allowedNamespaces.from is {wish}, and namespace {policy.namespace} is not one of the chart's "
        "platformNamespaces. Only its own callers are served. Set it to Same, or have the namespace added."
    )
    return Problem(Reason.NAMESPACE_NOT_ALLOWED, text, "spec.allowedNamespaces.from")


def _namespaces_text(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"namespace {names[0]}"
    shown = ", ".join(names[:NAMED_NAMESPACES])
    more = len(names) - NAMED_NAMESPACES
    return f"namespaces {shown} and {more} more" if more > 0 else f"namespaces {shown}"
