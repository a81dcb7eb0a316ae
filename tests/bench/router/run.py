"""``make bench-router``: our router beside its peers, in interleaved rounds on one core. The last line is JSON.

The router has one CPU for itself; two mock engines (C) and the load share another. Targets are scripts
``NAME.sh PORT ENGINE1 ENGINE2`` (URLs) that exec a router, with extra request headers in ``NAME.headers``. The answers
of every target are checked before it is measured.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.bench.router import install, memory
from tests.bench.router.report import Sample, json_line, words
from tests.bench.router.rows import ROWS, Effort, Row
from tests.bench.router.stage import DIRECT, BenchError, Cpus, Stage, Target

TARGETS: Final = (DIRECT, "nginx", "vllmr-rr", "sglang-rr", "litellm", "fairlead")
QUICK: Final = (DIRECT, "vllmr-rr", "fairlead")
_REST_S: Final = 1.0
_TRIES: Final = 3


def order(targets: Sequence[str], number: int) -> list[str]:
    """The targets' order in a round: each round begins with another one."""
    start = number % len(targets)
    return [*targets[start:], *targets[:start]]


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench-router", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one closed loop; latency and streams take 8")
    parser.add_argument("--targets", type=_names, default=list(TARGETS), help=f"of {','.join(TARGETS)}, or your own")
    parser.add_argument("--rows", type=_names, default=list(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--targets-from", type=Path, help="a folder with targets of your own, which win over ours")
    parser.add_argument(
        "--quick", action="store_true", help=f"one short round of {','.join(QUICK)}: no figures to quote"
    )
    parser.add_argument(
        "--memory",
        type=int,
        nargs="?",
        const=1_000_000,
        default=0,
        metavar="REQUESTS",
        help="also our memory after so many requests (1,000,000) of 10k callers",
    )
    parser.add_argument(
        "--rt",
        type=int,
        default=0,
        metavar="PRIORITY",
        help="router, engines and load under SCHED_RR: others disturb less",
    )
    parser.add_argument(
        "--foreign", type=float, default=8.0, help="measure again above this share of a core for others"
    )
    parser.add_argument("--router-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument(
        "--beside",
        default="",
        metavar="COMMAND",
        help="run beside each row; {pid}, {target} and {row} are replaced: a profiler",
    )
    parser.add_argument("--samples", type=Path, help="append every sample to this file, one JSON object a line")
    given = parser.parse_args(arguments)
    for row in given.rows:
        if row not in ROWS:
            parser.error(f"there is no row {row!r}: choose of {','.join(ROWS)}")
    return _quick(given) if given.quick else given


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _quick(given: argparse.Namespace) -> argparse.Namespace:
    given.rounds, given.seconds = 1, min(given.seconds, 2.0)
    given.targets = [name for name in given.targets if name in QUICK] or given.targets
    return given


def tell(text: str) -> None:
    """How it goes on, beside the report."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def effort(given: argparse.Namespace) -> Effort:
    """How long and how often."""
    return Effort(given.seconds, 3.0, 20) if given.quick else Effort(given.seconds)


def measure(stage: Stage, target: Target, row: str, given: argparse.Namespace) -> Row:
    """One row, again while others use too much of the machine; the quietest try."""
    best: Row | None = None
    for _ in range(1 if given.rt or given.quick else _TRIES):
        found = ROWS[row](stage, target, effort(given))
        stage.drained()
        if best is None or found.foreign_percent < best.foreign_percent:
            best = found
        if best.foreign_percent <= given.foreign:
            break
    if best is None:
        raise BenchError(f"{row}: nothing was measured")
    return best


def one_target(stage: Stage, name: str, number: int, given: argparse.Namespace) -> Iterator[Sample]:
    """Start a target, check it, and measure its rows."""
    with stage.running(name) as target:
        stage.check(target)
        time.sleep(_REST_S)
        for row in given.rows:
            found = measure(stage, target, row, given)
            shown = ", ".join(f"{key} {value:g}" for key, value in found.figures.items())
            others = f"others {found.foreign_percent:.0f} % of a core"
            tell(f"round {number + 1} {name} {row}: {shown}; {others} {found.faults}")
            yield Sample(number + 1, name, row, found.figures, found.foreign_percent)


def bench(stage: Stage, given: argparse.Namespace) -> Iterator[Sample]:
    """All rounds of all targets; one that fails is told and left out."""
    for number in range(given.rounds):
        for name in order(given.targets, number):
            yield from told(one_target(stage, name, number, given), f"round {number + 1} {name}")
    if given.memory:
        yield from told(memory.measure(stage, given.memory), "memory")


def told(samples: Iterator[Sample], what: str) -> Iterator[Sample]:
    """Samples until something fails, which is told."""
    try:
        yield from samples
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        tell(f"{what}: {error}")


def installed(given: argparse.Namespace) -> list[str]:
    """The targets that can run: what they need is installed; what could not be is told."""
    programs = ["gcc", "wrk", "taskset", *(["nginx"] if "nginx" in given.targets else [])]
    install.programs(programs)
    install.engine()
    found = []
    for name in given.targets:
        fault = "" if given.targets_from and (given.targets_from / f"{name}.sh").exists() else install.peer(name)
        if fault:
            tell(f"{name} is left out: it does not install: {fault}")
        else:
            found.append(name)
    return found


def take_machine(given: argparse.Namespace) -> None:
    """Pin this process, which is the load, and what it starts."""
    os.sched_setaffinity(0, {given.load_cpu})
    if given.rt:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(given.rt))


def main() -> None:
    """Measure, print the tables, then one line of JSON."""
    given = options(sys.argv[1:])
    given.targets = installed(given)
    take_machine(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    samples: list[Sample] = []
    folders = [*([given.targets_from.resolve()] if given.targets_from else []), install.HERE, install.HERE / "peers"]
    with TemporaryDirectory(prefix="bench-router-") as work:
        stage = Stage(Path(work), Cpus(given.router_cpu, given.load_cpu), folders, given.beside)
        try:
            for sample in bench(stage, given):
                samples.append(sample)
                keep(given.samples, sample)
        finally:
            stage.close()
    if not samples:
        sys.exit("nothing was measured")
    sys.stdout.write(f"{words(samples)}\n\n{json_line(samples)}\n")


def keep(path: Path | None, sample: Sample) -> None:
    """Append a sample to the file of ``--samples``."""
    if path is not None:
        with path.open("a") as out:
            out.write(json.dumps(asdict(sample)) + "\n")


if __name__ == "__main__":
    main()
