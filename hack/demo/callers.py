"""Teams' programs: pods that call the gateway with their namespace's ServiceAccount token, each a Job that ends."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from hack.demo.kube import Kube
from hack.demo.progress import DemoError, wait_for


@dataclass(frozen=True, slots=True)
class Caller:
    """A running Job of the image fairlead-caller."""

    kube: Kube
    namespace: str
    name: str

    def result(self, seconds: float) -> dict[str, Any]:
        """Wait for its end and return the object that it printed."""
        wait_for(f"the end of job {self.namespace}/{self.name}", self._ended, seconds=seconds)
        text = self.kube.kubectl("logs", "-n", self.namespace, f"job/{self.name}")
        lines = [line for line in text.splitlines() if line.startswith("{")]
        if not lines:
            raise DemoError(f"job {self.namespace}/{self.name} printed no result: {text[-500:]}")
        tally: dict[str, Any] = json.loads(lines[-1])
        return tally

    def _ended(self) -> bool:
        status = self.kube.get("job", self.name, "-n", self.namespace).get("status", {})
        if status.get("failed"):
            logs = self.kube.kubectl("logs", "-n", self.namespace, f"job/{self.name}")
            raise DemoError(f"job {self.namespace}/{self.name} ended in error: {logs[-500:]}")
        return bool(status.get("succeeded"))


def call(kube: Kube, namespace: str, image: str, **options: object) -> Caller:
    """Start a caller in a namespace; options are those of caller.py, with underscores."""
    name = f"caller-{uuid.uuid4().hex[:8]}"
    kube.apply([job(namespace, name, image, arguments(options))])
    return Caller(kube, namespace, name)


def arguments(options: dict[str, object]) -> list[str]:
    """``prompt_words=40`` → ``--prompt-words=40``; True is a bare flag."""
    names = {key: key.replace("_", "-") for key in options}
    return [f"--{names[key]}" if value is True else f"--{names[key]}={value}" for key, value in options.items()]


def job(namespace: str, name: str, image: str, args: list[str]) -> dict[str, Any]:
    """The Job: non-root, with a token for Fairlead's audience and nothing else."""
    token = {"serviceAccountToken": {"audience": "fairlead.dev", "expirationSeconds": 600, "path": "token"}}
    container = {
        "name": "caller",
        "image": image,
        "args": args,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [{"name": "fairlead", "mountPath": "/var/run/secrets/fairlead", "readOnly": True}],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "fairlead", "projected": {"sources": [token]}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "fairlead-caller"}},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": {"labels": {"app.kubernetes.io/name": "fairlead-caller"}}, "spec": pod},
        },
    }
