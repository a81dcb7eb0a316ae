"""``fairlead rollout``: what it prints of a change, what it writes on the pool, and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead_operator.cli.main import main
from fairlead_operator.decide.rollout import Failure, Newest
from fairlead_operator.render.revisions import ANNOTATION_SPEC, ANNOTATION_TEMPLATE, canonical, notes_of
from tests.builders.resources import make_pool
from tests.fakes.served_cluster import ServedCluster

NAMES = {"fairlead.dev/pool": "chat-8b", "fairlead.dev/variant": "h100"}
CRASHED = Failure(13, "cafe", "h100", "CrashLoop", "Pod x container engine ended 3 times (exit code 1).")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServedCluster]:
    served = ServedCluster(tmp_path)
    yield served
    served.stop()


def rollout(cluster: ServedCluster, *arguments: str, namespace: str = "ai-platform") -> int:
    return main(["rollout", *arguments, "-n", namespace, "--kubeconfig", str(cluster.kubeconfig)])


def notes(revision: int, served: int, change: str = "", failure: Failure | None = None) -> dict[str, str]:
    said = notes_of(Newest(13, "cafe"), failure, revision, served, change)
    return {**said, ANNOTATION_SPEC: f"spec-{revision}", ANNOTATION_TEMPLATE: canonical({"spec": {"n": revision}})}


def put_pool(cluster: ServedCluster, *, reason: str = "Complete", status: str = "False", **metadata: Any) -> None:
    said = {
        "type": "Progressing", "status": status, "reason": reason, "observedGeneration": 1,
        "message": "All pods run revision 13.", "lastTransitionTime": "2026-11-20T11:00:00Z",
    }  # fmt: skip
    pool = make_pool("chat-8b").variant("h100").replicas(3).status(conditions=[said]).metadata(**metadata)
    cluster.put("modelpools", pool.obj())


def put_history(cluster: ServedCluster, runs: int = 13, served: int = 13, failure: Failure | None = None) -> None:
    """Revisions 11 to 13, of which 12 never served."""
    changes = {11: "", 12: "revision 11 to 12: --max-num-seqs 64 to 32", 13: "revision 12 to 13: restart"}
    meta = {"namespace": "ai-platform", "labels": NAMES}
    for number, change in changes.items():
        own = {"annotations": notes(number, number if number in {11, served} else 11, change)}
        at = f"2026-11-{number}T08:00:00Z"
        cluster.put("replicasets", {"metadata": {**meta, **own, "name": f"rs-{number}", "creationTimestamp": at}})
    live = {**meta, "name": "chat-8b-h100", "annotations": notes(runs, served, failure=failure)}
    state = {"replicas": 4, "updatedReplicas": 1}
    cluster.put("deployments", {"metadata": live, "spec": {"replicas": 3}, "status": state})


def pool_of(cluster: ServedCluster) -> dict[str, Any]:
    found = cluster.server.get("modelpools", "ai-platform", "chat-8b")
    assert found is not None
    return found


def test_the_history_is_one_line_a_revision(cluster: ServedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    put_pool(cluster)
    put_history(cluster)
    assert rollout(cluster, "history", "chat-8b") == 0
    assert capsys.readouterr().out.splitlines() == [
        "REVISION  CREATED               STATE         VARIANTS  CHANGE",
        "13        2026-11-13T08:00:00Z  runs          h100      restart",
        "12        2026-11-12T08:00:00Z  never served  h100      --max-num-seqs 64 to 32",
        "11        2026-11-11T08:00:00Z  served        h100      first",
    ]
    assert rollout(cluster, "history", "chat-8b", "-o", "json") == 0
    (newest, *_) = json.loads(capsys.readouterr().out)
    assert newest == {
        "revision": 13, "created": "2026-11-13T08:00:00Z", "variants": ["h100"], "state": "runs", "change": "restart",
    }  # fmt: skip


def test_the_history_names_what_failed_and_what_an_undo_keeps(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pool(cluster)
    put_history(cluster, runs=11, served=11, failure=CRASHED)
    assert rollout(cluster, "history", "chat-8b") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[32:46].strip() for line in lines] == ["failed", "never served", "runs"]
    put_pool(cluster, annotations={"fairlead.dev/undo": "13 to 11"})
    assert rollout(cluster, "history", "chat-8b") == 0
    assert "runs (undo)" in capsys.readouterr().out


def test_a_pool_of_an_earlier_release_has_no_history_yet(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pool(cluster)
    assert rollout(cluster, "history", "chat-8b") == 0
    assert "No revision is kept yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [("False", "Complete", 0), ("False", "Undone", 0), ("True", "RollingOut", 0), ("False", "RolledBack", 1),
     ("False", "StartupTimedOut", 1), ("False", "NoCapacityForSurge", 1)],
)  # fmt: skip
def test_the_status_is_the_conditions_sentence_and_its_end_the_exit_code(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str], status: str, reason: str, code: int
) -> None:
    put_pool(cluster, status=status, reason=reason)
    put_history(cluster)
    assert rollout(cluster, "status", "chat-8b") == code
    assert capsys.readouterr().out.splitlines() == [
        f"chat-8b: {reason}. All pods run revision 13.",
        "VARIANT  REVISION  PODS  OF IT  WANTED",
        "h100           13     4      1       3",
    ]


def test_what_the_operator_has_not_seen_yet_is_not_called_complete(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool("chat-8b").status(conditions=[{"type": "Progressing", "status": "False", "observedGeneration": 7}])
    cluster.put("modelpools", pool.obj())
    assert rollout(cluster, "status", "chat-8b", "--wait", "1ms") == 1
    assert "the operator has not looked at generation 1 yet" in capsys.readouterr().out


def test_a_wait_ends_with_the_rollout_or_its_time(cluster: ServedCluster) -> None:
    put_pool(cluster, status="True", reason="RollingOut")
    assert rollout(cluster, "status", "chat-8b", "--wait", "1ms") == 1
    put_pool(cluster)
    assert rollout(cluster, "status", "chat-8b", "--wait", "30s") == 0


def test_an_undo_pins_the_last_revision_that_served(cluster: ServedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    put_pool(cluster)
    put_history(cluster)
    before = pool_of(cluster)
    assert rollout(cluster, "undo", "chat-8b") == 0
    assert pool_of(cluster)["metadata"]["annotations"] == {"fairlead.dev/undo": "13 to 11"}
    assert pool_of(cluster)["spec"] == before["spec"]
    assert "goes back to revision 11 and keeps it until its spec changes" in capsys.readouterr().out
    assert rollout(cluster, "undo", "chat-8b", "--to-revision", "12") == 0
    assert pool_of(cluster)["metadata"]["annotations"] == {"fairlead.dev/undo": "13 to 12"}


def test_an_undo_to_the_newest_revision_ends_the_undo(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pool(cluster, annotations={"fairlead.dev/undo": "13 to 11"})
    put_history(cluster, runs=11)
    assert rollout(cluster, "undo", "chat-8b", "--to-revision", "13") == 0
    assert not (pool_of(cluster)["metadata"]["annotations"] or {}).get("fairlead.dev/undo")
    assert "runs revision 13, which its spec asks for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "failure", "text"),
    [
        ("9", None, "revision 9 is not kept: kept are 13, 12, 11"),
        ("99", None, "revision 99 is not kept"),
        ("13", CRASHED, "revision 13 did not become ready when it was tried: fairlead rollout restart chat-8b"),
        ("0", None, "no earlier revision of chat-8b that served is kept: kept are 13, 12, 11"),
    ],
)
def test_an_undo_that_is_not_possible_writes_nothing(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str], wanted: str, failure: Failure | None, text: str
) -> None:
    put_pool(cluster)
    put_history(cluster, runs=11, served=11, failure=failure)
    assert rollout(cluster, "undo", "chat-8b", "--to-revision", wanted) == 2
    assert text in capsys.readouterr().err
    assert "annotations" not in pool_of(cluster)["metadata"]


def test_a_restart_changes_an_annotation_of_the_pods(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pool(cluster)
    assert rollout(cluster, "restart", "chat-8b") == 0
    notes = pool_of(cluster)["spec"]["podTemplate"]["metadata"]["annotations"]
    assert list(notes) == ["fairlead.dev/restarted-at"]
    assert "chat-8b restarts" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["status", "history", "undo", "restart"])
def test_a_pool_that_is_not_there_is_said(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    assert rollout(cluster, action, "absent") == 2
    assert "namespace ai-platform has no ModelPool absent: see kubectl get mpool -A" in capsys.readouterr().err


def test_a_time_that_cannot_be_read_is_said_before_anything_is_asked(
    cluster: ServedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollout(cluster, "status", "chat-8b", "--wait", "soon") == 2
    assert "--wait 'soon' is no time: write 90s, 30m or 1h" in capsys.readouterr().err
    assert not cluster.server.requests
