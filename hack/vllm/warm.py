"""Runs inside vLLM's environment: has vLLM find out, and keep in VLLM_CACHE_ROOT, the facts on each model class.

vLLM imports a class in a process of its own to learn what it can do; at the first start of each class that takes
about 8 s. The answer is kept by the class's source, so it holds wherever the environment is mounted.
"""

import os
from pathlib import Path

from vllm.model_executor.models.registry import ModelRegistry

ARCHITECTURES = ("LlamaForCausalLM",)


def main() -> None:
    """Ask once for each class that hack/models makes."""
    for architecture in ARCHITECTURES:
        ModelRegistry.models[architecture].inspect_model_cls()
    if not list((Path(os.environ["VLLM_CACHE_ROOT"]) / "modelinfos").glob("*.json")):
        raise SystemExit("vLLM kept nothing in modelinfos: its cache is laid out in another way in this version.")


if __name__ == "__main__":
    main()
