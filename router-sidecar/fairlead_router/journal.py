"""The journal of one session: what a process that is killed leaves to the one after it.

Records are stored into a shared mapping of a file whose blocks are allocated: a store needs no system call, and
survives the process. What they mean is in ``records``. Every fact is recorded after it was done and before anybody
outside can know of it. When a segment is full, the next one begins with a snapshot of everything, and the old one goes;
so whatever was to be recorded then is in the snapshot.
"""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from mmap import ACCESS_WRITE, mmap
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from fairlead_router.archive import LOG, Archive, make_folder, remove
from fairlead_router.budget import Reservation
from fairlead_router.exposition import Metric
from fairlead_router.metering import Row, Spent
from fairlead_router.records import (
    ACK,
    ACK_FIELDS,
    DIM,
    DIM_FIELDS,
    HEAD,
    MAGIC,
    OPEN,
    OPEN_FIELDS,
    SEAL,
    SEAL_FIELDS,
    SETTLE,
    SETTLE_FIELDS,
    SNAPSHOT,
    Snapshot,
)

SEGMENT: Final = 16 * 1024 * 1024
"""Bytes: about 60,000 requests under three budgets."""
_HEAD: Final = 8

OPEN_ENTRIES: Final = Metric("fairlead_journal_open_entries", "gauge", "Reservations that are not settled yet.")
STATE: Final = Metric(
    "fairlead_journal_state",
    "gauge",
    "1 for what applies: on, off (no folder for it), full (no room: enforced budgets refuse).",
    ("state",),
)
LEFT: Final = Metric("fairlead_journal_predecessors", "gauge", "Sessions of earlier processes not told to the end.")
SWEPT: Final = Metric(
    "fairlead_reservations_swept_total", "counter", "Reservations that nobody settled, charged at their bound: a bug."
)
METRICS: Final = (OPEN_ENTRIES, STATE, LEFT, SWEPT)

_dims: Final = count(1)
"""Numbers of dimensions: no row is taken for another journal's."""
_opens: Final[dict[int, struct.Struct]] = {}
_settles: Final[dict[int, struct.Struct]] = {}


class Segment:
    """A file that is mapped; its blocks are allocated, so that no store can fail."""

    __slots__ = ("_fd", "map", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._fd, 0, size)
            self.map = mmap(self._fd, size, access=ACCESS_WRITE)
        except OSError:
            os.close(self._fd)
            path.unlink()
            raise

    def flush(self) -> None:
        """Write it to the disk, for the case that the machine goes down. Other threads go on meanwhile."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of it."""
        self.map.close()
        os.close(self._fd)


class Journal:
    """Records what a session does. ``snapshot`` tells everything that counts now; asked at the start and when full.

    ``full``: there is no room for another record, so nothing may be done that must be recorded. ``fault``: what the
    system last said against writing it; empty when all is well. The event loop owns it; ``flush`` alone runs in another
    thread.
    """

    def __init__(self, root: Path, session: str, snapshot: Callable[[], Snapshot], size: int = SEGMENT) -> None:
        self._folder = root / session
        self.archive = Archive(self._folder)
        self.full = True
        self.fault = ""
        self._closed = False
        self._lock = -1
        self._snapshot = snapshot
        self._size = size
        self._segment: Segment | None = None
        self._spare: Segment | None = None
        self._old: list[Segment] = []
        self._numbers = count(1)
        self._first_dim = 0
        """Dimensions before this one are not defined in this segment."""
        self._at = 0
        self._end = 0
        self._map: mmap | None = None
        self.renew()

    # --- records ---

    def opened(self, reservation: Reservation) -> None:
        """A request reserved, or raised what it reserved."""
        values = [OPEN, reservation.number, 0]
        for piece in reservation.pieces:
            holding, amount = piece.holding, piece.amount
            if holding is not None and amount and not holding.lost:
                values += (holding.key, amount)
        pieces = (len(values) - 3) >> 1
        if pieces:
            values[2] = pieces
            form = _opens.get(pieces)
            form = form if form is not None else _form(_opens, OPEN_FIELDS, "qq", pieces)
            self._store(form.pack(*values))

    def settled(
        self, reservation: Reservation | None, charges: Sequence[int], row: Row | None, at_ms: int, spent: Spent | None
    ) -> None:
        """A request was charged; ``row`` and ``spent`` say what it used, for the reports."""
        number = reservation.number if reservation is not None else 0
        if row is None or spent is None:
            values = [SETTLE, number, 0, at_ms, 0, 0, 0, 0, 0]
        else:
            mark = row.mark
            if mark < self._first_dim:
                mark = self._defined(row)
                if not mark:
                    return
            values = [SETTLE, number, 0, at_ms, mark, spent.prompt, spent.cached, spent.output, spent.nano_usd]
        if reservation is not None:
            index = 0
            for piece in reservation.pieces:
                holding = piece.holding
                if holding is not None and not holding.lost:
                    values += (holding.key, charges[index], piece.unbacked)
                index += 1  # noqa: SIM113 - enumerate makes a tuple of each
        pieces = values[2] = (len(values) - 9) // 3
        form = _settles.get(pieces)
        form = form if form is not None else _form(_settles, SETTLE_FIELDS, "qqq", pieces)
        self._store(form.pack(*values))

    def sealed(self, seq: int, body: bytes) -> None:
        """A message is about to be sent."""
        self.archive.add(seq, body)
        self._store(SEAL_FIELDS.pack(SEAL, seq) + body)

    def acked(self, seq: int, grants: Iterable[tuple[int, int]]) -> None:
        """The ledger answered a message, and granted so much by key in all."""
        values = [value for pair in grants for value in pair]
        form = f"{ACK_FIELDS}{len(values)}q"
        self._store(struct.pack(form, ACK, seq, len(values) // 2, *values))

    def _defined(self, row: Row) -> int:
        """Define a dimension in this segment; 0 if another segment began instead, which knows all of it."""
        segment, number = self._segment, next(_dims)
        self._store(DIM_FIELDS.pack(DIM, number) + msgspec.msgpack.encode(row.identity()))
        if self._segment is not segment or segment is None:
            return 0
        row.mark = number
        return number

    def _store(self, payload: bytes) -> None:
        at, size = self._at, len(payload)
        end = at + _HEAD + size
        place = self._map
        if end > self._end or place is None:
            if not self.full:
                self.renew()
            return
        place[at:end] = HEAD.pack(crc32(payload, size), size) + payload
        self._at = end

    # --- segments ---

    def renew(self) -> None:
        """Go on in a new segment, if there is room for one."""
        payload = bytes((SNAPSHOT,)) + msgspec.msgpack.encode(self._snapshot())
        segment = self._next(len(payload) + len(MAGIC) + _HEAD)
        self.full = segment is None
        if segment is None:
            self._end = 0
            return
        old, self._segment = self._segment, segment
        self._map = segment.map
        self._at, self._end = len(MAGIC), segment.size
        self._first_dim = next(_dims)
        segment.map[: len(MAGIC)] = MAGIC
        self._store(payload)
        if old is not None:
            old.path.unlink()
            self._old.append(old)

    def _next(self, least: int) -> Segment | None:
        spare = self._spare
        if spare is not None and spare.size >= 2 * least:
            self._spare = None
            return spare
        return self._made(max(self._size, 2 * least))

    def _made(self, size: int) -> Segment | None:
        try:
            if self._lock < 0:
                self._lock = make_folder(self._folder)
            made = Segment(self._folder / f"{LOG}{next(self._numbers):06d}", size)
        except OSError as error:
            self.fault = str(error)
            return None
        self.fault = ""
        return made

    def flush(self) -> None:
        """Once a second, in a thread: write to the disk, have the next segment ready, clear away."""
        try:
            self._flush()
        except OSError as error:
            self.fault = str(error)

    def _flush(self) -> None:
        segment = self._segment
        if self._closed:
            return
        if segment is not None:
            segment.flush()
            self.fault = ""
        if self._closed:  # meanwhile
            return
        while self._old:
            self._old.pop().close()
        if self._spare is None and (self.full or self._at > self._end // 2):
            self._spare = self._made(self._size)
        self.archive.prune()

    def close(self) -> None:
        """Stop recording; what was recorded stays."""
        self._closed = True
        self._map = None
        self.full, self._end = True, 0
        if self._spare is not None:
            self._old.append(self._spare)
            self._spare.path.unlink()
        if self._segment is not None:
            self._old.append(self._segment)
        self._spare = self._segment = None
        while self._old:
            self._old.pop().close()
        self.archive.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def discard(self) -> None:
        """The session is over, and nobody will ask for it."""
        self.close()
        remove(self._folder)


def _form(forms: dict[int, struct.Struct], fields: str, piece: str, pieces: int) -> struct.Struct:
    """The layout of a record with so many pieces."""
    form = forms[pieces] = struct.Struct(fields + piece * pieces)
    return form
