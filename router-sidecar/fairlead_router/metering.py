"""What a request used: the usage that the engine reports, found in its answer; usage lines for the ledger.

A stream is not parsed. Its events are looked at only for what matters: usage, the end, and an engine that gave up.
Events pass whole, so one that is ours to change or drop never left before it was complete.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from fairlead_router.contract import BUCKET_MS, OTHER, Attempt, Basis, UsageLine, cost_bin
from fairlead_router.structs import Frozen
from fairlead_router.usage import Reader, Usage, merge

MAX_EVENT: Final = 4 * 1024 * 1024
"""An event longer than this passes in pieces: it carries logprobs, not usage."""
MAX_ROWS: Final = 4_000
MAX_ENDED: Final = 1_000
"""Lines of quarter hours that ended before they were told; with more, a row goes on counting in its own."""
_END: Final = b"\n\n"

Note = Callable[[Usage | None, bool], bytes]


class StreamMeter:
    """Follows one event stream. ``note`` gives the words about the cost, once the usage is known.

    ``note(usage, True)`` is the JSON member to add to the usage chunk that the client asked for, ``note(usage, False)``
    the comment line to put before the end otherwise.
    """

    __slots__ = ("_asked", "_note", "_reader", "_rest", "_said", "_signs", "aborted", "done", "events", "usage")

    def __init__(self, reader: Reader, note: Note, *, asked: bool) -> None:
        self._reader = reader
        self._signs = reader.signs
        self._note = note
        self._asked = asked
        self._rest = b""
        self._said = False
        self.usage: Usage | None = None
        self.events = 0
        self.done = False
        self.aborted = False

    def passes(self, frames: bytes) -> bool:
        """Whether chunks, each of which ends with an event, may pass unseen; counts their events if so."""
        if self._rest:
            return False
        for sign in self._signs:
            if frames.find(sign) >= 0:  # "in" first tries whether it is a number, which costs an exception
                return False
        self.events += frames.count(_END)
        return True

    def feed(self, data: bytes) -> bytes:
        """What to pass on of these bytes, which have no framing; the rest of an unfinished event is kept."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not data.endswith(_END):
            cut = data.rfind(_END) + len(_END)
            if cut < len(_END):
                cut = 0
            if len(data) - cut > MAX_EVENT:
                cut = len(data)
            self._rest = data[cut:]
            data = data[:cut]
        plain = self._plain(data)
        self.events += data.count(_END, 0, plain)
        if plain == len(data):
            return data
        return data[:plain] + b"".join([self._event(event) for event in data[plain:].split(_END)[:-1]])

    def flush(self) -> bytes:
        """The unfinished rest, at the end of the stream."""
        rest, self._rest = self._rest, b""
        return rest

    def _plain(self, data: bytes) -> int:
        """How many of these bytes are whole events that need no look: those before the first sign of one that does.

        Text can look like such a sign; then its event is parsed for nothing.
        """
        found = [at for sign in self._signs if (at := data.find(sign)) >= 0]
        if not found:
            return len(data)
        end = data.rfind(_END, 0, min(found))
        return 0 if end < 0 else end + len(_END)

    def _event(self, event: bytes) -> bytes:
        whole = event + _END
        reading = self._reader.event(event)
        if reading is None:
            self.events += 1
            return whole
        self.events += reading.output
        self.aborted = self.aborted or reading.aborted
        if reading.usage is not None:
            self.usage = merge(self.usage, reading.usage)
        if reading.final:
            self.done = True
            return self._comment() + whole
        return self._usage_chunk(whole) if reading.usage_only else whole

    def _comment(self) -> bytes:
        if self._said:
            return b""
        self._said = True
        return self._note(self.usage, False)

    def _usage_chunk(self, whole: bytes) -> bytes:
        if not self._asked:
            return b""
        self._said = True
        cut = whole.rfind(b"}")
        return whole[:cut] + b"," + self._note(self.usage, True) + whole[cut:]


class Dimension(Frozen, frozen=True):
    """Everything that usage is counted by."""

    namespace: str
    caller: str
    feature: str
    model: str
    pool: str
    variant: str
    route: str
    basis: Basis
    card: int
    attempt: Attempt = "Primary"


class Spent(Frozen, frozen=True):
    """What one request used, and what that costs. ``prompt`` counts all prompt tokens, cached or not."""

    prompt: int
    cached: int
    output: int
    nano_usd: int


class Row:
    """What was used of one dimension since the last message to the ledger. Whoever settles often keeps its row."""

    __slots__ = ("bins", "bucket", "cached", "dimension", "mark", "nano_usd", "output", "prompt", "requests")

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        self.bucket = 0
        self.mark = 0
        """The journal's number for the dimension."""
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.requests = self.prompt = self.cached = self.output = self.nano_usd = 0
        self.bins: dict[int, int] = {}

    def identity(self) -> UsageLine:
        """A line that names the dimension and counts nothing."""
        dimension = self.dimension
        return UsageLine(
            bucket=0,
            namespace=dimension.namespace,
            caller=dimension.caller,
            feature=dimension.feature,
            model=dimension.model,
            pool=dimension.pool,
            variant=dimension.variant,
            route=dimension.route,
            attempt=dimension.attempt,
            basis=dimension.basis,
            card=dimension.card,
        )

    def line(self) -> UsageLine:
        """The row as it is told to the ledger."""
        return msgspec.structs.replace(
            self.identity(),
            bucket=self.bucket,
            requests=self.requests,
            prompt=self.prompt,
            cached=self.cached,
            output=self.output,
            nano_usd=self.nano_usd,
            bins={str(index): count for index, count in self.bins.items()},
        )


class UsageBook:
    """Usage since the last message to the ledger, by dimension; bounded, the rest without caller and feature."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._folded: dict[Dimension, Row] = {}
        self._lines: list[UsageLine] = []

    def add(self, row: Row, at_ms: int, spent: Spent) -> None:
        """Count one settled request."""
        if not row.requests or at_ms - row.bucket >= BUCKET_MS:
            row = self._begun(row, at_ms)
        row.requests += 1
        row.prompt += spent.prompt
        row.cached += spent.cached
        row.output += spent.output
        row.nano_usd += spent.nano_usd
        index = cost_bin(spent.nano_usd)
        row.bins[index] = row.bins.get(index, 0) + 1

    def _begun(self, row: Row, at_ms: int) -> Row:
        """The row to count in, which has nothing of another quarter of an hour."""
        if not row.requests and len(self._rows) >= MAX_ROWS:
            folded = _folded(row.dimension)
            row = self._folded.setdefault(folded, Row(folded))
        bucket = at_ms - at_ms % BUCKET_MS
        if not row.requests:
            self._rows.append(row)
        elif row.bucket == bucket or len(self._lines) >= MAX_ENDED:
            return row
        else:
            self._lines.append(row.line())
            row.clear()
        row.bucket = bucket
        return row

    def lines(self) -> tuple[UsageLine, ...]:
        """What the next ``take`` gives, as far as there is something now."""
        return (*self._lines, *(row.line() for row in self._rows))

    def take(self) -> tuple[UsageLine, ...]:
        """The lines since the last call."""
        rows, self._rows = self._rows, []
        lines, self._lines = self._lines, []
        for row in rows:
            lines.append(row.line())
            row.clear()
        self._folded.clear()
        return tuple(lines)


def _folded(dimension: Dimension) -> Dimension:
    return msgspec.structs.replace(dimension, caller=OTHER, feature=OTHER)
