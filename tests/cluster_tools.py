"""Local clusters for tests: bring one up or find it running, talk to it, and fake GPU nodes."""

import fcntl
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from hack.cluster import doctor, gobuild, layout, processes
from hack.cluster.layout import Kind, Layout

T = TypeVar("T")

H100, L40S = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L40S"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running local cluster."""

    name: str
    place: Layout

    @property
    def kubeconfig(self) -> Path:
        """For this process: it is outside the cluster's namespaces."""
        return self.place.kubeconfig

    @property
    def inside_kubeconfig(self) -> Path:
        """For processes that `exec` and `popen` start."""
        return self.place.admin_kubeconfig

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - subprocess's word
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl outside, through the forwarder."""
        return self._program("kubectl", arguments, input, check=check, timeout=timeout)

    def helm(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run helm outside, through the forwarder."""
        return self._program("helm", arguments, None, check=check, timeout=timeout)

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get … -o json` says."""
        return json.loads(self.kubectl("get", *arguments, "--output=json").stdout)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply the objects server-side."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", input=text)

    def exec(
        self,
        *command: str,
        input: str | None = None,  # noqa: A002 - subprocess's word
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's namespaces, where pod and service addresses are reachable."""
        return _checked(self._inside(command), input, check=check, timeout=timeout)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in the cluster's namespaces; ending the returned process ends it by SIGTERM."""
        return subprocess.Popen(self._inside(command), text=True, **options)

    def end_part(self, part: str) -> None:
        """Kill a part (kubelet, kube-apiserver, …) as a crash would."""
        self.exec("sh", "-c", f"kill -KILL $(cat {self.place.state}/pid/{part})")
        eventually(lambda: self._state_of(part) == "ended")

    def start_part(self, part: str) -> None:
        """Start a part that was ended, as it was started at first."""
        self.exec("sh", "-c", f"setsid bash {self.place.state}/cmd/{part} &")
        eventually(lambda: self._state_of(part) != "ended")

    def _state_of(self, part: str) -> str:
        return next(row.state for row in processes.parts(self.place) if row.name == part)

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        init = processes.holder(self.place)
        assert init is not None, f"cluster {self.name} is not up"
        return processes.inside(init, self.place, command)

    def _program(
        self, program: str, arguments: tuple[str, ...], text: str | None, *, check: bool, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        command = [str(self.place.bin / program), f"--kubeconfig={self.kubeconfig}", *arguments]
        return _checked(command, text, check=check, timeout=timeout)


def obstacles(kind: Kind) -> list[str]:
    """Return why this machine cannot run a cluster of this kind; nothing where it can."""
    return [reason.text for reason in doctor.reasons(kind, build=needs_build())]


def needs_build() -> bool:
    """Tell whether the next cluster takes minutes, for its programs are not in the cache."""
    return not gobuild.built(layout.programs_dir())


def hack_cluster(*arguments: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    """Run `python3 hack/cluster …` and return what it said, whatever its status."""
    command = [sys.executable, str(layout.HERE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def find(name: str) -> Cluster | None:
    """Return the cluster if it is up and healthy."""
    cluster = Cluster(name, layout.layout(name))
    return cluster if processes.healthy(processes.parts(cluster.place)) else None


def start(name: str, kind: Kind, *arguments: str, mark: Path | None = None) -> Cluster:
    """Bring the cluster up; the file `mark` in its state says that tests started it."""
    run = hack_cluster("up", "--cluster", "local", "--name", name, "--kind", kind, *arguments)
    assert run.returncode == 0, run.stderr
    if mark:
        mark.touch()
    return Cluster(name, layout.layout(name))


@contextmanager
def running(name: str, kind: Kind, *arguments: str) -> Iterator[Cluster]:
    """Give a running cluster; the last test run that uses it ends it, unless somebody else had started it."""
    place = layout.layout(name)
    mark = place.state / "started-by-tests"
    with _use(place) as use:
        was_up = find(name) is not None
        # Of a healthy cluster `up` only loads the images among the arguments.
        try:
            yield start(name, kind, *arguments, mark=None if was_up else mark)
        finally:
            if _last(use) and (not was_up or mark.exists()):
                run = hack_cluster("down", "--cluster", "local", "--name", name)
                assert run.returncode == 0, run.stderr


@contextmanager
def _use(place: Layout) -> Iterator[IO[str]]:
    """Hold a lock that test runs share; it waits while another run ends the cluster."""
    folder = layout.cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{place.state.name}.users").open("w") as use:
        fcntl.flock(use, fcntl.LOCK_SH)
        yield use


def _last(use: IO[str]) -> bool:
    """Tell whether no other test run holds the lock; if so, none gets it before it is closed."""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def fresh_namespace(cluster: Cluster, prefix: str = "test") -> Iterator[str]:
    """Give a new namespace and delete it, without waiting for its end."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    try:
        # Pods are refused until the controllers have made this one.
        eventually(lambda: _found(cluster, "serviceaccount", "default", f"--namespace={name}"))
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def gpu_node(name: str, product: str = H100, gpus: int = 8, **labels: str) -> dict[str, Any]:
    """Return a fake GPU node."""
    about = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "nvidia.com/gpu.product": product}
    resources = {"cpu": "192", "memory": "2Ti", "pods": "110", "ephemeral-storage": "7Ti", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": about | labels,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "status": {"capacity": resources, "allocatable": resources},
    }


@contextmanager
def fake_nodes(cluster: Cluster, *nodes: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give the names of these nodes, Ready, and delete them."""
    names = tuple(node["metadata"]["name"] for node in nodes)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes})
    cluster.kubectl("delete", "node", *names, "--ignore-not-found")
    try:
        cluster.kubectl("create", "--filename=-", input=text)
        cluster.kubectl("wait", "--for=condition=Ready", "--timeout=30s", "node", *names)
        yield names
    finally:
        cluster.kubectl("delete", "node", *names, "--ignore-not-found")


def eventually(question: Callable[[], T | None], seconds: float = 30.0) -> T:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds:g} s"
        time.sleep(0.1)
    return answer


def _found(cluster: Cluster, *what: str) -> bool:
    return cluster.kubectl("get", *what, check=False).returncode == 0


def _checked(command: list[str], text: str | None, *, check: bool, timeout: float) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=timeout)
    assert run.returncode == 0 or not check, f"{command}: status {run.returncode}: {run.stdout}{run.stderr}"
    return run
