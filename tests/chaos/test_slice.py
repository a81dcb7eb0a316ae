"""The chaos in small: 20 routers, a ledger on SQLite, a hundred thousand requests, everything that goes wrong.

The routers run their compiled modules, or two cores would not do. What depends on how fast the machine is (``delays``)
is for ``make chaos-budget`` to judge.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hack.compile import PACKAGE, cached
from tests.chaos.processes import faketime

ROOT = Path(__file__).parents[2]
LONGEST_S = 440
STOP_S = 30
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(480)]


def test_nothing_is_overspent_lost_or_doubled_whatever_goes_wrong() -> None:
    size = ["--routers", "20", "--requests", "100000", "--minutes", "5", "--database", "sqlite", "--fault-seconds", "3"]
    skew = [] if faketime() else ["--no-skew"]
    command = [sys.executable, "-m", "tests.chaos.run", *size, *skew]
    environment = os.environ | {"PYTHONPATH": str(cached(PACKAGE))}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        said, _ = process.communicate(timeout=LONGEST_S)
    finally:
        if process.poll() is None:
            process.terminate()  # it ends what it started
            process.wait(STOP_S)
    found = json.loads(said.splitlines()[-1])
    assert (found["overspend_nano_usd"], found["overspend_other"], found["lost"], found["doubled"]) == (0, 0, 0, 0)
    assert found["requests"] >= 90_000
    assert found["kills"] >= 10
    assert found["problems"] == 0, said[-8_000:]
