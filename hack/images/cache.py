"""What the image, vLLM and model builders share: the cache, keys made of content, one builder at a time, progress."""

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KEY_DIGITS = 12


class BuildError(Exception):
    """A build that stopped: what happened to what, what follows, one remedy."""


def key_of(parts: Iterable[str | bytes | Path]) -> str:
    """A key of the parts in their order; of a path its content counts, of a folder its relative names as well."""
    total = hashlib.sha256()
    for part in parts:
        total.update(_digest(part))
    return total.hexdigest()[:KEY_DIGITS]


def _digest(part: str | bytes | Path) -> bytes:
    if isinstance(part, Path):
        return _digest_folder(part) if part.is_dir() else _digest_file(part)
    return hashlib.sha256(part.encode() if isinstance(part, str) else part).digest()


def _digest_file(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _digest_folder(folder: Path) -> bytes:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + _digest_file(path))
    return total.digest()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second builder, which waits; a builder that dies lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """Give a path to fill, and move it to ``final`` once it is whole; what an interrupted build left goes first."""
    partial = final.with_name(final.name + ".partial")
    remove(partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.rename(final)


def remove(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """Lines on standard error: time since the start, time that a cold build takes, what happens now."""

    subject: str
    expected: int
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print one line."""
        elapsed = time.monotonic() - self.started
        print(f"[{elapsed:4.0f} s of about {self.expected} s] {self.subject}: {text}", file=sys.stderr, flush=True)
