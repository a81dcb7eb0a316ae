"""The request's body: what the router must know of it, and the few members that it adds.

The body is decoded once, into the few members that matter; everything else is only checked to be well-formed. What is
forwarded are the client's own bytes up to the closing brace, followed by our members. Of repeated members the last one
counts, here as in the engine (docs/adr/0009), so a member that we append replaces the client's, and one that the
client repeats is read alike on both sides.
"""

import json
import re
from functools import lru_cache
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Raw

from fairlead_router.paths import RERANK, ServedPath

MAX_N: Final = 16
MAX_PROMPTS: Final = 4096
"""Prompts in one body: each is a request to the engine."""
MAX_TOOL_DEPTH: Final = 32
MAX_TOOLS: Final = 256 * 1024
"""Bytes of tools: printed they may be sixty times as long."""
MAX_MODEL_NAME: Final = 256
MAX_TOKENS: Final = 1 << 24
TEMPLATE_TOKENS: Final = 256
"""Room for what a template adds to one prompt that is not in the body: the preamble and the opening of the answer."""
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"}) | {
    "thinking", "redacted_thinking", "tool_use", "tool_result", "tool_reference",
}  # fmt: skip
TEXT_ITEMS: Final = frozenset({"message", "function_call", "function_call_output", "reasoning"})

PROSE, CODE, DENSE, ESCAPED, MEDIA = range(5)
"""Content classes by what a byte holds: words, symbols and digits, characters of two and more bytes, the same written
as ``\\uXXXX``; and what is not text alone."""

_NO_OBJECT: Final = (
    "The body is not a JSON object in UTF-8, or holds half of a surrogate pair. Send one with content-type "
    "application/json."
)
_ABSENT: Final = Raw(b"")
_NULL: Final = b"null"
_WHITE: Final = b" \t\r\n"
_BRACE: Final = 0x7D
_COPIED: Final = 16 * 1024
"""A body shorter than this is copied rather than viewed: the copy is cheaper than the view."""


class BodyError(Exception):
    """A body that is refused with 400; ``param`` names the member."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_NAME)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
_Completions = Annotated[int, msgspec.Meta(ge=1, le=MAX_N)]


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Members(msgspec.Struct, gc=False):
    """The members that every path has. A member of type ``None`` is refused unless it is null.

    ``kv_transfer_params`` and ``ec_transfer_params`` would make the engine fetch from an address that the client
    names; ``priority`` is the policy's to give.
    """

    model: _Name
    priority: Literal[0] | None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None


class _Templated(_Members, gc=False):
    """What a chat template is given beside the messages."""

    tools: Raw = _ABSENT
    chat_template_kwargs: Raw = _ABSENT
    response_format: Raw = _ABSENT
    chat_template: None = None
    stream: bool | None = None


class _Chat(_Templated, gc=False):
    messages: Raw = _ABSENT
    stream_options: _Options | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    n: _Completions | None = None
    use_beam_search: bool | None = None
    best_of: Literal[1] | None = None
    stream_interval: Literal[1] | None = None
    truncate_prompt_tokens: int | None = None


class _Completion(_Members, gc=False):
    prompt: Raw = _ABSENT
    stream: bool | None = None
    stream_options: _Options | None = None
    max_tokens: _Count | None = None
    n: _Completions | None = None
    use_beam_search: bool | None = None
    best_of: Literal[1] | None = None
    stream_interval: Literal[1] | None = None
    prompt_embeds: None = None
    truncate_prompt_tokens: int | None = None


class _Response(_Templated, gc=False):
    input: Raw = _ABSENT
    max_output_tokens: _Count | None = None
    background: bool | None = None
    previous_response_id: None = None
    conversation: None = None
    truncation: str | None = None


class _Message(_Templated, gc=False):
    messages: Raw = _ABSENT
    max_tokens: _Count | None = None
    response_format: Raw = msgspec.field(default=_ABSENT, name="output_config")


class _Input(_Members, gc=False):
    input: Raw = _ABSENT
    messages: Raw = _ABSENT
    data: None = None
    padding: str | None = None
    chat_template_kwargs: Raw = _ABSENT
    chat_template: None = None


class _Pairs(_Members, gc=False):
    query: Raw = _ABSENT
    queries: Raw = _ABSENT
    text_1: Raw = _ABSENT
    data_1: Raw = _ABSENT
    documents: Raw = _ABSENT
    items: Raw = _ABSENT
    text_2: Raw = _ABSENT
    data_2: Raw = _ABSENT
    instruction: Raw = _ABSENT
    chat_template_kwargs: Raw = _ABSENT
    padding: str | None = None


class _Content(msgspec.Struct, gc=False):
    content: Raw = Raw(_NULL)
    tool_calls: Raw = _ABSENT


class _Item(msgspec.Struct, gc=False):
    type: str = "message"
    content: Raw = Raw(_NULL)
    output: Raw = Raw(_NULL)


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    content: Raw = Raw(_NULL)


class _Tool(msgspec.Struct, gc=False):
    type: str = ""


class Body(msgspec.Struct, eq=False, gc=False):
    """What the router knows of a request's body.

    ``n`` completions are asked for each of ``prompts`` prompts, ``outputs`` in all (0: nothing is generated), of at
    most ``max_tokens`` each (``None``: not asked). ``extra_bytes`` may be printed by a template beyond the body's own
    bytes. ``text_only``: the bytes bound the prompt's tokens. ``media`` parts are images, sound or the like, and take
    ``media_bytes`` of the body; ``longest`` are the bytes of text of the longest prompt. ``cut``: the engine is asked
    to cut what is too long. ``kind`` is the content class, ``prompt`` the bytes that prefixes are taken from.
    ``form`` and ``end`` are for :func:`forward`.
    """

    path: ServedPath
    raw: bytes
    size: int
    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    n: int
    prompts: int
    outputs: int
    extra_bytes: int
    text_only: bool
    media: int
    media_bytes: int
    longest: int
    cut: bool
    kind: int
    prompt: Raw
    form: int
    end: int

    @property
    def generates(self) -> bool:
        """The model writes output tokens."""
        return self.path.generates


_Media = tuple[int, int]
"""(parts that are not text, their bytes)."""
_TEXT: Final[_Media] = (0, 0)


# --- 1. reading ---

_NO_CAP, _MAX_TOKENS, _MAX_COMPLETION_TOKENS, _MAX_OUTPUT_TOKENS = range(4)
_CAP_NAMES: Final = ("", "max_tokens", "max_completion_tokens", "max_output_tokens")
_WITH_USAGE: Final = 4
_FORMS: Final = 8

_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_response = msgspec.json.Decoder(_Response)
_message = msgspec.json.Decoder(_Message)
_input = msgspec.json.Decoder(_Input)
_pairs = msgspec.json.Decoder(_Pairs)
_unread = msgspec.json.Decoder(_Members)
_contents = msgspec.json.Decoder(list[_Content])
_batches = msgspec.json.Decoder(list[list[_Content]])
_items = msgspec.json.Decoder(list[_Item])
_parts = msgspec.json.Decoder(list[str | _Part])
_raws = msgspec.json.Decoder(list[Raw])
_tools = msgspec.json.Decoder(list[_Tool] | None)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse(path: ServedPath, raw: bytes) -> Body:
    """Read what the router needs. Values are taken strictly: what an engine might coerce is refused instead.

    Raises:
        BodyError: The body is no JSON object, or asks for what cannot be bounded or is not a client's to set.
    """
    try:
        return _READERS[path.shape](path, raw)
    except msgspec.ValidationError as error:
        raise _misfit(error) from None
    except _UNREADABLE:
        raise BodyError(_NO_OBJECT) from None


def _read_conversation(path: ServedPath, raw: bytes) -> Body:
    """The usual case, written out in one piece: each call costs as much as a member."""
    found = _chat.decode(raw)
    form, asked = _MAX_COMPLETION_TOKENS, found.max_completion_tokens
    if asked is None:
        form, asked = _MAX_TOKENS, found.max_tokens
    stream = include_usage = False
    if found.stream:
        stream = True
        options = found.stream_options
        include_usage = options is not None and options.include_usage is True
        if not include_usage:
            form += _WITH_USAGE
    if found.use_beam_search:
        raise _beam_search()
    size = len(raw)
    extra = media = media_bytes = 0
    if raw.find(b"[", raw.find(b"[") + 1) >= 0:  # more than the list of messages
        (media, media_bytes), extra = _look_inside(raw, found.messages)
        extra += _templated(found)
    elif found.tools or found.chat_template_kwargs or found.response_format:
        extra = _templated(found)
    n = found.n or 1
    return Body(
        path, raw, size, found.model, stream, include_usage, asked, n, 1, n, extra, not media, media, media_bytes,
        size + extra - media_bytes, found.truncate_prompt_tokens is not None, MEDIA if media else _kind(raw, size),
        found.messages, form, size - 1 if raw[-1] == _BRACE else raw.rfind(b"}"),
    )  # fmt: skip


def _read_blocks(path: ServedPath, raw: bytes) -> Body:
    found = _message.decode(raw)
    media, extra = _look_inside(raw, found.messages, blocks=True)
    extra += _templated(found)
    return _body(
        path, raw, found, prompt=found.messages, stream=found.stream is True, asked=found.max_tokens,
        extra=extra, media=media, form=_MAX_TOKENS,
    )  # fmt: skip


def _read_prompts(path: ServedPath, raw: bytes) -> Body:
    found = _completion.decode(raw)
    if found.use_beam_search:
        raise _beam_search()
    stream = found.stream is True
    options = found.stream_options
    include_usage = stream and options is not None and options.include_usage is True
    prompts, longest = _prompts(found.prompt, path.prompt)
    return _body(
        path, raw, found, prompt=found.prompt, stream=stream, include_usage=include_usage,
        asked=path.default_output if found.max_tokens is None else found.max_tokens, n=found.n or 1,
        prompts=prompts, longest=longest, cut=found.truncate_prompt_tokens is not None,
        form=_MAX_TOKENS + (_WITH_USAGE if stream and not include_usage else 0),
    )  # fmt: skip


def _read_items(path: ServedPath, raw: bytes) -> Body:
    found = _response.decode(raw)
    if found.background:
        raise BodyError("background must be false: answers are not stored, so nobody could fetch it.", "background")
    if found.tools and any(tool.type != "function" for tool in _decoded(_tools, found.tools, "tools") or ()):
        raise BodyError(
            "tools may hold functions only: the engine's own tools call the model without a bound.", "tools"
        )
    media, extra = _TEXT, 0
    if _first(found.input) == b"[":
        media, extra = _media_of_items(found.input), _separators(raw)
    return _body(
        path, raw, found, prompt=found.input, stream=found.stream is True, asked=found.max_output_tokens,
        extra=extra + _templated(found), media=media, form=_MAX_OUTPUT_TOKENS,
        cut=found.truncation not in {None, "disabled"},
    )  # fmt: skip


def _read_inputs(path: ServedPath, raw: bytes) -> Body:
    found = _input.decode(raw)
    if found.input and found.messages:
        raise BodyError("The body has both input and messages. Send one.", "input")
    prompt, name = (found.messages, "messages") if found.messages else (found.input, "input")
    prompts, longest, media, extra = _inputs(prompt, name)
    # A chat template is rendered once for each conversation.
    each = _printed(found.chat_template_kwargs, "chat_template_kwargs")
    extra += (prompts - 1) * TEMPLATE_TOKENS + prompts * each
    return _body(
        path, raw, found, prompt=prompt, prompts=prompts, extra=extra, media=media, unbounded=_padded(found.padding),
        longest=None if longest is None else longest + each,
    )  # fmt: skip


def _read_pairs(path: ServedPath, raw: bytes) -> Body:
    """Texts scored against each other: one query goes in front of each document."""
    found = _pairs.decode(raw)
    one, other = _sides(path, found)
    queries, longest_query, media_there = _texts(one)
    documents, longest, media_here = _texts(other)
    pairs = max(queries, documents)
    each = _printed(found.chat_template_kwargs, "chat_template_kwargs") + _length(found.instruction)
    repeated = each + (longest_query if queries == 1 else 0)
    return _body(
        path, raw, found, prompt=other, prompts=pairs, extra=(pairs - 1) * (TEMPLATE_TOKENS + repeated),
        media=_total([media_there, media_here]), unbounded=_padded(found.padding),
        longest=longest_query + longest + each,
    )  # fmt: skip


def _padded(padding: str | None) -> bool:
    return padding not in {None, "do_not_pad"}


def _read_nothing(path: ServedPath, raw: bytes) -> Body:
    return _body(path, raw, _unread.decode(raw), prompt=_ABSENT)


_READERS: Final = {
    "conversation": _read_conversation,
    "blocks": _read_blocks,
    "prompts": _read_prompts,
    "items": _read_items,
    "inputs": _read_inputs,
    "pairs": _read_pairs,
    "unread": _read_nothing,
}


def _body(
    path: ServedPath,
    raw: bytes,
    found: _Members,
    *,
    prompt: Raw,
    stream: bool = False,
    include_usage: bool = False,
    asked: int | None = None,
    n: int = 1,
    prompts: int = 1,
    extra: int = 0,
    media: _Media = _TEXT,
    unbounded: bool = False,
    longest: int | None = None,
    cut: bool = False,
    form: int = _NO_CAP,
) -> Body:
    size = len(raw)
    whole = size + extra - media[1]
    text_only = media == _TEXT and not unbounded
    return Body(
        path, raw, size, found.model, stream, include_usage, asked, n, prompts, n * prompts if path.generates else 0,
        extra, text_only, media[0], media[1], whole if longest is None else min(longest, whole), cut,
        _kind(raw, size) if text_only else MEDIA, prompt, form, raw.rfind(b"}"),
    )  # fmt: skip


# --- 2. what is said when a member does not fit ---

_WANTED: Final = {
    "model": f"a name of 1 to {MAX_MODEL_NAME} characters",
    "stream": "true or false",
    "stream_options": "an object, with include_usage true or false",
    "max_tokens": f"a whole number from 1 to {MAX_TOKENS}",
    "max_completion_tokens": f"a whole number from 1 to {MAX_TOKENS}",
    "max_output_tokens": f"a whole number from 1 to {MAX_TOKENS}",
    "n": f"a whole number from 1 to {MAX_N}",
    "best_of": "1 or absent: further completions would be run and not be counted",
    "use_beam_search": "false or absent",
    "stream_interval": "1 or absent: a broken stream is charged by its events",
    "priority": "0 or absent: the policy gives priorities, and x-fairlead-priority may lower them",
    "kv_transfer_params": "absent: the fleet alone decides where caches are fetched from",
    "ec_transfer_params": "absent: the fleet alone decides where caches are fetched from",
    "chat_template": "absent: the pool has its own",
    "prompt_embeds": "absent: tokens that are not text have no bound here",
    "data": "absent: what a plug-in of the engine makes of it has no bound",
    "background": "true or false",
    "previous_response_id": "absent: answers are not stored. Send the earlier items again",
    "conversation": "absent: conversations are not stored. Send the earlier items again",
    "padding": "max_length or do_not_pad",
}
_AT: Final = re.compile(r"at `\$\.(\w+)")


def _misfit(error: msgspec.ValidationError) -> BodyError:
    """The decoder's complaint in the API's words."""
    at = _AT.search(str(error))
    if at is not None:
        return BodyError(f"{at[1]} must be {_WANTED.get(at[1], 'of another type')}.", at[1])
    if "`model`" in str(error):
        return BodyError("The body names no model.", "model")
    return BodyError(_NO_OBJECT)


def _beam_search() -> BodyError:
    return BodyError("use_beam_search must be false: each step runs requests that no usage counts.", "use_beam_search")


T = TypeVar("T")


def _decoded(decoder: msgspec.json.Decoder[T], raw: Raw, name: str) -> T:
    try:
        return decoder.decode(raw)
    except _UNREADABLE:
        raise BodyError(f"{name} must be {_SHAPES[name]}.", name) from None


_SHAPES: Final = {
    "messages": "a list of objects with role and content",
    "input": "a text, or a list of items",
    "prompt": "a text, or a list of texts or token ids",
    "documents": "a text, or a list of them",
    "tools": "a list of objects",
    "chat_template_kwargs": "an object",
}


# --- 3. looking into a prompt ---

_LOOKS: Final = 64


def _look_inside(raw: bytes, messages: Raw, *, blocks: bool = False) -> tuple[_Media, int]:
    """What in messages is not text, and what their tool calls may grow by when they are printed.

    A content that is a list, or a list of tool calls, is found by its opening bracket after its name. Only then are
    the messages decoded. A name ends in its last letter, or in that letter's escape, however it is written.
    """
    at = -1
    for _ in range(_LOOKS):
        at = raw.find(b"[", at + 1)
        if at < 0:
            return _TEXT, 0
        before = raw[max(0, at - 32) : at].rstrip(_WHITE)
        if not before.endswith(b":") and before:
            continue
        name = before[:-1].rstrip(_WHITE)
        if name.endswith((b't"', b'4"', b'calls"', b'3"')) or not name.endswith(b'"'):
            break
    if not messages:
        return _TEXT, 0
    contents = _decoded(_contents, messages, "messages")
    calls = blocks or any(message.tool_calls for message in contents)  # a block may be a tool call
    return _total([_media(message.content) for message in contents]), _separators(raw) if calls else 0


def _media(content: Raw) -> _Media:
    """What in a content is not text: parts of other types, also within the result of a tool."""
    if _first(content) != b"[":
        return _TEXT
    parts = _decoded(_parts, content, "messages")
    found = [_media(part.content) for part in parts if isinstance(part, _Part) and part.type in TEXT_PARTS]
    others = [at for at, part in enumerate(parts) if isinstance(part, _Part) and part.type not in TEXT_PARTS]
    if others:
        raws = _raws.decode(content)
        found += [(1, _length(raws[at])) for at in others]
    return _total(found)


def _media_of_items(items: Raw) -> _Media:
    found = []
    for item in _decoded(_items, items, "input"):
        found += [_media(item.content), _media(item.output)]
        if item.type not in TEXT_ITEMS:
            found.append((1, 0))
    return _total(found)


def _total(found: list[_Media]) -> _Media:
    parts = sum(media[0] for media in found)
    return (parts, sum(media[1] for media in found)) if parts else _TEXT


def _separators(raw: bytes) -> int:
    """The spaces that a template puts behind commas and colons when it prints the arguments of tool calls."""
    return raw.count(b",") + raw.count(b":")


def _prompts(prompt: Raw, name: str) -> tuple[int, int | None]:
    """How many prompts a member holds, and the bytes of the longest (``None``: it is the only one).

    Each prompt of a list is a request of its own to the engine. A list of numbers is one prompt.
    """
    if _first(prompt) != b"[" or _second(prompt) not in {b'"', b"["}:
        return 1, None
    lengths = [_length(one) for one in _decoded(_raws, prompt, name)]
    return _bounded(len(lengths), name), max(lengths)


def _inputs(prompt: Raw, name: str) -> tuple[int, int | None, _Media, int]:
    """(prompts, longest, media, extra bytes) of a pooling task: prompts, one conversation, or a list of them."""
    prompts, longest = _prompts(prompt, name)
    if _first(prompt) != b"[" or _second(prompt) not in {b"{", b"["} or b"{" not in (view := bytes(prompt)):
        return prompts, longest, _TEXT, 0
    batches = [_decoded(_contents, prompt, name)] if longest is None else _decoded(_batches, prompt, name)
    media = _total([_media(message.content) for batch in batches for message in batch])
    return prompts, longest, media, _separators(view)


def _sides(path: ServedPath, found: _Pairs) -> tuple[Raw, Raw]:
    """The two sides of a scoring body, under one of the names that the engine knows."""
    if path.path in RERANK:
        if not (found.query and found.documents):
            raise BodyError("Send a query and documents.", "documents")
        return found.query, found.documents
    one = [side for side in (found.queries, found.text_1, found.data_1) if side]
    other = [side for side in (found.documents, found.items, found.text_2, found.data_2) if side]
    if len(one) != 1 or len(other) != 1:
        raise BodyError("Send queries with documents, or text_1 with text_2, once.", "documents")
    return one[0], other[0]


def _texts(side: Raw) -> tuple[int, int, _Media]:
    """(how many, bytes of the longest, media) of one side of a scoring body."""
    texts = _decoded(_raws, side, "documents") if _first(side) == b"[" else [side]
    media = [(1, _length(text)) for text in texts if _first(text) != b'"']
    longest = max((_length(text) for text in texts if _first(text) == b'"'), default=0)
    return _bounded(len(texts), "documents"), longest, _total(media)


def _bounded(prompts: int, name: str) -> int:
    if prompts > MAX_PROMPTS:
        raise BodyError(f"{name} holds {prompts} prompts, {MAX_PROMPTS} are allowed. Send several requests.", name)
    return max(1, prompts)


def _first(raw: Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _second(raw: Raw) -> bytes:
    """The first byte within a list."""
    at = 1
    view = memoryview(raw)
    while view[at] in _WHITE:
        at += 1
    return bytes(view[at : at + 1])


def _length(raw: Raw) -> int:
    return memoryview(raw).nbytes


# --- 4. what a template prints beyond the body ---

_KEPT: Final = 8 * 1024
"""Bytes of tools whose printed length is remembered."""
_BRACKETS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{}\]]', re.DOTALL)


def _templated(found: _Templated) -> int:
    extra = 0
    if found.tools:
        # Templates have a preamble for tools that may be longer than the one for talk.
        extra += _printed(found.tools, "tools") + TEMPLATE_TOKENS
    if found.chat_template_kwargs:
        extra += _printed(found.chat_template_kwargs, "chat_template_kwargs")
    if found.response_format:
        extra += _printed(found.response_format, "response_format")
    return extra


def _printed(value: Raw, name: str) -> int:
    """Bytes of a JSON value as the widest known chat template prints it: indented by four."""
    raw = bytes(value)
    if raw in {b"", _NULL}:
        return 0
    if len(raw) <= _KEPT:
        return _indented(raw, name)
    if len(raw) > MAX_TOOLS:
        raise BodyError(f"{name} has {len(raw)} bytes, {MAX_TOOLS} are allowed. Send less.", name)
    return _indented.__wrapped__(raw, name)


@lru_cache(maxsize=256)
def _indented(raw: bytes, name: str) -> int:
    """Callers send the same tools again and again, and indenting them takes a hundred times as long as reading them."""
    if _depth(raw) > MAX_TOOL_DEPTH:
        raise BodyError(f"{name} is nested more than {MAX_TOOL_DEPTH} levels deep. Flatten it.", name)
    try:
        return len(json.dumps(json.loads(raw), indent=4))
    except ValueError:
        raise BodyError(f"{name} holds a number with too many digits to be read.", name) from None


def _depth(raw: bytes) -> int:
    """Nesting of a JSON value that was already found to be well-formed."""
    level = deepest = 0
    for token in _BRACKETS.finditer(raw):
        first = token[0][:1]
        if first in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif first in b"]}":
            level -= 1
    return deepest


# --- 5. the content class ---

_WORDS: Final = b" ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ASCII: Final = bytes(range(0x80))
_SAMPLE: Final = 128
_SYMBOLS_OF_CODE: Final = _SAMPLE // 6
_MANY_ESCAPES: Final = _SAMPLE // 24
_MOSTLY_DENSE: Final = _SAMPLE // 3


def _kind(raw: bytes, size: int) -> int:
    """The content class of a body, from a hundred bytes of its middle, or of four places when it is long."""
    if size < 16 * _SAMPLE:
        at = size >> 1
        sample = raw[at : at + _SAMPLE]
    else:
        eighth, part = size >> 3, _SAMPLE // 4
        sample = (
            raw[eighth : eighth + part] + raw[3 * eighth : 3 * eighth + part]
            + raw[5 * eighth : 5 * eighth + part] + raw[7 * eighth : 7 * eighth + part]
        )  # fmt: skip
    rest = sample.translate(None, _WORDS)
    if len(rest) < _SYMBOLS_OF_CODE:
        return PROSE
    dense = len(rest.translate(None, _ASCII))
    if dense > _MOSTLY_DENSE:
        return DENSE
    if len(rest) - dense < _SYMBOLS_OF_CODE:
        return PROSE  # of a language with accents
    return ESCAPED if sample.count(b"\\u") > _MANY_ESCAPES else CODE


# --- 6. writing ---

_tails: dict[str, dict[int, bytes]] = {}
MAX_TAILS: Final = 4096
"""Tails that are kept for one model."""
MAX_MODELS: Final = 1024


def forward(body: Body, served_model: str, cap: int | None) -> tuple[bytes | memoryview, bytes]:
    """(head, tail) of the body that the engine gets: the client's bytes up to the closing brace, and our members.

    Added are the served model's name, the output cap (unless ``None`` or nothing is generated), usage at the end of a
    stream whose client did not ask for it, and ``store: false`` where an engine would keep the answer.
    """
    key = body.form if cap is None else cap * _FORMS + body.form
    try:
        tail = _tails[served_model][key]
    except KeyError:
        tail = _keep_tail(served_model, key, body.form, cap)
    end = body.end
    if end < _COPIED:
        return body.raw[:end], tail
    return memoryview(body.raw)[:end], tail


def _keep_tail(served_model: str, key: int, form: int, cap: int | None) -> bytes:
    if len(_tails) >= MAX_MODELS:
        _tails.clear()
    tails = _tails.setdefault(served_model, {})
    if len(tails) >= MAX_TAILS:
        tails.clear()
    tail = tails[key] = _tail(served_model, form, cap)
    return tail


def _tail(served_model: str, form: int, cap: int | None) -> bytes:
    members = [b'"model":' + msgspec.json.encode(served_model)]
    name = _CAP_NAMES[form % _WITH_USAGE]
    if cap is not None and name:
        members.append(b'"%b":%d' % (name.encode(), cap))
    if name == "max_output_tokens":
        members.append(b'"store":false')
    if form >= _WITH_USAGE:
        members.append(b'"stream_options":{"include_usage":true}')
    return b"," + b",".join(members) + b"}"
