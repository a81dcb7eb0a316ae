"""What the tests marked `e2e` share: vLLM with its models; one cluster with a real node, Fairlead, the demo's fleet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hack.demo import fleet, platform
from hack.demo.kube import Kube
from hack.demo.progress import Progress
from hack.models.__main__ import make
from hack.vllm import environment
from tests import cluster_tools

NAME = "e2e"
COLD_TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running Fairlead with pools chat-8b and chat-8b-long, policy chat and two budgets."""

    kube: Kube
    images: platform.Images
    paths: fleet.Paths
    cluster: cluster_tools.Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the first tests wait for builds on a machine without caches."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(COLD_TIMEOUT_S))


@pytest.fixture(scope="session")
def vllm() -> environment.Environment:
    """The CPU build of vLLM."""
    return environment.install()


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the small models."""
    return make()


@pytest.fixture(scope="session")
def fairlead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The demo's first five steps."""
    if found := cluster_tools.obstacles("node"):
        pytest.skip("no real node on this machine: " + "; ".join(found))
    log = tmp_path_factory.mktemp("e2e") / "log"
    log.touch()
    progress = Progress(log, total=5)
    platform.kubernetes(progress, "local")
    with cluster_tools.running(NAME, "node") as cluster:
        kube = platform.node(progress, "local", NAME)
        paths = platform.vllm(progress)
        images = platform.fairlead(progress, kube, "local", NAME)
        platform.apply_fleet(progress, kube, images, paths)
        yield Fleet(kube, images, paths, cluster)
