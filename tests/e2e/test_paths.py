"""API keys, and every kind of inference path, through the gateway to real vLLM."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.conftest import Fleet

pytestmark = pytest.mark.e2e
TEAM = "search"
USER = [{"role": "user", "content": "Tell me of the sea. " * 20}]


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl saw."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Team:
    """A caller with an API key."""

    fleet: Fleet
    key: str

    def ask(self, path: str, **members: object) -> Answer:
        address = self.fleet.kube.get("service", "fairlead-gateway", "-n", "fairlead")["spec"]["clusterIP"]
        done = self.fleet.cluster.exec(
            "curl", "-s", "-i", "-m", "30", f"http://{address}{path}", "-d", json.dumps({"model": "chat", **members}),
            "-H", f"Authorization: Bearer {self.key}", "-H", "Content-Type: application/json",
        )  # fmt: skip
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        status, *lines = head.split("\n")
        pairs = (line.partition(": ") for line in lines)
        return Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, body)


@pytest.fixture(scope="module")
def team(fairlead: Fleet) -> Iterator[Team]:
    fairlead.kube.kubectl("delete", "configmap", "fairlead-key-paths", "-n", TEAM, "--ignore-not-found")
    words = fairlead.kube.fairlead("key", "create", "paths", "--feature", "paths", "-n", TEAM).split()
    key = next(word for word in words if word.startswith("fl_"))
    team = Team(fairlead, key)
    deadline = time.monotonic() + 30
    while team.ask("/tokenize", prompt="sea").status == 401:
        assert time.monotonic() < deadline, "the new key does not open the gateway"
        time.sleep(0.2)
    yield team
    fairlead.kube.kubectl("delete", "configmap", "fairlead-key-paths", "-n", TEAM, "--ignore-not-found")


def test_the_cap_that_the_router_appends_holds_in_the_engine(team: Team) -> None:
    for member in ("max_tokens", "max_completion_tokens"):
        answer = team.ask("/v1/chat/completions", messages=USER, **{member: 3}, ignore_eos=True)
        assert answer.status == 200, answer.body
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert answer.json()["model"] == answer.headers["x-fairlead-pool"]
    silent = team.ask("/v1/chat/completions", messages=USER, ignore_eos=True).json()
    assert 3 < silent["usage"]["completion_tokens"] <= 128, "a request that asks for nothing gets the policy's default"


@pytest.mark.parametrize(
    ("path", "members", "tokens"),
    [
        ("/v1/completions", {"prompt": "The sea. " * 40, "max_tokens": 4, "ignore_eos": True}, "completion_tokens"),
        ("/v1/responses", {"input": "Tell me of the sea. " * 20, "max_output_tokens": 4}, "output_tokens"),
        ("/v1/messages", {"messages": USER, "max_tokens": 4}, "output_tokens"),
    ],
    ids=["completions", "responses", "messages"],
)
def test_each_api_is_capped_and_priced(team: Team, path: str, members: dict[str, Any], tokens: str) -> None:
    answer = team.ask(path, **members)
    assert answer.status == 200, answer.body
    assert 0 < answer.json()["usage"][tokens] <= 4
    assert float(answer.headers["x-fairlead-cost-usd"]) > 0


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 4}),
        ("/v1/completions", {"prompt": "The sea", "max_tokens": 4}),
        ("/v1/responses", {"input": "Tell me of the sea.", "max_output_tokens": 4}),
        ("/v1/messages", {"messages": USER, "max_tokens": 4}),
    ],
    ids=["chat", "completions", "responses", "messages"],
)
def test_each_stream_ends_with_its_cost(team: Team, path: str, members: dict[str, Any]) -> None:
    answer = team.ask(path, **members, stream=True)
    assert answer.status == 200, answer.body
    assert ": fairlead cost_usd=" in answer.body


def test_what_runs_nothing_costs_nothing(team: Team) -> None:
    answer = team.ask("/tokenize", prompt="The sea, the sea.")
    assert answer.status == 200, answer.body
    assert answer.json()["count"] > 0
    assert float(answer.headers["x-fairlead-cost-usd"]) == 0


def test_the_engines_other_paths_are_closed(team: Team) -> None:
    for path in ("/invocations", "/load", "/v1/load_lora_adapter", "/sleep", "/collective_rpc", "/metrics"):
        answer = team.ask(path)
        assert (answer.status, answer.json()["error"]["code"]) == (404, "unknown_url"), path


def test_a_revoked_key_stops_within_seconds(team: Team) -> None:
    team.fleet.kube.fairlead("key", "revoke", "paths", "-n", TEAM)
    deadline = time.monotonic() + 30
    while team.ask("/tokenize", prompt="sea").status == 200:
        assert time.monotonic() < deadline, "the revoked key still opens the gateway"
        time.sleep(0.2)
    assert team.ask("/tokenize", prompt="sea").status == 401
