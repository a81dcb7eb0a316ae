"""The mutants: rules of the budget protocol, each broken in one place, and the tests that hold it."""

from dataclasses import dataclass

ESCROW = "operator/fairlead_operator/ledger/escrow.py"
BUDGET = "router-sidecar/fairlead_router/budget.py"
EXCHANGE = "operator/fairlead_operator/ledger/exchange.py"
REMEMBERED = "operator/fairlead_operator/ledger/remembered.py"
TOGETHER = "operator/fairlead_operator/ledger/together.py"
JOURNAL = "router-sidecar/fairlead_router/journal.py"
RECORDS = "router-sidecar/fairlead_router/records.py"
PROTOCOL = ("tests/unit/test_ledger_escrow.py", "tests/unit/test_ledger_machine.py")
ROUTER = ("tests/unit/test_router_budget.py", "tests/unit/test_router_session.py")
SUCCESSOR = ("tests/unit/test_router_journal.py", "tests/unit/test_router_successor.py")


@dataclass(frozen=True, slots=True)
class Mutant:
    """``find`` stands exactly once in the file at ``path`` and becomes ``put``; ``tests`` must then fail."""

    name: str
    path: str
    find: str
    put: str
    tests: tuple[str, ...]


MUTANTS: tuple[Mutant, ...] = (
    # --- the ledger
    Mutant(
        "a message counts twice",
        ESCROW,
        'return "Duplicate" if seq <= session.seq else "Apply"',
        'return "Apply"',
        PROTOCOL,
    ),
    Mutant("a gap is accepted", ESCROW, "if seq > session.seq + 1:", "if seq > session.seq + 1000:", PROTOCOL),
    Mutant(
        "money of lost sessions is granted again",
        ESCROW,
        "available = most - account.held\n",
        "available = most - account.held + account.unreconciled\n",
        PROTOCOL,
    ),
    Mutant(
        "a successor need not wait",
        ESCROW,
        'if session.state == "Replaying" or session.pod_uid == pod_uid:',
        "if session.id:",
        PROTOCOL,
    ),
    Mutant(
        "the owner may speak after its successor",
        ESCROW,
        'return Refusal(410, reason="Taken") if session.taken else None',
        "return None",
        PROTOCOL,
    ),
    Mutant(
        "headroom is kept for each class alone",
        ESCROW,
        "return terms.limit if klass else terms.limit * terms.batch_percent // 100",
        "return terms.limit",
        PROTOCOL,
    ),
    Mutant("a final holding is kept", ESCROW, "return books, NOTHING if final else new", "return books, new", PROTOCOL),
    Mutant(
        "nothing recovers",
        EXCHANGE,
        "until = self._now + self._ttl_ms\n",
        "until = self._now\n",
        (*PROTOCOL, "tests/unit/test_ledger_http.py"),
    ),
    Mutant("unbacked is not told", ESCROW, "unbacked=max(row.unbacked, told.unbacked),", "unbacked=0,", PROTOCOL),
    Mutant(
        "unbacked is not held",
        ESCROW,
        "(new.granted - row.granted) - (new.returned - row.returned) + (new.unbacked - row.unbacked)",
        "(new.granted - row.granted) - (new.returned - row.returned)",
        PROTOCOL,
    ),
    Mutant(
        "a grant may pass the cap",
        ESCROW,
        "return min(available, max(demand.need, demand.first, min(demand.want, share)))",
        "return max(demand.need, demand.first, min(demand.want, share))",
        PROTOCOL,
    ),
    Mutant(
        "a lost session stays lost",
        EXCHANGE,
        'if session.state in {"Lost", "Replaying"}:',
        'if session.state == "Replaying":',
        PROTOCOL,
    ),
    Mutant(
        "a session does not count as heard by an old message",
        EXCHANGE,
        "return self._present(heard) if",
        "return self._present(session) if",
        PROTOCOL,
    ),
    Mutant(
        "told again, a message may ask",
        EXCHANGE,
        "verdicts = {} if self._retold or self._message.close else",
        "verdicts = {} if self._message.close else",
        PROTOCOL,
    ),
    Mutant(
        "closing returns what may still be charged",
        ESCROW,
        "left = min(unknown, row.out) if complete else row.out",
        "left = 0",
        PROTOCOL,
    ),
    Mutant(
        "a temporary increase never ends",
        ESCROW,
        "if increase is not None and now < increase.until else 0",
        "if increase is not None else 0",
        PROTOCOL,
    ),
    Mutant(
        "a paced budget gives all at once",
        ESCROW,
        "passed = now + horizon(terms) - begun",
        "passed = terms.end - begun",
        ("tests/unit/test_ledger_escrow.py",),
    ),
    Mutant(
        "what a session held is believed although it spoke to another ledger",
        REMEMBERED,
        "return held if stored is not None and same(session, stored) else None",
        "return held",
        ("tests/unit/test_ledger_remembered.py",),
    ),
    Mutant(
        "a holding that is gone is stored from memory",
        TOGETHER,
        "        if not found():\n            raise self._again()\n",
        "",
        ("tests/unit/test_ledger_remembered.py",),
    ),
    # --- the router
    Mutant(
        "any one budget admits",
        BUDGET,
        "            if short is not None:\n                return _refused(short, claims, now)\n",
        "            if short is not None and len(claims) == 1:\n                return _refused(short, claims, now)\n",
        ROUTER,
    ),
    Mutant(
        "idle leases never hear of a recall",
        BUDGET,
        "holding.tell_at - now < _SLACK_S\n",
        "holding.tell_at - now < -1e9\n",
        ROUTER,
    ),
    Mutant(
        "what a request leaves of recalled money stays",
        BUDGET,
        "                if holding.recall and holding.free:\n",
        "                if False:\n",
        ROUTER,
    ),
    Mutant(
        "more is given back than is free",
        BUDGET,
        "holding.give_back(holding.free - target)",
        "holding.give_back(holding.out)",
        ROUTER,
    ),
    Mutant(
        "a reservation is not journaled",
        JOURNAL,
        "        if pieces:\n            values[2] = pieces\n            form = _opens",
        "        if pieces < 0:\n            values[2] = pieces\n            form = _opens",
        SUCCESSOR,
    ),
    Mutant(
        "a settlement is not journaled",
        JOURNAL,
        "self._store(form.pack(*values))\n\n    def sealed",
        "self._closed = self._closed\n\n    def sealed",
        SUCCESSOR,
    ),
    Mutant(
        "usage is told twice",
        JOURNAL,
        "        self.archive.add(seq, body)\n        self._store(SEAL_FIELDS.pack(SEAL, seq) + body)\n",
        "        self.archive.add(seq, body)\n",
        SUCCESSOR,
    ),
    Mutant(
        "what is open is not said at the end",
        RECORDS,
        "for k, v in sorted(estate.unknown().items()))",
        "for k, v in ())",
        SUCCESSOR,
    ),
    Mutant(
        "the journal keeps final holdings",
        RECORDS,
        "        if holding.final:\n            del estate.holdings[key]\n",
        "",
        SUCCESSOR,
    ),
)
