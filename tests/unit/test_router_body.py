"""Reading a body strictly, putting it together again, and the bounds and routes that follow from it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router.answers import Refusal
from fairlead_router.body import CHAT, COMPLETIONS, EMBEDDINGS, BodyError, edits_for, parse, splice
from fairlead_router.sizing import Calibration, Fit, fit, prompt_bound, reserve_amount
from tests.builders.router import CARD, chat, policy, route

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
OTHERS = st.dictionaries(
    st.text(max_size=10).filter(
        lambda key: (
            key not in {"model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "tools"}
        )
    ),
    VALUES,
    max_size=6,
)


@given(OTHERS, st.sampled_from([None, (",", ":"), (" , ", " : ")]), st.booleans(), st.booleans())
def test_splicing_changes_what_it_names_and_nothing_else(
    others: dict[str, Any], separators: tuple[str, str] | None, ascii_only: bool, stream: bool
) -> None:
    others.pop("messages", None)
    sent = {"model": "chat", "messages": [{"role": "user", "content": 'a"\\\n'}], "stream": stream, "n": None, **others}
    raw = json.dumps(sent, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        body = parse(CHAT, raw)
    except BodyError:
        raw.decode()  # only what is not UTF-8 may be refused
        return
    forwarded = json.loads(splice(body, edits_for(body, "pool", 7)))
    expected = {**sent, "model": "pool", "max_tokens": 7, "n": 1}
    if stream:
        expected["stream_options"] = {"include_usage": True}
    assert forwarded == expected
    assert list(forwarded)[: len(sent)] == list(sent)


def test_values_pass_byte_for_byte() -> None:
    raw = b'{"model":"chat","seed": 1.50e0,"messages":[ {"role":"user","content":"\\u00e9\\/"} ] }'
    body = parse(CHAT, raw)
    out = splice(body, edits_for(body, "m", 5))
    assert out == b'{"model":"m","seed":1.50e0,"messages":[ {"role":"user","content":"\\u00e9\\/"} ],"max_tokens":5}'


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"a","messages":[],"model":"b"}',
        b'{"model":"a","max_tokens":1,"messages":[],"max_tokens":9}',
        b'{"model":"a", "n": 1, "n": 2, "messages": []}',
        b'{"model":"a","\\u006e":2,"n":1,"messages":[]}',
        b'{"stream":true,"model":"a","stream":false}',
    ],
)
def test_a_member_that_comes_twice_is_refused(raw: bytes) -> None:
    with pytest.raises(BodyError, match="members named"):
        parse(CHAT, raw)


def test_a_member_may_come_again_deeper_down() -> None:
    raw = b'{ "model" : "a" , "messages" : [ { "role" : "user", "content" : "x", "model": "b", "n": 3 } ] , "n" : 2 }'
    assert parse(CHAT, raw).n == 2


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"model": 5}, "model"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": "1"}, "n"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stream": "true"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": [1]}, "messages"),
    ],
)
def test_what_an_engine_might_coerce_is_refused(members: dict[str, Any], param: str) -> None:
    with pytest.raises(BodyError) as caught:
        parse(CHAT, chat(**members))
    assert caught.value.param == param


@pytest.mark.parametrize("raw", [b"", b"[]", b"nonsense", b'{"model":"a"', b'{"a":NaN}', b"[" * 100_000, b"\xff\xfe{}"])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(BodyError):
        parse(CHAT, raw)


def test_both_names_of_the_output_cap_are_written_and_the_newer_one_counts() -> None:
    body = parse(CHAT, chat(max_tokens=100, max_completion_tokens=50))
    assert body.max_tokens == 50
    forwarded = json.loads(splice(body, edits_for(body, "m", 20)))
    assert (forwarded["max_tokens"], forwarded["max_completion_tokens"]) == (20, 20)


def test_completions_have_sixteen_tokens_by_default_and_ignore_the_newer_name() -> None:
    assert parse(COMPLETIONS, b'{"model":"a","prompt":"x","max_completion_tokens":99}').max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "outputs"), [('"x"', 2), ('["x","y","z"]', 6), ("[1,2,3]", 2), ("[[1],[2]]", 4), ("[]", 2)]
)
def test_every_prompt_of_a_completion_has_its_own_outputs(prompt: str, outputs: int) -> None:
    raw = b'{"model":"a","n":2,"prompt":%b}' % prompt.encode()
    assert parse(COMPLETIONS, raw).outputs == outputs


@pytest.mark.parametrize(
    ("content", "text_only"),
    [
        ("x", True),
        ([{"type": "text", "text": "x"}], True),
        (["x"], True),
        ([{"type": "image_url", "image_url": {"url": "u"}}], False),
        ([{"image_url": "u"}], False),
        ([{"type": "text", "text": "x"}, {"type": "input_audio"}], False),
    ],
)
def test_content_that_is_not_text_is_seen(content: Any, text_only: bool) -> None:
    raw = json.dumps({"model": "a", "messages": [{"role": "user", "content": content}]}).encode()
    assert parse(CHAT, raw).text_only is text_only


def test_usage_is_asked_for_beside_the_other_stream_options() -> None:
    body = parse(CHAT, chat(stream=True, stream_options={"continuous_usage_stats": False, "include_usage": False}))
    forwarded = json.loads(splice(body, edits_for(body, "m", 5)))
    assert forwarded["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}


def test_an_embedding_gets_its_model_and_nothing_else() -> None:
    body = parse(EMBEDDINGS, b'{"model":"a","input":["x","y"]}')
    assert splice(body, edits_for(body, "m", None)) == b'{"model":"m","input":["x","y"]}'
    assert reserve_amount("Tokens", CARD, body, 0) == body.size + 256


def test_tools_count_as_the_template_prints_them() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "a": {"b": {"c": 1}}}}}]
    body = parse(CHAT, chat(tools=tools))
    assert body.tools_size == len(json.dumps(tools, indent=4))
    assert prompt_bound(body) == body.size + 256 + body.tools_size


def test_tools_that_are_nested_too_deeply_are_refused() -> None:
    deep: Any = 1
    for _ in range(33):
        deep = {"x": deep}
    with pytest.raises(BodyError, match="32 levels"):
        parse(CHAT, chat(tools=deep))


@given(st.text(max_size=300), st.integers(1, 100), st.integers(1, 16))
def test_the_bound_covers_a_token_for_every_byte_of_the_text(text: str, cap: int, n: int) -> None:
    body = parse(CHAT, chat(text, n=n))
    bound = reserve_amount("Tokens", CARD, body, cap)
    assert bound >= len(text.encode("utf-8", "surrogatepass")) + n * cap


ROUTES = (route("short", 1000), route("long", 8000))


def fitted(size: int, **changes: Any) -> Fit | Refusal:
    members = {"max_tokens": changes.pop("max_tokens")} if "max_tokens" in changes else {}
    found = policy(routes=ROUTES, default_output_tokens=100, **changes)
    return fit(found, parse(CHAT, chat("x" * size, **members)), Calibration())


def test_the_smallest_route_that_fits_serves() -> None:
    for size, name in ((100, "short"), (3_000, "short"), (4_000, "long")):
        found = fitted(size)
        assert isinstance(found, Fit)
        assert found.route.name == name
        assert found.cap == 100


def test_a_request_above_the_policys_maximum_is_clamped_and_told() -> None:
    found = fitted(10, max_tokens=500, max_output_tokens=200)
    assert isinstance(found, Fit)
    assert (found.cap, found.clamped) == (200, True)


def test_output_that_fits_nowhere_is_cut_to_what_the_largest_route_leaves() -> None:
    found = fitted(10, max_tokens=50_000)
    assert isinstance(found, Fit)
    assert found.route.name == "long"
    assert found.clamped
    assert 7_900 < found.cap < 8_000


def test_a_prompt_that_fits_nowhere_is_refused_with_numbers() -> None:
    found = fitted(40_000)
    assert isinstance(found, Refusal)
    assert found.code == "context_length_exceeded"
    assert "model chat takes at most 8,000" in found.message


def test_an_estimate_follows_what_engines_report_and_stays_careful() -> None:
    calibration = Calibration()
    assert calibration.estimate(3_600) == 1_001
    for _ in range(200):
        calibration.observe(2_000, 1_000)
    assert 1_050 < calibration.estimate(2_000) < 1_200


@pytest.mark.parametrize(
    "tools",
    [b"[" + b"9" * 5_000 + b"]", b"[" * 31 + b",".join([b"1"] * 200_000) + b"]" * 31],
    ids=["a number that Python does not read", "small in bytes, large when printed"],
)
def test_tools_that_cannot_be_measured_are_refused(tools: bytes) -> None:
    with pytest.raises(BodyError, match="tools"):
        parse(CHAT, b'{"model":"chat","messages":[],"tools":' + tools + b"}")
