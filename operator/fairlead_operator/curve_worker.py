"""Computes one capacity curve in a process of its own: half a second of pure Python would hold up the operator's loop.

``python -m fairlead_operator.curve_worker`` reads a ``Task`` from its standard input as JSON and writes a ``Result``.
"""

import os
import sys

import msgspec

from fairlead_operator.performance.curve import Curve, curve
from fairlead_operator.performance.step import Engine, Mix, Objectives

NICE = 10
"""The operator itself goes first."""


class Task(msgspec.Struct, frozen=True):
    """The arguments of ``performance.curve.curve``."""

    engine: Engine
    mix: Mix
    objectives: Objectives
    seed: int
    replicas: int


class Result(msgspec.Struct, frozen=True):
    """The curve, or why there is none."""

    curve: Curve | None = None
    error: str = ""


def answer(text: bytes) -> bytes:
    """The encoded result of an encoded task."""
    task = msgspec.json.decode(text, type=Task)
    try:
        found = curve(task.engine, task.mix, task.objectives, task.seed, task.replicas)
    except ValueError as error:
        return msgspec.json.encode(Result(error=str(error)))
    return msgspec.json.encode(Result(curve=found))


def main() -> int:
    """Answer one task."""
    os.nice(NICE)
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
