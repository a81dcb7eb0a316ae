"""One control plane with fake nodes for all tests marked `cluster`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import cluster_tools
from tests.builders.operator import Release, installed, ledger, routers
from tests.cluster_tools import L40S, Cluster, gpu_node

HERE = Path(__file__).parent
BUILD_TIMEOUT_S = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the first test wait for the build of the cluster's programs, where there is one."""
    ours = [item for item in items if HERE in item.path.parents]
    if ours and cluster_tools.needs_build():
        for item in ours:
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))


@pytest.fixture(scope="session")
def local_clusters() -> None:
    """Skip where this machine cannot run a control plane, and say why."""
    if found := cluster_tools.obstacles("plane"):
        pytest.skip("no local cluster on this machine: " + "; ".join(found))


@pytest.fixture(scope="session")
def control_plane(local_clusters: None) -> Iterator[Cluster]:  # noqa: ARG001 - it skips
    """The cluster `test`: API server, controllers, scheduler and KWOK."""
    with cluster_tools.running("test", "plane") as cluster:
        yield cluster


@pytest.fixture
def namespace(control_plane: Cluster) -> Iterator[str]:
    """A namespace of this test alone."""
    with cluster_tools.fresh_namespace(control_plane) as name:
        yield name


@pytest.fixture(scope="session")
def gpu_nodes(control_plane: Cluster) -> Iterator[tuple[str, ...]]:
    """Two fake nodes with eight H100 each and two with eight L40S each."""
    nodes = [gpu_node("h100-0"), gpu_node("h100-1"), gpu_node("l40s-0", L40S), gpu_node("l40s-1", L40S)]
    with cluster_tools.fake_nodes(control_plane, *nodes) as names:
        yield names


@pytest.fixture(scope="module")
def release(
    control_plane: Cluster, gpu_nodes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """A release of a module's own with its ledger, and routers that answer as its tests tell them to."""
    assert gpu_nodes
    folder = tmp_path_factory.mktemp("release")
    with installed(control_plane, folder, "release", "fleet") as made, ledger(made), routers(made):
        yield made
