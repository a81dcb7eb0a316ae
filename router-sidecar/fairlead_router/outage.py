"""What around this router keeps it from serving, told in its log.

An outage is told of once when it begins, each minute while it lasts, with the requests refused for it, and once when it
is over. It has the code of the refusals that it causes. It is over when nothing was seen of it for some seconds, so
that one that comes and goes does not fill the log. The words below say what is wrong, where, and what to do; they are
pure.
"""

import logging
from collections.abc import Callable
from typing import Final

from fairlead_router.answers import Refusal

log = logging.getLogger(__name__)

CALM_S: Final = 10.0
AGAIN_S: Final = 60.0
_LONGEST: Final = 600
"""Characters of a line: what others say is quoted in it."""

Look = Callable[[str], str]
"""What is wrong now, empty when nothing is; asked with the last refusal's message since it was asked before, if any."""


class Outage:
    """One thing that a router cannot do without."""

    def __init__(self, code: str, look: Look) -> None:
        self._code = code
        self._look = look
        self._words = ""
        self._message = ""
        self._refused = 0
        self._since: float | None = None
        self._seen_at = 0.0
        self._told_at = 0.0

    def refused(self, message: str) -> None:
        """A request was refused with this code."""
        self._refused += 1
        self._message = message

    def tick(self, now: float) -> None:
        """Look, and tell what is new."""
        message, self._message = self._message, ""
        words = self._look(message)[:_LONGEST]
        if words:
            self._words, self._seen_at = words, now
            self._present(now)
        elif self._since is None:
            self._refused = 0
        elif now - self._seen_at >= CALM_S:
            self._tell(logging.INFO, "OutageOver", f"Over: {self._words}", self._seen_at)
            self._since, self._refused = None, 0

    def _present(self, now: float) -> None:
        if self._since is None:
            self._since = self._told_at = now
            self._tell(logging.WARNING, "OutageBegan", self._words, now)
        elif now - self._told_at >= AGAIN_S:
            self._told_at = now
            self._tell(logging.WARNING, "OutageLasts", self._words, now)

    def _tell(self, level: int, event: str, words: str, until: float) -> None:
        since = until if self._since is None else self._since
        facts = {"code": self._code, "refused": self._refused, "seconds": round(until - since)}
        log.log(level, "%s", words, extra={"event": event, **facts})


class Outages:
    """All that is looked at."""

    def __init__(self) -> None:
        self._all: dict[str, Outage] = {}

    def watch(self, code: str, look: Look) -> None:
        """Look at this as well."""
        self._all[code] = Outage(code, look)

    def refused(self, refusal: Refusal) -> None:
        """A request was refused, for whatever reason."""
        outage = self._all.get(refusal.code)
        if outage is not None:
            outage.refused(refusal.message)

    def tick(self, now: float) -> None:
        """Now and then: look at everything."""
        for outage in self._all.values():
            outage.tick(now)


def ledger_words(where: str, fault: str, refused: str, *, reachable: bool) -> str:
    """``fault``: how the last message went wrong; ``reachable``: it is too early to say that nobody is there."""
    if reachable and not refused:
        return ""
    fault = fault or "answers too late, or does not know the budgets of these requests yet"
    return (
        f"The ledger at {where} {fault}. Requests under enforced budgets are refused as soon as this router holds too "
        "little of them. Check that the ledger runs and that nothing keeps this pod from reaching it."
    )


def no_ledger_words(refused: str) -> str:
    """Of a router that was given no ledger: nothing is wrong until a request needs one."""
    return "This router has no ledger, so enforced budgets admit nothing. Set FAIRLEAD_LEDGER_URL." if refused else ""


def journal_words(where: str, fault: str, *, full: bool) -> str:
    """``fault``: what the system said when it was written; ``full``: nothing more can be recorded."""
    if full:
        return (
            f"The journal in {where} has no room ({fault or 'no reason known'}), so nothing is admitted that an "
            "enforced budget must account for. Make room on its volume; what is charged meanwhile would be lost with "
            "this process."
        )
    if not fault:
        return ""
    return (
        f"The journal in {where} cannot be written to its disk ({fault}). Nothing is refused yet; what was charged "
        "would be lost with this machine. Look at its volume."
    )


def untold_words(where: str, fault: str, sessions: int) -> str:
    """``fault``: why the ledger has not heard what ``sessions`` of earlier processes left in their journals."""
    if not fault:
        return ""
    return (
        f"The ledger at {where} has not heard what {sessions} earlier sessions of this router spent, so all that they "
        f"held stays counted: {fault}. It is told as soon as it listens. Check that it runs, and that nothing keeps "
        "this pod from reaching it."
    )


def configuration_words(where: str, fault: str, *, configured: bool) -> str:
    """``fault``: why the last answer of the operator is not in use."""
    if not fault:
        return ""
    rest = "The one in use stays" if configured else "There is none yet, so every request is refused"
    return (
        f"No new configuration from the operator at {where}: {fault}. {rest}. Check that the operator runs, its log, "
        "and that nothing keeps this pod from reaching it."
    )


def identity_words(keyless: tuple[str, ...], *, nobody: bool) -> str:
    """``keyless``: issuers without a key that can be used; ``nobody``: no caller at all can be verified."""
    if nobody:
        return (
            "No caller can be verified, so every request is refused with 401: the configuration has no issuer with a "
            "key that can be used, and no API key. The operator's log says why it has no issuer's keys."
        )
    if not keyless:
        return ""
    return (
        f"Callers of {', '.join(keyless)} are refused with 401: no key of theirs can be used. The operator's log says "
        "what became of their keys."
    )


def router_token_words(where: str, token: bytes) -> str:
    """``token``: what this pod shows to other pods' routers."""
    if token:
        return ""
    return (
        f"There is no token for other routers in {where}, so they refuse what is sent on to them. Look at the pod's "
        "projected volume."
    )


def replicas_words(refused: str) -> str:
    """``refused``: what the last client was told that no replica answered."""
    return f"{refused} The pool's pods and their logs say why." if refused else ""
