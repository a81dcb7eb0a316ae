"""The command line: python3 hack/cluster COMMAND."""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hack.cluster import doctor, gobuild, layout, lifecycle, processes
from hack.cluster.layout import HERE, ClusterError, Kind
from hack.cluster.progress import say

ABOUT = """A Kubernetes of this machine's own, without Docker: API server, controllers, scheduler and KWOK's fake nodes
(--kind plane), and beside them one real node with containerd (--kind node)."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(COMMANDS[options.command](options))
    except ClusterError as error:
        say(f"hack/cluster {options.command}: {error}")
    except subprocess.SubprocessError as error:
        say(f"hack/cluster {options.command}: {error}")
    except KeyboardInterrupt:
        say("")
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 hack/cluster", description=ABOUT)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        if name not in {"build", "doctor"}:
            added.add_argument("--name", default="demo", help="which cluster of this working copy (default: demo)")
        return added

    command("build", "build the programs into the cache, unless they are there")
    up = command("up", "start the cluster, or find it running; prints `export KUBECONFIG=…`")
    for added in (up, command("down", "end the cluster and remove everything it left")):
        added.add_argument("--cluster", choices=("local", "kind", "current"), default=_chosen_cluster())
    up.add_argument("--image", type=Path, action="append", default=[], metavar="TAR", help="load this image archive")
    command("status", "list the parts; exit status 1 if one is down")
    command("shell", "a shell inside the cluster's namespaces")
    command("exec", "run a command inside").add_argument("argv", nargs="+", metavar="-- COMMAND")
    command("load", "load image archives on the real node").add_argument("archives", nargs="+", type=Path)
    check = command("doctor", "name what this machine lacks; exit status 1 if anything")
    check.add_argument("--install", action="store_true", help="install missing Debian packages with apt-get")
    check.add_argument("--tests", action="store_true", help="with --install: also what some tests run beside us")
    for added in (up, check):
        added.add_argument("--kind", choices=("plane", "node"), default="node")
    return parser


def _chosen_cluster() -> str:
    return os.environ.get("CLUSTER") or "local"


def _build(_options: argparse.Namespace) -> int:
    missing = doctor.go()
    if missing and not gobuild.built(layout.programs_dir()):
        raise ClusterError(missing[0].text)
    print(lifecycle.ensure_programs())
    return 0


def _up(options: argparse.Namespace) -> int:
    if options.cluster == "current":
        return _use_current()
    place = layout.layout(options.name)
    if options.cluster == "kind":
        return _kind("up", options.name)
    lifecycle.up(place, _kind_of(options), options.image)
    print(f"export KUBECONFIG={place.kubeconfig}")
    return 0


def _down(options: argparse.Namespace) -> int:
    if options.cluster == "current":
        say("the current context's cluster is not ours to end: nothing done")
        return 0
    if options.cluster == "kind":
        return _kind("down", options.name)
    there = lifecycle.down(layout.layout(options.name))
    say(f"cluster {options.name} is {'down' if there else 'not there'}")
    return 0


def _status(options: argparse.Namespace) -> int:
    place = layout.layout(options.name)
    if not place.state.exists():
        say(f"cluster {options.name} is not there: python3 hack/cluster up --name {options.name}")
        return 1
    rows = processes.parts(place)
    print(processes.table(rows))
    return 0 if processes.healthy(rows) else 1


def _shell(options: argparse.Namespace) -> int:
    lifecycle.enter(layout.layout(options.name), lifecycle.shell())
    return 0


def _exec(options: argparse.Namespace) -> int:
    lifecycle.enter(layout.layout(options.name), options.argv)
    return 0


def _load(options: argparse.Namespace) -> int:
    lifecycle.load(layout.layout(options.name), options.archives)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    kind = _kind_of(options)
    found = doctor.reasons(kind, build=not gobuild.built(layout.programs_dir()))
    wanted = [*found, *(doctor.tests_lack() if options.tests else [])]
    refused = doctor.install(wanted) if options.install else []
    if options.install:
        found = doctor.reasons(kind, build=not gobuild.built(layout.programs_dir()))
    for text in [*(reason.text for reason in found), *refused]:
        print(f"missing: {text}")
    for note in doctor.notes():
        print(f"note: {note}")
    if not found:
        print(f"this machine can run a local cluster (--kind {kind})")
    return 1 if found else 0


def _kind_of(options: argparse.Namespace) -> Kind:
    return cast("Kind", options.kind)


def _kind(verb: str, name: str) -> int:
    return subprocess.run(["bash", str(HERE / "kind.sh"), verb, name], check=False).returncode


def _use_current() -> int:
    """Check that the cluster of the kubeconfig's current context answers; nothing is made there."""
    context = _kubectl("config", "current-context").strip()
    version = json.loads(_kubectl("version", "--output=json", "--request-timeout=10s"))
    say(f"context {context} answers: Kubernetes {version['serverVersion']['gitVersion']}")
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    print(f"export KUBECONFIG={path}")
    return 0


def _kubectl(*arguments: str) -> str:
    own = layout.programs_dir() / "kube"
    if shutil.which("kubectl") is None and not own.exists():
        raise ClusterError("kubectl is missing: put it on PATH, or build ours with python3 hack/cluster build")
    program = ["kubectl"] if shutil.which("kubectl") else [str(own), "kubectl"]
    run = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, timeout=30)
    if run.returncode:
        said = (run.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ClusterError(
            f"the kubeconfig's current context does not answer ({said}): choose one with kubectl config use-context"
        )
    return run.stdout


COMMANDS = {
    "build": _build,
    "up": _up,
    "down": _down,
    "status": _status,
    "shell": _shell,
    "exec": _exec,
    "load": _load,
    "doctor": _doctor,
}
