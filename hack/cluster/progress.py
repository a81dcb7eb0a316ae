"""Show that a long job lives: one rewritten line on a terminal, a line every 30 seconds elsewhere."""

import subprocess
import sys
import time

EVERY_S = 30.0


def say(text: str) -> None:
    """Write one line for the person who waits; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)


def line(what: str, elapsed_s: float, expected_s: float) -> str:
    """Return the progress line."""
    return f"{what}: {clock(elapsed_s)} of at most about {clock(expected_s)} (less with warm caches)"


def clock(seconds: float) -> str:
    """Return m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def watch(process: subprocess.Popen[bytes], what: str, expected_s: float) -> int:
    """Wait for `process`, showing its progress, and return its status; an interrupt ends the process."""
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    try:
        _show(what, 0.0, expected_s, terminal=terminal)
        while (code := _wait(process, 1.0 if terminal else EVERY_S)) is None:
            _show(what, time.monotonic() - started, expected_s, terminal=terminal)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    say(f"{chr(10) if terminal else ''}{what}: ended after {clock(time.monotonic() - started)}")
    return code


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _show(what: str, elapsed_s: float, expected_s: float, *, terminal: bool) -> None:
    text = line(what, elapsed_s, expected_s)
    print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
