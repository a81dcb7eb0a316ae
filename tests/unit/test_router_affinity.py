"""Prefix keys and the ring."""

import json
import os
import random
import subprocess
import sys
from bisect import bisect
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairlead_router.affinity import (
    NO_PREFIX,
    PLAIN_REACH,
    POINTS,
    REACH,
    SHORTEST,
    SUCCESSORS,
    bound,
    prefix_key,
    ring,
)
from tests.bench.affinity import KV_TOKENS, Run, least_load, ours, read

LONG = "You sort tickets. " * 200
OTHER = "You write poems. " * 200


def message(role: str, text: object, *, content_first: bool = False) -> dict[str, object]:
    named: dict[str, object] = {"role": role, "content": text}
    return dict(reversed(named.items())) if content_first else named


def chat(*messages: dict[str, object], compact: bool = True) -> bytes:
    return json.dumps(messages, separators=(",", ":") if compact else None).encode()


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


texts = st.text(max_size=3000)
turns = st.lists(st.tuples(st.text(max_size=400), st.text(max_size=400)), max_size=3)


@settings(deadline=None)
@given(texts, turns, st.booleans(), st.booleans())
@example('say "}" and \\', [('{"role":"user"}', "x")], True, False)
@example("\\", [("", "")], False, False)
def test_all_turns_of_a_conversation_have_one_key(
    question: str, later: list[tuple[str, str]], content_first: bool, compact: bool
) -> None:
    first = [message("system", LONG), message("user", question, content_first=content_first)]
    then = [
        said
        for answer, more in later
        for said in (
            message("assistant", answer, content_first=True),
            message("user", more, content_first=content_first),
        )
    ]
    assert prefix_key(chat(*first, compact=compact)) == prefix_key(chat(*first, *then, compact=compact)) != NO_PREFIX


@settings(deadline=None)
@given(st.lists(st.text(max_size=REACH // 12), min_size=2, max_size=6, unique=True))
def test_conversations_behind_one_system_prompt_have_keys_of_their_own(questions: list[str]) -> None:
    keys = {prefix_key(chat(message("system", LONG), message("user", question))) for question in questions}
    assert len(keys) == len(questions)


@pytest.mark.parametrize("content_first", [False, True])
def test_what_follows_the_reach_of_a_long_first_message_does_not_count(content_first: bool) -> None:
    document = "A ship's log. " * 1000
    first, second = (
        chat(message("system", LONG), message("user", document + question, content_first=content_first))
        for question in ("Who?", "When?")
    )
    assert prefix_key(first) == prefix_key(second)


def test_system_prompts_that_differ_early_or_in_length_have_keys_of_their_own() -> None:
    question = message("user", "Which team?")
    prompts = [LONG, OTHER, LONG + "Be brief."]
    assert len({prefix_key(chat(message("system", prompt), question)) for prompt in prompts}) == 3


@pytest.mark.parametrize("role", ["system", "developer"])
def test_content_in_parts_is_read_like_text(role: str) -> None:
    first = [message(role, parts(LONG)), message("user", parts("Which team?"))]
    assert prefix_key(chat(*first)) == prefix_key(chat(*first, message("assistant", "Sea."), message("user", "Why?")))
    assert prefix_key(chat(*first)) != prefix_key(chat(first[0], message("user", parts("Which port?"))))


def test_code_in_the_system_prompt_does_not_hide_the_user_message() -> None:
    system = message("system", 'say {"a": "b"}; ' * 5 + 2 * LONG)
    keys = {prefix_key(chat(system, message("user", question))) for question in ("Why?", "How?")}
    assert len(keys) == 2


def test_a_system_prompt_full_of_braces_is_given_up_on_and_still_has_a_key() -> None:
    system = message("system", "{}" * 10_000)
    keys = {prefix_key(chat(system, message("user", question))) for question in ("Why?", "How?")}
    assert len(keys) == 1
    assert keys != {NO_PREFIX}


@settings(deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.binary(max_size=50),
    st.binary(max_size=50),
    st.integers(1, PLAIN_REACH - 1),
)
def test_other_prompts_have_one_key_exactly_if_their_beginnings_are_equal(
    seed: int, one: bytes, two: bytes, at: int
) -> None:
    prompt = b'"' + random.Random(seed).randbytes(PLAIN_REACH - 1)  # noqa: S311 - any bytes
    assert prefix_key(prompt + one) == prefix_key(prompt + two)
    changed = bytearray(prompt)
    changed[at] ^= 1
    assert prefix_key(bytes(changed) + one) != prefix_key(prompt + one)


@settings(deadline=None)
@given(st.binary(max_size=SHORTEST + 500), st.sampled_from([b"", b"[", b'[{"role":"user"']))
def test_any_bytes_are_taken_and_a_view_of_them_gives_the_same_key(raw: bytes, lead: bytes) -> None:
    prompt = lead + raw
    key = prefix_key(prompt)
    assert key == prefix_key(memoryview(prompt))
    assert (key == NO_PREFIX) == (len(prompt) < SHORTEST)
    assert 0 <= key < 1 << 32


def test_a_short_prompt_has_no_key() -> None:
    assert prefix_key(b"") == NO_PREFIX
    assert prefix_key(chat(message("user", "Hello"))) == NO_PREFIX


def test_another_process_finds_the_same_keys_and_places() -> None:
    prompt = chat(message("system", LONG), message("user", "Which team?"))
    words = "import sys; from fairlead_router.affinity import prefix_key, ring; "
    words += "print(prefix_key(sys.stdin.buffer.read()), ring(['a/1', 'a/2'])[0][:3])"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", words], input=prompt, capture_output=True, check=True, env=env)
    assert said.stdout.decode().strip() == f"{prefix_key(prompt)} {ring(['a/1', 'a/2'])[0][:3]}"


# --- the ring ---

names = st.lists(st.integers(0, 99).map("team/chat-{}".format), min_size=1, max_size=12, unique=True)
keys = st.lists(st.integers(1, (1 << 32) - 1), min_size=1, max_size=50)


def met(pool: Sequence[str], some: Sequence[int]) -> list[list[str]]:
    """Whom each key meets, nearest first."""
    places, orders = ring(pool)
    return [[pool[index] for index in orders[bisect(places, key)]] for key in some]


@settings(deadline=None)
@given(names, keys)
def test_a_key_meets_each_replica_once_up_to_the_number_that_is_kept(pool: list[str], some: list[int]) -> None:
    for found in met(pool, some):
        assert len(found) == len(set(found)) == min(len(pool), SUCCESSORS)


@settings(deadline=None)
@given(names, keys, st.randoms(use_true_random=False))
def test_the_order_in_which_replicas_are_listed_does_not_matter(
    pool: list[str], some: list[int], rng: random.Random
) -> None:
    shuffled = list(pool)
    rng.shuffle(shuffled)
    assert met(pool, some) == met(shuffled, some)


@settings(deadline=None)
@given(names.filter(lambda pool: len(pool) > 1), keys)
def test_only_the_share_of_a_replica_that_goes_is_moved(pool: list[str], some: list[int]) -> None:
    gone, left = pool[0], pool[1:]
    for before, after in zip(met(pool, some), met(left, some), strict=True):
        kept = [name for name in before if name != gone]
        assert after[: len(kept)] == kept


def test_the_wrap_of_the_ring_is_a_place_like_any_other() -> None:
    places, orders = ring(["a/1", "a/2", "a/3"])
    assert len(places) == 3 * POINTS
    assert orders[bisect(places, places[-1])] == orders[0]
    assert orders[bisect(places, 0)] == orders[0]


def test_nobody_is_met_in_an_empty_pool() -> None:
    assert ring([]) == ([], [])


def test_the_shares_of_a_pool_are_even() -> None:
    pool = [f"team/chat-{index}" for index in range(8)]
    places, orders = ring(pool)
    shares = Counter(orders[bisect(places, key)][0] for key in range(0, 1 << 32, 1 << 18))
    assert max(shares.values()) < 1.4 * min(shares.values())


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_the_bound_is_five_quarters_of_the_mean_and_one(running: int, replicas: int) -> None:
    most = bound(running, replicas)
    assert most * replicas > running  # somebody is always below it
    assert 1.25 * (running + 1) / replicas + 1 <= most < 1.25 * (running + 1) / replicas + 2


def test_on_recorded_conversations_the_caches_save_twice_what_they_do_by_least_load() -> None:
    trace = read()[:4000]
    by_key, by_load = (
        Run(choice, routers=4, faster=4, kv_tokens=KV_TOKENS).over(trace) for choice in (ours, least_load)
    )
    assert by_key.hit_rate > 2 * by_load.hit_rate
    assert by_key.tokens_spread < 1.25
