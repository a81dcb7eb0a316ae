"""Pods without a place: variants that have no room leave the choice to others, nodes that go give their pods away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead_operator.decide.facts import NodeFact, PodFact
from fairlead_operator.decide.variants import VariantOption

LONGEST_WAIT_MS = 300_000
AGAIN_MS = 900_000


@dataclass(frozen=True, slots=True)
class NoRoom:
    """A variant that had no room for more than ``replicas``; it is tried again at ``until_ms``."""

    replicas: int
    until_ms: int
    message: str


def without_room(
    before: Mapping[str, NoRoom],
    pods: Sequence[PodFact],
    created_ms: Mapping[str, int],
    startup_ms: int,
    now_ms: int,
) -> dict[str, NoRoom]:
    """The variants that have no room now, by name: pods without a node past the deadline, or such a find not long ago.

    ``created_ms`` is by namespace/name of the pods. The deadline is rollout.startupTimeout, five minutes at most.
    """
    known = {name: one for name, one in before.items() if now_ms < one.until_ms}
    deadline = now_ms - min(startup_ms, LONGEST_WAIT_MS)
    for variant in sorted({pod.variant for pod in pods}):
        alive = [pod for pod in pods if pod.variant == variant and not pod.terminating]
        stuck = [pod for pod in alive if _unplaced(pod) and created_ms.get(pod.key, now_ms) <= deadline]
        if stuck:
            words = stuck[0].trouble.message if stuck[0].trouble is not None else ""
            known[variant] = NoRoom(len(alive) - len(stuck), now_ms + AGAIN_MS, words)
    return known


def stranded(pods: Sequence[PodFact], created_ms: Mapping[str, int], startup_ms: int, now_ms: int) -> int:
    """The pods that have not become ready, or are not ready again, within ``startup_ms`` (rollout.startupTimeout).

    Whoever drains a node need not wait for them: with no accelerator free for the replacement of the first pod, the
    drain would wait for ever. ``created_ms`` is by namespace/name of the pods.
    """
    deadline = now_ms - startup_ms
    waiting = [pod for pod in pods if not pod.ready and not pod.terminating]
    return sum((pod.unready_ms or created_ms.get(pod.key, now_ms)) <= deadline for pod in waiting)


def reclaimed(pods: Sequence[PodFact], nodes: Mapping[str, NodeFact]) -> tuple[PodFact, ...]:
    """The pods that serve, and do not leave yet, on nodes that are about to go: they are to be replaced now.

    Waiting for a disruption budget would save none of them. Pods that only start are left: a replacement that the
    scheduler puts on such a node again, which a notice without a taint allows, would be replaced again at once.
    """
    going = {name for name, node in nodes.items() if node.notice}
    return tuple(pod for pod in pods if pod.node in going and pod.ready and not pod.terminating)


def placeable(options: Sequence[VariantOption], full: Mapping[str, NoRoom]) -> tuple[VariantOption, ...]:
    """The options with those that have no room cut to what they hold, if another one is left to take the rest.

    Where none is, pods wait for a node: somebody may add one.
    """
    others = any(one.name not in full and (one.maximum is None or one.maximum > one.current) for one in options)
    if not others:
        return tuple(options)
    return tuple(_cut(one, full[one.name].replicas) if one.name in full else one for one in options)


def _cut(option: VariantOption, held: int) -> VariantOption:
    """A reserved replica stays wanted, room or not."""
    most = max(option.minimum, held)
    return replace(option, maximum=most if option.maximum is None else min(option.maximum, most))


def _unplaced(pod: PodFact) -> bool:
    return not pod.ready and not pod.node and pod.trouble is not None and pod.trouble.kind == "Pending"
