"""The processes of a cluster as they are now: found through /proc, never remembered longer than a question."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hack.cluster.layout import HERE, NODE_PARTS, PLANE_PARTS, ClusterError, Kind, Layout

State = Literal["running", "ended", "not ready"]


@dataclass(frozen=True, slots=True)
class Part:
    """One row of `status`; `pid` counts as the caller's shell counts."""

    name: str
    pid: int | None
    state: State


def recorded(path: Path, program: str, place: Layout) -> int | None:
    """Return the pid in file `path` if that process lives and is `program` of this cluster.

    A pid outlives its machine in the file, and is then somebody else's.
    """
    try:
        pid = int(path.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, ValueError):
        return None
    return pid if {str(HERE / program), str(place.state)} <= set(words) else None


def holder(place: Layout) -> int | None:
    """Return the process that is pid 1 of the cluster's namespaces."""
    return recorded(place.state / "init.pid", "init.sh", place)


def forwarder(place: Layout) -> int | None:
    """Return the process behind the port of 127.0.0.1."""
    return recorded(place.state / "forward.pid", "forward.py", place)


def kind_of(place: Layout) -> Kind | None:
    """Return what was started, or None where nothing was."""
    try:
        kind = json.loads((place.state / "cluster.json").read_text())["kind"]
    except (OSError, ValueError, KeyError):
        return None
    return "node" if kind == "node" else "plane"


def parts(place: Layout) -> list[Part]:
    """Return every part that the cluster should have, with its state."""
    init = holder(place)
    inside = _pids_inside(init) if init else {}
    names = (*PLANE_PARTS, *(NODE_PARTS if kind_of(place) == "node" else ()))
    found = [_part(name, inside.get(_inner_pid(place, name) or 0)) for name in names]
    rows = [_part("namespaces", init), *found, _part("forwarder", forwarder(place))]
    return [_with_readiness(row, place) if row.name == "kube-apiserver" else row for row in rows]


def healthy(rows: list[Part]) -> bool:
    """Tell whether nothing is down."""
    return all(row.state == "running" for row in rows)


def ready(place: Layout) -> bool:
    """Tell whether the API server answers /readyz at the address that the user's kubectl has."""
    try:
        cluster = json.loads(place.kubeconfig.read_text())["clusters"][0]["cluster"]
        context = ssl.create_default_context(cafile=str(place.pki / "ca.crt"))
        context.load_cert_chain(place.pki / "admin.crt", place.pki / "admin.key")
        with urllib.request.urlopen(f"{cluster['server']}/readyz", timeout=5, context=context) as answer:  # noqa: S310 - our own https address
            return bool(answer.status == 200)  # noqa: PLR2004 - OK
    except (OSError, ValueError, KeyError):
        return False


def inside(init: int, place: Layout, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` in the namespaces of the process `init`.

    nsenter stays behind as the parent of the command; when it is ended, the command is sent SIGTERM.
    """
    enter = ["nsenter", f"--target={init}", "--mount", "--net", "--pid", "--ipc", "--uts", f"--wd={Path.cwd()}"]
    settings = [f"KUBECONFIG={place.admin_kubeconfig}", f"PATH={place.bin}:{os.environ.get('PATH', os.defpath)}"]
    return [*enter, "setpriv", "--pdeathsig=TERM", "env", *settings, *command]


def run_inside(init: int, place: Layout, *command: str, timeout: float = 600) -> str:
    """Run `command` in the cluster's namespaces and return its output."""
    run = subprocess.run(
        inside(init, place, command), capture_output=True, text=True, errors="replace", check=False, timeout=timeout
    )
    if run.returncode:
        raise ClusterError(f"{' '.join(command)}: status {run.returncode}: {run.stderr.strip()[-1000:]}")
    return run.stdout


def end(pid: int, number: signal.Signals, seconds: float = 20.0) -> None:
    """Signal the process and wait until it is gone."""
    os.kill(pid, number)
    if not until(lambda: gone(pid), seconds):
        raise ClusterError(f"process {pid} still lives {seconds:g} s after {number.name}; look at it with ps -f {pid}")


def gone(pid: int) -> bool:
    """Tell whether the process has ended; one that only waits to be collected has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Poll `true` for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def table(rows: list[Part]) -> str:
    """Return the rows for a person."""
    width = min(max(len(row.name) for row in rows) + 2, shutil.get_terminal_size().columns)
    lines = [f"{row.name:<{width}}{row.pid or '-':>8}  {row.state}" for row in rows]
    return "\n".join([f"{'PART':<{width}}{'PID':>8}  STATE", *lines])


def _part(name: str, pid: int | None) -> Part:
    return Part(name, pid, "running" if pid else "ended")


def _with_readiness(row: Part, place: Layout) -> Part:
    if row.pid is None or ready(place):
        return row
    return Part(row.name, row.pid, "not ready")


def _inner_pid(place: Layout, name: str) -> int | None:
    try:
        return int((place.state / "pid" / name).read_text())
    except (OSError, ValueError):
        return None


def _pids_inside(init: int) -> dict[int, int]:
    """Return pid inside → pid outside for all living processes of the pid namespace of `init`."""
    space = _pid_namespace(Path(f"/proc/{init}"))
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    members = [entry for entry in processes if _pid_namespace(entry) == space and not gone(int(entry.name))]
    return {inner: int(entry.name) for entry in members if (inner := _inner(entry))}


def _pid_namespace(entry: Path) -> str | None:
    try:
        return str((entry / "ns" / "pid").readlink())
    except OSError:
        return None


def _inner(entry: Path) -> int | None:
    try:
        lines = (entry / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)
