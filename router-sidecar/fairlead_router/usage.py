"""What an answer says about its use: usage, the end of a stream, and an engine that gave up, by the path's format.

A stream is not parsed. Only events in which one of a reader's ``signs`` occurs can say anything that matters; text
cannot imitate a sign that holds quotes, since quotes within JSON strings are escaped, and what looks like one is
decoded for nothing. Formats are those of vLLM 0.32.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Raw

from fairlead_router.paths import ServedPath

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 28)]
"""A count beyond these bounds is no count: usage that holds one is treated as absent."""
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOTHING: Final = frozenset({b"", b"null"})


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request. ``prompt_tokens`` counts all prompt tokens, cached or not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def output(self) -> int:
        """Completion tokens."""
        return self.completion_tokens

    @property
    def cached(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return min(self.cached_tokens, self.prompt_tokens)


def merge(seen: Usage | None, new: Usage) -> Usage:
    """Both usages of one stream together: a later event may tell less than an earlier one, never take it back."""
    if seen is None:
        return new
    return Usage(
        max(seen.prompt_tokens, new.prompt_tokens),
        max(seen.completion_tokens, new.completion_tokens),
        max(seen.cached_tokens, new.cached_tokens),
    )


class Reading(msgspec.Struct, frozen=True):
    """What a whole answer says. ``aborted``: the engine gave up although it answered 200."""

    usage: Usage | None
    aborted: bool


class EventReading(msgspec.Struct, frozen=True):
    """What one event says. ``final``: it ends the stream. ``usage_only``: it holds usage and no output.

    ``output``: it carries output of the model, so it counts for a stream that breaks.
    """

    usage: Usage | None = None
    final: bool = False
    aborted: bool = False
    usage_only: bool = False
    output: bool = False


class Reader:
    """How one format's answers are read; without state, one for all requests. This one is of paths that run nothing.

    ``signs``: an event without any of them needs no look. ``usage_chunk``: the format has events of usage alone, sent
    on request, to which members may be added. A comment line is legal before the final event of every format.
    """

    signs: tuple[bytes, ...] = ()
    usage_chunk = False

    def whole(self, body: bytes) -> Reading:
        """Read an answer that is not a stream."""
        del body
        return Reading(None, aborted=False)

    def event(self, event: bytes) -> EventReading | None:
        """Read one event, without the blank line at its end; ``None``: there is nothing of interest in it."""
        del event
        return None


def reader(path: ServedPath) -> Reader:
    """The reader of a path's answers."""
    return _READERS[path.format]


def _data(event: bytes) -> bytes:
    """The data of an event that may have other lines before it."""
    at = 0 if event.startswith(_DATA) else event.find(b"\n" + _DATA) + 1
    return event[at + len(_DATA) :] if at or event.startswith(_DATA) else b""


# --- OpenAI's chat and completions; pooling tasks answer with the same usage ---


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _ChatUsage(msgspec.Struct):
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None

    def told(self) -> Usage:
        details = self.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        return Usage(self.prompt_tokens, self.completion_tokens or 0, cached)


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _ChatAnswer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _ChatUsage | None = None
    error: Raw = Raw(b"")

    def told(self) -> Usage | None:
        return None if self.usage is None else self.usage.told()

    def aborted(self) -> bool:
        return any(choice.finish_reason == "abort" for choice in self.choices) or bytes(self.error) not in _NOTHING


class _UsageAlone(msgspec.Struct):
    usage: _ChatUsage | None = None


_chat = msgspec.json.Decoder(_ChatAnswer)
_usage_alone = msgspec.json.Decoder(_UsageAlone)


class _ChatReader(Reader):
    signs = (b'"usage"', _DONE, b'"abort"', b'"error"')
    usage_chunk = True

    def whole(self, body: bytes) -> Reading:
        try:
            # "in" first tries whether it is a number, which costs an exception.
            if body.find(b'"abort"') < 0 and body.find(b'"error"') < 0:
                usage = _usage_alone.decode(body).usage
                return Reading(None if usage is None else usage.told(), aborted=False)
            answer = _chat.decode(body)
        except _UNREADABLE:
            return Reading(None, aborted=False)
        return Reading(answer.told(), answer.aborted())

    def event(self, event: bytes) -> EventReading | None:
        data = _data(event)
        if data.strip() == _DONE:
            return _FINAL
        try:
            chunk = _chat.decode(data)
        except _UNREADABLE:
            return None
        aborted, usage, output = chunk.aborted(), chunk.told(), bool(chunk.choices)
        if usage is None and not aborted:
            return None
        return EventReading(usage, aborted=aborted, usage_only=usage is not None and not output, output=output)


_FINAL: Final = EventReading(final=True)


class _PoolingReader(_ChatReader):
    usage_chunk = False


# --- OpenAI's responses ---


class _InputDetails(msgspec.Struct):
    cached_tokens: _Tokens = 0


class _ResponseUsage(msgspec.Struct):
    input_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    input_tokens_details: _InputDetails | None = None

    def told(self) -> Usage:
        details = self.input_tokens_details
        return Usage(self.input_tokens, self.output_tokens, 0 if details is None else details.cached_tokens)


class _Response(msgspec.Struct):
    status: str = ""
    usage: _ResponseUsage | None = None
    error: Raw = Raw(b"")

    def told(self) -> Usage | None:
        return None if self.usage is None else self.usage.told()

    def aborted(self) -> bool:
        return self.status in {"cancelled", "failed"} or bytes(self.error) not in _NOTHING


class _ResponseEvent(msgspec.Struct):
    type: str = ""
    response: _Response | None = None
    error: Raw = Raw(b"")


_response = msgspec.json.Decoder(_Response)
_response_event = msgspec.json.Decoder(_ResponseEvent)
_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _ResponsesReader(Reader):
    signs = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"error"')
    usage_chunk = False

    def whole(self, body: bytes) -> Reading:
        try:
            answer = _response.decode(body)
        except _UNREADABLE:
            return Reading(None, aborted=False)
        return Reading(answer.told(), answer.aborted())

    def event(self, event: bytes) -> EventReading | None:
        try:
            found = _response_event.decode(_data(event))
        except _UNREADABLE:
            return None
        response = found.response
        if found.type in _RESPONSE_ENDS:
            usage = None if response is None else response.told()
            aborted = found.type == "response.failed" or (response is not None and response.aborted())
            return EventReading(usage, final=True, aborted=aborted)
        if found.type == "error" or bytes(found.error) not in _NOTHING:
            return EventReading(aborted=True)
        return None


# --- Anthropic's messages ---


class _MessageUsage(msgspec.Struct):
    input_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    cache_read_input_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None

    def told(self) -> Usage:
        # Here the cached tokens are beside the other input, not part of it.
        read, created = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        return Usage(self.input_tokens + read + created, self.output_tokens, read)


class _Stop(msgspec.Struct):
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    type: str = ""
    stop_reason: str | None = None
    usage: _MessageUsage | None = None

    def told(self) -> Usage | None:
        return None if self.usage is None else self.usage.told()


class _MessageEvent(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    delta: _Stop | None = None
    usage: _MessageUsage | None = None


_message = msgspec.json.Decoder(_Message)
_message_event = msgspec.json.Decoder(_MessageEvent)


class _MessagesReader(Reader):
    """An engine that gives up has no reason of this API for it, so it leaves ``stop_reason`` empty."""

    signs = (b'"usage"', b'"message_stop"', b'"error"')
    usage_chunk = False

    def whole(self, body: bytes) -> Reading:
        try:
            answer = _message.decode(body)
        except _UNREADABLE:
            return Reading(None, aborted=False)
        return Reading(answer.told(), aborted=answer.type == "message" and answer.stop_reason is None)

    def event(self, event: bytes) -> EventReading | None:
        try:
            found = _message_event.decode(_data(event))
        except _UNREADABLE:
            return None
        if found.type == "message_stop":
            return _FINAL
        if found.type == "error":
            return EventReading(aborted=True)
        if found.type == "message_start" and found.message is not None:
            return EventReading(found.message.told())
        if found.type != "message_delta" or found.usage is None:
            return None
        return EventReading(found.usage.told(), aborted=found.delta is None or found.delta.stop_reason is None)


_READERS: Final[dict[str, Reader]] = {
    "chat": _ChatReader(),
    "responses": _ResponsesReader(),
    "messages": _MessagesReader(),
    "pooling": _PoolingReader(),
    "none": Reader(),
}
