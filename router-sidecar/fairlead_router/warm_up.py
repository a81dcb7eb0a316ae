"""The one request that an engine must answer before its pod takes any: what it asks, and what a sane answer is. Pure.

A model whose weights or kernels are broken often starts all the same, says that it is well, and computes NaN. The most
likely of many NaN is the first, so it then answers with token 0 again and again: ``!`` in the vocabularies that begin
with it, padding in others. That, an error, and an answer without tokens are what can be told from here; whether an
answer is clever cannot.
"""

from typing import Final

import msgspec

COMPLETIONS: Final = "/v1/completions"
POOLING: Final = "/pooling"
TOKENS: Final = 4
MAX_WORDS: Final = 300
"""Characters that are kept of what an engine says."""
PROMPT: Final = "The capital of France is"
_OK: Final = 200
_ENDS: Final = frozenset({"stop", "length"})


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Pooled(msgspec.Struct):
    data: list[msgspec.Raw] = []


class _Words(msgspec.Struct):
    message: str = ""


class _Error(msgspec.Struct):
    error: _Words


_error: Final = msgspec.json.Decoder(_Error)
_completion: Final = msgspec.json.Decoder(_Completion)
_pooled: Final = msgspec.json.Decoder(_Pooled)


def question(model: str, path: str = COMPLETIONS) -> bytes:
    """The body of the request for one of the two paths."""
    if path == POOLING:
        return msgspec.json.encode({"model": model, "input": PROMPT})
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": PROMPT,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,  # an answer that ends at once would say nothing
            "return_token_ids": True,
        }
    )


def trouble(status: int, body: bytes, path: str = COMPLETIONS) -> str:
    """What is wrong with an answer; empty: it is sane."""
    if status != _OK:
        return f"the warm-up was answered {status}: {engine_words(body)}"
    try:
        found = _no_vectors(body) if path == POOLING else _no_sense(_completion.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = f"something that cannot be read ({error})"
    return f"the warm-up was answered with {found}" if found else ""


def engine_words(body: bytes) -> str:
    """What an engine says in an error, shortened."""
    try:
        words = _error.decode(body).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        words = body[: 4 * MAX_WORDS].decode("utf-8", "replace")
    flat = " ".join(words.split())
    return flat if len(flat) <= MAX_WORDS else flat[: MAX_WORDS - 1] + "…"


def _no_sense(answer: _Completion) -> str:
    if not answer.choices or answer.usage.completion_tokens < 1:
        return "no token"
    choice = answer.choices[0]
    if choice.finish_reason not in _ENDS:
        return f"finish_reason {choice.finish_reason}"
    tokens = choice.token_ids
    zeros = not any(tokens) if tokens else bool(choice.text) and not choice.text.strip("!")
    if zeros and answer.usage.completion_tokens > 1:
        return (
            f"nothing but token 0 ({choice.text!r}), as a model does that computes NaN. Check quantization, the KV "
            "cache's type and the checkpoint"
        )
    return ""


def _no_vectors(body: bytes) -> str:
    """JSON has no NaN, so vectors that hold one cannot be read."""
    return "" if _pooled.decode(body).data else "no vector"
