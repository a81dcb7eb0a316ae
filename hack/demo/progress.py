"""One line for each step of the demo: its name, what it does, how long it took; the log keeps the rest."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

TAIL_LINES = 20
CLEAR = "\r\033[K"
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
    _words: str = ""
    _started: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step; the function given to the body sets what its line says."""
        self.number += 1
        self.name, self._words, self._started = name, "…", time.monotonic()
        over = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(over,), daemon=True)
        ticker.start()
        try:
            yield self._say
        finally:
            over.set()
            ticker.join()
        print(f"{CLEAR if sys.stdout.isatty() else ''}{self._line()}", flush=True)

    def _say(self, words: str) -> None:
        self._words = words

    def _tick(self, over: threading.Event) -> None:
        """Rewrite the step's line each second on a terminal; elsewhere print it once a minute."""
        terminal = sys.stdout.isatty()
        while not over.wait(1 if terminal else 60):
            print(f"{CLEAR if terminal else ''}{self._line()}", end="" if terminal else "\n", flush=True)

    def _line(self) -> str:
        """Number, name, what is being done and for how long."""
        elapsed = clock(time.monotonic() - self._started)
        return f"{self.number}/{self.total} {self.name:<12} {self._words:<100} {elapsed:>7}"

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
