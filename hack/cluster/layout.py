"""Where things lie: the repository, the cache, and the state folder of each local cluster."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["plane", "node"]

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "hack" / "cluster"
# Unix sockets have 107 bytes for their path, so the state lies at a short one, and on a disk: overlayfs needs it.
STATE_ROOT = Path("/var/tmp")  # noqa: S108 - its entries are ours by name, made with mode 0700
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?")

NODE_IP = "10.0.0.1"
API = f"https://{NODE_IP}:6443"
NODE_NAME = "real"

PLANE_PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
NODE_PARTS = ("containerd", "kubelet", "kube-proxy", "coredns")


class ClusterError(Exception):
    """What stopped a command, in words for the person who ran it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder of one named cluster of this working copy."""

    name: str
    state: Path

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.state / "pki"

    @property
    def bin(self) -> Path:
        """Links to the programs, kubectl and helm among them."""
        return self.state / "bin"

    @property
    def kubeconfig(self) -> Path:
        """For shells outside: through the forwarder."""
        return self.state / "kubeconfig"

    @property
    def admin_kubeconfig(self) -> Path:
        """For processes inside the cluster's namespaces."""
        return self.state / "admin.kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        """Where the real node's containerd listens."""
        return self.state / "containerd.sock"

    @property
    def ledger_volume(self) -> Path:
        """Folder behind the PersistentVolume fairlead-ledger."""
        return self.state / "volumes" / "ledger"

    @property
    def cgroup(self) -> str:
        """Name of the cgroup that holds every pod of the real node."""
        return self.state.name


def layout(name: str, root: Path = ROOT) -> Layout:
    """Return the layout of the cluster `name` of the working copy at `root`."""
    if not NAME.fullmatch(name):
        raise ClusterError(
            f"cluster name {name!r}: 1 to 16 of a-z, 0-9 and inner '-' are allowed; choose another --name"
        )
    copy = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    return Layout(name, STATE_ROOT / f"fl-{copy}-{name}")


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that keeps what is costly to make."""
    if own := env.get("FAIRLEAD_CACHE"):
        return Path(own).absolute()
    base = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "/root")) / ".cache")
    return Path(base).absolute() / "fairlead"


def programs_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the cache folder of the programs that the present sources of hack/cluster/tools build."""
    return cache_root(env) / "go" / sources_key(HERE)


def sources_key(here: Path) -> str:
    """Return 12 hex digits over everything that decides what the build makes."""
    tools = here / "tools"
    digest = hashlib.sha256()
    for path in [tools / "go.mod", tools / "go.sum", *sorted(tools.rglob("*.go")), here / "gobuild.py"]:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(here)} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:12]
