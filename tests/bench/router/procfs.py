"""CPU time and memory of process trees, and of all others, from /proc."""

import os
import resource
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Stat:
    """What counts of /proc/PID/stat: the parent, and user plus system time of all threads in ticks."""

    parent: int
    ticks: int


def parse_stat(line: str) -> Stat:
    """Parse /proc/PID/stat; the program's name may hold blanks and parentheses."""
    fields = line.rpartition(")")[2].split()
    return Stat(parent=int(fields[1]), ticks=int(fields[11]) + int(fields[12]))


def busy_ticks(line: str) -> int:
    """The first line of /proc/stat: ticks of all CPUs that were neither idle nor taken by the host."""
    user, nice, system, _idle, _waiting, interrupts, soft = (int(field) for field in line.split()[1:8])
    return user + nice + system + interrupts + soft


def descendants(root: int, parents: dict[int, int]) -> list[int]:
    """A process and all below it; ``parents`` maps each process to its parent."""
    children = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def tree(root: int) -> list[int]:
    """A running process and all below it."""
    stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    return descendants(root, {pid: stat.parent for pid, stat in stats.items() if stat is not None})


def _stat(pid: int) -> Stat | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return None


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that these processes have used."""
    return sum(stat.ticks for pid in pids if (stat := _stat(pid)) is not None) / TICKS


def rss_mb(pids: list[int]) -> float:
    """Resident memory of these processes, in MiB."""
    return sum(_pages(pid) for pid in pids) * PAGE / MIB


def shared_mb(pids: list[int]) -> float:
    """What of that is pages of files, such as a journal that is mapped: the kernel takes them back when it likes."""
    return sum(_pages(pid, 2) for pid in pids) * PAGE / MIB


def _pages(pid: int, field: int = 1) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[field])
    except OSError:
        return 0


def _machine_s() -> float:
    with Path("/proc/stat").open() as lines:
        return busy_ticks(lines.readline()) / TICKS


def _own_s() -> float:
    """This process and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Meter:
    """CPU time since it was made: of the router's tree, of the engines, of the load, and of everybody else."""

    def __init__(self, router: int, engines: list[int]) -> None:
        self._router = tree(router)
        self._engines = [pid for pid in engines if pid not in self._router]
        self._started = time.monotonic()
        self._before = self._read()

    def _read(self) -> tuple[float, float, float, float]:
        return cpu_s(self._router), cpu_s(self._engines), _own_s(), _machine_s()

    def read(self) -> "Used":
        """What was used until now."""
        router, engines, load, machine = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        seconds = time.monotonic() - self._started
        foreign = max(0.0, machine - router - engines - load)
        return Used(seconds, router, load, engines, 100 * foreign / seconds, rss_mb(self._router))


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds in a span of ``seconds``; ``foreign_percent`` of one core went to other processes."""

    seconds: float
    router_s: float
    load_s: float
    engines_s: float
    foreign_percent: float
    router_rss_mb: float
