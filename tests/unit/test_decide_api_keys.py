"""Which labelled ConfigMaps are API keys, and which keys are in force when not all can be."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide import api_keys
from fairlead_operator.decide.api_keys import KeyFact, KeyRing, key_fact, key_ring
from fairlead_router.contract import ApiKey


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def body(name: str = "ticket-worker", namespace: str = "support", minute: int = 0, **data: Any) -> dict[str, Any]:
    """The ConfigMap of a key; ``minute`` is when it was made."""
    meta = {
        "name": f"fairlead-key-{name}",
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "creationTimestamp": f"2026-11-20T{minute // 60:02d}:{minute % 60:02d}:00Z",
    }
    given = {"sha256": digest(f"{namespace}/{name}"), **data}
    return {"metadata": meta, "data": {key: value for key, value in given.items() if value is not None}}


def ring(*bodies: dict[str, Any]) -> KeyRing:
    return key_ring(key_fact(one) for one in bodies)


def names(found: KeyRing) -> list[str]:
    return [f"{key.namespace}/{key.name}" for key in found.keys]


def problem(*bodies: dict[str, Any]) -> str:
    """What is wrong with the last one."""
    found = ring(*bodies)
    (fact,) = [one for one in found.facts if one.uid == bodies[-1]["metadata"]["uid"]]
    return found.problem(fact)


def test_a_labelled_config_map_is_a_key_of_its_own_namespace() -> None:
    made = body(feature="ticket-summary", expires="2027-02-19T12:00:00Z", namespace="support")
    assert ring(made).keys == (
        ApiKey(
            hash=digest("support/ticket-worker"),
            namespace="support",
            name="ticket-worker",
            feature="ticket-summary",
            expires_ms=1_803_038_400_000,
        ),
    )
    assert problem(made) == ""


def test_no_field_makes_a_key_another_namespace_s() -> None:
    made = body(namespace="search")
    made["data"]["namespace"] = "support"
    assert names(ring(made)) == ["search/ticket-worker"]


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (body(sha256=None), "data.sha256 must be the SHA-256"),
        (body(sha256=digest("x").upper()), "lower-case"),
        (body(sha256=digest("x")[:-1]), "64 digits"),
        (body(sha256=digest("x") + "\n"), "64 digits"),
        (body(feature="x" * 129), "at most 128"),
        (body(feature="a\nb"), "printable"),
        (body(feature="é"), "ASCII"),
        (body(expires="soon"), "2027-02-19T12:00:00Z"),
        (body(expires="2027-02-19T12:00:00"), "2027-02-19T12:00:00Z"),
        (body(expires="1960-01-01T00:00:00Z"), "2027-02-19T12:00:00Z"),
        (body(name="x" * 64), "DNS label"),
        (body(name="a.b"), "DNS label"),
        (body(name=""), "DNS label"),
    ],
)
def test_what_is_no_key_is_told_what_to_change_and_keeps_no_other_from_its_work(
    made: dict[str, Any], part: str
) -> None:
    other = body("other", "search")
    assert part in problem(other, made)
    assert names(ring(other, made)) == ["search/other"]


def test_an_object_without_data_or_with_another_name_is_no_key() -> None:
    bare = {"metadata": {"name": "settings", "namespace": "support", "uid": "u"}}
    found = key_ring([key_fact(bare)])
    assert found.keys == ()
    assert "fairlead-key-NAME" in found.problems["u"]


def test_of_two_keys_with_one_hash_the_older_is_in_force_and_is_not_named_to_the_other() -> None:
    original = body("mine", "support", minute=1)
    copied = body("theirs", "a-search", minute=2, sha256=digest("support/mine"))
    for order in ((original, copied), (copied, original)):
        assert names(ring(*order)) == ["support/mine"]
    text = problem(original, copied)
    assert "older key has the same hash" in text
    assert "support" not in text


def test_one_namespace_s_keys_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS_EACH", 3)
    greedy = [body(f"k{number}", "greedy", minute=number) for number in range(5)]
    late = body("late", "support", minute=9)
    assert names(ring(*greedy, late)) == ["greedy/k0", "greedy/k1", "greedy/k2", "support/late"]
    assert "revoke some" in problem(late, *greedy)


def test_beyond_the_bound_of_the_cluster_the_oldest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 2)
    made = [body("a", "n3", minute=3), body("b", "n1", minute=1), body("c", "n2", minute=2)]
    assert names(ring(*made)) == ["n1/b", "n2/c"]
    assert "the cluster has 2 keys already" in problem(made[1], made[2], made[0])


FACTS = st.lists(
    st.builds(
        lambda namespace, name, minute, secret: key_fact(body(name, namespace, minute, sha256=digest(secret))),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["x", "y", "z"]),
        st.integers(0, 5),
        st.sampled_from(["1", "2", "3"]),
    ),
    unique_by=lambda fact: fact.uid,
)


@given(FACTS, st.randoms())
def test_every_replica_comes_to_the_same_keys_whatever_the_order(facts: list[KeyFact], dice: Any) -> None:
    shuffled = list(facts)
    dice.shuffle(shuffled)
    one, other = key_ring(facts), key_ring(shuffled)
    assert one == other
    assert len({key.hash for key in one.keys}) == len(one.keys)
    assert len(one.keys) + len(one.problems) == len(facts)


@given(st.dictionaries(st.sampled_from(["sha256", "feature", "expires"]), st.text()))
def test_no_text_in_a_config_map_is_an_error(data: dict[str, str]) -> None:
    fact = key_fact({"metadata": {"name": "fairlead-key-a", "namespace": "b", "uid": "u"}, "data": data})
    assert (fact.key is None) == bool(fact.problem)
