"""What the builders take from the machine: its programs, and where its pip looks for packages."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from hack.images.cache import REPOSITORY, BuildError

STEP_SECONDS = 1800
LOOK_SECONDS = 60
TAIL_CHARACTERS = 2000


def run(command: Sequence[str], settings: Mapping[str, str] | None = None) -> str:
    """Run one step, gently (other work on the machine goes first); returns its standard output.

    Raises:
        BuildError: it ended with another status than 0 or took more than STEP_SECONDS; with what it printed last.
    """
    environment = {**os.environ, **(settings or {})}
    shown = " ".join(command)
    try:
        done = subprocess.run(
            ["nice", *command], env=environment, capture_output=True, text=True, timeout=STEP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{shown} took more than {STEP_SECONDS} s and was ended. Run it again to go on.") from error
    if done.returncode:
        tail = (done.stdout + done.stderr)[-TAIL_CHARACTERS:]
        raise BuildError(f"{shown} ended with status {done.returncode}, so nothing was kept. It said:\n{tail}")
    return done.stdout


def pip_options(pip: Sequence[str]) -> dict[str, str]:
    """What files and environment variables tell that pip; nothing where there is no pip."""
    done = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, timeout=LOOK_SECONDS, check=False)
    return parse_pip_options(done.stdout)


def parse_pip_options(listing: str) -> dict[str, str]:
    """The options of ``pip config list`` (``global.index-url='…'``) by name; the environment's come last and win."""
    pairs = (line.partition("=") for line in listing.splitlines() if "=" in line)
    return {name.rpartition(".")[2]: value.strip("'\"") for name, _, value in pairs}


def venv_program(name: str) -> str:
    """A program of the development environment.

    Raises:
        BuildError: it is not there.
    """
    path = REPOSITORY / ".venv" / "bin" / name
    if not path.exists():
        raise BuildError(f"{path} is missing, so nothing was built. Run: make")
    return str(path)
