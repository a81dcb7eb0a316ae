"""Break one rule of the budget protocol at a time, and see that the tests notice.

usage: python -m tests.mutants.run [NAME ...] [--jobs N] [--limit SECONDS]

Each mutant is one replacement in a copy of the sources; the tests named with it run on that copy and must fail. A
mutant that survives is a rule that no test holds. The last line is one JSON object.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("operator", "router-sidecar")
LINKED = ("tests", "hack", "charts", "crds", "docs", "examples", "pyproject.toml")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
TESTS_FAILED = 1
"""pytest's exit status; any other one but 0 says that the run itself went wrong."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. ``by``: the test that noticed it; ``fault``: why nothing can be said."""

    name: str
    by: str = ""
    fault: str = ""
    seconds: float = 0.0


def mutated(text: str, mutant: Mutant) -> str:
    """The source with the rule broken. Raises ValueError unless the passage is there exactly once."""
    found = text.count(mutant.find)
    if found != 1:
        raise ValueError(f"{mutant.path} has its passage {found} times: bring tests/mutants/mutants.py up to date")
    return text.replace(mutant.find, mutant.put)


def judge(mutant: Mutant, limit_s: float) -> Verdict:
    """Run a mutant's tests on a copy of the sources."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        try:
            copy_sources(Path(folder), mutant)
        except ValueError as error:
            return Verdict(mutant.name, fault=str(error))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", *mutant.tests]
        environment = os.environ | {"FAIRLEAD_MUTANT": mutant.name}
        try:
            run = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return Verdict(mutant.name, fault=f"its tests took more than {limit_s:.0f} s")
    seconds = time.monotonic() - began
    if run.returncode == 0:
        return Verdict(mutant.name, seconds=seconds)
    found = FAILED.search(run.stdout)
    if run.returncode != TESTS_FAILED or found is None:
        return Verdict(mutant.name, fault=f"pytest ended with {run.returncode}: {run.stdout[-500:]}{run.stderr[-500:]}")
    return Verdict(mutant.name, by=found[1].rpartition("::")[2], seconds=seconds)


def copy_sources(folder: Path, mutant: Mutant) -> None:
    """The repository, with one passage replaced."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    target = folder / mutant.path
    target.write_text(mutated(target.read_text(encoding="utf-8"), mutant), encoding="utf-8")


def chosen(names: Sequence[str]) -> list[Mutant]:
    """The mutants asked for; all without names. Raises ValueError for a name that there is not."""
    unknown = sorted(set(names) - {mutant.name for mutant in MUTANTS})
    if unknown:
        raise ValueError(f"there is no mutant {unknown[0]!r}; there are: {', '.join(one.name for one in MUTANTS)}")
    return [mutant for mutant in MUTANTS if not names or mutant.name in names]


def told(verdict: Verdict) -> str:
    """A line of the table."""
    end = f"killed by {verdict.by}" if verdict.by else verdict.fault or "SURVIVED"
    return f"{verdict.name:36} {verdict.seconds:6.1f} s  {end}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the mutants; 1 if one survives or cannot be judged."""
    parser = argparse.ArgumentParser(description="Break the budget protocol's rules one at a time.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to judge; all without one")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a mutant's tests may take")
    options = parser.parse_args(arguments)
    try:
        mutants = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(lambda mutant: judge(mutant, options.limit), mutants):
            print(told(verdict), flush=True)
            verdicts.append(verdict)
    survivors = [verdict.name for verdict in verdicts if not verdict.by]
    print(json.dumps({"mutants": len(verdicts), "killed": len(verdicts) - len(survivors), "survivors": survivors}))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
