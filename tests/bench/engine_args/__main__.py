"""The engine table against vLLM itself: what is rendered is taken, what is wrong is refused by us first.

``python -m tests.bench.engine_args [--small]``. Needs vLLM's CPU build (fetched once, 3 GB) and the modules of the next
version (340 MB). vLLM's parser sees each line as it is rendered. Its configuration is then made with a folder that
holds a small model's config in the place of the model; it takes the platform for a CPU, so that compute capabilities
are checked by the table's own figures only. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fairlead_operator.decide.engine_table.versions import KNOWN
from fairlead_operator.decide.problems import errors
from fairlead_operator.render.engine_args import engine_problems
from hack.images.cache import BuildError
from hack.models.__main__ import make
from tests.bench.engine_args.bad import Bad, bad
from tests.bench.engine_args.good import Case, cases, refused_pairs
from tests.bench.engine_args.judge import Folders, faults, line

SHOWN = 10


def main(arguments: list[str] | None = None) -> int:
    """Run both halves; 1 if a rendered line is refused, or a wrong pool is not."""
    parser = argparse.ArgumentParser(prog="tests.bench.engine_args", description=__doc__)
    parser.add_argument("--small", action="store_true", help="leave out the combinations with number formats")
    small = parser.parse_args(arguments).small
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            folders = Folders(root / "models", make() / "tiny")
            figures: dict[str, Any] = {"rendered": rendered(folders, root, small=small), "wrong": wrong(folders, root)}
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    figures["seconds"] = round(time.monotonic() - started)
    print(json.dumps(figures))
    return 1 if figures["rendered"]["refused"] or figures["wrong"]["failures"] else 0


def rendered(folders: Folders, cache: Path, *, small: bool) -> dict[str, Any]:
    """Every two settings that go together, rendered and shown to vLLM."""
    every = list(cases(small=small))
    totals: dict[str, Any] = {"lines": len(every), "configured": 0, "refused": 0, "by_version": {}}
    for version in KNOWN:
        found = [case for case in every if case.version == version]
        lines = [line(case.pool, folders) for case in found]
        said = faults(version, lines, cache)
        refused = [(case, words) for case, words in zip(found, said, strict=True) if words]
        configured = sum(one.model is not None for one in lines)
        print(f"vLLM {version}: {len(lines)} lines parsed, {configured} of them configured, {len(refused)} refused")
        for case, words in refused[:SHOWN]:
            print(f"  {_shown(case)}: {words}")
        totals["configured"] += configured
        totals["refused"] += len(refused)
        totals["by_version"][version] = len(lines)
    if not small:
        totals["pairs_that_exclude_each_other"] = sum(1 for _ in refused_pairs())
        print(f"pairs of settings that we refuse: {totals['pairs_that_exclude_each_other']}")
    return totals


def wrong(folders: Folders, cache: Path) -> dict[str, Any]:
    """Pools that must be refused, and what vLLM does with those of them that it can judge."""
    every = list(bad())
    failures = [f"{one.title}: {message!r}" for one in every if one.words not in (message := refusal(one))]
    for version in KNOWN:
        failures += misjudged([one for one in every if one.version == version], version, folders, cache)
    for failure in failures:
        print(f"  {failure}")
    does = Counter(one.does for one in every)
    print(
        f"wrong pools: {len(every)}, refused by us with the reason: {len(every) - len(failures)}. vLLM refuses "
        f"{does['refuses']} of them too, takes {does['takes']} and misbehaves, cannot say of {does['cannot say']}"
    )
    return {"pools": len(every), "failures": len(failures), "vllm": dict(does)}


def refusal(one: Bad) -> str:
    """Our errors, in one text."""
    return " ".join(problem.message for problem in errors(engine_problems(one.pool.spec, one.pool.name)))


def misjudged(found: list[Bad], version: str, folders: Folders, cache: Path) -> list[str]:
    """Those of which vLLM does not do what is said here."""
    judged = [one for one in found if one.does != "cannot say"]
    said = faults(version, [line(one.pool, folders) for one in judged], cache)
    return [
        f"{one.title}: vLLM {version} {'says ' + words if words else 'takes it'}"
        for one, words in zip(judged, said, strict=True)
        if (one.does == "refuses") != bool(words)
    ]


def _shown(case: Case) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.chosen.items() if value not in {"none", "1", "unknown"})


if __name__ == "__main__":
    sys.exit(main())
