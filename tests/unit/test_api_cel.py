"""Our small CEL answers what a whole one answers, for every rule of the kinds."""

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.api.cel import RuleError, holds
from fairlead_operator.api.structural import root_schema
from fairlead_operator.api.v1alpha1 import KINDS
from hack.crds import nodes

RULES = sorted(
    {
        rule["rule"]
        for kind in KINDS
        for _, node in nodes(root_schema(kind))
        for rule in node.get("x-kubernetes-validations", [])
        if "oldSelf" not in rule["rule"]
    }
)
WORDS = sorted({word.strip("'") for rule in RULES for word in rule.replace("(", " ").split() if word.startswith("'")})
FIELDS = sorted(
    {
        part.strip("()!,").split(".")[-1]
        for rule in RULES
        for part in rule.replace("(", " ").replace(")", " ").split()
        if "." in part
    }
)
VALUES = st.recursive(
    st.integers(-3, 300) | st.sampled_from([*WORDS, "", "0.5", "x" * 41]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FIELDS, "name"]), inner, max_size=6),
    max_leaves=12,
)


def ours(rule: str, value: object) -> bool | None:
    try:
        return holds(rule, value)
    except RuleError:
        return None


def theirs(rule: str, value: object) -> bool | None:
    try:
        return bool(cel.evaluate(rule, {"self": value}))
    except (ValueError, RuntimeError, TypeError, KeyError):
        return None


@given(st.sampled_from(RULES), st.dictionaries(st.sampled_from([*FIELDS, "name"]), VALUES, max_size=8))
def test_where_both_have_an_answer_it_is_the_same(rule: str, value: dict[str, object]) -> None:
    told = theirs(rule, value)
    if told is not None and ours(rule, value) is not None:
        assert ours(rule, value) == told


def test_every_rule_of_the_kinds_can_be_read() -> None:
    assert [rule for rule in RULES if "is not known here" in complaint(rule, {})] == []


def complaint(rule: str, value: object) -> str:
    try:
        holds(rule, value)
    except RuleError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("rule", "value", "answer"),
    [
        ("self.from == 'a' && !has(self.to)", {"from": "a"}, True),
        ("!has(self.a) == false", {"a": 1}, True),
        ("self.all(a, self.exists_one(b, a == b))", [1, 2], True),
        ("self.all(a, self.exists_one(b, a == b))", [1, 1], False),
        ("self.exists(p, p.weight > 0)", [{"weight": 0}, {"weight": 1}], True),
        ("string(self.a).contains('.') || size(self.b) <= 2", {"a": 1, "b": [1]}, True),
        ("self.a in ['x', 'y']", {"a": "x"}, True),
        ("self.a.startsWith('pvc')", {"a": "pvc://x"}, True),
        ("self.a != self.b && self.a >= 1 && self.a < 3", {"a": 1, "b": 2}, True),
    ],
)
def test_the_parts_of_the_language(rule: str, value: object, answer: bool) -> None:
    assert holds(rule, value) is answer
    assert theirs(rule, value) is answer


@pytest.mark.parametrize(
    "rule",
    [
        "self.a.b",
        "self.a ? 1 : 2",
        "self.a.matches('x')",
        "(1",
        "1 < 2 < 3",
        "-self.a == 1",
        "self[0]",
        "other",
        "size(1, 2) == 1",
    ],
)
def test_what_is_not_of_it_is_an_error_and_no_answer(rule: str) -> None:
    with pytest.raises(RuleError):
        holds(rule, {"a": 1})
