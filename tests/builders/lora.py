"""LoRA adapters for the small models, and models that compute NaN: safetensors files written by hand."""

import json
import random
import shutil
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAN = struct.pack("<f", float("nan"))


def write_adapter(folder: Path, model: Path, seed: int, rank: int = 8) -> Path:
    """An adapter of random weights, large enough to change every answer of the model."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    draw, hidden, heads = random.Random(seed), config["hidden_size"], config["head_dim"]  # noqa: S311 - chance, not a secret
    widths = {"q_proj": config["num_attention_heads"] * heads, "v_proj": config["num_key_value_heads"] * heads}
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in widths.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = ((rank, hidden), _noise(draw, rank * hidden))
            tensors[f"{place}.lora_B.weight"] = ((width, rank), _noise(draw, width * rank))
    folder.mkdir(parents=True)
    _write_safetensors(folder / "adapter_model.safetensors", tensors)
    about = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(widths), "base_model_name_or_path": "tiny",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def write_nan_model(folder: Path, model: Path) -> Path:
    """The same model with a head of NaN: it loads, is well, and its logits are no numbers."""
    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", whole[:8])
    begin, end = json.loads(whole[8 : 8 + length])["lm_head.weight"]["data_offsets"]
    whole[8 + length + begin : 8 + length + end] = NAN * ((end - begin) // len(NAN))
    path.unlink()
    path.write_bytes(whole)
    return folder


def _noise(draw: random.Random, count: int) -> bytes:
    return array("f", (draw.gauss(0.0, 1.0) for _ in range(count))).tobytes()


def _write_safetensors(path: Path, tensors: Mapping[str, tuple[tuple[int, int], bytes]]) -> None:
    """A header of JSON behind its length, then the numbers."""
    header: dict[str, Any] = {}
    at = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (at, at + len(data))}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))
