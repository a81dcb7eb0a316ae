"""A budget in windows of a minute on the real cluster: every action, an increase, and the next window."""

import pytest

from hack.demo import minutes
from tests.e2e.conftest import Fleet

pytestmark = pytest.mark.e2e


def test_a_budget_of_a_minute_is_paced_yields_refuses_is_raised_and_opens_again(fairlead: Fleet) -> None:
    progress = fairlead.kube.progress
    lines = minutes.story(progress, fairlead.kube, fairlead.images.caller)
    shown = {line.split()[7] for line in lines[1:] if len(line.split()) > 7}
    assert lines[0].split()[:2] == ["NAME", "LIMIT"]
    assert shown & {"Pace", "Deprioritize", "Reject"}
