"""The images of Fairlead and its demo as archives for ``ctr images import``: no registry, no daemon.

usage: python3 hack/images build [NAME…] [--registry localhost] [--base IMAGE] [--compiler IMAGE]
Prints one path for each image.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hack.images import builder, recipes
from hack.images.cache import BuildError


def main() -> int:
    """Do what the command line says; 1 when it could not be done."""
    parser = argparse.ArgumentParser(
        prog="hack/images", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["build"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(recipes.NAMES)}; all when absent")
    parser.add_argument("--registry", default="localhost", help="stands before the images' names (localhost)")
    parser.add_argument("--base", help="build on this image instead of a Debian root made here")
    parser.add_argument(
        "--compiler", help="compile on this image (Python 3.11, its headers, gcc) instead of a Debian root made here"
    )
    arguments = parser.parse_args()
    try:
        for built in builder.build(arguments.names, arguments.registry, arguments.base, arguments.compiler):
            print(built.archive)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
