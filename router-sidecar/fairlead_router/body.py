"""The request's body: what the router must know of it, and the few values that it replaces.

The body is split into its top-level members once; their values stay the bytes that the client sent. What is forwarded
is put together from the same members, each exactly once, so the engine cannot read a member differently from the
router: a repeated member that the router acts on is refused, any other collapses to its last value, as in Python.
"""

import json
import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

CHAT: Final = b"/v1/chat/completions"
COMPLETIONS: Final = b"/v1/completions"
EMBEDDINGS: Final = b"/v1/embeddings"

MAX_N: Final = 16
MAX_TOOL_DEPTH: Final = 32
MAX_TOOLS: Final = 256 * 1024
"""Bytes of tools: printed they may be sixty times as long."""
MAX_MODEL_NAME: Final = 256
MAX_TOKENS: Final = 1 << 24
DEFAULT_COMPLETION_TOKENS: Final = 16
"""What the completions API means when max_tokens is absent."""
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})

T = TypeVar("T")

_TOUCHED: Final = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "tools", "prompt")
_SMALLEST_MEMBER: Final = len(b',"n":1')
_NULL: Final = b"null"


class BodyError(Exception):
    """A body that is refused with 400; ``param`` names the member."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Message(msgspec.Struct):
    content: Raw = Raw(_NULL)


class _Part(msgspec.Struct):
    type: str = ""


class Body(msgspec.Struct, frozen=True):
    """What the router knows of a request's body. ``outputs`` is the number of completions asked for."""

    members: dict[str, Raw]
    size: int
    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    outputs: int
    n: int
    tools_size: int
    text_only: bool
    generates: bool


_members = msgspec.json.Decoder(dict[str, Raw])
_model = msgspec.json.Decoder(str | None, strict=True)
_flag = msgspec.json.Decoder(bool | None, strict=True)
_count = msgspec.json.Decoder(int | None, strict=True)
_raws = msgspec.json.Decoder(list[Raw])
_messages = msgspec.json.Decoder(list[_Message])
_parts = msgspec.json.Decoder(list[str | _Part])
_options = msgspec.json.Decoder(dict[str, Raw] | None)
_BRACKETS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{}\]]', re.DOTALL)
_LISTS_PROMPTS: Final = re.compile(rb'\[\s*["\[]')
_QUOTED: Final = {
    key: msgspec.json.encode(key) + b":"
    for key in (
        *_TOUCHED,
        "messages",
        "input",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "tool_choice",
        "response_format",
    )
}


def parse(path: bytes, raw: bytes) -> Body:
    """Read what the router needs. Values are taken strictly: what an engine might coerce is refused instead."""
    members = _split(raw)
    generates = path != EMBEDDINGS
    stream = generates and bool(_value(members, "stream", _flag, "true or false"))
    n = _bounded_n(members) if generates else 1
    return Body(
        members=members,
        size=len(raw),
        model=_model_name(members),
        stream=stream,
        include_usage=stream and _include_usage(members),
        max_tokens=_requested(path, members) if generates else None,
        outputs=n * _prompts(members) if path == COMPLETIONS else n,
        n=n,
        tools_size=_tools_size(members) if "tools" in members else 0,
        text_only=path != CHAT or _text_only(members),
        generates=generates,
    )


def splice(body: Body, edits: Mapping[str, bytes]) -> bytes:
    """The body with the given members replaced or added, every other value byte for byte as it came."""
    out: list[bytes | Raw] = []
    for key, raw in body.members.items():
        out += (b",", _quoted(key), edits.get(key, raw))
    for key, value in edits.items():
        if key not in body.members:
            out += (b",", _quoted(key), value)
    out[0] = b"{"
    out.append(b"}")
    return b"".join(out)


def edits_for(body: Body, served_model: str, cap: int | None) -> dict[str, bytes]:
    """The members to write into the forwarded body: model, output cap, n, and usage at the end of a stream."""
    edits = {"model": msgspec.json.encode(served_model)}
    if cap is not None:
        written = str(cap).encode()
        present = [key for key in ("max_tokens", "max_completion_tokens") if key in body.members]
        edits.update(dict.fromkeys(present or ["max_tokens"], written))
    if body.generates and "n" in body.members:
        edits["n"] = str(body.n).encode()
    if body.stream and not body.include_usage:
        edits["stream_options"] = _with_usage(body.members)
    return edits


def _split(raw: bytes) -> dict[str, Raw]:
    try:
        members = _members.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BodyError("The body is not a JSON object. Send one with content-type application/json.") from None
    # A body of which the members account for all bytes has no room for a repeated one.
    accounted = 1 + sum(len(key) + 4 + memoryview(value).nbytes for key, value in members.items())
    if len(raw) - accounted >= _SMALLEST_MEMBER:
        _refuse_repeated(raw)
    return members


def _refuse_repeated(raw: bytes) -> None:
    if all(raw.count(b'"%b"' % name.encode()) < 2 for name in _TOUCHED) and b"\\u" not in raw:  # noqa: PLR2004 - twice
        return
    outermost: list[str] = []

    def keep(pairs: list[tuple[str, object]]) -> None:
        # Called for each object as it closes, so the last call is the outermost one.
        outermost[:] = [key for key, _ in pairs]

    try:
        json.loads(raw, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        raise BodyError("The body is not a JSON object that can be read in one way.") from None
    for name in _TOUCHED:
        if outermost.count(name) > 1:
            raise BodyError(f"The body has {outermost.count(name)} members named {name}. Send one.", name)


def _value(members: dict[str, Raw], name: str, decoder: msgspec.json.Decoder[T | None], want: str) -> T | None:
    raw = members.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BodyError(f"{name} must be {want}.", name) from None


def _model_name(members: dict[str, Raw]) -> str:
    if "model" not in members:
        raise BodyError("The body names no model.", "model")
    name = _value(members, "model", _model, "a string") or ""
    if not 0 < len(name) <= MAX_MODEL_NAME:
        raise BodyError(f"model must have 1 to {MAX_MODEL_NAME} characters, this has {len(name)}.", "model")
    return name


def _bounded_n(members: dict[str, Raw]) -> int:
    n: int | None = _value(members, "n", _count, "a whole number")
    if n is None:
        return 1
    if not 1 <= n <= MAX_N:
        raise BodyError(f"n must be 1 to {MAX_N}, this is {n}.", "n")
    return n


def _include_usage(members: dict[str, Raw]) -> bool:
    options = _value(members, "stream_options", _options, "an object") or {}
    return bool(_value(options, "include_usage", _flag, "true or false"))


def _with_usage(members: dict[str, Raw]) -> bytes:
    options = _value(members, "stream_options", _options, "an object") or {}
    pairs = [_quoted(key) + bytes(raw) for key, raw in options.items() if key != "include_usage"]
    return b"{" + b",".join([*pairs, b'"include_usage":true']) + b"}"


def _requested(path: bytes, members: dict[str, Raw]) -> int | None:
    """The output cap that the client asked for, by the rules of its API."""
    asked: int | None = _value(members, "max_tokens", _count, "a whole number")
    if path == CHAT:
        newer = _value(members, "max_completion_tokens", _count, "a whole number")
        asked = asked if newer is None else newer
    elif asked is None:
        asked = DEFAULT_COMPLETION_TOKENS
    if asked is not None and not 1 <= asked <= MAX_TOKENS:
        raise BodyError(f"max_tokens must be 1 to {MAX_TOKENS}, this is {asked}.", "max_tokens")
    return asked


def _prompts(members: dict[str, Raw]) -> int:
    """How many prompts a completions body holds: each gets its own n completions."""
    raw = members.get("prompt")
    if raw is None or bytes(memoryview(raw)[:1]) != b"[":
        return 1
    if not _LISTS_PROMPTS.match(raw):
        return 1  # one prompt, given as token ids
    return len(_raws.decode(raw))


def _tools_size(members: dict[str, Raw]) -> int:
    """Bytes of the tools as the widest known chat template prints them: indented by four."""
    raw = bytes(members["tools"])
    if raw == _NULL:
        return 0
    if len(raw) > MAX_TOOLS:
        raise BodyError(f"tools has {len(raw)} bytes, {MAX_TOOLS} are allowed. Send fewer tools.", "tools")
    if _depth(raw) > MAX_TOOL_DEPTH:
        raise BodyError(f"tools is nested more than {MAX_TOOL_DEPTH} levels deep. Flatten the schema.", "tools")
    try:
        return len(json.dumps(json.loads(raw), indent=4))
    except ValueError:
        raise BodyError("tools holds a number with too many digits to be read.", "tools") from None


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


def _text_only(members: dict[str, Raw]) -> bool:
    raw = members.get("messages")
    if raw is None:
        return True
    try:
        contents = [message.content for message in _messages.decode(raw)]
        return all(_is_text(content) for content in contents)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BodyError("messages must be a list of objects with role and content.", "messages") from None


def _is_text(content: Raw) -> bool:
    if bytes(memoryview(content)[:1]) != b"[":
        return True
    return all(isinstance(part, str) or part.type in TEXT_PARTS for part in _parts.decode(content))


def _quoted(key: str) -> bytes:
    return _QUOTED.get(key) or msgspec.json.encode(key) + b":"
