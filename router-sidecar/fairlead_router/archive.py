"""The folder of a session, and in it its messages as they were sent, for a ledger that lost some.

Messages are kept for an hour or 64 MiB. Who has the folder's lock speaks for the session.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Final

KEEP_S: Final = 3_600
KEEP_BYTES: Final = 64 * 1024 * 1024
FILE_BYTES: Final = 4 * 1024 * 1024
LOG: Final = "log-"
"""Begins the names of a journal's segments."""
LOCK: Final = "lock"
_UNFINISHED: Final = "."
_HEAD: Final = struct.Struct("<IIQ")
"""CRC-32 and length of the message, its number."""
_SEALED: Final = "sealed-"


def make_folder(path: Path) -> int:
    """Make a session's folder and hold its lock, which is given back. It has its name only once it is locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(_UNFINISHED + path.name)
    remove(unfinished)
    unfinished.mkdir(mode=0o700)
    lock = os.open(unfinished / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unfinished.rename(path)
    except OSError:
        os.close(lock)
        raise
    return lock


def take_lock(path: Path) -> int | None:
    """Hold the lock of a session's folder, if its process is gone."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def remove(path: Path) -> None:
    """Remove a session's folder."""
    shutil.rmtree(path, ignore_errors=True)


class Archive:
    """Appends to files of a folder, and reads them again. What cannot be written is not kept: it is a second line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self._size = 0

    def add(self, seq: int, body: bytes) -> None:
        """Keep a message."""
        with contextlib.suppress(OSError):
            if self._fd < 0 or self._size >= FILE_BYTES:
                self._begin(seq)
            record = _HEAD.pack(zlib.crc32(body), len(body), seq) + body
            written = os.write(self._fd, record)
            self._size += written
            if written < len(record):  # nothing after it in this file could be read
                self.close()

    def since(self, seq: int) -> list[tuple[int, bytes]]:
        """The messages from a number on, without a gap; empty if that one is gone. Reads no file that is older."""
        files = [path for path, _, _ in self.files()]
        before = [path for path in files if _first(path) <= seq][:-1]
        found = {number: body for number, body in _read(files[len(before) :]) if number >= seq}
        return [(number, found[number]) for number in takewhile(found.__contains__, count(seq))]

    def last(self) -> tuple[int, bytes] | None:
        """The newest message: the last one of the newest file that holds any."""
        for path, _, _ in reversed(self.files()):
            found = max(_read([path]), default=None)
            if found is not None:
                return found
        return None

    def prune(self) -> None:
        """Let go of what is old or too much; the newest file stays."""
        files = self.files()
        total = sum(size for _, size, _ in files)
        for path, size, changed in files[:-1]:
            if total > KEEP_BYTES or changed < time.time() - KEEP_S:
                path.unlink(missing_ok=True)
                total -= size

    def files(self) -> list[tuple[Path, int, float]]:
        """Path, size and time of the last change of each file, oldest first."""
        found = []
        for path in sorted(self._folder.glob(f"{_SEALED}*")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((path, stat.st_size, stat.st_mtime))
        return found

    def close(self) -> None:
        """Write no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self, seq: int) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._folder / f"{_SEALED}{seq:020d}", flags, 0o600)
        self._size = os.fstat(self._fd).st_size


def _first(path: Path) -> int:
    """The number of the first message of a file, by its name; a name that says none sorts first."""
    number = path.name.removeprefix(_SEALED)
    return int(number) if number.isdecimal() else 0


def _read(files: Iterable[Path]) -> Iterator[tuple[int, bytes]]:
    for path in files:
        with contextlib.suppress(OSError):
            yield from _messages(path.read_bytes())


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEAD.size <= len(data):
        crc, length, seq = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(body) < length or zlib.crc32(body) != crc:
            return
        yield seq, body
        at += _HEAD.size + length
