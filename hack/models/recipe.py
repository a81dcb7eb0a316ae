"""Runs inside vLLM's environment: writes the models. The same recipe writes the same bytes.

usage: recipe.py FOLDER [--seed N]
"""

import argparse
import json
import os
import pydoc_data.topics
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Threads share out the counting of word pairs, and ties then fall as they finish. Read when tokenizers is imported.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # type: ignore[import-not-found]  # in vLLM's environment alone
from safetensors.torch import load_file, save_file  # type: ignore[import-not-found]  # in vLLM's environment alone
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-not-found]  # in vLLM's environment alone
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # type: ignore[import-not-found]  # in vLLM's environment alone

VOCABULARY = 1024
HEAD = 64  # vLLM's attention on CPUs wants a multiple of 32
INT8_MAX = 127
INT4_MAX = 7
UINT4_MAX = 15
FP8_MAX = 448
GROUP = 128
"""Inputs that share a scale."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What tells one model from another."""

    name: str
    layers: int
    hidden: int
    context: int


SHAPES = (Shape("tiny", layers=2, hidden=128, context=4096), Shape("small", layers=8, hidden=256, context=8192))


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are written: the tensors of one layer by their names, and what config.json says of them."""

    name: str
    convert: Callable[[Any], dict[str, Any]]
    config: dict[str, Any]


def tokenizer() -> Any:
    """A byte-level BPE tokenizer that learned its words from the language reference that Python carries."""
    learned = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    topics = pydoc_data.topics.topics
    learned.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    names = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}
    return PreTrainedTokenizerFast(tokenizer_object=learned, chat_template=CHAT_TEMPLATE, **names)


def write(shape: Shape, words: Any, folder: Path, seed: int) -> None:
    """A Llama of that shape with random weights."""
    torch.manual_seed(seed)
    heads = shape.hidden // HEAD
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=1,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / shape.name)
    words.model_max_length = shape.context
    words.save_pretrained(folder / shape.name)


def write_quantized(source: Path, target: Path, form: Form) -> None:
    """The same model with its linear layers' weights in another form."""
    shutil.copytree(source, target)
    tensors: dict[str, Any] = load_file(source / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        layer = name.removesuffix("weight")
        tensors |= {f"{layer}{part}": tensor.contiguous() for part, tensor in form.convert(tensors.pop(name)).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = form.config
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def int8(weight: Any) -> dict[str, Any]:
    """8-bit integers, one scale an output channel."""
    scale = weight.abs().amax(1, keepdim=True) / INT8_MAX
    return {"weight": torch.round(weight / scale).to(torch.int8), "weight_scale": scale}


def fp8(weight: Any) -> dict[str, Any]:
    """8-bit floats, one scale an output channel."""
    scale = weight.abs().amax(1, keepdim=True) / FP8_MAX
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def fp8_tensor(weight: Any) -> dict[str, Any]:
    """8-bit floats, one scale for all."""
    scale = weight.abs().amax() / FP8_MAX
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def packed(numbers: Any, order: Iterable[int]) -> Any:
    """Numbers of 4 bits, eight along the last axis in one of 32; place i holds the one at order[i]."""
    words = torch.zeros(*numbers.shape[:-1], numbers.shape[-1] // 8, dtype=torch.int32)
    for place, index in enumerate(order):
        words |= numbers[..., index::8].to(torch.int32) << (4 * place)
    return words


def w4a16(weight: Any) -> dict[str, Any]:
    """4-bit integers around 0, one scale for each group of inputs of an output channel."""
    grouped = weight.view(weight.shape[0], -1, GROUP)
    scale = grouped.abs().amax(2, keepdim=True) / INT4_MAX
    numbers = (torch.round(grouped / scale) + INT4_MAX + 1).view(weight.shape)
    return {
        "weight_packed": packed(numbers, range(8)),
        "weight_scale": scale.squeeze(2),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }


def awq(weight: Any) -> dict[str, Any]:
    """4-bit integers with one scale and zero for each group of inputs of an output channel, inputs first."""
    grouped = weight.t().view(-1, GROUP, weight.shape[0])
    low, high = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
    scale = (high - low) / UINT4_MAX
    zero = torch.round(-low / scale).clamp(0, UINT4_MAX)
    numbers = (torch.round(grouped / scale) + zero).clamp(0, UINT4_MAX).view(weight.t().shape)
    return {
        "qweight": packed(numbers, AWQ_ORDER),
        "qzeros": packed(zero.squeeze(1), AWQ_ORDER),
        "scales": scale.squeeze(1).to(torch.float16),
    }


def compressed(layout: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    """What compressed-tensors writes into config.json: symmetric weights, and activations scaled as they come."""
    common = {"symmetric": True, "dynamic": False}
    group = {
        "targets": ["Linear"],
        "weights": {**common, **weights},
        "input_activations": None if activations is None else {**common, **activations, "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


INT8 = {"num_bits": 8, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
CHANNEL, TOKEN = {"strategy": "channel"}, {"strategy": "token"}
FORMS = (
    Form("int8", int8, compressed("int-quantized", INT8 | CHANNEL, INT8 | TOKEN)),
    Form("w4a16", w4a16, compressed("pack-quantized", INT4, None)),
    Form("fp8", fp8, compressed("float-quantized", FP8 | CHANNEL, FP8 | TOKEN)),
    Form("fp8-tensor", fp8_tensor, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    Form("awq", awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
)


def readable(paths: Iterable[Path]) -> None:
    """Pods read the models under a uid of their own."""
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def main() -> None:
    """Write all models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    words = tokenizer()
    for shape in SHAPES:
        write(shape, words, arguments.folder, arguments.seed)
    for form in FORMS:
        write_quantized(arguments.folder / "tiny", arguments.folder / f"tiny-{form.name}", form)
    readable([arguments.folder, *arguments.folder.rglob("*")])


if __name__ == "__main__":
    main()
