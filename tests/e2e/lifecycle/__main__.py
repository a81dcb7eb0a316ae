"""``make e2e-lifecycle``: a pool of real vLLM through everything that happens to it, under traffic all the time.

A local cluster is started (or found), Fairlead installed with two operators, and a pool of its own. Prints a table of
events and ends with a line of JSON. Exit status 1 when a request failed or was truncated that did not run on an engine
that was killed, or when an event did not come to its end.

usage: python -m tests.e2e.lifecycle [--only NAME …] [--keep]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hack.demo import fleet, platform
from hack.demo.kube import Kube
from hack.demo.progress import DemoError, Progress, wait_for
from tests import cluster_tools
from tests.e2e.lifecycle import events, tally
from tests.e2e.lifecycle.scene import Scene, playing

NAME: Final = "lifecycle"
REPLICAS: Final = 2
CHART: Final = str(platform.ROOT / "charts" / "fairlead")
EVENTS: Final[dict[str, Callable[[Scene], None]]] = {
    "fail-over": lambda scene: events.operator_fail_over(scene, REPLICAS + 1),
    "argument": lambda scene: events.engine_argument_change(scene, scene.wanted()),
    "scale-down": lambda scene: events.scale_down(scene, REPLICAS),
    "image": lambda scene: events.image_change(scene, scene.wanted()),
    "delete": lambda scene: events.delete_pod(scene, scene.wanted()),
    "kill": lambda scene: events.kill_engine(scene, scene.wanted()),
    "drain": lambda scene: events.node_drain(scene, scene.wanted()),
    "rollback": lambda scene: events.bad_revision(scene, scene.wanted()),
    "upgrade": lambda scene: events.chart_upgrade(scene, scene.wanted(), CHART),
}
"""In this order: what one leaves behind is what the next one starts from."""


def main() -> int:
    """Run the events; 0 if nothing broke that need not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(EVENTS), default=list(EVENTS), help="these events only")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    if found := cluster_tools.obstacles("node"):
        sys.stdout.write("no real node on this machine: " + "; ".join(found) + "\n")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="fairlead-lifecycle-"))
    began = time.monotonic()
    with cluster_tools.running(NAME, "node") as cluster:
        rows, figures, problem = run(cluster, folder, options.only)
        if options.keep:
            (cluster.place.state / "started-by-tests").unlink(missing_ok=True)
    figures = {**figures, "seconds": round(time.monotonic() - began), "log": str(folder)}
    sys.stdout.write(f"{tally.table(rows)}\n{problem}\n" if problem else f"{tally.table(rows)}\n")
    summary = tally.summary(rows, figures)
    summary["ok"] = summary["ok"] and not problem
    sys.stdout.write(json.dumps(summary) + "\n")
    return 0 if summary["ok"] else 1


def run(cluster: cluster_tools.Cluster, folder: Path, names: list[str]) -> tuple[list[tally.Row], dict[str, Any], str]:
    """The events of these names: their rows, the figures, and what kept one from its end."""
    log = folder / "log"
    log.touch()
    progress = Progress(log, total=4 + len(names))
    kube, images, paths = prepare(progress)
    with playing(kube, cluster, images, paths, replicas=REPLICAS, log=folder / "requests.jsonl") as scene:
        problem = next((found for name in names if (found := play(name, scene, progress))), "")
        return scene.rows(), scene.figures, problem


def play(name: str, scene: Scene, progress: Progress) -> str:
    """One event; what kept it from its end, if anything did."""
    try:
        with progress.step(name) as say:
            EVENTS[name](scene)
            say(f"{scene.windows[-1].took_s:.1f}s {scene.note}")
    except (DemoError, AssertionError) as error:
        return f"{name} did not come to its end: {error}"
    return ""


def prepare(progress: Progress) -> tuple[Kube, platform.Images, fleet.Paths]:
    """The demo's first four steps, namespaces and volumes, and a second operator."""
    platform.kubernetes(progress, "local")
    kube = platform.node(progress, "local", NAME)
    paths = platform.vllm(progress)
    images = platform.fairlead(progress, kube, "local", NAME)
    kube.helm(
        "upgrade", "fairlead", CHART, "-n", "fairlead", "--reuse-values", "--set=operator.replicas=2", "--wait",
        "--timeout=3m",
    )  # fmt: skip
    kube.apply(fleet.namespaces())
    kube.apply(
        fleet.volume("models", paths.models, "ReadOnlyMany") + fleet.volume("vllm-cache", paths.cache, "ReadWriteMany")
    )
    wait_for("a leading operator", lambda: leads(kube), seconds=60)
    return kube, images, paths


def leads(kube: Kube) -> bool:
    """Whether an operator holds the Lease."""
    lease = kube.get("lease", "fairlead-operator", "-n", "fairlead")
    return bool(lease.get("spec", {}).get("holderIdentity"))


if __name__ == "__main__":
    sys.exit(main())
