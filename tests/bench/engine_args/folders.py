"""Folders with the config of a small model, one for each way in which a checkpoint may be quantised; no weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MODELOPT: Mapping[str, Any] = {"quant_method": "modelopt", "kv_cache_quant_algo": None, "exclude_modules": []}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {
                    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
                },
            }
        },
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "mxfp4": {"quant_method": "mxfp4"},
    "modelopt": {**_MODELOPT, "quant_algo": "FP8"},
    "modelopt_fp4": {**_MODELOPT, "quant_algo": "NVFP4", "group_size": 16},
    "modelopt_mxfp8": {**_MODELOPT, "quant_algo": "MXFP8"},
    "modelopt_mixed": {
        **_MODELOPT,
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"}},
    },
    "quark": {
        "quant_method": "quark",
        "quant_mode": "eager_mode",
        "export": {"kv_cache_group": [], "pack_method": "order"},
        "global_quant_config": {},
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "exclude": [],
    },
    "inc": {
        "quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": True,
        "packing_format": "auto_round:auto_gptq",
    },
    "deepseek_v4_fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []},
    "fp_quant": {
        "quant_method": "fp_quant",
        "hadamard_group_size": 32,
        "forward_dtype": "mxfp4",
        "forward_method": "abs_max",
        "pseudoquantization": False,
        "modules_to_not_convert": [],
    },
}  # fmt: skip
FAMILY = {"gptq_marlin": "gptq", "auto_gptq": "gptq", "moe_wna16": "gptq"}
"""Methods that load another's checkpoint here."""
NOT_HERE = frozenset({"torchao", "gpt_oss_mxfp4", "awq_marlin", "auto_awq"})
"""Methods that a CPU, or this small model, cannot be configured with: a package, a model, or kernels are missing."""
MTP = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "num_nextn_predict_layers": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
EAGLE = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 1024}


def checkpoint(method: str | None) -> str | None:
    """The kind of checkpoint that a method of ``--quantization`` loads here; ``None``: one that is not quantised."""
    found = FAMILY.get(method or "", method)
    return found if found in CONFIGS else None


def folder(root: Path, tiny: Path, kind: str | None, shape: Mapping[str, Any] | None = None) -> Path:
    """A folder with tiny's tokenizer and config, changed as asked; made once."""
    target = root / f"{kind or 'plain'}-{(shape or {}).get('model_type', len(shape or {}))}"
    if not target.exists():
        shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
        quantised = {"quantization_config": CONFIGS[kind]} if kind else {}
        changed = {**config, "dtype": "bfloat16", **(shape or {}), **quantised}
        (target / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    return target
