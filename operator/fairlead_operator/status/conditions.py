"""Conditions as Kubernetes wants them: always all of them, and a time that moves only when the status flips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fairlead_operator.api.v1alpha1 import Reason
from fairlead_operator.decide.facts import time_text
from fairlead_operator.decide.problems import Problem

MESSAGE_CHARS = 4096
PROBLEMS_SHOWN = 3

TrueFalse = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one condition says now."""

    type: str
    status: TrueFalse
    reason: str
    message: str


def merge(
    old: Sequence[Mapping[str, Any]], new: Iterable[Finding], now_ms: int, generation: int
) -> list[dict[str, Any]]:
    """The conditions to write: the new findings, with the old ones' transition times where the status is the same."""
    before = {item.get("type"): item for item in old}
    return [_condition(before.get(finding.type), finding, now_ms, generation) for finding in new]


def find(conditions: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The condition of a type; empty when there is none yet."""
    return next((item for item in conditions if item.get("type") == kind), {})


def all_true(kind: str, parts: Sequence[Finding], reason: str, message: str) -> Finding:
    """Ready: true when all parts are, else what the first of the others says."""
    worst = next((part for part in parts if part.status == "False"), None)
    worst = worst or next((part for part in parts if part.status == "Unknown"), None)
    if worst is None:
        return Finding(kind, "True", reason, message)
    return Finding(kind, worst.status, worst.reason, worst.message)


def problem_text(problems: Sequence[Problem]) -> str:
    """The first problems in full, the others counted."""
    shown = " ".join(problem.message for problem in problems[:PROBLEMS_SHOWN])
    more = len(problems) - PROBLEMS_SHOWN
    return f"{shown} ({more} more)" if more > 0 else shown


def accepted(kind: str, problems: Sequence[Problem], fine: str) -> Finding:
    """Accepted: false with the first problem's reason, true when there is none."""
    if problems:
        return Finding(kind, "False", problems[0].reason, problem_text(problems))
    return Finding(kind, "True", Reason.ACCEPTED, fine)


def _condition(before: Mapping[str, Any] | None, finding: Finding, now_ms: int, generation: int) -> dict[str, Any]:
    same = before is not None and before.get("status") == finding.status and before.get("lastTransitionTime")
    return {
        "type": str(finding.type),
        "status": finding.status,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else time_text(now_ms),
        "reason": str(finding.reason),
        "message": finding.message[:MESSAGE_CHARS],
    }
