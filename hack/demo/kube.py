"""kubectl, helm and fairlead against the demo's cluster."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hack.demo.progress import DemoError, Progress

SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Kube:
    """The programs and the kubeconfig of one cluster."""

    progress: Progress
    kubeconfig: Path
    programs: Path | None
    """Folder with kubectl and helm; None: they are on PATH."""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = SECONDS) -> str:
        """Run kubectl and return what it printed."""
        command = [self._program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return self.progress.run(command, timeout=timeout, stdin=stdin)

    def helm(self, *arguments: str, timeout: float = 300.0) -> str:
        """Run helm and return what it printed."""
        return self.progress.run(
            [self._program("helm"), f"--kubeconfig={self.kubeconfig}", *arguments], timeout=timeout
        )

    def fairlead(self, *arguments: str) -> str:
        """Run the ``fairlead`` command of this tree and return what it printed."""
        command = [sys.executable, "-m", "fairlead_operator.cli.main", *arguments, f"--kubeconfig={self.kubeconfig}"]
        return self.progress.run(command, timeout=SECONDS)

    @contextmanager
    def watching(self, *arguments: str) -> Iterator[list[str]]:
        """Run a kubectl that does not end by itself; the list grows by the lines that it prints."""
        command = [self._program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        lines: list[str] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            out = process.stdout
            assert out is not None  # noqa: S101 - it is a pipe
            reader = threading.Thread(target=lambda: lines.extend(line.rstrip() for line in out), daemon=True)
            reader.start()
            try:
                yield lines
            finally:
                process.terminate()
                reader.join(SECONDS)

    def apply(self, objects: Sequence[dict[str, Any]]) -> None:
        """Apply objects, server-side."""
        text = yaml.safe_dump_all(objects, sort_keys=False)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def get(self, *arguments: str) -> Any:
        """The JSON of ``kubectl get``; an empty object when there is no such thing."""
        text = self.kubectl("get", *arguments, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else {}

    def version(self) -> str:
        """The API server's version."""
        return str(json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"])

    def _program(self, name: str) -> str:
        found = str(self.programs / name) if self.programs else shutil.which(name)
        if not found or not os.access(found, os.X_OK):
            raise DemoError(f"{name} is not on PATH. Install it, or use CLUSTER=local, which brings its own.")
        return found
