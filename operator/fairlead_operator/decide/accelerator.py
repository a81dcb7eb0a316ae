"""What is known of a variant without asking anybody: the model by its name, and the accelerator's memory by labels."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fairlead_operator.api.v1alpha1 import ModelPoolSpec, Variant
from fairlead_operator.api.v1alpha1.modelpool import ModelSource
from fairlead_operator.decide.engine_table.formats import checkpoint_fault
from fairlead_operator.decide.facts import NodeFact
from fairlead_operator.decide.fit import GIB, MIB, Candidate, Memory
from fairlead_operator.performance.model_config import well_known
from fairlead_operator.performance.seeds import HardwareFacts, ModelFacts, Unknown, hardware_named

MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
"""MiB, as GPU feature discovery writes it."""
CPU: Final = "cpu"
"""The resource of variants whose memory is their pods'."""
MOST_MIB: Final = 16 * 1024 * 1024
_SLICE = re.compile(r"mig-[0-9]g\.([0-9]{1,3})gb(?:\.\w+)?")
_SHARED = "-SHARED"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a checkpoint; as of ``Candidate``."""

    model: ModelFacts | Unknown
    certain: bool = True
    fault: str = ""
    doubt: str = ""


def candidates_on_record(spec: ModelPoolSpec) -> tuple[Candidate, ...]:
    """The variants to be judged, with no more than what their spec itself tells."""
    return tuple(
        candidate(spec, one, (), model_on_record(spec.model_of(one), weights_of(spec, one)))
        for one in spec.variants
        if one.accelerator.resource_name != CPU
    )


def candidate(spec: ModelPoolSpec, variant: Variant, nodes: Iterable[NodeFact], known: Known) -> Candidate:
    """A variant to be judged."""
    memory, engine = memory_of(variant, nodes), spec.engine_of(variant)
    return Candidate(
        variant.name, engine, variant.parallelism, known.model, memory, known.certain, known.fault, known.doubt
    )


def weights_of(spec: ModelPoolSpec, variant: Variant) -> str | None:
    """The number format of a variant's weights, where the spec sets it."""
    quantization = spec.engine_of(variant).quantization
    return quantization.weights if quantization is not None else None


def model_on_record(source: ModelSource, weights: str | None) -> Known:
    """A well-known model by its name. Only a repository's name is somebody's promise, and so certain."""
    scheme = source.uri.partition("://")[0]
    found = well_known(source.uri.rstrip("/"), quantization=weights)
    if not isinstance(found, Unknown):
        return Known(found[0], found[1] and scheme == "hf", doubt=_doubt(source, weights))
    blind = "no config.json of it was read" if scheme == "hf" else f"what {scheme}:// holds is not read"
    return Known(Unknown(f"{found.reason.rstrip('.')}, and {blind}"), doubt=_doubt(source, weights))


def _doubt(source: ModelSource, weights: str | None) -> str:
    """Why the method of the weights does not load a repository that is a well-known model's and not quantised."""
    named = well_known(source.uri.rstrip("/"))
    if weights is None or isinstance(named, Unknown) or not source.uri.startswith("hf://"):
        return ""
    facts, certain = named
    return checkpoint_fault(weights, None) if certain and facts.quantization.name == "none" else ""


def memory_of(variant: Variant, nodes: Iterable[NodeFact]) -> Memory | Unknown:
    """The memory of one accelerator.

    Of nodes with different ones that the pods may run on, the largest; unknown if one of them does not tell. Without
    such a node, as in a node group at zero, the nodeSelector tells.
    """
    resource, selector = variant.accelerator.resource_name, variant.node_selector
    part = _SLICE.search(resource)
    if part is not None:
        return Memory(resource, int(part[1]) * GIB // MIB)
    fitting = [node.labels for node in nodes if resource in node.resources and selector.items() <= node.labels.items()]
    found = [_told(labels) for labels in fitting or [selector]]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        whose = "some of its nodes do" if fitting else "its nodeSelector does"
        return Unknown(f"{whose} not tell how much memory an accelerator has")
    return max(known, key=lambda one: one.mib)


def _told(labels: Mapping[str, str]) -> Memory | None:
    """By the label that says it, else by the first value that names an accelerator on record."""
    hardware = next((one for value in labels.values() if (one := _named(value)) is not None), None)
    stated = labels.get(MEMORY_LABEL, "")
    mib = int(stated) if stated.isascii() and stated.isdecimal() and 0 < int(stated) <= MOST_MIB else None
    if hardware is None:
        return None if mib is None else Memory(labels.get("nvidia.com/gpu.product", "accelerator"), mib)
    return Memory(hardware.name, mib or hardware.driver_mib, "fp8" in hardware.flops)


def _named(value: str) -> HardwareFacts | None:
    found = hardware_named(value.removesuffix(_SHARED))
    return None if isinstance(found, Unknown) else found
