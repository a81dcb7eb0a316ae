"""What a variant's replicas run on, as far as the table depends on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fairlead_operator.api.v1alpha1 import Variant
from fairlead_operator.performance.seeds import HardwareFacts, hardware_named

Platform = Literal["cuda", "rocm", "xpu", "cpu", "unknown"]

CAPABILITIES: Final[Mapping[str, int]] = {
    "T4": 75, "A100-40": 80, "A100-80": 80, "A100-80-PCIe": 80, "A10G": 86, "L4": 89, "L40S": 89, "H100-SXM": 90,
    "H100-PCIe": 90, "H200": 90, "B200": 100, "B300": 103, "RTX-PRO-6000": 120,
}  # fmt: skip
"""Ten times the CUDA compute capability of NVIDIA's accelerators, from developer.nvidia.com/cuda-gpus."""
_PLATFORMS: Final[Mapping[str, Platform]] = {"nvidia.com": "cuda", "amd.com": "rocm", "gpu.intel.com": "xpu"}
_GIB = 2**30
_LARGE, _LARGEST = 70 * _GIB, 160 * _GIB
BATCHES: Final = ((1024, 16384), (1024, 8192), (256, 2048))
"""Sequences and tokens of a step that vLLM's server takes by itself: from 160 GiB, from 70 GiB (no A100), else.

Source: ``EngineArgs.get_batch_defaults`` of vLLM 0.32, as 0.33.
"""
CPU_BATCH: Final = (128, 2048)
"""The same on a CPU, for each of a replica's accelerators."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. ``capability``: ten times the compute capability, ``None`` if it is not known or not CUDA."""

    platform: Platform
    name: str = ""
    capability: int | None = None
    memory: float | None = None

    @property
    def shown(self) -> str:
        """For messages: its name and what of it matters."""
        if self.platform == "cpu":
            return "a CPU"
        return f"{self.name} (compute capability {dotted(self.capability)})" if self.capability else self.name

    @property
    def default_batches(self) -> tuple[tuple[int, int], ...]:
        """``--max-num-seqs`` and ``--max-num-batched-tokens`` where nothing sets them, of one accelerator.

        Several, the largest first, where the accelerator is not known: one of them.
        """
        if self.platform == "cpu":
            return (CPU_BATCH,)
        return BATCHES if self.memory is None else (default_batch(self.name, self.memory),)


def default_batch(name: str, memory: float) -> tuple[int, int]:
    """Sequences and tokens of a step that vLLM's server takes by itself on an accelerator of ``memory`` bytes."""
    if memory >= _LARGEST:
        return BATCHES[0]
    return BATCHES[1] if memory >= _LARGE and "A100" not in name else BATCHES[2]


def default_sequences(variant: Variant, batched_tokens: int = 0) -> int:
    """Requests that vLLM's server runs at once by itself on a replica; the fewest where the hardware is not known.

    ``batched_tokens``: ``--max-num-batched-tokens``, which it does not exceed; 0 = not set.
    """
    device = device_of(variant)
    fewest = min(sequences for sequences, _ in device.default_batches)
    sequences = fewest * variant.parallelism.accelerators if device.platform == "cpu" else fewest
    return min(sequences, batched_tokens or sequences)


def device_of(variant: Variant) -> Device:
    """The accelerator of a variant, by its resource and by the labels that it selects nodes with."""
    resource = variant.accelerator.resource_name
    if resource == "cpu":
        return Device("cpu", "CPU")
    domain, _, kind = resource.partition("/")
    platform = _PLATFORMS.get(domain, "unknown")
    facts = _facts(variant)
    if facts is None:
        return Device(platform, resource)
    memory = None if kind.startswith("mig-") else facts.memory
    return Device(platform, facts.name, CAPABILITIES.get(facts.name), memory)


def dotted(capability: int | None) -> str:
    """A compute capability as people write it: 8.9."""
    return "unknown" if capability is None else f"{capability // 10}.{capability % 10}"


def _facts(variant: Variant) -> HardwareFacts | None:
    found = (hardware_named(value) for value in variant.node_selector.values())
    return next((one for one in found if isinstance(one, HardwareFacts)), None)
