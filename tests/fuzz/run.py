"""``make fuzz-router``: random clients and random engines against the router in this process.

Inputs are numbered and come in batches of one world each; a number and a seed give the same run again. The last line is
JSON. It stops at the first batch in which something is wrong, and prints how to see it again.
"""

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Final

from tests.fuzz import edge, engines
from tests.fuzz.world import World

BATCH: Final = 64
SIDES: Final = ("clients", "engines")


def run_batch(side: str, seed: int, batch: int, size: int = BATCH) -> list[str]:
    """What is wrong in one batch of inputs: nothing, if all is well."""
    pick = random.Random(f"{seed}/{side}/{batch}")  # noqa: S311 - choices that can be repeated
    return play_batch(side, pick, size, batch)


def play_batch(side: str, pick: random.Random, size: int, seed: int) -> list[str]:
    """Play ``size`` inputs in one world."""
    manners = edge.manners(pick) if side == "clients" else engines.manners(pick)
    play = edge.play if side == "clients" else engines.play
    with World(seed, manners) as world:
        done = 0
        while done < size:
            count = min(size - done, pick.choice((1, 2, 4, 6)))
            problems = play(world, pick, [f"n{done + index}" for index in range(count)])
            if problems:
                return problems
            done += count
    return []


def guided(side: str, seconds: int) -> None:
    """Let atheris choose, by the lines of the router that a choice reaches. It never returns."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed here: .venv/bin/python -m pip install atheris")
    for function in _functions("server", "heads", "upstream", "frames", "exchange", "body"):
        atheris.instrument_func(function)

    def one(data: bytes) -> None:
        problems = play_batch(side, Tape(data), 4, 0)
        if problems:
            raise AssertionError("\n".join(problems))

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-len_control=0", "-max_len=2000"], one)
    atheris.Fuzz()


def _functions(*names: str) -> Iterator[FunctionType]:
    """Every function and method of these modules of the router."""
    for name in names:
        module = importlib.import_module(f"fairlead_router.{name}")
        for item in vars(module).values():
            if getattr(item, "__module__", "") != module.__name__:
                continue
            yield from (one for one in (item, *vars(item).values()) if isinstance(one, FunctionType))


class Tape(random.Random):
    """Choices that are read from bytes; after their end, choices that follow from them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data
        self._at = 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        if self._at + size > len(self._data):
            return super().getrandbits(k)
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "big") >> (size * 8 - k)

    def random(self) -> float:
        return self.getrandbits(32) / (1 << 32)


def main() -> None:
    """Run both sides, or what was asked for."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of clients; engines get a tenth of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help="only one side")
    parser.add_argument("--batch", type=int, help="only this batch: what a failure prints")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="let atheris choose, for so long")
    options = parser.parse_args()
    if options.guided:
        guided(options.side or "clients", options.guided)
    report: dict[str, Any] = {"seed": options.seed}
    for side in [options.side] if options.side else SIDES:
        wanted = options.inputs if side == "clients" or options.side else options.inputs // 10
        report[side] = _run_side(side, options.seed, wanted, options.batch)
    sys.stdout.write(json.dumps(report) + "\n")


def _run_side(side: str, seed: int, wanted: int, only: int | None) -> dict[str, float]:
    started, told, used = time.monotonic(), time.monotonic(), time.process_time()
    batches = range(-(-wanted // BATCH)) if only is None else range(only, only + 1)
    for done, batch in enumerate(batches, 1):
        problems = run_batch(side, seed, batch)
        if problems:
            sys.stdout.write("\n".join(problems) + "\n")
            sys.exit(f"again: .venv/bin/python -m tests.fuzz.run --side {side} --seed {seed} --batch {batch}")
        if time.monotonic() - told > 10:
            told = time.monotonic()
            sys.stdout.write(f"{side}: {done * BATCH} inputs, {done * BATCH / (told - started):.0f}/s\n")
            sys.stdout.flush()
    took = time.monotonic() - started
    inputs, cpu = len(batches) * BATCH, time.process_time() - used
    return {"inputs": inputs, "seconds": round(took, 1), "cpu_s": round(cpu, 1), "per_cpu_s": round(inputs / cpu)}


if __name__ == "__main__":
    main()
