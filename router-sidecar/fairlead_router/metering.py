"""What a request used: the usage that the engine reports, found in its answer; usage lines for the ledger.

A stream is not parsed. Its events are looked at only for the three things that matter: usage, the end, and an engine
that gave up. Events pass whole, so one that is ours to change or drop never left before it was complete.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from fairlead_router.contract import BUCKET_MS, OTHER, Basis, UsageLine, cost_bin

MAX_EVENT: Final = 4 * 1024 * 1024
"""An event longer than this passes in pieces: it carries logprobs, not usage."""
MAX_DIMENSIONS: Final = 4_000
_END: Final = b"\n\n"
_DONE: Final = b"data: [DONE]"
_DATA: Final = b"data:"
_SIGNS: Final = (b'"usage"', b"[DONE]", b'"abort"', b'"error"')


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 28)]
"""A count beyond these bounds is no count: usage that holds one is treated as absent."""


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class Usage(msgspec.Struct):
    """OpenAI's usage object."""

    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None

    @property
    def output(self) -> int:
        """Completion tokens."""
        return self.completion_tokens or 0

    @property
    def cached(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        details = self.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        return min(cached, self.prompt_tokens)


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


_answer = msgspec.json.Decoder(_Answer)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Reading(msgspec.Struct, frozen=True):
    """What a whole answer says. ``aborted``: the engine gave up although it answered 200."""

    usage: Usage | None
    aborted: bool


def read_answer(body: bytes) -> Reading:
    """Usage of an answer that is not a stream."""
    try:
        answer = _answer.decode(body)
    except _UNREADABLE:
        return Reading(None, aborted=False)
    return Reading(answer.usage, any(choice.finish_reason == "abort" for choice in answer.choices))


class StreamMeter:
    """Follows one event stream. ``note`` gives the words about the cost, once the usage is known.

    ``note(usage, True)`` is the JSON member to add to the usage chunk that the client asked for, ``note(usage, False)``
    the comment line to put before the end otherwise.
    """

    __slots__ = ("_asked", "_note", "_rest", "_said", "aborted", "done", "events", "usage")

    def __init__(self, note: Callable[[Usage | None, bool], bytes], *, asked: bool) -> None:
        self._note = note
        self._asked = asked
        self._rest = b""
        self._said = False
        self.usage: Usage | None = None
        self.events = 0
        self.done = False
        self.aborted = False

    def feed(self, data: bytes) -> bytes:
        """What to pass on of these bytes; the rest of an unfinished event is kept."""
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
        plain = _plain(data)
        self.events += data.count(_END, 0, plain)
        if plain == len(data):
            return data
        return data[:plain] + b"".join(self._event(event) for event in data[plain:].split(_END)[:-1])

    def flush(self) -> bytes:
        """The unfinished rest, at the end of the stream."""
        rest, self._rest = self._rest, b""
        return rest

    def _event(self, event: bytes) -> bytes:
        whole = event + _END
        if event.startswith(_DONE):
            self.done = True
            if self._said:
                return whole
            self._said = True
            return self._note(self.usage, False) + whole
        self.events += 1
        if not event.startswith(_DATA):
            return whole
        try:
            chunk = _answer.decode(event[len(_DATA) :])
        except _UNREADABLE:
            return whole
        return self._chunk(chunk, whole)

    def _chunk(self, chunk: _Answer, whole: bytes) -> bytes:
        if bytes(chunk.error) not in {b"", b"null"} or any(choice.finish_reason == "abort" for choice in chunk.choices):
            self.aborted = True
        if chunk.usage is None:
            return whole
        self.usage = chunk.usage
        if chunk.choices:
            return whole
        self.events -= 1  # a usage chunk is no output
        if not self._asked:
            return b""
        self._said = True
        cut = whole.rfind(b"}")
        return whole[:cut] + b"," + self._note(self.usage, True) + whole[cut:]


def _plain(data: bytes) -> int:
    """How many of these bytes are whole events that need no look: those before the first sign of usage, end or failure.

    Text can look like such a sign; then its event is parsed for nothing.
    """
    found = [at for sign in _SIGNS if (at := data.find(sign)) >= 0]
    if not found:
        return len(data)
    end = data.rfind(_END, 0, min(found))
    return 0 if end < 0 else end + len(_END)


class Dimension(msgspec.Struct, frozen=True):
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


class Spent(msgspec.Struct, frozen=True):
    """What one request used, and what that costs. ``prompt`` counts all prompt tokens, cached or not."""

    prompt: int
    cached: int
    output: int
    nano_usd: int


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    nano_usd: int = 0


class UsageBook:
    """Usage since the last message to the ledger, by dimension; bounded, the rest without caller and feature."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, Dimension], _Sum] = {}
        self._bins: dict[tuple[int, Dimension], dict[str, int]] = {}

    def add(self, at_ms: int, dimension: Dimension, spent: Spent) -> None:
        """Count one settled request."""
        key = (at_ms - at_ms % BUCKET_MS, dimension)
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= MAX_DIMENSIONS:
                key = (key[0], _folded(dimension))
            found = self._sums.setdefault(key, _Sum())
        found.requests += 1
        found.prompt += spent.prompt
        found.cached += spent.cached
        found.output += spent.output
        found.nano_usd += spent.nano_usd
        bins = self._bins.setdefault(key, {})
        name = str(cost_bin(spent.nano_usd))
        bins[name] = bins.get(name, 0) + 1

    def take(self) -> tuple[UsageLine, ...]:
        """The lines since the last call."""
        sums, self._sums = self._sums, {}
        bins, self._bins = self._bins, {}
        return tuple(_line(bucket, dim, total, bins[bucket, dim]) for (bucket, dim), total in sums.items())


def _folded(dimension: Dimension) -> Dimension:
    return Dimension(
        dimension.namespace,
        OTHER,
        OTHER,
        dimension.model,
        dimension.pool,
        dimension.variant,
        dimension.route,
        dimension.basis,
        dimension.card,
    )


def _line(bucket: int, dimension: Dimension, total: _Sum, bins: dict[str, int]) -> UsageLine:
    return UsageLine(
        bucket=bucket,
        namespace=dimension.namespace,
        caller=dimension.caller,
        feature=dimension.feature,
        model=dimension.model,
        pool=dimension.pool,
        variant=dimension.variant,
        route=dimension.route,
        basis=dimension.basis,
        card=dimension.card,
        requests=total.requests,
        prompt=total.prompt,
        cached=total.cached,
        output=total.output,
        nano_usd=total.nano_usd,
        bins=bins,
    )
