"""One line for each step of the demo: its name, what it does, how long it took; the log keeps the rest."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

TAIL_LINES = 20
T = TypeVar("T")


class DemoError(Exception):
    """A step that did not do what it should; the text says what was seen and what to look at."""


def clock(seconds: float) -> str:
    """A duration as people read it: ``8s``, ``2m05s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


@dataclass
class Progress:
    """Prints the steps and runs their commands, whose output goes to the log."""

    log_path: Path
    total: int
    number: int = 0
    name: str = ""
    began: float = field(default_factory=time.monotonic)
    times: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step; the function given to the body sets what its line says."""
        self.number += 1
        self.name = name
        started = time.monotonic()
        text = ""

        def say(words: str) -> None:
            nonlocal text
            text = words
            if sys.stdout.isatty():
                print(f"\r\033[K{self._line(words)}", end="", flush=True)

        say("…")
        yield say
        self.times[name] = time.monotonic() - started
        end = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{end}{self._line(text):<92} {clock(self.times[name]):>7}", flush=True)

    def _line(self, words: str) -> str:
        return f"{self.number}/{self.total} {self.name:<12} {words}"

    def run(self, command: Sequence[str], *, timeout: float, stdin: str | None = None) -> str:
        """Run a program; its output goes to the log, standard output is also returned.

        Raises:
            DemoError: it ended with another status than 0, or not in time; with the last lines of the log.
        """
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            return self._run(command, timeout, stdin, log)

    def _run(self, command: Sequence[str], timeout: float, stdin: str | None, log: IO[str]) -> str:
        try:
            done = subprocess.run(
                command, input=stdin, stdout=subprocess.PIPE, stderr=log, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{' '.join(command)} did not end within {clock(timeout)}.\n{self.tail()}") from error
        log.write(done.stdout)
        log.flush()
        if done.returncode:
            raise DemoError(f"{' '.join(command)} ended with status {done.returncode}.\n{self.tail()}")
        return done.stdout

    def tail(self) -> str:
        """The last lines of the log, and where it is."""
        lines = self.log_path.read_text(encoding="utf-8").splitlines()[-TAIL_LINES:]
        return "\n".join(["  " + line[:200] for line in lines] + [f"log: {self.log_path}"])


def wait_for(what: str, ready: Callable[[], T | None], *, seconds: float, every: float = 1.0) -> T:
    """Call ``ready`` until it returns something true.

    Raises:
        DemoError: it never did within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := ready():
            return result
        time.sleep(every)
    raise DemoError(f"{what}: not seen within {clock(seconds)}.")
