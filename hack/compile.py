"""Compile the hot modules of router or ledger: a copy of their package, with extension modules beside the sources.

usage: python -m hack.compile [--python PYTHON] [--package PACKAGE] [FOLDER]

Prints the folder, which goes first on PYTHONPATH; without FOLDER it is kept under a key of everything that went into
it. PACKAGE is the folder of a package that has such modules: fairlead_router (the repository's unless told) or
fairlead_operator, which the ledger belongs to. The sources are not touched, and run uncompiled as well, at under half
the speed. PYTHON is the one that will run them, the one that runs this unless told; it needs its headers and a C
compiler. mypy and setuptools are those of the Python that runs this.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hack.cluster.layout import cache_root

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "router-sidecar" / "fairlead_router"
KEPT = 4
"""Compiled copies that stay, so that switching between branches or Pythons compiles nothing."""
LEDGER = ROOT / "operator" / "fairlead_operator"
MODULES = {
    "fairlead_router": (
        "affinity", "app", "budget", "exchange", "fairness", "frames", "heads", "journal", "lease", "metering",
        "outbox", "plan", "queueing", "replicas", "retries", "server", "sizing", "telemetry", "upstream",
    ),
    "fairlead_operator": (
        "ledger.access", "ledger.escrow", "ledger.exchange", "ledger.kept", "ledger.together", "ledger.transaction",
        "ledger.usage", "performance.replica", "performance.routing", "simulate.fleet",
    ),
}  # fmt: skip
"""By package: what a request of the router, a message to the ledger or a simulated request passes through, less the
modules whose records msgspec decodes by their annotations."""
_CONFIG = "[mypy]\npython_version = 3.11\nignore_missing_imports = true\nfollow_untyped_imports = true\n"
_BUILD = (
    "import sys\n"
    "from setuptools import setup\n"
    "from mypyc.build import mypycify\n"
    "modules = mypycify(['--config-file', 'mypy.ini', *sys.argv[1:]], opt_level='3', debug_level='0')\n"
    "setup(name='fairlead', ext_modules=modules, script_args=['-q', 'build_ext', '--inplace'])\n"
)
_WHICH = "import sys, sysconfig; print(sys.version, sysconfig.get_config_vars('CC', 'CFLAGS', 'EXT_SUFFIX'))"


def key(python: str, package: Path) -> str:
    """A key of the sources, the compiler and the Python that they are compiled for."""
    rules = MODULES[package.name], _CONFIG, _BUILD, importlib.metadata.version("mypy")
    found = hashlib.sha256(repr(rules).encode())
    found.update(subprocess.run([python, "-c", _WHICH], check=True, stdout=subprocess.PIPE).stdout)
    for source in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        found.update(str(source.relative_to(package)).encode() + b"\0" + source.read_bytes())
    return found.hexdigest()[:20]


def compile_into(folder: Path, python: str, package: Path) -> None:
    """Put the compiled package there, whole or not at all; one that is there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        shutil.copytree(package, made / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (made / "mypy.ini").write_text(_CONFIG, encoding="utf-8")
        sources = [f"{package.name}/{module.replace('.', '/')}.py" for module in MODULES[package.name]]
        tools = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry.endswith("-packages"))
        types = os.pathsep.join(map(str, (made, *beside(package))))
        environment = os.environ | {"MYPYPATH": types, "PYTHONPATH": tools}
        subprocess.run([python, "-c", _BUILD, *sources], cwd=made, env=environment, check=True, stdout=sys.stderr)
        for rest in ("build", ".mypy_cache"):
            shutil.rmtree(made / rest, ignore_errors=True)
        (made / "mypy.ini").unlink()
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def beside(package: Path) -> tuple[Path, ...]:
    """Where the router is, whose contract the ledger's modules import: here or, installed, beside the package."""
    others = () if package.name == PACKAGE.name else (PACKAGE.parent, package.parent)
    return tuple(folder for folder in others if (folder / PACKAGE.name).is_dir())


def kept(cache: Path, python: str, package: Path) -> Path:
    """The compiled package in the cache; compiled now unless it is there. The oldest of many go.

    One at a time: a second that wants the same finds it, and nothing that another just compiled is replaced.
    """
    folder = cache / key(python, package)
    cache.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            compile_into(folder, python, package)
        folder.touch()
        for old in sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def cached(package: Path, python: str = sys.executable) -> Path:
    """The compiled package in this machine's cache; compiled now unless it is there."""
    return kept(cache_root() / "compiled" / package.name, python, package)


def main() -> None:
    """Compile, unless that was done before."""
    parser = argparse.ArgumentParser(prog="python -m hack.compile", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the Python that will run them")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the sources, instead of the repository's")
    parser.add_argument("folder", nargs="?", type=Path, help="where to put it, instead of the cache")
    asked = parser.parse_args()
    if asked.folder is None:
        print(cached(asked.package, asked.python))
        return
    compile_into(asked.folder.resolve(), asked.python, asked.package)
    print(asked.folder.resolve())


if __name__ == "__main__":
    main()
