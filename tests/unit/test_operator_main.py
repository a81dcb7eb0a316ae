"""The composed operator, as far as it goes without a cluster."""

import json
import logging
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest
from kubernetes.aio.client import Configuration

from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.session import Login
from fairlead_operator.main import JSON_DEPTH, Operator, Sessions, main
from fairlead_operator.settings import read_settings
from tests.fakes.clock import FakeClock


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    sessions = Sessions(aiohttp.ClientSession(), aiohttp.ClientSession())
    yield Operator(read_settings({}), Login(Configuration()), sessions, outside=False, clock=FakeClock())
    await sessions.close()


async def test_a_replica_that_does_not_lead_collects_no_work(operator: Operator) -> None:
    operator._wake(Key("ModelPool", "team", "chat"))
    assert len(operator.queue) == 0
    operator.election.leading.set()
    operator._wake(Key("ModelPool", "team", "chat"))
    assert len(operator.queue) == 1


async def test_what_cannot_be_served_yet_is_named(operator: Operator) -> None:
    state = operator._readiness()
    assert not state.ready
    assert "not listed yet: ModelPool" in state.reasons
    assert "the cluster's token keys are not known yet" in state.reasons
    assert "the OIDC providers were not asked yet" in state.reasons


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [("FAIRLEAD_LISTEN", "localhost", "address:port"), ("FAIRLEAD_LOG_LEVEL", "loud", "LOUD")],
)
def test_a_setting_that_cannot_be_used_ends_the_program_with_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(name, value)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with pytest.raises(SystemExit, match=part):
        main([])


def test_an_object_that_is_nested_as_deep_as_the_api_server_takes_can_be_read() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(JSON_DEPTH)
    try:
        assert json.loads('{"a":' * 10_000 + "1" + "}" * 10_000)
    finally:
        sys.setrecursionlimit(before)
