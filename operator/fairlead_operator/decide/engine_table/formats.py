"""Number formats: which of vLLM's names there are, what each needs, and where it is computed natively."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fairlead_operator.decide.engine_table.hardware import Device, Platform, dotted
from fairlead_operator.decide.engine_table.versions import KNOWN

Source = Literal["checkpoint", "online", "either"]
ALL: Final[frozenset[Platform]] = frozenset({"cuda", "rocm", "xpu", "cpu"})


@dataclass(frozen=True, slots=True)
class Weights:
    """A method of ``--quantization``.

    ``capability`` is the least that vLLM takes (ten times), ``native`` the least that computes in the format itself;
    below it weights are widened to 16 bits as they are read, which saves memory and no time. ``family``: names that one
    checkpoint may have. ``dtypes``: types of activations that it works with.
    """

    name: str
    capability: int
    source: Source
    native: int | None = None
    family: str = ""
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    platforms: frozenset[Platform] = ALL
    note: str = ""


@dataclass(frozen=True, slots=True)
class CacheType:
    """A value of ``--kv-cache-dtype``; ``capability`` and ``native`` as of weights."""

    name: str
    capability: int = 0
    native: int | None = None
    platforms: frozenset[Platform] = ALL
    versions: tuple[str, ...] = KNOWN
    note: str = ""


def _on(*platforms: Platform) -> frozenset[Platform]:
    return frozenset(platforms)


_ANY = ("bfloat16", "float16", "float32")
_BRAIN = ("bfloat16",)
_GPU = _on("cuda", "rocm", "xpu")
_NOT_AMD = _on("cuda", "xpu", "cpu")
_NOT_INTEL = _on("cuda", "rocm", "cpu")
_MOE = "mixtures of experts only"
_WIDE = "on a CPU only with AVX-512: without it the first request ends the engine"
_DEPRECATED = "needs --allow-deprecated-quantization in extraArgs"

WEIGHTS: Final[Mapping[str, Weights]] = {
    one.name: one
    for one in (
        Weights("awq", 75, "checkpoint", family="awq", note=_WIDE),
        Weights("awq_marlin", 75, "checkpoint", family="awq", platforms=_on("cuda", "rocm")),
        Weights("auto_awq", 75, "checkpoint", family="awq", platforms=_GPU),
        Weights("gptq", 60, "checkpoint", family="gptq", note=_WIDE),
        Weights("gptq_marlin", 60, "checkpoint", family="gptq", platforms=_on("cuda", "cpu")),
        Weights("auto_gptq", 60, "checkpoint", family="gptq"),
        Weights(
            "compressed-tensors",
            70,
            "checkpoint",
            dtypes=_ANY,
            note="by what is in it: W8A8 int8, W4A16, NVFP4 and MXFP8 7.5; MXFP4 8.0; W8A8 FP8 8.9; W4A8 FP8 9.0",
        ),
        Weights("fp8", 75, "either", 89, platforms=_GPU),
        Weights("fp8_per_tensor", 75, "online", 89, platforms=_GPU),
        Weights("fp8_per_channel", 75, "online", 89),
        Weights("fp8_per_block", 75, "online", 89),
        Weights("mxfp8", 80, "either", 100, platforms=_GPU),
        Weights("int8_per_channel_weight_only", 75, "online", platforms=_on("cuda", "cpu"), note=_MOE),
        Weights("nvfp4_per_token", 100, "online", 100, platforms=_on("cuda"), note=_MOE),
        Weights("online", 75, "online", note="needs --quantization-config in extraArgs"),
        Weights("modelopt", 80, "checkpoint", 89, "modelopt"),
        Weights("modelopt_fp4", 75, "checkpoint", 100, "modelopt", platforms=_NOT_INTEL),
        Weights("modelopt_mxfp8", 80, "checkpoint", 100, "modelopt", _BRAIN, _NOT_INTEL),
        Weights("modelopt_mixed", 75, "checkpoint", None, "modelopt", platforms=_NOT_INTEL),
        Weights("mxfp4", 80, "either", 100, "mxfp4", _BRAIN, _GPU),
        Weights("gpt_oss_mxfp4", 80, "checkpoint", 100, "mxfp4", _BRAIN, note="gpt-oss only"),
        Weights("quark", 70, "checkpoint", platforms=_NOT_INTEL, note="made for AMD's accelerators"),
        Weights("inc", 60, "checkpoint", note="Intel's auto-round"),
        Weights("torchao", 75, "checkpoint", dtypes=_ANY, platforms=_NOT_INTEL),
        Weights("moe_wna16", 70, "checkpoint", platforms=_NOT_AMD, note=_MOE),
        Weights("experts_int8", 80, "online", platforms=_on("cuda", "cpu"), note=_MOE),
        Weights("humming", 75, "either", platforms=_on("cuda"), note="needs a package that vLLM's image lacks"),
        Weights("deepseek_v4_fp8", 75, "checkpoint", 89, note="DeepSeek V4 only"),
        Weights("fbgemm_fp8", 80, "checkpoint", 89, platforms=_on("cuda", "rocm"), note=_DEPRECATED),
        Weights("fp_quant", 100, "checkpoint", 100, dtypes=_BRAIN, platforms=_on("cuda"), note=_DEPRECATED),
    )
}
REMOVED_WEIGHTS: Final = frozenset(
    {
        "aqlm",
        "auto-round",
        "bitblas",
        "bitsandbytes",
        "gguf",
        "hqq",
        "ipex",
        "marlin",
        "petit_nvfp4",
        "ptpc_fp8",
        "rtn",
        "tpu_int8",
    }
)
"""Methods that older versions had; gguf is a plugin now."""
DEPRECATED_WEIGHTS: Final = frozenset(name for name, one in WEIGHTS.items() if one.note == _DEPRECATED)

_TURBO = _on("cuda", "rocm", "xpu")
CACHE_TYPES: Final[Mapping[str, CacheType]] = {
    one.name: one
    for one in (
        CacheType("auto", note="the checkpoint's"),
        CacheType("bfloat16", 80),
        CacheType("float16"),
        CacheType("fp8", 80, 89, note="fp8_e4m3"),
        CacheType("fp8_e4m3", 80, 89),
        CacheType("fp8_e5m2", 80, 89),
        CacheType("fp8_inc", platforms=_on("unknown"), note="Gaudi only"),
        CacheType("fp8_per_token_head", 89, 89, _GPU),
        CacheType("int8_per_token_head", platforms=_GPU),
        CacheType("int4_per_token_head", platforms=_GPU),
        CacheType("fp8_ds_mla", 90, 90, _GPU, note="sparse latent attention only"),
        CacheType("nvfp4_ds_mla", 100, 100, _on("cuda"), note="sparse latent attention only"),
        CacheType("nvfp4", 80, 100, _on("cuda"), note="not with heads of 64 below 10.0"),
        CacheType("nvfp4_4over6", 100, 100, _on("cuda"), note="10.0 and 10.3 only"),
        *(CacheType(f"turboquant_{kind}", platforms=_TURBO) for kind in ("k8v4", "4bit_nc", "k3v4_nc", "3bit_nc")),
        CacheType("ultraquant_4bit", platforms=_on("rocm")),
        *(
            CacheType(f"octave_{kind}", platforms=_on("rocm"), versions=("0.33",))
            for kind in ("k3v4", "k3v3", "k3v3_compact")
        ),
    )
}


def cannot_run(found: Weights | CacheType, device: Device) -> str:
    """Why a device cannot run a format; empty if it can, or if that is not known."""
    if device.platform == "unknown":
        return ""
    if device.platform not in found.platforms:
        return f"does not run on {device.shown}"
    if device.platform != "cuda" or device.capability is None or device.capability >= found.capability:
        return ""
    return f"needs compute capability {dotted(found.capability)} or more; {device.name} has {dotted(device.capability)}"


def checkpoint_fault(method: str, checkpoint: str | None) -> str:
    """Why a method of ``--quantization`` cannot load a checkpoint, by its config's ``quant_method``; empty if it can.

    ``checkpoint`` is ``None`` for one that is not quantised. Methods that are not in the table may load anything.
    """
    found = WEIGHTS.get(method)
    if found is None:
        return ""
    if checkpoint is None:
        return "the checkpoint is not quantised" if found.source == "checkpoint" else ""
    other = WEIGHTS.get(checkpoint)
    same = method == checkpoint or (other is not None and bool(found.family) and found.family == other.family)
    return "" if same or method in _WRAPPERS else f"the checkpoint is quantised with {checkpoint}"


_WRAPPERS = frozenset({"humming", "inc", "moe_wna16"})
"""Methods that take over checkpoints of other methods."""
