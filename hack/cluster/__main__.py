"""Entry point of `python3 hack/cluster COMMAND`: runs without installation, on the standard library alone."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this is what an older interpreter is to say
        sys.exit("hack/cluster needs Python 3.11 or newer: run it with python3.11")
    # The interpreter puts this folder first; the modules are imported from the repository's root, as the tests do.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.exit(importlib.import_module("hack.cluster.commands").main(sys.argv[1:]))
