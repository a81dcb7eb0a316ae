"""What a machine must have for a local cluster, and the remedy for what it lacks."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import layout
from hack.cluster.layout import Kind

GIB = 1 << 30
DISK_BYTES = 15 * GIB
MEMORY_BYTES = {"plane": 2 * GIB, "node": 4 * GIB}
# overlayfs cannot lie on these as the folder that is written to, or a restart of the machine empties them.
NO_DISKS = frozenset({"tmpfs", "ramfs", "overlay", "nfs", "nfs4", "9p", "virtiofs", "squashfs"})
CONTROLLERS_V1: tuple[str, ...] = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
CONTROLLERS_V2: tuple[str, ...] = ("cpu", "cpuset", "memory", "pids", "io")
UNTESTED_V2 = "cgroup v2: the real node is UNTESTED on it; cgroup v1 is what it was run on"

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package, and the program or file that shows it is there (with * for folders named by versions)."""

    name: str
    program: str
    minimum: Version = ()
    plane: bool = False


PACKAGES = (
    Package("util-linux", "unshare", (2, 38), plane=True),
    Package("util-linux", "nsenter", (2, 38), plane=True),
    Package("util-linux", "setpriv", (2, 38), plane=True),
    Package("iproute2", "ip", (5,), plane=True),
    Package("openssl", "openssl", (3,), plane=True),
    Package("curl", "curl", (7, 88), plane=True),
    # The tests look for processes and end them with it.
    Package("procps", "pgrep", (3, 3), plane=True),
    Package("containerd", "containerd", (1, 6)),
    Package("runc", "runc", (1, 1)),
    Package("containernetworking-plugins", "/usr/lib/cni/bridge", (1, 1)),
    Package("nftables", "nft", (1,)),
    Package("gcc", "gcc", (12,)),
    Package("libc6-dev", "/usr/include/stdio.h", (2, 36)),
    Package("git", "git", (2, 39)),
    Package("mmdebstrap", "mmdebstrap", (1,)),
    Package("buildah", "buildah", (1, 28)),
    # vLLM on this machine itself, beside the one in the image: torch wants it.
    Package("libnuma1", "/usr/lib/*/libnuma.so.1", (2,)),
)
TEST_PACKAGES = (
    Package("postgresql", "/usr/lib/postgresql/*/bin/postgres", (13,)),
    Package("libfaketime", "/usr/lib/*/faketime/libfaketime.so.1", (0, 9)),
    Package("prometheus", "prometheus", (2, 42)),
)
"""What some tests run beside us; without it those skip. No cluster needs them."""
HEADERS = Package("python3-dev", "python3", (3, 11))
GO = (1, 26)


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is missing; `package` where apt has the remedy."""

    text: str
    package: Package | None = None


def reasons(kind: Kind, *, build: bool) -> list[Reason]:
    """Return everything that stops a cluster of this kind here; `build` when its programs must be built first."""
    disk = DISK_BYTES if build or kind == "node" else GIB
    return [
        *packages(kind),
        *(go() if build else []),
        *python(),
        *root(),
        *free_disk(layout.cache_root(), disk if build else 0),
        *free_disk(layout.STATE_ROOT, disk),
        *memory(kind, Path("/proc/meminfo").read_text()),
        *(node_kernel() if kind == "node" else []),
    ]


def packages(kind: Kind) -> list[Reason]:
    """Return the Debian packages that are missing or too old."""
    needed = [package for package in PACKAGES if package.plane or kind == "node"]
    return [reason for package in needed if (reason := _package(package))]


def tests_lack() -> list[Reason]:
    """Return what some tests want that no cluster needs."""
    return [*(reason for package in TEST_PACKAGES if (reason := _package(package))), *headers()]


def headers() -> list[Reason]:
    """Return whether this Python lacks what the tests of compiled modules compile with."""
    if Path(sysconfig.get_path("include"), "Python.h").is_file():
        return []
    return [Reason("Python has no headers (Python.h): apt-get install python3-dev", HEADERS)]


def _package(package: Package) -> Reason | None:
    minimum = f" (at least {_dotted(package.minimum)})" if package.minimum else ""
    remedy = f"apt-get install {package.name}"
    if not _program(package):
        return Reason(f"{package.program} is missing: {remedy}{minimum}", package)
    found = version_of(package) if package.minimum else ()
    if found and found < package.minimum:
        return Reason(
            f"{package.program} is version {_dotted(found)}, at least {_dotted(package.minimum)} is needed: {remedy}",
            package,
        )
    return None


def _program(package: Package) -> str:
    """Return the path of the program or file, that of the newest version; empty if there is none."""
    if not package.program.startswith("/"):
        return shutil.which(package.program) or ""
    found = [str(path) for path in Path("/").glob(package.program.lstrip("/"))]
    # Text and numbers alternate in each of them, so 9 comes before 15.
    return max(
        found,
        key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)],
        default="",
    )


def version_of(package: Package) -> Version:
    """Return the version as dpkg has it, else as the program says it, else ()."""
    # CNI plugins of Debian do not know their version; programs from elsewhere are unknown to dpkg.
    installed = _output("dpkg-query", "--show", "--showformat=${Version}", package.name)
    return version_in(installed.partition(":")[2] or installed) or version_in(_output(_program(package), "--version"))


def version_in(text: str) -> Version:
    """Return the first dotted number in `text`."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def go() -> list[Reason]:
    """Return what is wrong with the Go tools."""
    remedy = f"install Go {_dotted(GO)} or newer and put its bin folder on PATH"
    if shutil.which("go") is None:
        return [Reason(f"go is missing: {remedy}")]
    found = version_in(_output("go", "version"))
    return (
        [] if found >= GO else [Reason(f"go is version {_dotted(found)}, at least {_dotted(GO)} is needed: {remedy}")]
    )


def python() -> list[Reason]:
    """Return what this Python lacks; its version is checked before this module can be read."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        return [Reason("Python has no venv: apt-get install python3-venv", Package("python3-venv", "python3"))]
    return []


def root() -> list[Reason]:
    """Return why this user may not make namespaces."""
    if os.geteuid() != 0:
        return [Reason(f"uid {os.geteuid()} may not make namespaces: run as root")]
    if shutil.which("unshare") is None:
        return []
    command = ["unshare", "--pid", "--fork", "--mount", "--net", "--ipc", "--uts", "true"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if run.returncode:
        said = run.stderr.strip()[-200:]
        return [Reason(f"root may not make namespaces here ({said}): a container needs CAP_SYS_ADMIN (--privileged)")]
    return []


def free_disk(path: Path, needed: int) -> list[Reason]:
    """Return what is wrong with the file system under `path`, which need not exist."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    kind = filesystem(there.resolve(), Path("/proc/self/mounts").read_text())
    if kind in NO_DISKS:
        return [Reason(f"{path} is on {kind}, and containers' overlays need a disk (ext4, xfs): mount one there")]
    free = shutil.disk_usage(there).free
    if free < needed:
        return [Reason(f"{path} has {free / GIB:.1f} GiB free, {needed / GIB:.0f} GiB are needed: free some")]
    return []


def filesystem(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`, by the text of /proc/self/mounts."""
    rows = [line.split(" ") for line in mounts.splitlines()]
    holding = [(row[1], row[2]) for row in rows if len(row) > 2 and path.is_relative_to(row[1])]  # noqa: PLR2004 - device, point, type
    # Of mounts on one point the last is on top.
    return max(enumerate(holding), key=lambda item: (len(item[1][0]), item[0]), default=(0, ("/", "unknown")))[1][1]


def memory(kind: Kind, meminfo: str) -> list[Reason]:
    """Return whether too little memory is available."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    needed = MEMORY_BYTES[kind]
    if available < needed:
        return [
            Reason(
                f"{available / GIB:.1f} GiB of memory are available, {needed / GIB:.0f} GiB are needed: end something"
            )
        ]
    return []


def node_kernel() -> list[Reason]:
    """Return what the kernel lacks for real containers."""
    overlay = "overlay" in Path("/proc/filesystems").read_text().split()
    missing = [] if overlay else [Reason("the kernel has no overlay file system: modprobe overlay")]
    return [*missing, *cgroups(Path("/sys/fs/cgroup"))]


def cgroups(base: Path) -> list[Reason]:
    """Return the controllers that are missing under `base`."""
    if (base / "cgroup.controllers").exists():
        have: Iterable[str] = (base / "cgroup.controllers").read_text().split()
        needed, remedy = CONTROLLERS_V2, "boot with systemd.unified_cgroup_hierarchy=1 and without cgroup_disable="
    else:
        have = [name for name in CONTROLLERS_V1 if (base / name / "tasks").exists()]
        needed, remedy = CONTROLLERS_V1, "mount them there (cgroupfs-mount), as a privileged container has them"
    missing = [name for name in needed if name not in have]
    return [Reason(f"cgroup controllers {', '.join(missing)} are not under {base}: {remedy}")] if missing else []


def notes() -> list[str]:
    """Return what is worth knowing and stops nothing."""
    cgroup = [UNTESTED_V2] if Path("/sys/fs/cgroup/cgroup.controllers").exists() else []
    return [*cgroup, *(f"for some tests {reason.text}" for reason in tests_lack())]


def install(missing: list[Reason]) -> list[str]:
    """Install by apt-get what it has in a sufficient version; return what it cannot."""
    wanted = {reason.package.name: reason.package for reason in missing if reason.package}
    if not wanted:
        return []
    if any(not _candidate(name) for name in wanted):
        subprocess.run(["apt-get", "update"], check=True, stdout=sys.stderr, timeout=600)
    refused = [text for package in wanted.values() if (text := _too_old(package))]
    good = sorted(name for name, package in wanted.items() if not _too_old(package))
    if good:
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *good]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment, timeout=1800)
    return refused


def _too_old(package: Package) -> str:
    candidate = _candidate(package.name)
    if candidate and candidate >= package.minimum:
        return ""
    has = f"has {_dotted(candidate)}" if candidate else "does not have it"
    least = f", at least {_dotted(package.minimum)} is needed" if package.minimum else ""
    return f"{package.name}: apt {has}{least}: add a newer Debian release to apt"


def _candidate(name: str) -> Version:
    found = re.search(r"^\s*Candidate: (?:\d+:)?(\S+)$", _output("apt-cache", "policy", name), re.MULTILINE)
    if found is None:
        return ()
    whole = re.match(r"\d+", found[1])  # Debian's postgresql is 15+248
    return version_in(found[1]) or ((int(whole[0]),) if whole else ())


def _output(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=30)
    except OSError:
        return ""
    return run.stdout if run.returncode == 0 else ""


def _dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)
