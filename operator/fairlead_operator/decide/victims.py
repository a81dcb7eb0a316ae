"""Which pods go when a variant shrinks: those with the fewest requests, so that the least is drained.

The ReplicaSet's controller takes pods without a node and unready ones first, then the lowest deletion cost; among equal
ones the youngest. So the emptiest are marked with a cost below all others.
"""

from collections.abc import Mapping, Sequence

from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.variants import Counts

LEAVES = -1
STAYS = 0
UNKNOWN_LOAD = 1 << 30
"""A router that does not say what its engine runs may run much."""


def deletion_costs(pods: Sequence[PodFact], counts: Counts, running: Mapping[str, int]) -> dict[str, int]:
    """By namespace/name, the deletion costs that pods should have and do not.

    ``counts`` are the replicas wanted of each variant, ``running`` the requests at each pod's engine where known.
    Nothing is marked where no variant shrinks.
    """
    wanted: dict[str, int] = {}
    for variant, count in counts:
        alive = [pod for pod in pods if pod.variant == variant and not pod.terminating]
        if len(alive) > count:
            leaving = sorted(alive, key=lambda pod: _load(pod, running))[: len(alive) - count]
            gone = {pod.key for pod in leaving}
            wanted |= {pod.key: LEAVES if pod.key in gone else STAYS for pod in alive}
    return {pod.key: wanted[pod.key] for pod in pods if wanted.get(pod.key, pod.deletion_cost) != pod.deletion_cost}


def _load(pod: PodFact, running: Mapping[str, int]) -> tuple[int, int, str]:
    """A pod that is not ready runs nothing; of those that run as much, the youngest goes."""
    requests = running.get(pod.key, UNKNOWN_LOAD) if pod.ready else -1
    return requests, -(pod.started_ms or 0), pod.name
