"""The Python sources of the next vLLM, of which there is no CPU build: enough for its parser and its configuration.

Its wheel's modules run with the interpreter and the packages of the older CPU build; its compiled ones are left out.
"""

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from hack.cluster.layout import cache_root
from hack.images.cache import REPOSITORY, Progress, alone, key_of, whole
from hack.images.host import run, venv_program
from hack.vllm import environment

REQUIREMENTS = REPOSITORY / "requirements" / "vllm-next.txt"
VERSION = "0.33.0"
COLD_SECONDS = 40
KEPT = (".py", ".json", ".jinja", "METADATA", "entry_points.txt")


def locate() -> Path:
    """Where the sources are, or would be."""
    return cache_root() / "vllm-next" / key_of([REQUIREMENTS])


def install() -> Path:
    """Fetch the wheels unless the sources are there; the folder to put before the older build's packages.

    Raises:
        hack.images.cache.BuildError: a wheel could not be fetched, or is not the one that the hashes name.
    """
    folder = locate()
    with alone(folder.parent):
        if not folder.exists():
            Progress("vLLM sources", COLD_SECONDS).say(f"the modules of vLLM {VERSION}, 340 MB to fetch")
            with whole(folder) as partial, tempfile.TemporaryDirectory() as wheels:
                _fetch(wheels)
                for wheel in sorted(Path(wheels).glob("*.whl")):
                    _unpack(wheel, partial)
    return folder


def settings(folder: Path) -> Mapping[str, str]:
    """Environment variables for the older build's interpreter to import the sources in ``folder``."""
    return {**environment.ENGINE_SETTINGS, "VLLM_TARGET_DEVICE": "cpu", "PYTHONPATH": str(folder)}


def _fetch(target: str) -> None:
    pip = [venv_program("python"), "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    run([*pip, "--require-hashes", "--only-binary", ":all:", "--dest", target, "-r", str(REQUIREMENTS)])


def _unpack(wheel: Path, folder: Path) -> None:
    every = not wheel.name.startswith("vllm-")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if every or name.endswith(KEPT):
                archive.extract(name, folder)
