"""The whole story on one machine: cluster, vLLM, Fairlead, traffic, money.

usage: python -m hack.demo        (make demo; CLUSTER=local|kind|current)
Exits 1 when a step did not happen, with the end of the log.
"""

import os
import sys
import time
from pathlib import Path

from hack.demo import platform, story, tables
from hack.demo.kube import Kube
from hack.demo.progress import DemoError, Progress, clock

STEPS = 7


def main() -> int:
    """Run the steps; the cluster stays up."""
    log = Path(os.environ.get("FAIRLEAD_DEMO_LOG", f"/var/tmp/fairlead-demo-{os.getuid()}.log"))  # noqa: S108 - named to people
    log.write_text("", encoding="utf-8")
    print(f"make demo{'log: ' + str(log):>90}")
    progress = Progress(log, STEPS)
    try:
        run(progress, os.environ.get("CLUSTER", "local"))
    except DemoError as error:
        print(f"\n{progress.number}/{STEPS} {progress.name} did not succeed: {error}", file=sys.stderr)
        return 1
    return 0


def run(progress: Progress, kind: str) -> None:
    """All seven steps, then the tables."""
    began = time.monotonic()
    platform.kubernetes(progress, kind)
    kube = platform.node(progress, kind, "demo")
    paths = platform.vllm(progress)
    images = platform.fairlead(progress, kube, kind, "demo")
    platform.apply_fleet(progress, kube, images, paths)
    first = traffic(progress, kube, images)
    checks(progress, kube)
    tables.show(kube, first, clock(time.monotonic() - began))


def traffic(progress: Progress, kube: Kube, images: platform.Images) -> tables.Seen:
    """Priced, long, scaled, rolled, refused: each checked."""
    with progress.step("traffic") as say:
        say("a priced request of support")
        priced = story.priced_request(kube, images.caller)
        say("a prompt for the long pool")
        long = story.long_request(kube, images.caller)
        say("load on chat-8b: 1 to 2 replicas and back")
        scaled = story.scale_up_and_down(kube, images.caller)
        say("a rolling update under traffic")
        rolled = story.rolling_update(kube, images.caller)
        say("support's budget ends, search is served")
        refused, served = story.budget_bites(kube, images.caller)
        say(
            f"{sum(t['sent'] for t in (priced, long, rolled, refused, served))} requests and a load; "
            f"1 to 2 to 1 replicas, 1 rolling update"
        )
    return tables.Seen(priced, long, scaled, rolled, refused, served)


def checks(progress: Progress, kube: Kube) -> None:
    """The books: nobody overspent, and charged + idle is the bill."""
    with progress.step("checks") as say:
        budgets = story.no_overspend(kube)
        bill = story.bill(kube)
        say(
            f"no overspend in {len(budgets)} budgets; charged {bill.charged} + idle {bill.idle} = bill {bill.total} USD"
        )


if __name__ == "__main__":
    sys.exit(main())
