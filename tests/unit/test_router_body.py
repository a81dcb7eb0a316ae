"""Reading a body strictly, appending to it, and reading it as the engine does: Python's json, the last name wins."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead_router.body import (
    CODE,
    DENSE,
    ESCAPED,
    MAX_MODELS,
    MAX_TAILS,
    MEDIA,
    PROSE,
    Body,
    BodyError,
    _tails,
    forward,
    parse,
)
from fairlead_router.paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    DETOKENIZE,
    EMBEDDINGS,
    MESSAGES,
    POOLING,
    RERANK,
    RESPONSES,
    SCORE,
    SERVED,
    TOKENIZE,
)
from tests.builders.router import chat

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KNOWN = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "tools", "priority",
    "kv_transfer_params", "ec_transfer_params", "chat_template", "chat_template_kwargs", "use_beam_search", "best_of",
    "stream_interval", "response_format", "truncate_prompt_tokens",
)  # fmt: skip
OTHERS = st.dictionaries(st.text(max_size=10).filter(lambda key: key not in KNOWN), VALUES, max_size=6)
LAYOUTS = st.sampled_from([None, (",", ":"), (" , ", "\t:\n")])


def read(raw: bytes, path: bytes = CHAT) -> Body:
    return parse(SERVED[path], raw)


def sent(body: Body, cap: int | None = 7, model: str = "pool") -> bytes:
    head, tail = forward(body, model, cap)
    return bytes(head) + tail


def unicode(value: Any) -> bool:
    """Whether no text in it holds half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def dump(value: Any, path: bytes = CHAT, **layout: Any) -> Body:
    return read(json.dumps(value, **layout).encode(), path)


# --- forwarding ---


@given(OTHERS, LAYOUTS, st.booleans(), st.booleans(), st.sampled_from([b"", b" \r\n\t"]))
def test_forwarding_changes_what_it_names_and_nothing_else(
    others: dict[str, Any], layout: tuple[str, str] | None, ascii_only: bool, stream: bool, end: bytes
) -> None:
    value = {"model": "chat", "messages": [{"role": "user", "content": 'a"\\\n'}], "stream": stream, "n": None}
    raw = json.dumps({**value, **others}, separators=layout, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        body = read(raw + end)
    except BodyError:
        assert b"NaN" in raw or b"Infinity" in raw or not unicode(others), "only what JSON does not know may be refused"
        return
    expected = {**json.loads(raw), "model": "pool", "max_tokens": 7}
    if stream:
        expected["stream_options"] = {"include_usage": True}
    assert repr(json.loads(sent(body))) == repr({**json.loads(raw), **expected})


def test_the_clients_bytes_pass_as_they_came() -> None:
    raw = b'{"model":"chat","seed": 1.50e0,"messages":[ {"role":"user","content":"\\u00e9\\/"} ] }'
    assert sent(read(raw), 5, "m") == raw[:-1] + b',"model":"m","max_tokens":5}'


def test_a_long_body_is_not_copied() -> None:
    raw = chat("x" * 100_000)
    head, tail = forward(read(raw), "m", 5)
    assert isinstance(head, memoryview)
    assert head.obj is raw
    assert json.loads(bytes(head) + tail)["max_tokens"] == 5


@pytest.mark.parametrize(
    ("path", "members", "cap", "added"),
    [
        (CHAT, {"max_tokens": 100}, 20, {"max_tokens": 20}),
        (CHAT, {"max_tokens": 100, "max_completion_tokens": 50}, 20, {"max_completion_tokens": 20}),
        (CHAT, {"max_tokens": 100, "max_completion_tokens": None}, 20, {"max_tokens": 20}),
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}, 20, {"max_tokens": 20}),
        (CHAT, {"stream": True}, None, {"stream_options": {"include_usage": True}}),
        (COMPLETIONS, {"prompt": "x", "stream": True}, 9, {"max_tokens": 9, "stream_options": {"include_usage": True}}),
        (RESPONSES, {"input": "x", "stream": True}, 9, {"max_output_tokens": 9, "store": False}),
        (RESPONSES, {"input": "x", "store": True}, 9, {"max_output_tokens": 9, "store": False}),
        (MESSAGES, {"max_tokens": 90, "stream": True}, 9, {"max_tokens": 9}),
        (EMBEDDINGS, {"input": ["x", "y"]}, None, {}),
        (EMBEDDINGS, {"input": ["x", "y"]}, 0, {}),
        (TOKENIZE, {"prompt": "x"}, 0, {}),
    ],
)
def test_each_path_gets_its_members(path: bytes, members: dict[str, Any], cap: int | None, added: Any) -> None:
    value = {"model": "chat", **members}
    assert json.loads(sent(dump(value, path), cap, "m")) == {**value, "model": "m", **added}


def test_usage_asked_for_by_us_comes_once_at_the_end() -> None:
    body = read(chat(stream=True, stream_options={"continuous_usage_stats": True, "include_usage": False}))
    assert not body.include_usage
    assert json.loads(sent(body))["stream_options"] == {"include_usage": True}


def test_usage_asked_for_by_the_client_is_left_as_it_was_asked() -> None:
    options = {"continuous_usage_stats": True, "include_usage": True}
    body = read(chat(stream=True, stream_options=options))
    assert body.include_usage
    assert json.loads(sent(body))["stream_options"] == options


def test_tails_are_remembered_within_bounds() -> None:
    body = read(chat())
    for cap in range(1, MAX_TAILS + 10):
        assert b'"max_tokens":%d}' % cap in sent(body, cap, "tails")
    assert len(_tails["tails"]) <= MAX_TAILS
    for model in range(MAX_MODELS + 10):
        sent(body, 1, f"m{model}")
    assert len(_tails) <= MAX_MODELS


# --- reading as the engine does ---

KEYS = st.sampled_from(["model", "max_tokens", "max_completion_tokens", "n", "stream", "stream_options", "messages"])
SPELLED = st.tuples(KEYS, st.integers(0, 20), st.booleans())
ANY = st.sampled_from([
    b"null", b"true", b"false", b"1", b"16", b"17", b"0", b"-1", b"1.0", b"1e0", b'"a"', b'"1"', b"[]", b"{}",
    b'{"include_usage":true}', b'{"include_usage":false,"include_usage":true}', b'[{"content":"x","model":"y"}]',
    b"99999999999999999999999999", b'"\\u0061"', b'"\\ud83d\\ude00"', b'"\xc3\xa9"',
])  # fmt: skip


def spelled(name: tuple[str, int, bool]) -> bytes:
    """A name, with one of its letters escaped."""
    text, at, escape = name
    at %= len(text)
    return (f'"{text[:at]}\\u{ord(text[at]):04x}{text[at + 1 :]}"' if escape else f'"{text}"').encode()


@given(st.lists(st.tuples(SPELLED, ANY), max_size=8), st.sampled_from([b"", b" ", b"\n"]))
@example([(("model", 0, True), b'"b"')], b"")
def test_a_body_is_read_as_python_reads_it(members: list[tuple[tuple[str, int, bool], bytes]], white: bytes) -> None:
    pairs = [(b'"model"', b'"first"'), *((spelled(name), value) for name, value in members)]
    raw = white + b"{" + b",".join(key + white + b":" + white + value for key, value in pairs) + b"}" + white
    engine = json.loads(raw)
    try:
        body = read(raw)
    except BodyError:
        return
    assert body.model == engine["model"]
    assert body.stream is bool(engine.get("stream"))
    newer = engine.get("max_completion_tokens")
    assert body.max_tokens == (engine.get("max_tokens") if newer is None else newer)
    assert type(body.max_tokens) is not bool
    assert body.n == (1 if engine.get("n") is None else engine["n"])
    asked = (engine.get("stream_options") or {}).get("include_usage") is True
    assert body.include_usage is (body.stream and asked)
    forwarded = json.loads(sent(body))
    assert (forwarded["model"], forwarded["max_completion_tokens" if newer is not None else "max_tokens"]) == (
        "pool",
        7,
    )
    if body.stream:
        assert forwarded["stream_options"]["include_usage"] is True


@given(st.binary(max_size=60))
@example(b'{"model":"a","x":"\\q"}')
@example(b'{"model":"a"}\x0b')
@example(b'{"model":"a",}')
@example(b'{"model":"a","x":01}')
@example(b'{"model":"a"}{"model":"b"}')
def test_what_is_accepted_is_json_to_the_engine_or_not_unicode(noise: bytes) -> None:
    for raw in (noise, b'{"model":"a","x":' + noise + b"}", b'{"model":"a","x":"' + noise + b'"}'):
        try:
            body = read(raw)
        except BodyError:
            continue
        try:
            assert json.loads(raw)["model"] == body.model
        except UnicodeDecodeError:
            continue  # the engine refuses it too


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"nonsense", b'{"model":"a"', b'{"model":"a","x":NaN}', b'{"model":"a","x":Infinity}',
        b"[" * 100_000, b"\xef\xbb\xbf" + chat(), chat().decode().encode("utf-16"), chat().decode().encode("utf-32"),
        b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"model":"a","x":"\\ud800"}',
    ],
)  # fmt: skip
def test_what_is_no_json_object_in_utf8_is_refused(raw: bytes) -> None:
    with pytest.raises(BodyError, match="not a JSON object"):
        read(raw)


# --- what is refused ---


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"model": 5}, "model"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": "1"}, "n"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**24 + 1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stream": "true"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"best_of": 4}, "best_of"),
        ({"stream_interval": 64}, "stream_interval"),
        ({"priority": -5}, "priority"),
        ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params"),
        ({"ec_transfer_params": {"peer": "10.0.0.1"}}, "ec_transfer_params"),
        ({"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}, "chat_template"),
        ({"messages": [{"content": [{"type": 5}]}]}, "messages"),
        ({"messages": [1, {"content": []}]}, "messages"),
    ],
)
def test_what_has_no_bound_or_is_not_a_clients_to_set_is_refused(members: dict[str, Any], param: str) -> None:
    with pytest.raises(BodyError) as caught:
        read(chat(**members))
    assert caught.value.param == param


def test_a_body_without_a_model_is_refused() -> None:
    with pytest.raises(BodyError, match="names no model"):
        read(b'{"messages":[]}')


@pytest.mark.parametrize("value", [None, 0])
def test_members_that_are_refused_may_be_there_and_say_nothing(value: int | None) -> None:
    assert read(chat(priority=value, best_of=None, kv_transfer_params=None, stream_interval=None)).n == 1


@pytest.mark.parametrize(
    ("path", "members", "param"),
    [
        (COMPLETIONS, {"prompt": "x", "prompt_embeds": "AAAA"}, "prompt_embeds"),
        (COMPLETIONS, {"prompt": "x", "use_beam_search": True}, "use_beam_search"),
        (COMPLETIONS, {"prompt": ["x"] * 4097}, "prompt"),
        (RESPONSES, {"input": "x", "background": True}, "background"),
        (RESPONSES, {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"input": "x", "conversation": "conv_1"}, "conversation"),
        (RESPONSES, {"input": "x", "tools": [{"type": "code_interpreter"}]}, "tools"),
        (RESPONSES, {"input": [5]}, "input"),
        (EMBEDDINGS, {"input": "x", "messages": []}, "input"),
        (POOLING, {"data": {"anything": 1}}, "data"),
        (SCORE[0], {"text_1": "x"}, "documents"),
        (SCORE[0], {"text_1": "x", "queries": "y", "text_2": "z"}, "documents"),
        (RERANK[0], {"documents": ["x"]}, "documents"),
    ],
)
def test_each_path_refuses_what_it_cannot_bound(path: bytes, members: dict[str, Any], param: str) -> None:
    with pytest.raises(BodyError) as caught:
        dump({"model": "a", **members}, path)
    assert caught.value.param == param


# --- prompts and outputs ---


def test_completions_have_sixteen_tokens_by_default_and_ignore_the_newer_name() -> None:
    assert read(b'{"model":"a","prompt":"x","max_completion_tokens":99}', COMPLETIONS).max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "outputs"),
    [('"x"', 2), ('["x","y","z"]', 6), ("[1,2,3]", 2), ("[ [1],[2]]", 4), ("[]", 2), ("[ ]", 2), ('["a,b"]', 2)],
)
def test_every_prompt_of_a_completion_has_its_own_outputs(prompt: str, outputs: int) -> None:
    body = read(b'{"model":"a","n":2,"prompt":%b}' % prompt.encode(), COMPLETIONS)
    assert (body.outputs, body.n) == (outputs, 2)


@pytest.mark.parametrize("path", [EMBEDDINGS, SCORE[1], TOKENIZE, DETOKENIZE, COUNT_TOKENS])
def test_paths_that_generate_nothing_have_no_outputs(path: bytes) -> None:
    body = dump({"model": "a", "text_1": "x", "text_2": "y", "n": 5, "max_tokens": 5}, path)
    assert (body.outputs, body.max_tokens, body.stream) == (0, None, False)


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("x", 1),
        (["x", "yy"], 2),
        ([1, 2], 1),
        ([[1], [2]], 2),
        ([{"role": "user", "content": "x"}], 1),
        ([[{"role": "user", "content": "x"}], [{"role": "user", "content": "y"}]], 2),
    ],
)
def test_prompts_of_an_embedding_are_counted(value: Any, prompts: int) -> None:
    for member in ("input", "messages"):
        body = dump({"model": "a", member: value}, EMBEDDINGS)
        assert (body.prompts, body.text_only) == (prompts, True)


def test_a_query_counts_once_for_each_document() -> None:
    one = dump({"model": "a", "query": "q" * 1_000, "documents": ["d"]}, RERANK[2])
    three = dump({"model": "a", "query": "q" * 1_000, "documents": ["d"] * 3}, RERANK[2])
    assert (one.prompts, three.prompts) == (1, 3)
    assert three.size + three.extra_bytes > 3_000
    assert one.extra_bytes == 0
    assert 1_000 < three.longest < 1_100
    pairs = dump({"model": "a", "text_1": ["q" * 1_000] * 3, "text_2": ["d"] * 3}, SCORE[0])
    assert pairs.extra_bytes < 1_000


def test_the_longest_of_many_prompts_is_known() -> None:
    body = dump({"model": "a", "input": ["x" * 100, "y" * 900, "z"]}, EMBEDDINGS)
    assert 900 <= body.longest <= 910
    assert read(chat("x" * 100)).longest == len(chat("x" * 100))


def test_the_prompts_bytes_are_where_prefixes_are_taken_from() -> None:
    assert bytes(read(b'{"model":"a","messages": [1 ]}').prompt) == b"[1 ]"
    assert bytes(read(b'{"model":"a","prompt":"x"}', COMPLETIONS).prompt) == b'"x"'
    assert bytes(read(b'{"model":"a"}').prompt) == b""


# --- what is not text ---

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500}}


@pytest.mark.parametrize(
    ("content", "media"),
    [
        ("x", 0),
        ("[x] [y]", 0),
        ([{"type": "text", "text": "x"}], 0),
        (["x"], 0),
        ([], 0),
        ([IMAGE], 1),
        ([{"image_url": "u"}], 1),
        ([{"type": "text", "text": "x"}, {"type": "input_audio"}, IMAGE], 2),
        ([{"type": "tool_result", "content": [{"type": "text"}]}], 0),
        ([{"type": "tool_result", "content": [{"type": "image"}]}], 1),
    ],
)
@pytest.mark.parametrize("layout", [(",", ":"), (", ", ": "), (" ,\n", " " * 40 + ":" + "\n" * 40)])
def test_content_that_is_not_text_is_seen(content: Any, media: int, layout: tuple[str, str]) -> None:
    value = {"model": "a", "messages": [{"role": "user", "content": content}]}
    for path in (CHAT, MESSAGES, EMBEDDINGS):
        body = dump(value, path, separators=layout)
        assert (body.media, body.text_only, body.kind == MEDIA) == (media, not media, bool(media))
    assert dump(value, CHAT).media_bytes >= media * len('{"image_url":"u"}') - 5 * media


@pytest.mark.parametrize("name", ["content", "\\u0063ontent", "conten\\u0074", "\\u0063\\u006f\\u006e\\u0074\\u0065nt"])
def test_an_image_cannot_hide_behind_an_escaped_name(name: str) -> None:
    raw = b'{"model":"a","messages":[{"%b":[{"type":"image_url"}]}]}' % name.encode()
    assert not read(raw).text_only


@given(st.lists(st.sampled_from(["[", " [", ": [", '":[', '"content": [', "x", '"t":[{}]']), max_size=90))
def test_text_that_looks_like_a_list_is_text(pieces: list[str]) -> None:
    assert read(chat("".join(pieces))).text_only


@given(st.integers(0, 200), st.text("[] :x", max_size=30))
def test_an_image_is_found_behind_any_text(before: int, text: str) -> None:
    messages = [{"role": "user", "content": text}] * before + [{"role": "user", "content": [IMAGE]}]
    assert not dump({"model": "a", "messages": messages}).text_only


@pytest.mark.parametrize(
    ("item", "media"),
    [
        ({"role": "user", "content": "x"}, 0),
        ({"role": "user", "content": [{"type": "input_text", "text": "x"}]}, 0),
        ({"type": "function_call_output", "call_id": "1", "output": "x"}, 0),
        ({"type": "reasoning", "summary": [{"type": "summary_text"}]}, 0),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}, 1),
        ({"type": "function_call_output", "output": [{"type": "input_image"}]}, 1),
        ({"type": "computer_call_output", "output": {"image_url": "u"}}, 1),
    ],
)
def test_items_of_responses_that_are_not_text_are_seen(item: dict[str, Any], media: int) -> None:
    assert dump({"model": "a", "input": [item]}, RESPONSES).media == media


def test_padding_to_the_longest_input_is_not_bounded_by_the_bytes() -> None:
    assert not dump({"model": "a", "input": "x", "padding": "max_length"}, EMBEDDINGS).text_only
    assert dump({"model": "a", "input": "x", "padding": "do_not_pad"}, EMBEDDINGS).text_only


# --- what templates print ---

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "a": {"b": {"c": 1}}}}}]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_tools_count_as_the_template_prints_them(path: bytes) -> None:
    plain = dump({"model": "a"}, path)
    body = dump({"model": "a", "tools": TOOLS}, path)
    assert body.extra_bytes == plain.extra_bytes + len(json.dumps(TOOLS, indent=4)) + 256
    assert dump({"model": "a", "tools": TOOLS}, path).extra_bytes == body.extra_bytes
    assert dump({"model": "a", "tools": None}, path).extra_bytes == 256


def test_long_tools_count_as_the_template_prints_them() -> None:
    tools = TOOLS * 200
    assert dump({"model": "a", "tools": tools}).extra_bytes == len(json.dumps(tools, indent=4)) + 256


def test_template_arguments_count_as_a_template_may_print_them() -> None:
    arguments = {"tools": [[[[1, 2, 3]]]]}
    for path in (CHAT, EMBEDDINGS):
        body = dump({"model": "a", "input": "x", "chat_template_kwargs": arguments}, path)
        assert body.extra_bytes == len(json.dumps(arguments, indent=4))
    assert dump({"model": "a", "chat_template_kwargs": {"enable_thinking": False}}).extra_bytes < 40


@pytest.mark.parametrize(("path", "member"), [(CHAT, "response_format"), (MESSAGES, "output_config")])
def test_an_answers_schema_counts_as_a_template_may_print_it(path: bytes, member: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    assert dump({"model": "a", member: schema}, path).extra_bytes == len(json.dumps(schema, indent=4))


@pytest.mark.parametrize("name", ["tool_calls", "tool_call\\u0073"])
def test_arguments_of_tool_calls_grow_by_their_separators(name: str) -> None:
    arguments = "[" + "1," * 500 + "1]"
    call = json.dumps([{"function": {"name": "f", "arguments": arguments}}])
    body = read(b'{"model":"a","messages":[{"role":"assistant","%b":%b}]}' % (name.encode(), call.encode()))
    assert body.extra_bytes >= 500


@pytest.mark.parametrize("member", ["tools", "chat_template_kwargs"])
def test_what_is_nested_too_deeply_is_refused(member: str) -> None:
    deep: Any = 1
    for _ in range(33):
        deep = {"x": [deep]} if member == "tools" else {"x": deep}
    with pytest.raises(BodyError, match="32 levels"):
        read(chat(**{member: deep}))


@pytest.mark.parametrize(
    "tools",
    [b"[" + b"9" * 5_000 + b"]", b"[" * 31 + b",".join([b"1"] * 200_000) + b"]" * 31],
    ids=["a number that Python does not read", "small in bytes, large when printed"],
)
def test_tools_that_cannot_be_measured_are_refused(tools: bytes) -> None:
    with pytest.raises(BodyError, match="tools"):
        read(b'{"model":"chat","messages":[],"tools":' + tools + b"}")


# --- content classes ---


@pytest.mark.parametrize(
    ("text", "ascii_only", "kind"),
    [
        ("The quick brown fox jumps over the lazy dog, again and again. ", True, PROSE),
        ("for (i = 0; i < n; ++i) { a[i] = f(x[i], 10); }\n", True, CODE),
        ("今日は天気がとても良いので、散歩に行きましょう。", False, DENSE),
        ("今日は天気がとても良いので、散歩に行きましょう。", True, ESCAPED),
        ("Сегодня хорошая погода, пойдём гулять. ", False, DENSE),
        ("Straße und Gemüse kosten größere Mühe als gewöhnlich. ", False, PROSE),
    ],
)
@pytest.mark.parametrize("times", [8, 400])
def test_content_is_classed_by_what_its_bytes_hold(text: str, ascii_only: bool, kind: int, times: int) -> None:
    value = {"model": "a", "messages": [{"role": "user", "content": text * times}]}
    assert read(json.dumps(value, ensure_ascii=ascii_only).encode()).kind == kind
