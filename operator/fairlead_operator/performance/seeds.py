"""What an engine's step takes before anything is measured: from the model's shape and the accelerator's data sheet.

    step = host + layers·launches + weights/bandwidth + kv·context/bandwidth + 2·active parameters·tokens/flops + links

The constants are fitted to 318 points of vLLM on H100, H200 and B200 (aiconfigurator 0.12.0, dense models); bandwidth
and flops are those of all accelerators times what engines reach of them. A fact that is not known is ``Unknown`` with
its reason, and what was estimated is named in the result: a fit to the running engine (fit.py) replaces all of it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fairlead_operator.performance.step import Engine, StepTime

MEMORY_SHARE: Final = 0.9
WORKSPACE_BYTES: Final = 4e9
"""Of an accelerator's memory beside weights and KV cache: activations, graphs, the runtime."""
VALUE_BYTES: Final = 2
"""Of an activation, and of a weight that is not quantised."""


@dataclass(frozen=True, slots=True)
class Constants:
    """What no data sheet says.

    ``step``: seconds before a step's layers (scheduling, sampling, the host); ``layer``: of a layer's kernels whatever
    they compute. The others are shares of what the data sheet promises.
    """

    step: float = 1.04e-3
    layer: float = 65e-6
    bandwidth: float = 0.975
    flops: float = 0.63
    link: float = 0.51


FITTED: Final = Constants()


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why something cannot be said; ``reason`` says what would help."""

    reason: str


@dataclass(frozen=True, slots=True)
class Quantization:
    """Bytes of a quantised weight with its scales, and the arithmetic that it is computed in where there is such."""

    name: str
    bytes: float
    arithmetic: str = "16"


UNQUANTIZED: Final = Quantization("none", VALUE_BYTES)
QUANTIZATIONS: Final[Mapping[str, Quantization]] = {
    one.name: one
    for one in (
        UNQUANTIZED,
        Quantization("fp8", 1, "fp8"),
        Quantization("int8", 1, "int8"),
        Quantization("w8a16", 1),
        Quantization("int4", 0.53),
        Quantization("mxfp4", 0.53),
        Quantization("nvfp4", 0.5625, "fp4"),
    )
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A decoder's shape.

    ``embedding`` are the parameters of its table of tokens, which is looked up and not read, and of its output layer,
    which is; ``tied``: both are one. ``latent`` are the values of a token and layer in the KV cache where it keeps no
    heads (multi-head latent attention). ``windowed`` of its layers keep no more than the last ``window`` tokens.
    ``heads`` are those of the queries and ``context`` the tokens of one request, ``None`` where not known.
    ``kv_value_bytes``: of a value in the KV cache as the checkpoint has it. ``estimated`` names what was not read but
    supposed.
    """

    parameters: int
    active_parameters: int
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    embedding: int
    tied: bool = False
    latent: int | None = None
    quantization: Quantization = UNQUANTIZED
    estimated: tuple[str, ...] = ()
    heads: int | None = None
    context: int | None = None
    windowed: int = 0
    window: int = 0
    kv_value_bytes: float = VALUE_BYTES

    @property
    def weight_bytes(self) -> float:
        """Of all weights; tables of tokens are not quantised."""
        tables = self.embedding * (1 if self.tied else 2)
        return max(0, self.parameters - tables) * self.quantization.bytes + tables * VALUE_BYTES

    @property
    def bytes_read(self) -> float:
        """Of the weights that a step reads: all but the table that it looks up."""
        return self.weight_bytes - (0 if self.tied else self.embedding * VALUE_BYTES)

    @property
    def parameters_multiplied(self) -> int:
        """Those that each token is multiplied with."""
        return max(0, self.active_parameters - (0 if self.tied else self.embedding))

    def kv_bytes(self, accelerators: int, value_bytes: float = VALUE_BYTES) -> float:
        """Of a token in the KV cache of all accelerators; heads fewer than accelerators are kept on several."""
        if self.latent is not None:
            return self.layers * self.latent * accelerators * value_bytes
        return 2 * self.layers * max(self.kv_heads, accelerators) * self.head_dim * value_bytes


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """One accelerator: bytes, bytes and operations a second, and what links it to the others of a replica.

    ``memory`` is the data sheet's, ``driver_mib`` what its driver reports, in MiB.
    """

    name: str
    memory: float
    driver_mib: int
    bandwidth: float
    flops: Mapping[str, float]
    link: float
    all_reduce: float

    def flops_in(self, arithmetic: str) -> float:
        """Operations a second; those of 16 bits where it has no such arithmetic."""
        return self.flops.get(arithmetic, self.flops["16"])


@dataclass(frozen=True, slots=True)
class Seed:
    """An engine, and in words what it rests on."""

    engine: Engine
    reasons: tuple[str, ...]


def engine_of(
    model: ModelFacts,
    hardware: HardwareFacts,
    *,
    accelerators: int = 1,
    kv_tokens: int | None = None,
    kv_value_bytes: float = VALUE_BYTES,
    token_budget: int = 2048,
    max_sequences: int = 256,
    constants: Constants = FITTED,
) -> Seed | Unknown:
    """The engine of a replica of so many accelerators (tensor parallel); ``kv_tokens`` is what the engine reports."""
    if accelerators < 1:
        return Unknown(f"A replica of {accelerators} accelerators computes nothing; give 1 or more.")
    pool = kv_tokens if kv_tokens is not None else _kv_pool(model, hardware, accelerators, kv_value_bytes)
    if pool < 1:
        return Unknown(
            f"The weights ({model.weight_bytes / 1e9:.1f} GB) leave no room for a KV cache on {accelerators} × "
            f"{hardware.name} ({hardware.memory / 1e9:.0f} GB): take more accelerators, or a quantised model."
        )
    step = _step_of(model, hardware, accelerators, kv_value_bytes, constants)
    reasons = (
        f"{model.quantization.name} weights of {model.weight_bytes / 1e9:.1f} GB on {accelerators} × {hardware.name}",
        "KV cache as the engine reports" if kv_tokens is not None else f"KV cache estimated at {pool} tokens",
        *(f"estimated: {what}" for what in model.estimated),
    )
    if model.active_parameters < model.parameters:
        reasons += ("mixture of experts: all are taken as read in each step, 20 to 100 % off where it was measured",)
    return Seed(Engine(step, pool, token_budget, max_sequences), reasons)


def _step_of(
    model: ModelFacts, hardware: HardwareFacts, accelerators: int, kv_value_bytes: float, constants: Constants
) -> StepTime:
    bandwidth = hardware.bandwidth * accelerators * constants.bandwidth
    flops = hardware.flops_in(model.quantization.arithmetic) * accelerators * constants.flops
    all_reduces = 2 * model.layers if accelerators > 1 else 0
    # A ring sends each value twice, less the part that is at home already.
    sent = all_reduces * model.hidden * VALUE_BYTES * 2 * (accelerators - 1) / accelerators
    fixed = constants.step + model.layers * constants.layer + all_reduces * hardware.all_reduce
    return StepTime(
        base=fixed + model.bytes_read / bandwidth,
        per_context_token=model.kv_bytes(accelerators, kv_value_bytes) / bandwidth,
        per_token=2 * model.parameters_multiplied / flops + sent / (hardware.link * constants.link),
    )


def _kv_pool(model: ModelFacts, hardware: HardwareFacts, accelerators: int, kv_value_bytes: float) -> int:
    room = accelerators * (hardware.memory * MEMORY_SHARE - WORKSPACE_BYTES) - model.weight_bytes
    return int(room / model.kv_bytes(accelerators, kv_value_bytes))


@functools.cache
def accelerators() -> Mapping[str, HardwareFacts]:
    """The accelerators of accelerators.json, which has their sources, by name."""
    document = json.loads(files(__package__).joinpath("accelerators.json").read_text(encoding="utf-8"))
    return {name: _hardware(name, entry) for name, entry in document["accelerators"].items()}


@functools.cache
def _aliases() -> Mapping[str, str]:
    document = json.loads(files(__package__).joinpath("accelerators.json").read_text(encoding="utf-8"))
    pairs = [(alias, name) for name, entry in document["accelerators"].items() for alias in entry["names"]]
    return {**dict(pairs), **{name.lower(): name for name in document["accelerators"]}}


def hardware_named(label: str) -> HardwareFacts | Unknown:
    """The accelerator of that name, or with that label on its node; case does not matter."""
    name = _aliases().get(label.strip().lower())
    if name is None:
        known = ", ".join(accelerators())
        return Unknown(f"No data sheet of accelerator {label!r}; known are {known}.")
    return accelerators()[name]


def _hardware(name: str, entry: Mapping[str, object]) -> HardwareFacts:
    flops = entry["flops"]
    if not isinstance(flops, Mapping):
        raise TypeError(f"flops of {name} are no mapping")
    return HardwareFacts(
        name=name,
        memory=_real(entry, "memory_gb") * 1e9,
        driver_mib=int(_real(entry, "driver_mib")),
        bandwidth=_real(entry, "bandwidth_tb_s") * 1e12,
        flops={kind: float(value) * 1e12 for kind, value in flops.items()},
        link=_real(entry, "link_gb_s") * 1e9,
        all_reduce=_real(entry, "all_reduce_us") * 1e-6,
    )


def _real(entry: Mapping[str, object], key: str) -> float:
    return float(str(entry[key]))
