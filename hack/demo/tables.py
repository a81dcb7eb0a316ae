"""What the demo prints at its end: the objects as kubectl shows them, and what the numbers mean."""

from dataclasses import dataclass
from typing import Any

from hack.demo import fleet, story
from hack.demo.kube import Kube


@dataclass(frozen=True, slots=True)
class Seen:
    """What the traffic step saw."""

    priced: dict[str, Any]
    long: dict[str, Any]
    scaled: list[str]
    rolled: dict[str, Any]
    refused: dict[str, Any]
    served: dict[str, Any]


def show(kube: Kube, seen: Seen, took: str) -> None:
    """Print the tables."""
    print(f"ready in {took}    export KUBECONFIG={kube.kubeconfig}\n")
    print(kube.kubectl("get", "mpool,rpolicy,cbudget", "-A"))
    print(story.cost(kube, "--by", "namespace,pool"))
    for line in lines(seen):
        print(line)
    print("\nnext       kubectl describe mpool chat-8b -n ai-platform        kubectl get cbudget -A        make down")


def lines(seen: Seen) -> list[str]:
    """One line for each thing that was shown."""
    usage = seen.priced["lastAnswer"]["usage"]
    refusal = seen.refused["lastRefusal"]
    return [
        (
            f"price      {usage['prompt_tokens']} prompt + {usage['completion_tokens']} output tokens of support = "
            f"{seen.priced['lastAnswer']['costUsd']} USD"
        ),
        (
            f"long       {seen.long['lastAnswer']['usage']['prompt_tokens']} prompt tokens are over route short's "
            f"{fleet.SHORT_TOKENS}: served by {next(iter(seen.long['pools']))}"
        ),
        *[f"scaled     {reason}" for reason in seen.scaled],
        (
            f"rollout    {seen.rolled['sent']} requests during a rolling update: "
            f"{seen.rolled['answered']} answered, {seen.rolled['sent'] - seen.rolled['answered']} failed"
        ),
        f"refused    {refusal['status']} {refusal.get('message', '')}",
        (
            f"           support: {seen.refused['answered']} answered before; search at the same time: "
            f"{seen.served['answered']} of {seen.served['sent']} answered"
        ),
    ]
