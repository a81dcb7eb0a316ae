"""What a spec asks for that cannot be done, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about what somebody wrote. ``reason`` is the condition's; a ``warning`` does not stop anything."""

    reason: str
    message: str
    path: str = ""
    warning: bool = False


def errors(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Those that stop the object from being applied."""
    return tuple(problem for problem in problems if not problem.warning)
