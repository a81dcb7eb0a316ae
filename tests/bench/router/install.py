"""What the bench needs beside the repository: engine and router, compiled, and the peers, from pinned hashes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from hack.cluster.layout import cache_root

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[2]
PROGRAMS: Final = {"gcc": "gcc", "wrk": "wrk", "nginx": "nginx-light", "taskset": "util-linux"}
"""Programs and the Debian packages that have them."""
REQUIREMENTS: Final = {"vllmr": "bench.txt", "sglang": "bench.txt", "litellm": "bench-litellm.txt"}
"""Peers that are Python packages, by the first part of the target's name."""
OURS: Final = "fairlead"
_INSTALL_S: Final = 900


def folder() -> Path:
    """Where it lies; the targets find it as $BENCH_CACHE."""
    return cache_root() / "bench"


def engine() -> Path:
    """The compiled engine."""
    source = HERE / "engine.c"
    program = folder() / f"engine-{_key(source)}"
    if not program.exists():
        folder().mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-O2", "-o", f"{program}.new", str(source)], check=True)
        Path(f"{program}.new").rename(program)
    return program


def programs(names: list[str]) -> None:
    """Install what is missing of the programs with apt-get. Exits with a message when that cannot be."""
    missing = [PROGRAMS[name] for name in names if _find(name) is None]
    if not missing:
        return
    if os.geteuid() != 0:
        sys.exit(f"the bench needs Debian packages: apt-get install {' '.join(missing)}")
    subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *missing], check=True, stdout=sys.stderr)


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def peer(target: str) -> str:
    """Make or install what a target needs; why it could not be, or nothing."""
    if target == OURS:
        return _failed([str(HERE / f"{OURS}.sh"), "compile"])
    name = REQUIREMENTS.get(target.partition("-")[0])
    if name is None:
        return ""
    requirements = ROOT / "requirements" / name
    venv = folder() / requirements.stem
    done = venv / f".done-{_key(requirements)}"
    if done.exists():
        return ""
    sys.stderr.write(f"installing {requirements.name}\n")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    command = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--requirement", str(requirements)]
    failure = _failed(command)
    if not failure:
        done.touch()
    return failure


def _failed(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
    return (run.stderr[-500:] or "it failed without a word") if run.returncode else ""


def _key(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
