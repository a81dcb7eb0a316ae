"""Start and end a cluster: everything it is hangs on one process, and lies in one folder."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hack.cluster import config, doctor, gobuild, images, pki, processes
from hack.cluster.layout import HERE, NODE_IP, ClusterError, Kind, Layout, cache_root, programs_dir
from hack.cluster.progress import say

START_S = 180.0
PATIENCE_S = 20.0
LINKS = {
    "kube": ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
    "coredns": ("coredns",),
    "kwok": ("kwok",),
    "helm": ("helm",),
}


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one process at a time do what `name` says, on this machine."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_programs() -> Path:
    """Return the folder of the programs, building them unless the cache has them."""
    target = programs_dir()
    with alone("go"):
        if not gobuild.built(target):
            gobuild.build(target)
    return target


def up(place: Layout, kind: Kind, archives: list[Path]) -> None:
    """Bring the cluster up, or find it up; a running cluster of the other kind is left as it is and named."""
    with alone(place.state.name):
        if not _reuse(place, kind):
            _check(kind)
            remove(place)
            _start(place, kind, ensure_programs())
        if kind == "node":
            images.load(_living(place), place, archives)


def down(place: Layout) -> bool:
    """End the cluster and remove what it left; tell whether there was anything."""
    with alone(place.state.name):
        there = place.state.exists()
        remove(place)
        return there


def remove(place: Layout) -> None:
    """End what lives of the cluster, then remove its cgroups and its folder."""
    _end(place)
    _remove_cgroups(place)
    if place.state.exists():
        # A mount that is still there belongs to somebody: its files are not ours to delete.
        command = ["rm", "--recursive", "--force", "--one-file-system", str(place.state)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if run.returncode:
            raise ClusterError(f"{place.state} is still there: {run.stderr.strip()[-500:]}")


def _end(place: Layout) -> None:
    if pid := processes.forwarder(place):
        processes.end(pid, signal.SIGTERM)
    if pid := processes.holder(place):
        # Pid 1 of the namespace: the kernel ends all the others before this one counts as gone.
        processes.end(pid, signal.SIGKILL)


def _reuse(place: Layout, kind: Kind) -> bool:
    """Tell whether the cluster runs already, after giving it back a lost forwarder."""
    init = processes.holder(place)
    if init is None or not (place.state / "ready").exists():
        return False
    running = processes.kind_of(place)
    if kind == "node" and running == "plane":
        raise ClusterError(
            f"cluster {place.name} runs without a real node: end it with python3 hack/cluster down --name {place.name}"
        )
    if processes.forwarder(place) is None:
        _forward(place, init)
    # A busy machine may answer late; only what stays down is down.
    processes.until(lambda: processes.healthy(processes.parts(place)), PATIENCE_S)
    rows = processes.parts(place)
    if not processes.healthy(rows):
        lost = ", ".join(f"{row.name} ({row.state})" for row in rows if row.state != "running")
        say(f"cluster {place.name} is not healthy and is started anew: {lost}")
        return False
    say(f"cluster {place.name} ({running}) is already up")
    return True


def _check(kind: Kind) -> None:
    found = doctor.reasons(kind, build=not gobuild.built(programs_dir()))
    if found:
        lines = "\n".join(f"  - {reason.text}" for reason in found)
        raise ClusterError(
            f"this machine lacks what a local cluster needs:\n{lines}\n"
            "`python3 hack/cluster doctor --install` installs the packages"
        )


def _start(place: Layout, kind: Kind, programs: Path) -> None:
    started = time.monotonic()
    _prepare(place, kind, programs)
    try:
        init = _hold(place, kind)
        _forward(place, init)
        _wait_ready(place, init)
        if kind == "node":
            _pause_image(place, init)
    except BaseException:
        # The folder stays, for its logs; the next up or down removes it.
        _end(place)
        raise
    say(f"cluster {place.name} ({kind}) is up after {time.monotonic() - started:.1f} s; state in {place.state}")


def _prepare(place: Layout, kind: Kind, programs: Path) -> None:
    """Write everything that the parts read."""
    place.state.mkdir(mode=0o755)
    for folder in ("bin", "cmd", "cni", "log", "pid", "volumes"):
        (place.state / folder).mkdir()
    (place.state / "cluster.json").write_text(json.dumps({"name": place.name, "kind": kind}) + "\n")
    pki.make(place.pki)
    for path, text in config.files(place, kind).items():
        target = place.state / path
        target.touch(mode=0o600)
        target.write_text(text)
    for program, names in LINKS.items():
        for name in names:
            (place.bin / name).symlink_to(programs / program)
    place.ledger_volume.mkdir()
    os.chown(place.ledger_volume, config.LEDGER_UID, config.LEDGER_UID)


def _hold(place: Layout, kind: Kind) -> int:
    """Start pid 1 of new namespaces and return its pid outside."""
    unshare = [
        "unshare",
        "--fork",
        "--kill-child=SIGKILL",
        "--pid",
        "--mount-proc",
        "--mount",
        "--net",
        "--ipc",
        "--uts",
    ]
    command = [*unshare, "--propagation=private", "bash", str(HERE / "init.sh"), str(place.state), kind]
    with (place.state / "log" / "init.log").open("wb") as log:
        outer = subprocess.Popen(
            command, cwd=place.state, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        pid = _only_child(outer, place)
        (place.state / "init.pid").write_text(f"{pid}\n")
    except BaseException:
        outer.kill()
        raise
    return pid


def _only_child(parent: subprocess.Popen[bytes], place: Layout) -> int:
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    processes.until(lambda: parent.poll() is not None or bool(_text(children)), 10)
    for word in _text(children).split():
        return int(word)
    said = _text(place.state / "log" / "init.log").strip()[-500:]
    raise ClusterError(f"the first process of cluster {place.name} ended at once. It said: {said or 'nothing'}")


def _forward(place: Layout, init: int) -> None:
    """Start the forwarder and write the kubeconfig that leads through it."""
    port = place.state / "forward.port"
    port.unlink(missing_ok=True)
    command = [sys.executable, "-I", str(HERE / "forward.py"), str(place.state), str(init), NODE_IP, "6443"]
    with (place.state / "log" / "forward.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (place.state / "forward.pid").write_text(f"{process.pid}\n")
    if not processes.until(lambda: process.poll() is not None or port.exists(), 20) or not port.exists():
        raise ClusterError(f"the forwarder did not start: {place.state}/log/forward.log says why")
    server = f"https://127.0.0.1:{int(port.read_text())}"
    place.kubeconfig.touch(mode=0o600)
    place.kubeconfig.write_text(config.kubeconfig(place.pki, "admin", server, place.name))


def _wait_ready(place: Layout, init: int) -> None:
    mark = place.state / "ready"
    if processes.until(lambda: mark.exists() or processes.gone(init), START_S) and mark.exists():
        return
    said = _text(place.state / "log" / "init.log").strip()[-1000:]
    what = "ended" if processes.gone(init) else f"is not ready after {START_S:g} s"
    raise ClusterError(f"cluster {place.name} {what}; logs are in {place.state}/log. Its first process said:\n{said}")


def _pause_image(place: Layout, init: int) -> None:
    archive = place.state / "pause.tar"
    images.pause_image(archive, config.PAUSE_IMAGE)
    images.load(init, place, [archive])


def _living(place: Layout) -> int:
    if init := processes.holder(place):
        return init
    raise ClusterError(f"cluster {place.name} is not up: python3 hack/cluster up --name {place.name}")


def load(place: Layout, archives: list[Path]) -> None:
    """Import image archives on the real node of a running cluster."""
    init = _living(place)
    if processes.kind_of(place) != "node":
        raise ClusterError(f"cluster {place.name} has no real node for images: start one with up --kind node")
    with alone(place.state.name):
        images.load(init, place, archives)


def enter(place: Layout, command: list[str]) -> None:
    """Become `command` inside the cluster's namespaces."""
    words = processes.inside(_living(place), place, command)
    os.execvp(words[0], words)  # noqa: S606 - a terminal and signals pass through only if no process is between


def shell() -> list[str]:
    """Return the command of the person's own shell."""
    found = shutil.which(os.environ.get("SHELL", "bash")) or "bash"
    return [found, "-i"]


def _remove_cgroups(place: Layout) -> None:
    base = Path("/sys/fs/cgroup")
    homes = [base / place.cgroup, *(entry / place.cgroup for entry in sorted(base.glob("*")))]
    for home in homes:
        if home.is_dir() and not processes.until(lambda home=home: _removed(home), 20):  # type: ignore[misc]
            raise ClusterError(f"cgroup {home} still has members 20 s after the cluster's end: see cgroup.procs in it")


def _removed(home: Path) -> bool:
    """Remove the folders of a cgroup from the bottom up; tell whether all are gone."""
    for folder, _, _ in os.walk(home, topdown=False):
        # A process that has just been killed is a member until the kernel has done with it.
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return not home.exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
