"""``make bench-operator``: the operator with many pools that are scaled by objectives of latency, on a KWOK cluster.

The real operator and ledger run as processes in a cluster of the bench's own; nodes and pods are KWOK's. One more
process is every router: it tells the operator what routers tell, of demand that runs through a day in an hour, and
long-polls the configuration as each of them. Prints the operator's share of a core, how long rounds and decisions
take, and whether every pool was decided every five seconds. The last line is one JSON object.

With ``--real`` instead: a recorded hour of a chat service, in minutes, on real vLLM pods of a local cluster with a real
node; when replicas changed and why, what its clients saw, and the time of a start as it was learned.

usage: python -m tests.bench.operator [--real] [--pools N] [--seconds S] [--day S] [--patience S] [--seed N]
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tests import cluster_tools
from tests.bench.operator import real, run

NAME: Final = "bench-operator"
REAL_NAME: Final = "bench-real"
REAL_S: Final = 480.0
DECIDED_PERCENT: Final = 99.0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--real", action="store_true", help="a recorded load on real vLLM")
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--seconds", type=float, help=f"measured (300, with --real {REAL_S:g})")
    parser.add_argument("--day", type=float, default=3600.0, help="seconds in which demand runs through a day")
    parser.add_argument(
        "--patience",
        type=float,
        default=run.PATIENCE_S,
        help="seconds to wait until all pools are decided by their objectives",
    )
    parser.add_argument("--seed", type=int, default=1, help="of sizes, phases and arrivals")
    return parser.parse_args()


def show(report: dict[str, Any]) -> None:
    """The figures for people."""
    if "times" in report:
        print(f"\n| | count | p50 ms | p99 ms | most ms | seconds in all |\n|{'---|' * 6}")
        for what, one in report["times"].items():
            cells = (one["count"], one["p50_ms"], one["p99_ms"], one["max_ms"], one["total_s"])
            print(f"| {what} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
        print()
    for name, value in report.items():
        if name != "times":
            print(f"{name}: {value}")


def fake(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Many pools on fake nodes: the figures, and whether no pool was left out."""
    asked = run.Asked(given.pools, given.seconds or 300.0, given.day, given.seed, given.patience)
    with (
        tempfile.TemporaryDirectory(prefix="fairlead-bench-operator-") as folder,
        cluster_tools.running(NAME, "plane") as cluster,
    ):
        report = run.measured(cluster, Path(folder), asked)
    return report, report["punctuality"]["decided_percent"] >= DECIDED_PERCENT


def on_real_pods(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """One pool of real vLLM: the figures, and whether no request failed."""
    with cluster_tools.running(REAL_NAME, "node") as cluster:
        report = real.measured(cluster, given.seconds or REAL_S)
    return report, report["failed"] == 0


def main() -> int:
    """Run; 1 where this machine cannot, a pool was left out, or a real request failed."""
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster is taken down
    if found := cluster_tools.obstacles("node" if given.real else "plane"):
        print("no local cluster on this machine: " + "; ".join(found))
        return 1
    report, good = on_real_pods(given) if given.real else fake(given)
    show(report)
    print(json.dumps({"load_1m": round(os.getloadavg()[0], 2), **report}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
