"""Build the cluster's programs from the pinned Go module in tools/. A change here, too, makes a new build."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hack.cluster.layout import HERE, ClusterError
from hack.cluster.progress import watch

PROGRAMS = ("kube", "coredns", "kwok", "helm")
PACKAGES = ("./kube", "./coredns", "sigs.k8s.io/kwok/cmd/kwok", "helm.sh/helm/v4/cmd/helm")
EXPECTED_S = 8 * 60.0


def built(target: Path) -> bool:
    """Tell whether `target` holds a finished build: it appears there by one rename."""
    return all((target / program).is_file() for program in PROGRAMS)


def build(target: Path) -> None:
    """Build all programs into the new folder `target`; on failure `target` does not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as work:
        out, log = Path(work, "bin"), target.parent / "build.log"
        out.mkdir()
        command = ["go", "build", "-trimpath", "-o", f"{out}/", "-ldflags", _stamps(), *PACKAGES]
        with log.open("wb") as sink:
            process = subprocess.Popen(command, cwd=HERE / "tools", env=_environment(), stdout=sink, stderr=sink)
            code = watch(process, "go build of the local Kubernetes", EXPECTED_S)
        if code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ClusterError(
                f"go build of the local Kubernetes ended with status {code}; all of it is in {log}:\n{tail}"
            )
        shutil.rmtree(target, ignore_errors=True)
        out.rename(target)


def _environment() -> dict[str, str]:
    return os.environ | {"GOFLAGS": "-mod=readonly -buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}


def _stamps() -> str:
    """Linker flags that tell the programs their versions: without them Helm's kubeVersion sees v0.0.0."""
    kubernetes, kwok = _version("k8s.io/kubernetes"), _version("sigs.k8s.io/kwok")
    values = {
        "gitVersion": kubernetes,
        "gitMajor": "1",
        "gitMinor": kubernetes.split(".")[1],
        "gitTreeState": "clean",
        "gitCommit": "unknown",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamps = [f"-X {package}.{key}={value}" for package in packages for key, value in values.items()]
    return " ".join(["-s -w", *stamps, f"-X sigs.k8s.io/kwok/pkg/consts.Version={kwok}"])


def _version(module: str) -> str:
    command = ["go", "list", "-m", "-f", "{{.Version}}", module]
    run = subprocess.run(
        command, cwd=HERE / "tools", env=_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    if run.returncode:
        raise ClusterError(f"go list of {module} ended with status {run.returncode}: {run.stderr.strip()[-500:]}")
    return run.stdout.strip()
