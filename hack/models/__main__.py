"""Small random models for real vLLM on a CPU: tiny, small (slower, longer context), and tiny in quantised forms.

usage: python3 hack/models make   make them (once for each recipe and vLLM environment), print where they are
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hack.cluster.layout import cache_root
from hack.images.cache import BuildError, Progress, alone, key_of, whole
from hack.images.host import run
from hack.vllm import environment

RECIPE = Path(__file__).resolve().with_name("recipe.py")
COLD_SECONDS = 4


def locate() -> Path:
    """The folder of the models of the present recipe and environment."""
    return cache_root() / "models" / key_of([RECIPE, environment.REQUIREMENTS])


def make() -> Path:
    """Make the models unless they are whole already; the environment of vLLM comes first, as its torch is used."""
    models = locate()
    with alone(models.parent):
        if not models.exists():
            python = environment.install().python
            Progress("models", COLD_SECONDS).say("tiny, small, and tiny quantised")
            with whole(models) as partial:
                run([str(python), str(RECIPE), str(partial)])
    return models


def main() -> int:
    """Do what the command line says; 1 when it could not be done."""
    parser = argparse.ArgumentParser(
        prog="hack/models", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["make"])
    parser.parse_args()
    try:
        print(f"models={make()}")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
