"""Workloads: when requests arrive, how long they are, and what their prompts share; drawn from rates, or read.

A workload is columns, as a day has millions of requests. Times are seconds from the workload's beginning.
"""

import csv
import gzip
import io
import math
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import msgspec

from fairlead_operator.simulate.model import Workload

MAX_REQUESTS: Final = 20_000_000
MAX_TOKENS: Final = 10_000_000

Window = tuple[float, float, float]
"""From, until (s), and the mean rate between them (requests/s)."""
Lengths = tuple[int, int]
"""Tokens of a prompt and of its output."""


class WorkloadError(ValueError):
    """A file that is no workload. The text says where, and what to give."""


# --- drawn


def poisson(windows: Iterable[Window], rng: random.Random) -> "array[float]":
    """Arrivals of a Poisson process whose rate is constant within each window. A rate of 0 is a window without any."""
    arrivals = array("d")
    append, uniform, log = arrivals.append, rng.random, math.log
    for start, until, rate in windows:
        if rate <= 0.0:
            continue
        mean = -1.0 / rate
        at = start + mean * log(1.0 - uniform())
        while at < until:
            append(at)
            at += mean * log(1.0 - uniform())
    return arrivals


def scaled(windows: Sequence[Window], mean: float) -> list[Window]:
    """The windows with the mean rate given, over the time that they cover."""
    covered = sum(until - start for start, until, _rate in windows)
    total = sum((until - start) * rate for start, until, rate in windows)
    if total <= 0.0:
        raise ValueError("windows without requests have no scale")
    return [(start, until, rate * mean * covered / total) for start, until, rate in windows]


def paired(arrivals: Sequence[float], duration: float, pairs: Sequence[Lengths], rng: random.Random) -> Workload:
    """Arrivals with lengths drawn with replacement."""
    count, uniform = len(pairs), rng.random
    drawn = [pairs[int(uniform() * count)] for _ in arrivals]
    prompts = array("i", [prompt for prompt, _output in drawn])
    return Workload(arrivals, prompts, array("i", [output for _prompt, output in drawn]), duration)


def histogram(bins: Sequence[tuple[int, float]], rng: random.Random) -> Callable[[], int]:
    """Draws from (least length of a bin, weight), even within a bin; the last is as wide as the one before it."""
    edges = [low for low, _weight in bins]
    edges.append(max(edges[-1] + 1, 2 * edges[-1] - edges[-2]) if len(edges) > 1 else edges[0] + 1)
    weights = [weight for _low, weight in bins]
    cumulative = [sum(weights[: at + 1]) for at in range(len(weights))]
    places = range(len(bins))

    def draw() -> int:
        at = rng.choices(places, cum_weights=cumulative)[0]
        return max(1, int(edges[at] + rng.random() * (edges[at + 1] - edges[at])))

    return draw


# --- changed


def between(workload: Workload, since: float, until: float) -> Workload:
    """The requests that arrive in [since, until), their times from ``since`` on."""
    first, last = bisect_left(workload.arrivals, since), bisect_left(workload.arrivals, until)
    return Workload(
        array("d", [at - since for at in workload.arrivals[first:last]]),
        workload.prompt_tokens[first:last],
        workload.output_tokens[first:last],
        until - since,
        None if workload.prefixes is None else workload.prefixes[first:last],
    )


def repeated(workload: Workload, times: int) -> Workload:
    """The same requests again and again, each turn as long as the workload."""
    return Workload(
        array("d", [at + turn * workload.duration for turn in range(times) for at in workload.arrivals]),
        array("i", list(workload.prompt_tokens) * times),
        array("i", list(workload.output_tokens) * times),
        times * workload.duration,
        None if workload.prefixes is None else list(workload.prefixes) * times,
    )


# --- read


@dataclass(frozen=True, slots=True)
class _Columns:
    """The names that a kind of file gives its columns, and how its times are written."""

    arrival: str
    prompt: str
    output: str
    prefix: str
    seconds: Callable[[object], float]


def _number(value: object) -> float:
    """A time in seconds. Raises ValueError."""
    seconds = float(str(value))
    if not 0.0 <= seconds < math.inf:
        raise ValueError
    return seconds


def _milliseconds(value: object) -> float:
    return _number(value) / 1000.0


def _clock(value: object) -> float:
    """A date and time, with or without a fraction of any length. Raises ValueError."""
    whole, _, fraction = str(value).strip().partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


_KINDS: Final = (
    _Columns("arrival_s", "prompt_tokens", "output_tokens", "prefix_id", _number),
    _Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", "", _clock),
    _Columns("timestamp", "input_length", "output_length", "hash_ids", _milliseconds),
)
"""Ours; the Azure traces of 2023 and 2024; Mooncake's."""


def read_workload(path: Path) -> Workload:
    """The workload of a CSV or JSON-lines file, gzipped or not.

    Columns are ``arrival_s,prompt_tokens,output_tokens[,prefix_id]``, or the original ones of the Azure and Mooncake
    traces. ``prefix_id`` is the ids of the prompt's blocks of 512 tokens, separated by blanks. Rows may be in any
    order; times count from the first request. A length of 0 counts as 1, as an engine computes at least one token of
    each. Raises WorkloadError: says the line and what to give.
    """
    try:
        with _opened(path) as file:
            return _sorted(list(_rows(path, file)))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from error


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


_Row = tuple[float, int, int, tuple[int, ...]]


def _rows(path: Path, file: IO[str]) -> Iterator[_Row]:
    """The file's rows. Raises WorkloadError."""
    for number, record in _records(path, file):
        if number > MAX_REQUESTS:
            raise WorkloadError(f"{path}: has more than {MAX_REQUESTS:,} requests: give a part of it")
        kind = next((one for one in _KINDS if one.arrival in record), None)
        if kind is None:
            raise WorkloadError(
                f"{path} line {number}: no column arrival_s: the columns are "
                "arrival_s,prompt_tokens,output_tokens[,prefix_id]; found " + ",".join(map(str, record))[:200]
            )
        yield _row(f"{path} line {number}", kind, record)


def _records(path: Path, file: IO[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Number of line and columns, of CSV with a heading or of JSON objects."""
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        reader = csv.DictReader(file, skipinitialspace=True)
        if reader.fieldnames is None:
            raise WorkloadError(f"{path}: is empty: give a heading arrival_s,prompt_tokens,output_tokens and rows")
        yield from ((reader.line_num, record) for record in reader)
        return
    decoder = msgspec.json.Decoder(dict[str, object])
    for number, line in enumerate(file, start=1):
        try:
            yield number, decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise WorkloadError(f"{path} line {number}: no JSON object: {error}") from error


def _row(where: str, kind: _Columns, record: Mapping[str, object]) -> _Row:
    try:
        arrival = kind.seconds(record[kind.arrival])
    except ValueError as error:
        value = record[kind.arrival]
        raise WorkloadError(f"{where}: {kind.arrival} is {value!r}: give a time of at least 0") from error
    prompt, output = (_tokens(where, name, record.get(name)) for name in (kind.prompt, kind.output))
    return arrival, prompt, output, _prefix(where, kind.prefix, record.get(kind.prefix))


def _tokens(where: str, name: str, value: object) -> int:
    text = str(value).strip()
    if not text.isdecimal() or int(text) > MAX_TOKENS:
        raise WorkloadError(f"{where}: {name} is {value!r}: give a whole number of tokens up to {MAX_TOKENS:,}")
    return max(1, int(text))


def _prefix(where: str, name: str, value: object) -> tuple[int, ...]:
    parts = value if isinstance(value, list) else str(value or "").split()
    try:
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise WorkloadError(f"{where}: {name} is {value!r}: give whole numbers separated by blanks") from error


def _sorted(rows: list[_Row]) -> Workload:
    """In the order of arrival, from the first on; it lasts to the end of the last minute."""
    rows.sort(key=lambda row: row[0])
    arrivals = array("d", [row[0] - rows[0][0] for row in rows])
    return Workload(
        arrivals,
        array("i", [row[1] for row in rows]),
        array("i", [row[2] for row in rows]),
        math.ceil((arrivals[-1] + 1e-6) / 60.0) * 60.0 if rows else 0.0,
        [row[3] for row in rows] if any(row[3] for row in rows) else None,
    )
