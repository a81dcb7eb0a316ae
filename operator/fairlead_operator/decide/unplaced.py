"""Why the scheduler finds no node for a pod: its message in the words of whoever wrote the pool."""

import re
from collections.abc import Mapping

_NODES = re.compile(r"^0/(\d+) nodes are available: (.*)$", re.DOTALL)
_NO_NODES = "no nodes available to schedule pods"
_SENTENCE = re.compile(r"\.(?:\s|$)")
_COUNTED = re.compile(r"(?:^|, )(?=\d+ )")
_PART = re.compile(r"^(\d+) (?:node\(s\) )?(.*)$", re.DOTALL)
_TAINT = re.compile(r"^had untolerated taint \{([^}:]+)(?::\s*([^}]*))?\}$")

_SELECTOR = "didn't match Pod's node affinity/selector"
_WORDS: Mapping[str, tuple[str, str]] = {
    "were unschedulable": ("is cordoned", "are cordoned"),
    "Too many pods": ("has as many pods as it may have", "have as many pods as they may have"),
    "had untolerated taint(s)": ("has a taint that it does not tolerate", "have taints that it does not tolerate"),
    "had taints that the pod didn't tolerate": (
        "has a taint that it does not tolerate",
        "have taints that it does not tolerate",
    ),
    "didn't match PersistentVolume's node affinity": (
        "cannot reach its volume",
        "cannot reach its volume",
    ),
    "had volume node affinity conflict": ("cannot reach its volume", "cannot reach its volume"),
    "exceed max volume count": ("has as many volumes as it may have", "have as many volumes as they may have"),
    "didn't match pod topology spread constraints": (
        "is excluded by topologySpreadConstraints",
        "are excluded by topologySpreadConstraints",
    ),
    "didn't match pod anti-affinity rules": ("is excluded by podAntiAffinity", "are excluded by podAntiAffinity"),
}
"""What the scheduler says of a node, and the same for one and for more."""
_SHORT = re.compile(r"^Insufficient (\S+)$")


def unplaced_text(message: str, selector: Mapping[str, str] | None = None) -> str:
    """The scheduler's message as one clause; a message of another form stays as it is.

    ``0/7 nodes are available: 4 node(s) didn't match Pod's node affinity/selector, 3 Insufficient nvidia.com/gpu. …``
    becomes ``none of 7 nodes takes it: 4 lack nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3, 3 have too little
    nvidia.com/gpu free``. ``selector`` is the pod's nodeSelector.
    """
    flat = " ".join(message.split())
    found = _NODES.match(flat)
    if found is None:
        return "the cluster has no node" if flat.startswith(_NO_NODES) else message
    # What follows the first sentence is about preemption, which would not help.
    total, rest = int(found[1]), _SENTENCE.split(found[2], maxsplit=1)[0]
    parts = [_part_text(part, selector or {}) for part in _COUNTED.split(rest) if part]
    who = "the only node does not take it" if total == 1 else f"none of {total} nodes takes it"
    return f"{who}: {', '.join(parts)}"


def _part_text(part: str, selector: Mapping[str, str]) -> str:
    found = _PART.match(part)
    if found is None:
        return part
    count, said = int(found[1]), found[2]
    return f"{count} {_said(said, selector, many=count != 1)}"


def _said(said: str, selector: Mapping[str, str], *, many: bool) -> str:
    if short := _SHORT.match(said):
        return f"{'have' if many else 'has'} too little {short[1]} free"
    if said == _SELECTOR:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(selector.items()))
        return f"{'lack' if many else 'lacks'} {labels or 'the labels of its node affinity'}"
    if taint := _TAINT.match(said):
        value = f"={taint[2]}" if taint[2] else ""
        return f"{'have' if many else 'has'} taint {taint[1]}{value}, which it does not tolerate"
    one, more = _WORDS.get(said, (said, said))
    return more if many else one
