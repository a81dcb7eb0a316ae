"""A release on a local cluster without pods: the ledger and the operator as processes in the cluster's network.

The operator runs with the ServiceAccount and exactly the permissions that the chart gives it.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster_tools import H100, L40S, Cluster, eventually, fresh_namespace

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/fairlead"
ISSUER = "https://kubernetes.default.svc.cluster.local"
ACCOUNT = "fairlead-operator"
IMAGES = ("localhost/fairlead-router:0.1.0", "vllm/vllm-openai:v0.32.0")
PRICES = {
    "accelerators": [
        {
            "resourceName": "nvidia.com/gpu",
            "nodeSelector": {"nvidia.com/gpu.product": product},
            "perHour": price,
            "effectiveFrom": "2026-01-01",
            "source": "test-prices",
        }
        for product, price in ((H100, "2.95"), (L40S, "1.55"))
    ],
    "rateCard": {
        "seeds": {
            "default": {"promptTokensPerSecond": 1800, "cachedTokensPerSecond": 18000, "outputTokensPerSecond": 600}
        }
    },
}


@dataclass
class Release:
    """What one release needs besides its processes."""

    cluster: Cluster
    namespace: str
    platform: str
    folder: Path
    ports: tuple[int, int]
    """Of the ledger, and of the first operator; a second one takes the next."""
    roles: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ledger_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def routers_file(self) -> Path:
        """What the routers of fake pods answer."""
        return self.folder / "routers.json"

    def install(self) -> None:
        """CRDs, the operator's ServiceAccount and permissions, its tokens, prices and keys."""
        self.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
        for name in ("modelpools", "routingpolicies", "costbudgets"):
            self.cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}.fairlead.dev", "--timeout=30s")
        self.cluster.apply(*self._permissions())
        (self.folder / "prices.yaml").write_text(yaml.safe_dump(PRICES), encoding="utf-8")
        keys = self.cluster.kubectl("get", "--raw", "/openid/v1/jwks").stdout
        (self.folder / "jwks.json").write_text(keys, encoding="utf-8")
        tokens = self.folder / "tokens"
        tokens.mkdir()
        for name in ("ledger", "signals"):
            (tokens / name).write_text(self.token(f"fairlead.dev/{name}"), encoding="utf-8")
        self.routers_file.write_text("{}", encoding="utf-8")
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()), encoding="utf-8")

    def uninstall(self) -> None:
        """Take the cluster-wide objects away."""
        for kind, name in self.roles:
            self.cluster.kubectl("delete", kind, name, "--ignore-not-found")

    @property
    def kubeconfig(self) -> Path:
        """The operator's own, without any right but the chart's."""
        return self.folder / "operator.kubeconfig"

    def token(self, audience: str, account: str = ACCOUNT, namespace: str = "") -> str:
        """A token of a ServiceAccount."""
        options = ["--duration=2h", *([f"--audience={audience}"] if audience else [])]
        run = self.cluster.kubectl("create", "token", account, "-n", namespace or self.namespace, *options)
        return run.stdout.strip()

    def ask(self, url: str, token: str) -> Any:
        """The JSON of an address inside the cluster's network."""
        answer = self.cluster.exec("curl", "-sS", "-H", f"Authorization: Bearer {token}", url).stdout
        return json.loads(answer)

    def _permissions(self) -> list[dict[str, Any]]:
        """The chart's, with cluster-wide names of this release alone: releases of other tests are beside it."""
        shown = "--show-only=templates/operator/rbac.yaml"
        run = self.cluster.helm("template", "fairlead", str(CHART), f"--namespace={self.namespace}", shown)
        objects = [one for one in yaml.safe_load_all(run.stdout) if one]
        for one in objects:
            if one["kind"].startswith("Cluster"):
                one["metadata"]["name"] += f"-{self.namespace}"
                self.roles.append((one["kind"], one["metadata"]["name"]))
            if one["kind"] == "ClusterRoleBinding":
                one["roleRef"]["name"] += f"-{self.namespace}"
        return objects

    def _kubeconfig(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.cluster.inside_kubeconfig.read_text(encoding="utf-8"))
        config["users"][0]["user"] = {"token": self.token("")}
        return config


@dataclass
class Process:
    """A process of the release and its log."""

    cluster: Cluster
    running: subprocess.Popen[str]
    folder: Path
    name: str
    url: str

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        return self._signal("TERM")

    def kill(self) -> None:
        """SIGKILL: it has no last word."""
        self._signal("KILL")

    @property
    def text(self) -> str:
        """Its log."""
        return (self.folder / f"{self.name}.log").read_text(encoding="utf-8")

    def _signal(self, name: str) -> int:
        """To the process itself, which is a child of the one that entered the namespaces."""
        pid = (self.folder / f"{self.name}.pid").read_text(encoding="utf-8").strip()
        self.cluster.exec("kill", f"-{name}", pid)
        return self.running.wait(20)


@contextmanager
def installed(cluster: Cluster, folder: Path, namespace: str, platform: str) -> Iterator[Release]:
    """A release in a fresh namespace and a platform namespace beside it; their names begin as told."""
    port = random.randint(20_000, 29_000)  # noqa: S311 - other test runs share the network
    with fresh_namespace(cluster, namespace) as own, fresh_namespace(cluster, platform) as beside:
        made = Release(cluster, own, beside, folder, (port, port + 1))
        made.install()
        try:
            yield made
        finally:
            made.uninstall()


@contextmanager
def ledger(release: Release) -> Iterator[Process]:
    """The real ledger on a fresh database."""
    program = [sys.executable, "-m", "fairlead_operator.ledger.main"]
    arguments = ["--database", str(release.folder / "ledger.db"), "--listen", f"127.0.0.1:{release.ports[0]}"]
    keys = ["--jwks", str(release.folder / "jwks.json"), "--issuer", ISSUER]
    with _process(release, "ledger", [*program, *arguments, *keys], release.ledger_url) as process:
        eventually(lambda: _ready(release, process), 30)
        yield process


@contextmanager
def operator(
    release: Release,
    index: int = 0,
    *,
    ready: bool = True,
    images: tuple[str, str] = IMAGES,
    module: str = "fairlead_operator.main",
) -> Iterator[Process]:
    """One replica of the operator; waited for until it is ready, unless a test looks at what keeps it.

    ``images`` are those of router and engine that this release brings along. ``module`` is the program: the operator
    itself, or one that times it.
    """
    port = release.ports[1] + index
    url = f"http://127.0.0.1:{port}"
    program = [sys.executable, "-m", module, f"--kubeconfig={release.kubeconfig}"]
    settings = {
        "FAIRLEAD_POD_NAME": f"operator-{index}",
        "FAIRLEAD_TOKENS_DIR": str(release.folder / "tokens"),
        "FAIRLEAD_PRICES_FILE": str(release.folder / "prices.yaml"),
        "FAIRLEAD_LEDGER_URL": release.ledger_url,
        "FAIRLEAD_ROUTER_IMAGE": images[0],
        "FAIRLEAD_ENGINE_IMAGE": images[1],
        "FAIRLEAD_LISTEN": f"127.0.0.1:{port}",
    }
    with _process(release, f"operator-{index}", program, url, settings) as process:
        if ready:
            eventually(lambda: _ready(release, process), 30)
        yield process


@contextmanager
def routers(release: Release) -> Iterator[None]:
    """What answers for the routers of fake pods."""
    program = [sys.executable, str(ROOT / "tests/fakes/router_signals.py"), str(release.routers_file)]
    with (release.folder / "routers.log").open("w") as log:
        running = release.cluster.popen(*program, stdout=log, stderr=log)
        try:
            yield
        finally:
            running.terminate()
            running.wait(10)


@contextmanager
def _process(
    release: Release, name: str, command: list[str], url: str, settings: dict[str, str] | None = None
) -> Iterator[Process]:
    # What this process was told comes first: compiled modules, as the images have them.
    told = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join([*told, *(str(ROOT / part) for part in ("operator", "router-sidecar"))])
    env = {
        **os.environ,
        "PYTHONPATH": paths,
        "FAIRLEAD_NAMESPACE": release.namespace,
        "FAIRLEAD_PLATFORM_NAMESPACES": f"{release.platform},{release.namespace}",
        **(settings or {}),
    }
    pid = release.folder / f"{name}.pid"
    pid.unlink(missing_ok=True)
    entered = ["sh", "-c", f'echo $$ > {pid}; exec "$@"', "sh", *command]
    with (release.folder / f"{name}.log").open("a", encoding="utf-8") as log:
        running = release.cluster.popen(*entered, env=env, stdout=log, stderr=log)
        process = Process(release.cluster, running, release.folder, name, url)
        eventually(pid.exists, 10)
        try:
            yield process
        finally:
            if running.poll() is None:
                process.stop()


def _ready(release: Release, process: Process) -> bool:
    assert process.running.poll() is None, process.text
    run = release.cluster.exec("curl", "-fsS", f"{process.url}/readyz", check=False)
    return run.returncode == 0
