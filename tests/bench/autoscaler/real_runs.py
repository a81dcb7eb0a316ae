"""Runs that were recorded on a real engine: what its metrics showed and its clients saw, and the same in simulation."""

import heapq
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from fairlead_operator.performance import fit
from fairlead_operator.performance.replica import Replica, Request
from fairlead_operator.performance.step import Engine, StepTime


class Shown(msgspec.Struct, frozen=True):
    """What the engine's metrics showed, and when, in seconds of the run."""

    at: float
    sample: fit.Sample


class Seen(msgspec.Struct, frozen=True):
    """One request as the client saw it: who sent it and when (of its run), lengths and latencies, in seconds."""

    caller: int
    sent: float
    prompt: int
    output: int
    ttft: float
    tpot: float


class Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run: of callers that each send a request when their last one ended, or of arrivals at random.

    ``rate`` is that of the arrivals, 0 for callers; ``fitted``: the step's time is learned of it, and it is not judged.
    """

    callers: int = 0
    rate: float = 0.0
    fitted: bool = False
    shown: tuple[Shown, ...] = ()
    requests: tuple[Seen, ...] = ()

    @property
    def name(self) -> str:
        """For a table."""
        return f"{self.rate:.1f}/s" if self.rate else f"{self.callers} callers"


class Record(msgspec.Struct, frozen=True):
    """All runs of one engine, in the order in which they were made, and its bounds (its step's time is not known)."""

    kv_tokens: int
    token_budget: int
    sequences: int
    runs: tuple[Run, ...]

    def engine(self, step: StepTime) -> Engine:
        """The engine, if its steps take so long."""
        return Engine(step, self.kv_tokens, self.token_budget, self.sequences)


def read(path: Path) -> Record:
    """A record that was kept."""
    return msgspec.json.decode(path.read_bytes(), type=Record)


def write(path: Path, record: Record) -> None:
    """Keep a record."""
    path.write_bytes(msgspec.json.encode(record) + b"\n")


def learned(runs: Iterable[Run]) -> fit.Fit:
    """What the operator would know after the runs that may be learned of."""
    memory = fit.start(None)
    for run in runs:
        for before, after in pairwise(run.shown if run.fitted else ()):
            seconds = after.at - before.at
            shown = fit.round_between(before.sample, after.sample, seconds)
            memory = fit.observe(memory, [] if shown is None else [shown], seconds)
    return fit.fitted(memory)


def replayed(engine: Engine, run: Run, pause: float = 0.0) -> list[Request]:
    """The run's requests in the simulated replica, in the run's order; a caller pauses so long between two."""
    replica, copies = Replica(engine), [Request(at, one.sent, one.prompt, one.output) for at, one in _numbered(run)]
    after = _successors(run) if run.callers else {}
    begin = set(range(len(copies))) - set(after.values())
    sends = [(copies[at].arrival, at) for at in begin]
    heapq.heapify(sends)
    while sends or replica.end < math.inf:
        if sends and sends[0][0] <= replica.end:
            now, at = heapq.heappop(sends)
            replica.advance(now)
            copies[at].arrival = copies[at].released = now
            replica.push(copies[at], now)
        else:
            replica.advance(math.nextafter(replica.end, math.inf))
        for done in replica.finished:
            if done.number in after:
                heapq.heappush(sends, (done.last + pause, after[done.number]))
        replica.finished.clear()
        replica.started.clear()
    return copies


def _numbered(run: Run) -> Iterator[tuple[int, Seen]]:
    return enumerate(run.requests)


def _successors(run: Run) -> dict[int, int]:
    """Of each request the one that its caller sends when it has ended."""
    last: dict[int, int] = {}
    after = {}
    for at, one in _numbered(run):
        if one.caller in last:
            after[last[one.caller]] = at
        last[one.caller] = at
    return after


def beside(engine: Engine, runs: Iterable[Run]) -> float:
    """What clients see beside the steps, in seconds: the median of the fitted runs of the fewest callers.

    Of one caller a request meets no other, so that nothing else is in it.
    """
    fitted = [run for run in runs if run.fitted]
    fewest = min(run.callers for run in fitted)
    rest = [
        one.ttft - copy.ttft
        for run in fitted
        if run.callers == fewest
        for one, copy in zip(run.requests, replayed(engine, run), strict=True)
    ]
    return max(0.0, statistics.median(rest))


@dataclass(frozen=True, slots=True)
class Line:
    """Means of one run in ms, measured and replayed."""

    name: str
    requests: int
    ttft: tuple[float, float]
    tpot: tuple[float, float]

    @property
    def errors(self) -> tuple[float, float]:
        """Relative, of TTFT and TPOT."""
        return abs(self.ttft[1] / self.ttft[0] - 1), abs(self.tpot[1] / self.tpot[0] - 1)


def compared(engine: Engine, run: Run, added: float) -> Line:
    """Measured against replayed."""
    copies, mean = replayed(engine, run, added), statistics.fmean
    return Line(
        run.name,
        len(copies),
        (1e3 * mean(one.ttft for one in run.requests), 1e3 * (added + mean(one.ttft for one in copies))),
        (1e3 * mean(one.tpot for one in run.requests), 1e3 * mean(one.tpot for one in copies)),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """The fit, what clients see beside the steps in seconds, and every run that the fit did not see."""

    fit: fit.Fit
    added: float
    lines: Sequence[Line]

    @property
    def figures(self) -> Mapping[str, float]:
        """Medians over the runs."""
        ttft, tpot = (statistics.median(line.errors[at] for line in self.lines) for at in (0, 1))
        return {
            "median_ttft_error": round(ttft, 3),
            "median_tpot_error": round(tpot, 3),
            "runs": len(self.lines),
            "requests": sum(line.requests for line in self.lines),
        }


def report(record: Record) -> Report:
    """Fit to some of the runs, compare the others.

    Raises:
        ValueError: the fitted runs show too little.
    """
    found = learned(record.runs)
    if found.step is None:
        raise ValueError(found.reason)
    engine = record.engine(found.step)
    added = beside(engine, record.runs)
    return Report(found, added, [compared(engine, run, added) for run in record.runs if not run.fitted])
