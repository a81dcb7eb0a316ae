"""The operator under the load of ``make bench-operator``, in small: pools are decided by what their routers count."""

from pathlib import Path

import pytest

from tests.bench.operator import run
from tests.cluster_tools import Cluster

pytestmark = pytest.mark.cluster


def test_every_pool_is_decided_after_every_round_of_scrapes(control_plane: Cluster, tmp_path: Path) -> None:
    report = run.measured(control_plane, tmp_path, run.Asked(pools=4, seconds=16, day_s=600, patience_s=240))
    assert report["decided"]["by_objectives"] == 4
    punctuality = report["punctuality"]
    assert punctuality["rounds"] >= 3
    assert punctuality["decisions_in_time"] >= 4 * (punctuality["rounds"] - 1)
    assert report["times"]["decision"]["count"] >= punctuality["decisions_in_time"]
    assert report["replicas_ready"] >= 4
    assert report["reconcile_errors"] == 0
    assert report["operator"]["cpu_percent"] > 0
