"""Compile the router's hot modules: a copy of the package in which they are extension modules beside their sources.

usage: python -m hack.compile [FOLDER]

Prints the folder, which goes first on PYTHONPATH; without FOLDER it is kept under a key of everything that went into
it. The sources are not touched, and run uncompiled as well, at under half the speed. Needs a C compiler and the
headers of the Python that runs this.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "router-sidecar" / "fairlead_router"
CACHE = Path.home() / ".cache" / "fairlead" / "router"
MODULES = (
    "affinity", "app", "budget", "exchange", "fairness", "frames", "heads", "lease", "metering", "outbox",
    "queueing", "replicas", "retries", "server", "sizing", "telemetry", "upstream",
)  # fmt: skip
"""What a request passes through, less the modules whose records msgspec decodes by their annotations."""
_CONFIG = "[mypy]\npython_version = 3.11\nignore_missing_imports = true\nfollow_untyped_imports = true\n"
_BUILD = (
    "import sys\n"
    "from mypyc.build import mypycify\n"
    "from setuptools import setup\n"
    "modules = mypycify(['--config-file', 'mypy.ini', *sys.argv[1:]], opt_level='3', debug_level='0')\n"
    "setup(name='fairlead-router', ext_modules=modules, script_args=['-q', 'build_ext', '--inplace'])\n"
)


def key() -> str:
    """A key of the sources, the compiler and the Python that they are compiled for."""
    found = hashlib.sha256(repr((MODULES, _CONFIG, _BUILD)).encode())
    for fact in (importlib.metadata.version("mypy"), str(sysconfig.get_config_var("EXT_SUFFIX"))):
        found.update(fact.encode())
    for source in sorted(PACKAGE.glob("*.py")):
        found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()[:20]


def compile_into(folder: Path) -> None:
    """Put the compiled package there, whole or not at all; one that is there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        shutil.copytree(PACKAGE, made / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        (made / "mypy.ini").write_text(_CONFIG, encoding="utf-8")
        sources = [f"{PACKAGE.name}/{module}.py" for module in MODULES]
        environment = os.environ | {"MYPYPATH": str(made)}
        subprocess.run(
            [sys.executable, "-c", _BUILD, *sources], cwd=made, env=environment, check=True, stdout=sys.stderr
        )
        for rest in ("build", ".mypy_cache"):
            shutil.rmtree(made / rest, ignore_errors=True)
        (made / "mypy.ini").unlink()
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def main() -> None:
    """Compile, unless that was done before."""
    given = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    folder = given or CACHE / key()
    if given is not None or not folder.is_dir():
        compile_into(folder)
    print(folder)


if __name__ == "__main__":
    main()
