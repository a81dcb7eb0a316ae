"""Which paths of an engine are served, and what is particular to each. Everything else is closed.

One record for each path: the rest of the router asks the record and never compares paths. Names and meanings follow
vLLM 0.32; docs/reference/paths.md is the same table for people.
"""

from typing import Final, Literal

import msgspec

from fairlead_router.answers import NO_RETRY, Refusal

Shape = Literal["conversation", "blocks", "items", "prompts", "inputs", "pairs", "unread"]
"""What a body's prompt looks like: OpenAI's chat messages, Anthropic's, the items of OpenAI's responses; one or many
prompts; the same or messages (pooling); texts that are scored against each other; or nothing that must be known."""

Format = Literal["chat", "responses", "messages", "pooling", "none"]
"""How an answer tells its usage: OpenAI's chat and completions, OpenAI's responses, Anthropic's messages, the pooling
tasks (prompt tokens only), or not at all."""


class ServedPath(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What is particular to one path; compared by identity.

    ``prompt`` is the member that holds what the model reads. ``default_output`` is the output that the engine takes
    when no cap is sent (``None``: whatever its context leaves). ``free``: nothing runs on the accelerator, so nothing
    is reserved or charged; who asks must still be known.
    """

    path: bytes
    shape: Shape
    prompt: str
    format: Format = "none"
    generates: bool = False
    default_output: int | None = None
    free: bool = False


CHAT: Final = b"/v1/chat/completions"
COMPLETIONS: Final = b"/v1/completions"
EMBEDDINGS: Final = b"/v1/embeddings"
RESPONSES: Final = b"/v1/responses"
MESSAGES: Final = b"/v1/messages"
COUNT_TOKENS: Final = b"/v1/messages/count_tokens"
POOLING: Final = b"/pooling"
CLASSIFY: Final = b"/classify"
SCORE: Final = (b"/v1/score", b"/score")
RERANK: Final = (b"/v1/rerank", b"/rerank", b"/v2/rerank")
TOKENIZE: Final = b"/tokenize"
DETOKENIZE: Final = b"/detokenize"
_INPUTS: Final = (EMBEDDINGS, POOLING, CLASSIFY)


def _served() -> tuple[ServedPath, ...]:
    return (
        ServedPath(path=CHAT, shape="conversation", prompt="messages", format="chat", generates=True),
        ServedPath(
            path=COMPLETIONS, shape="prompts", prompt="prompt", format="chat", generates=True, default_output=16
        ),
        ServedPath(path=RESPONSES, shape="items", prompt="input", format="responses", generates=True),
        ServedPath(path=MESSAGES, shape="blocks", prompt="messages", format="messages", generates=True),
        *(ServedPath(path=path, shape="inputs", prompt="input", format="pooling") for path in _INPUTS),
        *(ServedPath(path=path, shape="pairs", prompt="documents", format="pooling") for path in (*SCORE, *RERANK)),
        ServedPath(path=COUNT_TOKENS, shape="unread", prompt="messages", free=True),
        ServedPath(path=TOKENIZE, shape="unread", prompt="prompt", free=True),
        ServedPath(path=DETOKENIZE, shape="unread", prompt="tokens", free=True),
    )


SERVED: Final = {served.path: served for served in _served()}
"""The open paths, all for POST, without a query."""

_CLOSED: Final = {
    b"/v1/audio/": "An audio file's length in tokens cannot be told from its bytes, so its cost has no bound.",
    b"/v1/realtime": "A session's output has no bound, so its cost has none either.",
    b"/inference/": "Its answers report no usage. Use /v1/completions, which takes token ids too.",
    b"/invocations": "It stands for several other paths. Use the one that is meant.",
    b"/v1/responses/": "Answers are not stored: the next request may reach another replica.",
    b"/v1/chat/completions/batch": "Send each conversation as a request of its own to /v1/chat/completions.",
    b"/v2/embed": "Use /v1/embeddings.",
    b"/cohere/": "Use /v1/chat/completions.",
    b"/generative_scoring": "Use /v1/completions with logprobs.",
    b"/v1/systemone": "Use /v1/chat/completions with a response_format.",
    b"/v1/load_lora_adapter": "Adapters are declared in the ModelPool.",
    b"/v1/unload_lora_adapter": "Adapters are declared in the ModelPool.",
}
"""Paths of an engine that people may look for, by their beginning, and what to do instead."""


def closed(method: str, path: bytes) -> Refusal:
    """The 404 for whatever is not open; it says why, and what to use instead, where that is known."""
    reason = next((text for start, text in _CLOSED.items() if path.startswith(start)), "")
    shown = path[:200].decode("utf-8", "backslashreplace")
    return Refusal(404, "unknown_url", f"{method} {shown} is not served here. {reason}".rstrip(), headers=NO_RETRY)
