"""Bounds that hold, estimates that learn, and the routes that follow from them."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router.answers import Refusal
from fairlead_router.body import CODE, DENSE, ESCAPED, MEDIA, PROSE, Body, parse
from fairlead_router.contract import Card, Unit
from fairlead_router.paths import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES, SERVED, TOKENIZE
from fairlead_router.sizing import (
    LEARNED_FROM,
    MEDIA_TOKENS,
    NO_AMOUNTS,
    TAIL,
    UNIT_AT,
    Calibration,
    Fit,
    amounts_of,
    fit,
    prompt_bound,
    wanted_output,
)
from tests.builders.router import CARD, chat, policy, route

IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:," + "A" * 20_000}}]}]


def read(raw: bytes, path: bytes = CHAT) -> Body:
    return parse(SERVED[path], raw)


def dump(path: bytes, **members: Any) -> Body:
    return read(json.dumps({"model": "chat", **members}).encode(), path)


def amount(unit: Unit, body: Body, cap: int, context: int = 0, card: Card | None = CARD) -> int:
    found = amounts_of(card, body, cap, context) or NO_AMOUNTS
    return found[UNIT_AT[unit]]


# --- bounds ---


@given(st.text(max_size=300), st.integers(1, 100), st.integers(1, 16))
def test_the_bound_covers_a_token_for_every_byte_of_the_text(text: str, cap: int, n: int) -> None:
    body = read(json.dumps({"model": "a", "messages": [{"content": text}], "n": n}).encode("utf-8", "surrogatepass"))
    bound = amount("Tokens", body, cap)
    assert bound >= len(text.encode("utf-8", "surrogatepass")) + n * cap


def test_the_bound_is_the_rendered_prompt_with_its_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = read(chat(tools=tools))
    assert prompt_bound(body, 0) == body.size + 256 + 256 + len(json.dumps(tools, indent=4))


def test_an_engine_runs_no_prompt_beyond_its_context() -> None:
    assert prompt_bound(read(chat("x" * 5_000)), 1_000) == 1_000
    assert prompt_bound(read(chat("x" * 100)), 100_000) == len(chat("x" * 100)) + 256
    assert prompt_bound(dump(COMPLETIONS, prompt=["x" * 5_000] * 3), 1_000) == 3_000


def test_a_pooling_task_may_run_a_text_in_several_pieces() -> None:
    body = dump(EMBEDDINGS, input="x" * 5_000)
    assert prompt_bound(body, 1_000) == body.size + 256


@pytest.mark.parametrize(
    ("path", "members", "prompts"),
    [
        (CHAT, {"messages": IMAGE}, 1),
        (EMBEDDINGS, {"messages": [IMAGE, IMAGE]}, 2),
        (RERANK[0], {"query": {"text": "q"}, "documents": ["a", "b"]}, 2),
        (EMBEDDINGS, {"input": "x", "padding": "max_length"}, 1),
    ],
)
def test_what_is_not_text_is_bounded_by_the_context_alone(path: bytes, members: Any, prompts: int) -> None:
    body = dump(path, **members)
    assert prompt_bound(body, 1_000) == prompts * 1_000
    assert amount("Tokens", body, 5, 1_000) == prompts * 1_000 + body.outputs * 5
    assert amounts_of(CARD, body, 5, 0) is None


def test_a_reserve_is_in_the_budgets_unit() -> None:
    body = read(chat("x" * 100, n=3))
    prompt = body.size + 256
    assert amount("Requests", body, 10) == 1
    assert amount("Tokens", body, 10) == prompt + 30
    assert amount("USD", body, 10) == -(-(prompt * 32_000 + 30 * 96_000) // 1_000)
    assert amount("USD", body, 10, card=None) == 0


def test_a_path_that_runs_nothing_costs_a_request_and_no_money() -> None:
    body = dump(TOKENIZE, prompt="x" * 1_000)
    assert amounts_of(CARD, body, 0, 0) == NO_AMOUNTS == (0, 0, 1)


@given(st.lists(st.text(max_size=50), min_size=1, max_size=20), st.text(max_size=50))
def test_a_rerank_is_bounded_with_its_query_before_each_document(documents: list[str], query: str) -> None:
    raw = json.dumps({"model": "a", "query": query, "documents": documents}, ensure_ascii=False)
    try:
        body = read(raw.encode(), RERANK[0])
    except UnicodeEncodeError:
        return
    bound = prompt_bound(body, 0)
    assert bound is not None
    assert bound >= sum(len(query.encode()) + len(document.encode()) for document in documents)


# --- calibration ---


def test_an_estimate_starts_on_the_careful_side() -> None:
    calibration = Calibration()
    for kind in range(MEDIA + 1):
        assert calibration.estimate(10_000, kind) > 10_000 / 4
        assert calibration.least(10_000, kind) < calibration.estimate(10_000, kind)


MIXES: dict[str, tuple[int, Callable[[random.Random], float]]] = {
    "prose": (PROSE, lambda chance: chance.gauss(4.4, 0.25)),
    "prose with tables": (PROSE, lambda chance: chance.gauss(4.4, 0.25) if chance.random() < 0.9 else 2.2),
    "chinese and russian": (DENSE, lambda chance: chance.gauss(3.1, 0.3) if chance.random() < 0.6 else 5.5),
    "chinese in escapes": (ESCAPED, lambda chance: chance.gauss(8.5, 0.8)),
    "digits": (CODE, lambda chance: chance.gauss(1.3, 0.1)),
}


@pytest.mark.parametrize("mix", MIXES)
def test_few_prompts_are_longer_than_estimated_or_shorter_than_the_least(mix: str) -> None:
    kind, draw = MIXES[mix]
    chance, calibration = random.Random(7), Calibration()  # noqa: S311 - a mixture, not a secret
    longer = shorter = 0
    for number in range(6_000):
        size = chance.randrange(LEARNED_FROM, 200_000)
        tokens = max(1, int(size / max(1.05, draw(chance))))
        if number >= 3_000:
            longer += tokens > calibration.estimate(size, kind)
            shorter += tokens < calibration.least(size, kind)
        calibration.observe(size, kind, tokens)
    assert TAIL / 2 < longer / 3_000 < 1.5 * TAIL
    assert TAIL / 2 < shorter / 3_000 < 1.5 * TAIL


def test_a_change_of_content_is_followed_within_a_hundred_requests() -> None:
    calibration = Calibration()
    for _ in range(2_000):
        calibration.observe(44_000, PROSE, 10_000)
    for _ in range(100):
        calibration.observe(22_000, PROSE, 10_000)
    assert calibration.estimate(22_000, PROSE) >= 9_700


def test_content_classes_learn_apart() -> None:
    calibration = Calibration()
    for _ in range(500):
        calibration.observe(10_000, CODE, 9_000)
    assert calibration.estimate(10_000, CODE) > 8_000
    assert calibration.estimate(10_000, PROSE) == Calibration().estimate(10_000, PROSE)


@pytest.mark.parametrize(
    ("size", "kind", "tokens"), [(LEARNED_FROM - 1, PROSE, 1_000), (10_000, PROSE, 0), (10_000, MEDIA, 10_000)]
)
def test_what_says_nothing_about_text_is_not_learned_from(size: int, kind: int, tokens: int) -> None:
    calibration = Calibration()
    for _ in range(100):
        calibration.observe(size, kind, tokens)
    assert calibration.estimate(10_000, kind) == Calibration().estimate(10_000, kind)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, MEDIA), st.integers(-1, 10**7)), max_size=50))
def test_an_estimate_never_exceeds_the_bytes_and_never_vanishes(seen: list[tuple[int, int, int]]) -> None:
    calibration = Calibration()
    for observation in seen:
        calibration.observe(*observation)
    for kind in range(MEDIA + 1):
        assert 1_000 / 24 <= calibration.least(1_000, kind) <= 1_001
        assert calibration.least(1_000, kind) <= calibration.estimate(1_000, kind) <= 1_001


# --- routes ---

ROUTES = (route("short", 1000), route("long", 8000))


def fitted(size: int, **changes: Any) -> Fit | Refusal:
    members = {"max_tokens": changes.pop("max_tokens")} if "max_tokens" in changes else {}
    found = policy(routes=ROUTES, **{"default_output_tokens": 100, **changes})
    return fit(found, read(chat("x" * size, **members)), Calibration())


@pytest.mark.parametrize(("size", "name"), [(100, "short"), (3_000, "short"), (4_000, "long")])
def test_the_smallest_route_that_fits_serves(size: int, name: str) -> None:
    found = fitted(size)
    assert isinstance(found, Fit)
    assert (found.route.name, found.cap, found.clamped) == (name, 100, False)
    assert ROUTES[found.index] is found.route
    assert size / 4 < found.estimate < size


def test_a_misjudged_request_goes_to_a_later_route() -> None:
    body = read(chat("x" * 100))
    found = fit(policy(routes=ROUTES), body, Calibration(), 1)
    assert isinstance(found, Fit)
    assert found.route.name == "long"
    assert isinstance(fit(policy(routes=ROUTES), body, Calibration(), 2), Refusal)


def test_a_request_above_the_policys_maximum_is_clamped_and_told() -> None:
    found = fitted(10, max_tokens=500, max_output_tokens=200)
    assert isinstance(found, Fit)
    assert (found.cap, found.clamped) == (200, True)


def test_without_a_wish_or_a_default_the_route_gives_what_it_has() -> None:
    found = fitted(100, default_output_tokens=0)
    assert isinstance(found, Fit)
    assert (found.cap, found.clamped) == (1_000 - found.estimate, False)


def test_output_that_fits_nowhere_is_cut_to_what_the_largest_route_leaves() -> None:
    found = fitted(10, max_tokens=50_000)
    assert isinstance(found, Fit)
    assert (found.route.name, found.clamped) == ("long", True)
    assert 7_900 < found.cap < 8_000


def test_a_prompt_that_may_still_fit_goes_to_the_largest_route() -> None:
    found = fitted(35_000)
    assert isinstance(found, Fit)
    assert found.estimate > 8_000
    assert (found.route.name, found.cap) == ("long", 100)


def test_a_prompt_that_fits_nowhere_is_refused_with_numbers() -> None:
    found = fitted(60_000)
    assert isinstance(found, Refusal)
    assert (found.status, found.code, found.param) == (400, "context_length_exceeded", "messages")
    size = len(chat("x" * 60_000))
    prompt = int(size / 6.0) + 1
    assert found.message == (
        f"This request has about {prompt:,} prompt + 100 output = {prompt + 100:,} tokens; model chat takes at most "
        f"8,000. Remove {prompt + 100 - 8_000:,}."
    )


def test_routes_of_unknown_context_take_nothing() -> None:
    found = fit(policy(routes=(route("unknown", 0), route("known", 4_096))), read(chat()), Calibration())
    assert isinstance(found, Fit)
    assert found.route.name == "known"
    assert isinstance(fit(policy(routes=(route("unknown", 0),)), read(chat()), Calibration()), Refusal)


def test_each_prompt_of_many_must_fit_by_itself() -> None:
    found = fit(policy(routes=ROUTES), dump(EMBEDDINGS, input=["x" * 1_000] * 50), Calibration())
    assert isinstance(found, Fit)
    assert (found.route.name, found.cap) == ("short", 0)


def test_an_image_counts_as_an_image_and_not_as_its_bytes() -> None:
    found = fit(policy(routes=ROUTES), dump(CHAT, messages=IMAGE), Calibration())
    assert isinstance(found, Fit)
    assert found.route.name == "long"
    assert MEDIA_TOKENS < found.estimate < MEDIA_TOKENS + 200


@pytest.mark.parametrize(("path", "member"), [(TOKENIZE, "prompt"), (EMBEDDINGS, "input")])
def test_a_text_of_any_length_may_be_tokenized_or_embedded_in_pieces(path: bytes, member: str) -> None:
    found = fit(policy(routes=ROUTES), dump(path, **{member: "x" * 100_000}), Calibration())
    assert isinstance(found, Fit)
    assert (found.route.name, found.cap, found.clamped) == ("long", 0, False)


@pytest.mark.parametrize(
    ("path", "members"),
    [
        (CHAT, {"messages": [{"content": "x" * 100_000}], "truncate_prompt_tokens": 500}),
        (COMPLETIONS, {"prompt": "x" * 100_000, "truncate_prompt_tokens": -1}),
        (RESPONSES, {"input": "x" * 100_000, "truncation": "auto"}),
    ],
)
def test_a_prompt_that_the_engine_is_asked_to_cut_is_not_too_long(path: bytes, members: dict[str, Any]) -> None:
    body = dump(path, **members, **({"max_output_tokens": 50} if path == RESPONSES else {"max_tokens": 50}))
    found = fit(policy(routes=ROUTES), body, Calibration())
    assert isinstance(found, Fit)
    assert (found.route.name, found.cap) == ("long", 50)
    assert prompt_bound(body, 8_000) == 8_000


@given(
    st.integers(0, 60_000), st.none() | st.integers(1, 20_000), st.integers(0, 9_000), st.integers(0, 9_000),
    st.lists(st.integers(0, 10_000), max_size=4),
)  # fmt: skip
def test_every_fit_is_within_its_route_and_what_was_asked(
    size: int, asked: int | None, default: int, ceiling: int, contexts: list[int]
) -> None:
    routes = tuple(route(f"r{index}", context) for index, context in enumerate(sorted(contexts)))
    found = policy(routes=routes, default_output_tokens=default, max_output_tokens=ceiling)
    body = read(chat("x" * size, **({} if asked is None else {"max_tokens": asked})))
    calibration = Calibration()
    answer = fit(found, body, calibration)
    wanted = wanted_output(found, body)
    if isinstance(answer, Refusal):
        assert calibration.least(body.longest, body.kind) + 1 > max([0, *contexts])
        return
    assert 1 <= answer.cap <= (answer.route.max_context_tokens if wanted is None else wanted)
    assert answer.clamped is (asked is not None and answer.cap < asked)
    assert calibration.least(body.longest, body.kind) + answer.cap <= answer.route.max_context_tokens
    smaller = routes[: answer.index]
    if answer.estimate + answer.cap <= answer.route.max_context_tokens and wanted is not None and answer.cap == wanted:
        assert all(answer.estimate + wanted > other.max_context_tokens for other in smaller)
