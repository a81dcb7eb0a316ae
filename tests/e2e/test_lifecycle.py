"""A part of make e2e-lifecycle: what happens to a pool most often breaks no request."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Fleet
from tests.e2e.lifecycle import events
from tests.e2e.lifecycle.scene import Scene, playing
from tests.e2e.lifecycle.tally import Row

pytestmark = pytest.mark.e2e
REPLICAS = 2


@pytest.fixture(scope="module")
def scene(fairlead: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    log = tmp_path_factory.mktemp("lifecycle") / "requests.jsonl"
    with playing(
        fairlead.kube, fairlead.cluster, fairlead.images, fairlead.paths, replicas=REPLICAS, log=log
    ) as playing_scene:
        yield playing_scene


def last(scene: Scene) -> Row:
    row = scene.rows()[-1]
    assert row.requests > 0, "no request ended during the event"
    return row


def test_another_engine_argument_replaces_every_pod_and_breaks_no_request(scene: Scene) -> None:
    events.engine_argument_change(scene, REPLICAS)
    row = last(scene)
    assert row.fine, row.examples
    assert scene.figures["secondsToFirstNewToken"] is not None, "no answer came from the new revision"


def test_a_deleted_pod_finishes_what_it_runs(scene: Scene) -> None:
    events.delete_pod(scene, REPLICAS)
    row = last(scene)
    assert row.fine, row.examples
    assert row.window.note.endswith(", 0 cut"), row.window.note


def test_a_killed_engine_takes_only_its_own_streams_with_it(scene: Scene) -> None:
    events.kill_engine(scene, REPLICAS)
    row = last(scene)
    assert row.fine, row.examples


def test_a_pool_that_shrinks_breaks_no_request(scene: Scene) -> None:
    events.scale_down(scene, 1)
    row = last(scene)
    assert row.fine, row.examples
