"""Routers of this release and of the one before serve beside each other: each reads what the other one says.

tests/golden/contract holds the documents of both, every member set, and the former contract itself as a module. Members
are only ever added, and what is added is optional.
"""

import json
import types
from typing import Any

import msgspec
import pytest

from fairlead_router import contract
from fairlead_router.config import validated
from tests.builders.contract import MESSAGES, covers, documents, plain, with_strangers
from tests.golden.contract import previous
from tests.golden_files import GOLDEN, assert_golden

LITERALS = ("Unit", "Per", "Enforcement", "Verdict", "Priority", "Action", "Trouble", "Period", "Attempt", "Basis")

BOTH = [name for name in MESSAGES if hasattr(previous, name)]
"""What both releases say; a message of this one alone is written by it and read by it, or passed over."""


def recorded(which: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"contract/{which}.json").read_text(encoding="utf-8"))
    return found


def decoded(module: types.ModuleType, name: str, document: Any) -> Any:
    return msgspec.json.decode(json.dumps(document).encode(), type=getattr(module, name))


def text(module: types.ModuleType) -> str:
    return json.dumps(documents(module), indent=1, sort_keys=True) + "\n"


def test_the_documents_of_both_contracts_are_as_recorded() -> None:
    assert_golden("contract/present.json", text(contract))
    assert recorded("previous") == documents(previous), "the former contract's documents never change in a release"


@pytest.mark.parametrize("name", BOTH)
def test_this_release_reads_what_the_one_before_says_and_loses_nothing(name: str) -> None:
    said = recorded("previous")[name]
    assert covers(plain(decoded(contract, name, said)), said)


@pytest.mark.parametrize("name", BOTH)
def test_the_release_before_reads_what_this_one_says(name: str) -> None:
    said = recorded("present")[name]
    understood = plain(decoded(previous, name, said))
    assert covers(said, understood)
    assert set(recorded("previous")[name]) <= set(understood), "a member is gone that the release before tells or reads"


@pytest.mark.parametrize("module", [contract, previous], ids=["present", "previous"])
@pytest.mark.parametrize("name", BOTH)
def test_members_that_a_release_does_not_know_are_passed_over(name: str, module: types.ModuleType) -> None:
    said = documents(module)[name]
    assert decoded(module, name, with_strangers(said)) == decoded(module, name, said)


def test_a_configuration_of_either_release_is_taken_by_the_other_ones_router() -> None:
    assert contract.RouterConfig().contract <= previous.CONTRACT_VERSION, "older routers would keep what they have"
    told = msgspec.json.encode(previous.RouterConfig(pools=(previous.PoolConfig(pool="a/b"),)))
    index = validated(msgspec.json.decode(told, type=contract.RouterConfig))
    assert index.config.pools == (contract.PoolConfig(pool="a/b"),)


@pytest.mark.parametrize("name", LITERALS)
def test_no_word_is_taken_back_and_older_routers_know_every_word(name: str) -> None:
    """A word that the older side does not know would make a whole document unreadable to it."""
    assert set(getattr(contract, name).__args__) == set(getattr(previous, name).__args__)


def test_the_comparison_notices_what_is_lost() -> None:
    assert covers({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]})
    lost: list[Any] = [{"a": [{"b": 2}]}, {"a": []}, {"d": 1}]
    assert not any(covers({"a": [{"b": 1, "c": 2}]}, part) for part in lost)
