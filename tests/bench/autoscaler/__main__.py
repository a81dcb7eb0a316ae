"""The autoscaler beside a clairvoyant schedule and other autoscalers, on recorded demand, in a simulator.

Every case runs once and is kept under a hash of the code and the data that decide it. The last line is one JSON object.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from fairlead_operator.simulate.baselines import BASELINES
from fairlead_operator.simulate.model import Result
from fairlead_operator.simulate.plots import Panel, svg
from fairlead_operator.simulate.report import GOAL, TRACE_CAVEATS, Row, record, row, table
from tests.bench.autoscaler.cases import CLAIRVOYANT, OURS, Case, fluid_hours, origin, reference, result
from tests.bench.autoscaler.scenarios import SCENARIOS

SEEDS: Final = (1, 2, 3)
COLD: Final = (30.0, 120.0, 300.0)
MAIN: Final = ("S1", "S2", "S3")
DEFAULT: Final = ("S1", "S2", "S3", "S8")
SLICED: Final = ("S3", "S8")
SLICED_BASELINES: Final = ("slo-aware", "keda-running")
PERCENT: Final = 100.0


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.autoscaler", description=__doc__)
    parser.add_argument(
        "--scenarios", default="", type=_names(SCENARIOS), help=f"such as S1,S8 (default {','.join(DEFAULT)})"
    )
    parser.add_argument("--seeds", default="", help="such as 1,2 (default 1,2,3)")
    parser.add_argument("--days", default="", help="other days of S1-S3 than the scenario's, such as 1,3")
    parser.add_argument("--cold", default="", help="cold starts of S1-S3 in seconds (default 30,120,300)")
    text = f"all, or some of {','.join(BASELINES)}; on the first seed"
    parser.add_argument("--baselines", default="", type=_names(("all", *BASELINES)), help=text)
    parser.add_argument("--slice", action="store_true", help="two hours of S3, S8, and two baselines")
    parser.add_argument("--plain-router", action="store_true", help="one that sends all requests on to the replicas")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="multiply the rates: a quick look at 0.1")
    parser.add_argument("--plots", type=Path, help="write SVG plots of the first seed into this folder")
    parser.add_argument("--schedule", type=Path, help="write replicas by minute as CSV into this file")
    parser.add_argument("--rows", type=Path, help="write every run as a JSON line into this file")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    return parser.parse_args(arguments)


def _names(known: Iterable[str]) -> Callable[[str], str]:
    """Words with commas between them, all of them known."""

    def checked(text: str) -> str:
        for word in _words(text):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(known)}")
        return text

    return checked


def cases(asked: argparse.Namespace) -> list[Case]:
    """What is to be run, the clairvoyant schedules first."""
    names = _words(asked.scenarios) or (SLICED if asked.slice else DEFAULT)
    seeds = [int(seed) for seed in _words(asked.seeds)] or ([1] if asked.slice else list(SEEDS))
    first = Case("", CLAIRVOYANT, 0.0, seeds[0], None, asked.rate_scale, asked.slice, asked.plain_router)
    found = []
    for name in names:
        for cold in _colds(name, asked):
            for day in map(int, _words(asked.days)) if asked.days else (None,):
                case = replace(first, scenario=name, cold_start=cold, day=day)
                found += [replace(case, policy=policy, seed=seed) for policy in (CLAIRVOYANT, OURS) for seed in seeds]
                found += [replace(case, policy=policy) for policy in _baselines(asked)]
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _colds(name: str, asked: argparse.Namespace) -> list[float]:
    if name not in MAIN:
        return [SCENARIOS[name].cold_start]
    return [float(cold) for cold in _words(asked.cold)] or ([120.0] if asked.slice else list(COLD))


def _baselines(asked: argparse.Namespace) -> tuple[str, ...]:
    if asked.baselines == "all":
        return tuple(BASELINES)
    return _words(asked.baselines) or (SLICED_BASELINES if asked.slice else ())


# --- running


def run_all(wanted: Iterable[Case], workers: int) -> list[tuple[Case, Result]]:
    """Each case's result. The schedules that others begin from come first."""
    ordered = list(wanted)
    firsts = list(dict.fromkeys(origin(case) for case in ordered if case.policy == CLAIRVOYANT))
    rest = [case for case in ordered if case not in firsts]
    with ProcessPoolExecutor(max_workers=workers) as pool:
        found = dict(pool.map(_run, firsts)) | dict(pool.map(_run, rest))
    return [(case, found[case]) for case in ordered]


def _run(case: Case) -> tuple[Case, Result]:
    return case, result(case)


def rows_of(results: Sequence[tuple[Case, Result]]) -> list[Row]:
    """The table's rows, each with the clairvoyant schedule's cost of the same requests where that keeps the goal."""
    schedules = ((case, one) for case, one in results if case.policy == CLAIRVOYANT)
    dollars = {case: one.dollars for case, one in schedules if round(one.attainment, 4) >= GOAL}
    return [
        row(
            label(case),
            case.policy,
            one,
            cold_start=case.cold_start,
            seed=case.seed,
            seconds=case.workload_seconds - case.count_from,
            reference=None if case.policy == CLAIRVOYANT else dollars.get(replace(case, policy=CLAIRVOYANT)),
        )
        for case, one in results
    ]


def label(case: Case) -> str:
    """The scenario, and its day where it is another one."""
    return case.scenario if case.day is None else f"{case.scenario}/day {case.day}"


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """What the last line says of our law: the worst of all seeds and cold starts."""
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(one.scenario for one in rows):
        ours = [one for one in rows if one.scenario == name and one.policy == OURS]
        if not ours:
            continue
        attainment = round(PERCENT * min(one.attainment for one in ours), 3)
        if name == "S8":
            found[name] = {"attainment_percent": attainment, "replicas": round(max(one.replicas for one in ours), 3)}
            continue
        over = [one.over_percent for one in ours]
        worst = None if None in over else round(max(value for value in over if value is not None), 2)
        events = round(max(one.events_per_day for one in ours), 1)
        found[name] = {"attainment_percent": attainment, "over_clairvoyant_percent": worst, "events_per_day": events}
    return found


# --- writing


def write_plots(folder: Path, results: Sequence[tuple[Case, Result]]) -> None:
    """One SVG for each scenario, cold start and policy, of the first seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for case, one in results:
        if case.policy == CLAIRVOYANT or case.seed != results[0][0].seed:
            continue
        schedule = reference(case).result
        panels = (
            Panel("requests/s", {"demand": [minute.arrivals / 60 for minute in one.minutes]}),
            Panel(
                "replicas",
                {
                    "ready": [minute.ready for minute in one.minutes],
                    "wanted": [minute.wanted for minute in one.minutes],
                    "clairvoyant": [minute.ready for minute in schedule.minutes],
                },
            ),
            Panel("requests that missed an objective, per minute", {"missed": [m.missed for m in one.minutes]}),
        )
        title = f"{label(case)}, {case.policy}, cold start {case.cold_start:g} s"
        name = f"{label(case)}-{case.policy}-{case.cold_start:g}.svg".replace("/", "-").replace(" ", "")
        (folder / name).write_text(svg(title, case.workload_seconds, panels), encoding="utf-8")


def write_schedule(path: Path, results: Sequence[tuple[Case, Result]]) -> None:
    """Replicas ready at the end of each minute, a column for each case."""
    names = [f"{label(case)} {case.policy} {case.cold_start:g}s seed {case.seed}" for case, _one in results]
    lines = [",".join(["minute", *names])]
    most = max(len(one.minutes) for _case, one in results)
    for minute in range(most):
        cells = [str(one.minutes[minute].ready) if minute < len(one.minutes) else "" for _case, one in results]
        lines.append(",".join([str(minute), *cells]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run, print, write."""
    asked = options()
    results = run_all(cases(asked), asked.workers)
    rows = rows_of(results)
    print(table(rows))
    for case in dict.fromkeys(replace(case, policy=CLAIRVOYANT, cold_start=0.0, seed=1) for case, _one in results):
        print(f"{label(case)}: fluid bound {fluid_hours(case):.1f} replica-hours (fractions of replicas, no start-up)")
    print(*(f"- {line}" for line in TRACE_CAVEATS), sep="\n")
    if asked.rows:
        asked.rows.write_text("".join(json.dumps(record(one)) + "\n" for one in rows), encoding="utf-8")
    if asked.plots:
        write_plots(asked.plots, results)
    if asked.schedule:
        write_schedule(asked.schedule, results)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
