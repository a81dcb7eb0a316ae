"""Tells the ledger what earlier processes of this pod left in their journals, and closes their sessions.

What a predecessor charged and did not say is said, usage included; the bounds of what was under way stay counted as
unreconciled; the rest comes back. Each message is sealed into the predecessor's own journal before it is sent, so that
a successor may die as well. Journals of closed sessions stay as long as their messages do: a ledger that was restored
from an older copy is told again.
"""

import asyncio
import contextlib
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from fairlead_router.archive import KEEP_BYTES, KEEP_S, LOG, Archive, remove, take_lock
from fairlead_router.contract import SyncRequest
from fairlead_router.lease import CONFLICT, NEVER_TAKEN, OK, Transport, refusal_of
from fairlead_router.records import ACK, ACK_FIELDS, HEAD, SEAL, SEAL_FIELDS, Estate, fold, last_words

log = logging.getLogger(__name__)

_RETRY_S: Final = 2.0
_MOST_RETRY_S: Final = 60.0
_TIDY_S: Final = 60.0
_MAX_REWINDS: Final = 3
_UNFINISHED_S: Final = 60.0
GONE: Final = 410

Next = Literal["Done", "Later", "Forget"]


class Predecessor:
    """A session whose process is gone, by its folder; nobody else speaks for it while ``lock`` is held."""

    def __init__(self, folder: Path, lock: int, log_path: Path, estate: Estate) -> None:
        self.folder = folder
        self.estate = estate
        self.archive = Archive(folder)
        self.due = True
        """To be told: the first time, and again when the ledger was restored."""
        self._lock = lock
        self._log = log_path

    @property
    def finished(self) -> bool:
        """Whether the ledger has heard its last word."""
        return self.estate.closed and not self.estate.outstanding

    @property
    def ended_at(self) -> float:
        """When something was last written, in seconds since the epoch."""
        try:
            return self._log.stat().st_mtime
        except OSError:
            return 0.0

    def seal_last_words(self, boot: str, sent_at: int) -> None:
        """Write down what will be sent."""
        for message in last_words(self.estate, boot, sent_at):
            body = msgspec.json.encode(message)
            self._append(SEAL_FIELDS.pack(SEAL, message.seq) + body)
            self.archive.add(message.seq, body)
            self.estate.outstanding[message.seq] = body
            self.estate.seq = message.seq
        self.estate.closed = True

    def answered(self, seq: int) -> None:
        """The ledger took a message."""
        if seq in self.estate.outstanding:
            self._append(struct.pack(ACK_FIELDS, ACK, seq, 0))
            del self.estate.outstanding[seq]

    def _append(self, payload: bytes) -> None:
        with self._log.open("ab") as file:
            file.write(HEAD.pack(zlib.crc32(payload, len(payload)), len(payload)) + payload)

    def forget(self) -> None:
        """Nothing of it is needed any more."""
        self.release()
        remove(self.folder)

    def release(self) -> None:
        """Leave it to another process."""
        self.archive.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def find(root: Path) -> list[Predecessor]:
    """The sessions in this folder whose processes are gone, oldest first."""
    try:
        folders = sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        log.warning("the journals in %s cannot be read, what they held stays counted: %s", root, error)
        folders = []
    found = [_readable(folder) for folder in folders if not _unfinished(folder)]
    return sorted((left for left in found if left is not None), key=lambda left: left.ended_at)


def _unfinished(folder: Path) -> bool:
    """Whether a process began this folder and got no further."""
    if not folder.name.startswith("."):
        return False
    with contextlib.suppress(OSError):  # it has its name by now
        if folder.stat().st_mtime < time.time() - _UNFINISHED_S:
            remove(folder)
    return True


def _readable(folder: Path) -> Predecessor | None:
    """The session of a folder, unless it cannot be read: then all that it held stays counted."""
    try:
        return _taken(folder)
    except (OSError, msgspec.DecodeError, KeyError, struct.error) as error:
        log.warning("the journal %s cannot be read, what it held stays counted: %s", folder, error)
        return None


def _taken(folder: Path) -> Predecessor | None:
    lock = take_lock(folder)
    if lock is None:
        return None
    kept: Predecessor | None = None
    for path in sorted(folder.glob(f"{LOG}*"), reverse=True):
        estate = fold(path.read_bytes()) if kept is None else None
        if estate is None:
            path.unlink()
            continue
        if estate.torn:
            log.info("the last record in %s was not finished", path)
        os.truncate(path, estate.end)
        kept = Predecessor(folder, lock, path, estate)
    if kept is None:
        os.close(lock)
        remove(folder)
    return kept


@dataclass(slots=True)
class _Talk:
    """What one session has left to say, in order."""

    left: Predecessor
    queue: list[tuple[int, bytes]]
    rewinds: int = 0


class Successor:
    """Speaks for every predecessor found in ``root``. ``boot`` is the kernel's boot_id, ``wall`` UTC in seconds."""

    def __init__(self, root: Path, transport: Transport, boot: str, wall: Callable[[], float]) -> None:
        self._root = root
        self._transport = transport
        self._boot = boot
        self._wall = wall
        self.fault = ""
        """Why the last round left something untold; empty when it did not."""
        self._left: list[Predecessor] = []
        self._wake = asyncio.Event()
        self._pause_s = 0.0

    def unfinished(self) -> int:
        """How many sessions the ledger has not heard the end of."""
        return sum(not left.finished for left in self._left)

    def restored(self) -> None:
        """The ledger's database is another one than before: it is told everything again."""
        for left in self._left:
            left.due = True
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self.find()
            while True:
                self._wake.clear()
                await self.round()
                await self._wait()
        finally:
            self.release()

    async def find(self) -> None:
        """Look what is there."""
        self._left = await asyncio.to_thread(find, self._root)

    def release(self) -> None:
        """Leave what is not told to another process."""
        for left in self._left:
            left.release()

    async def _wait(self) -> None:
        pause = self._pause_s if any(left.due for left in self._left) else _TIDY_S
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return

    async def round(self) -> None:
        """Tell what is due, as far as the ledger listens, and clear away what is old."""
        self._pause_s, self.fault = _RETRY_S, ""
        for left in list(self._left):
            if not left.due:
                continue
            try:
                step = await self._tell(left)
            except OSError as error:
                self.fault, step = str(error), "Later"
            left.due = step == "Later"
            if step == "Forget":
                self._forget(left)
        try:
            await asyncio.to_thread(self._tidy)
        except OSError as error:
            log.warning("old journals in %s could not be removed: %s", self._root, error)

    def _forget(self, left: Predecessor) -> None:
        left.forget()
        self._left.remove(left)

    async def _tell(self, left: Predecessor) -> Next:
        if not left.estate.closed:
            left.seal_last_words(self._boot, int(self._wall() * 1000))
        talk = _Talk(left, sorted(left.estate.outstanding.items()))
        if not talk.queue:
            last = left.archive.last()
            if last is None:
                return "Forget"
            talk.queue.append(last)
        while talk.queue:
            seq, body = talk.queue[0]
            status, answer = await self._transport.sync(_replayed(body, rewind=talk.rewinds > 0))
            step = self._heard(talk, seq, status, answer)
            if step != "Done":
                return step
        return "Done"

    def _heard(self, talk: _Talk, seq: int, status: int, answer: bytes) -> Next:
        left = talk.left
        if status == OK:
            talk.queue.pop(0)
            left.answered(seq)
            return "Done"
        refusal = refusal_of(answer)
        if status == CONFLICT:
            return self._rewind(talk, refusal.expected)
        if status == GONE and left.estate.closed and len(talk.queue) == 1:
            talk.queue.clear()  # it is the last word, which was heard before
            left.answered(seq)
            return "Done"
        if status in NEVER_TAKEN:
            log.warning("the ledger refused to hear of session %s: %d %s", left.estate.session, status, refusal.reason)
            return "Forget"
        self.fault = f"it answers {status} {refusal.reason}".rstrip()
        self._pause_s = min(_MOST_RETRY_S, max(self._pause_s, refusal.retry_after_ms / 1000))
        return "Later"

    @staticmethod
    def _rewind(talk: _Talk, expected: int) -> Next:
        """The ledger lost what came after ``expected``; what was not kept stays counted there."""
        again = talk.left.archive.since(expected)
        talk.rewinds += 1
        if not again or talk.rewinds > _MAX_REWINDS:
            log.warning("session %s cannot be told again from message %d", talk.left.estate.session, expected)
            return "Forget"
        talk.queue = again
        return "Done"

    def _tidy(self) -> None:
        """Bound what is kept of finished sessions, by age and by size."""
        oldest = time.time() - KEEP_S
        for left in [left for left in self._left if left.finished and not left.due and left.ended_at < oldest]:
            self._forget(left)
        files = sorted((file for left in self._left for file in left.archive.files()), key=lambda file: file[2])
        total = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if total <= KEEP_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= size


def _replayed(body: bytes, *, rewind: bool) -> bytes:
    """A message as a successor sends it: it is granted nothing. Its asks say what the accounts are that it names."""
    message = msgspec.json.decode(body, type=SyncRequest)
    return msgspec.json.encode(msgspec.structs.replace(message, replay=True, rewind=rewind or message.rewind))
