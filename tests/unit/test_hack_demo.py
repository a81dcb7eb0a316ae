"""The demo's pure parts: its objects are what the API accepts, its words are what it saw."""

from pathlib import Path

import pytest

from fairlead_operator.api.v1alpha1 import KINDS
from hack.demo import callers, fleet, story
from hack.demo.progress import DemoError, Progress, clock, wait_for

BY_NAME = {kind.kind: kind.resource for kind in KINDS}
PATHS = fleet.Paths("/site-packages", "/models", "/cache")
DESCRIBED = """
Events:
  Type    Reason        Age   From               Message
  ----    ------        ----  ----               -------
  Normal  ScaledUp      9m5s  fairlead-operator  0 to 1 replicas, 0.00 to 2.95 USD/h: the minimum is 1
  Normal  ScaledUp      76s   fairlead-operator  1 to 2 replicas, 2.95 to 5.90 USD/h: 9 requests are above 6
"""


def test_the_demos_objects_are_accepted_by_the_api() -> None:
    objects = [*fleet.pools("localhost/vllm-cpu:1", PATHS), fleet.policy(), fleet.budget("support", "0.010000")]
    names = [BY_NAME[obj["kind"]].parse(obj).key for obj in objects]
    assert names == ["ai-platform/chat-8b", "ai-platform/chat-8b-long", "ai-platform/chat", "support/support"]


def test_a_prompt_for_the_long_pool_fits_no_shorter_route() -> None:
    routes = fleet.policy()["spec"]["routes"]
    assert [route["maxContextTokens"] for route in routes] == [fleet.SHORT_TOKENS, fleet.LONG_TOKENS]


def test_a_callers_pod_is_admitted_by_the_restricted_profile() -> None:
    pod = callers.job("support", "caller", "image", ["--requests=1"])["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not pod["automountServiceAccountToken"]


def test_options_become_flags() -> None:
    assert callers.arguments({"prompt_words": 40, "stream": True}) == ["--prompt-words=40", "--stream"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (125, "2m05s")])
def test_times_read_as_people_write_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_event_is_found_by_its_reason_and_words() -> None:
    found = story.event(DESCRIBED, "ScaledUp", "1 to 2 replicas")
    assert found == "ScaledUp: 1 to 2 replicas, 2.95 to 5.90 USD/h: 9 requests are above 6"
    with pytest.raises(DemoError, match="no Event ScaledDown"):
        story.event(DESCRIBED, "ScaledDown", "2 to 1 replicas")


def test_a_program_that_fails_ends_the_demo_with_the_end_of_its_log(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "log", total=1)
    with pytest.raises(DemoError, match="status 3") as raised:
        progress.run(["sh", "-c", "echo no such image >&2; exit 3"], timeout=10)
    assert "no such image" in str(raised.value)
    assert str(tmp_path / "log") in str(raised.value)


def test_waiting_ends_with_what_was_not_seen() -> None:
    with pytest.raises(DemoError, match="pool chat-8b ready: not seen within 0s"):
        wait_for("pool chat-8b ready", lambda: None, seconds=0.01, every=0.005)
