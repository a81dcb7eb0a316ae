"""Runs inside vLLM's environment: writes the models. The same recipe writes the same bytes.

usage: recipe.py FOLDER [--seed N]
"""

import argparse
import json
import os
import pydoc_data.topics
import shutil
from collections.abc import Iterable
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


def write_int8(source: Path, target: Path) -> None:
    """The same model with 8-bit weights (one scale a channel) and activations (one scale a token)."""
    shutil.copytree(source, target)
    tensors: dict[str, Any] = load_file(source / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight = tensors[name]
        scale = weight.abs().amax(1, keepdim=True) / INT8_MAX
        tensors[name] = torch.round(weight / scale).to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization()
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def quantization() -> dict[str, Any]:
    """What compressed-tensors writes into config.json for W8A8-int8."""
    common = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": "channel", "dynamic": False},
        "input_activations": {**common, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


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
    write_int8(arguments.folder / "tiny", arguments.folder / "tiny-int8")
    readable([arguments.folder, *arguments.folder.rglob("*")])


if __name__ == "__main__":
    main()
