"""What happens to a pool in its life, each as a function that does it and waits until the pool is whole again."""

import json
import time
from typing import Any, Final

from hack.demo import fleet
from tests.e2e.lifecycle import tally
from tests.e2e.lifecycle.scene import Scene, ready

ROLE: Final = "second"
MISSING: Final = "/models/missing.jinja"
EVENT_S: Final = 30.0
LEASE_S: Final = 60.0
HTTP_CREATED: Final = 201
HTTP_TOO_MANY: Final = 429


def engine_argument_change(scene: Scene, replicas: int) -> None:
    """Another engine argument: every pod is replaced, one more at a time."""
    old = scene.names()
    with scene.event("engine-argument change"):
        at_s = time.time()
        arguments = [*extra_arguments(scene), f"--response-role={ROLE}"]
        scene.patch({"engine": {"extraArgs": arguments}})
        scene.settle(replicas, without=old)
        first_s = tally.first_token_s(scene.requests(), ROLE, at_s)
        scene.note = f"first new token after {first_s or -1:.1f}s"
    scene.figures |= {
        "rolloutReplicas": replicas,
        "rolloutSeconds": round(scene.windows[-1].took_s, 1),
        "secondsToFirstNewToken": round(first_s, 1) if first_s is not None else None,
        "replicaSecondsSpentTwice": round(scene.windows[-1].extra_replica_s, 1),
    }


def image_change(scene: Scene, replicas: int) -> None:
    """Another image: the same under a second tag."""
    old, image = scene.names(), f"{scene.images.engine}-again"
    socket = str(scene.cluster.place.containerd_socket)
    containerd = ("ctr", "--address", socket, "--namespace", "k8s.io", "images", "tag", "--force")
    scene.cluster.exec(*containerd, scene.images.engine, image)
    with scene.event("image change"):
        scene.patch({"engine": {"image": image}})
        scene.settle(replicas, without=old)


def scale_down(scene: Scene, replicas: int) -> None:
    """Fewer replicas: those that go finish what they run."""
    with scene.event("scale-down"):
        scene.patch({"replicas": replicas})
        scene.settle(replicas)


def delete_pod(scene: Scene, replicas: int) -> None:
    """``kubectl delete pod``: it finishes what it runs, another one starts."""
    pod = min(scene.names())
    with scene.event("kubectl delete pod"), scene.crowded(pod):
        scene.kube.kubectl("delete", "pod", pod, "-n", fleet.PLATFORM, "--wait=false")
        scene.settle(replicas, without={pod})
        scene.wait(f"an Event of how the requests at {pod} ended", lambda: scene.drained(pod), EVENT_S)
        scene.note = "; ".join(scene.drained(pod))


def kill_engine(scene: Scene, replicas: int) -> None:
    """``kill -9`` of an engine: the streams that it runs are lost, everything else goes to another replica."""
    pod = next(pod for pod in scene.watch.pods() if ready(pod))
    with scene.event("kill -9 of an engine"):
        scene.killed_s = time.time()
        scene.end_process(pod, "engine")
        scene.wait("the end of the engine in its pod's status", lambda: restarts(scene, pod) > restarts_of(pod))
        scene.settle(replicas)


def node_drain(scene: Scene, replicas: int) -> None:
    """The node is cordoned and all pods of the pool are evicted, as ``kubectl drain`` does.

    There is one node: while it is cordoned a replacement finds none, and the disruption budget must let no second pod
    go. Then the node stands for a new one.
    """
    old = sorted(scene.names())
    node = scene.watch.pods()[0]["spec"]["nodeName"]
    with scene.event("node drain"):
        scene.kube.kubectl("cordon", node)
        try:
            assert scene.watch.evict(old[0]) == HTTP_CREATED
            scene.wait("the end of the evicted pod", lambda: old[0] not in scene.names())
            assert scene.watch.evict(old[1]) == HTTP_TOO_MANY, "the budget let a second pod go without a replacement"
        finally:
            scene.kube.kubectl("uncordon", node)
        for name in old[1:]:
            scene.wait(f"the eviction of {name}", lambda name=name: scene.watch.evict(name) == HTTP_CREATED)  # type: ignore[misc]
        scene.settle(replicas, without=set(old))


def operator_fail_over(scene: Scene, replicas: int) -> None:
    """``kill -9`` of the operator that leads, whose pod does not come back: another one leads, and scales the pool."""
    name = leader(scene)
    pod = scene.kube.get("pod", name, "-n", "fairlead")
    with scene.event("operator fail-over"):
        began_s = time.time()
        scene.end_process(pod, "operator")
        scene.kube.kubectl("delete", "pod", name, "-n", "fairlead", "--force", "--grace-period=0")
        scene.patch({"replicas": replicas})
        scene.wait("another leader", lambda: leader(scene) not in {"", name}, LEASE_S)
        taken_s = time.time() - began_s
        scene.settle(replicas)
        scene.note = f"another leads after {taken_s:.1f}s, then {replicas} replicas"


def chart_upgrade(scene: Scene, replicas: int, chart: str) -> None:
    """Operator, ledger and gateways are replaced, and another default engine image; no pool's pod is."""
    old = scene.names()
    with scene.event("chart upgrade"):
        mark = str(time.time_ns())
        parts = ("operator", "gateway", "ledger")
        marks = [f"--set-string={part}.podAnnotations.upgraded-at={mark}" for part in parts]
        words = ("--reuse-values", "--wait", "--timeout=4m", "--set=engine.image=localhost/vllm-cpu:9.9.9")
        scene.kube.helm("upgrade", "fairlead", chart, "-n", "fairlead", *words, *marks)
        scene.settle(replicas)
        assert scene.names() == old, "a chart upgrade replaced pods of a pool"
        scene.note = "no pod of the pool was replaced"


def leader(scene: Scene) -> str:
    """The pod that holds the operator's Lease."""
    return str(scene.kube.get("lease", "fairlead-operator", "-n", "fairlead")["spec"]["holderIdentity"])


def extra_arguments(scene: Scene) -> list[str]:
    """The pool's present extraArgs."""
    found: list[str] = scene.watch.pool_object()["spec"]["engine"].get("extraArgs", [])
    return found


def restarts(scene: Scene, pod: dict[str, Any]) -> int:
    """How often the engine of a pod was restarted."""
    name = pod["metadata"]["name"]
    return max((restarts_of(one) for one in scene.watch.pods() if one["metadata"]["name"] == name), default=0)


def restarts_of(pod: dict[str, Any]) -> int:
    """How often the engine was restarted, by a pod's status."""
    return sum(one["restartCount"] for one in pod["status"]["containerStatuses"])


def told(scene: Scene, condition: str) -> str:
    """A condition of the pool: status, reason, message."""
    conditions = scene.watch.pool_object().get("status", {}).get("conditions", ())
    found: dict[str, Any] = next((one for one in conditions if one["type"] == condition), {})
    return json.dumps({key: found.get(key) for key in ("status", "reason", "message")})


def bad_revision(scene: Scene, replicas: int) -> None:
    """A revision whose engine cannot start: it is given up and the pool goes back, while the old pods serve."""
    old, arguments = scene.names(), extra_arguments(scene)
    with scene.event("rollback of a bad revision"):
        scene.patch({"engine": {"extraArgs": [*arguments, f"--chat-template={MISSING}"]}})
        scene.wait("Progressing=False/RolledBack", lambda: "RolledBack" in told(scene, "Progressing"))
        words = told(scene, "Progressing")
        scene.settle(replicas)
        assert scene.names() <= old, "pods that served were replaced"
        assert MISSING in words, f"the engine's own error is not in {words}"
        scene.note = "the engine's own error is in the condition, no pod that served was replaced"
    scene.figures["rolledBack"] = json.loads(words)["message"]
    scene.patch({"engine": {"extraArgs": arguments}})
    scene.settle(replicas)
