"""The mutants: rules of the budget protocol, each broken in one place, and the tests that hold it."""

from dataclasses import dataclass

ESCROW = "operator/fairlead_operator/ledger/escrow.py"
TRANSACTION = "operator/fairlead_operator/ledger/transaction.py"
UPKEEP = "operator/fairlead_operator/ledger/upkeep.py"
BUDGET = "router-sidecar/fairlead_router/budget.py"
LEASE = "router-sidecar/fairlead_router/lease.py"
MACHINE = ("tests/unit/test_ledger_machine.py",)
ROUTER = ("tests/unit/test_router_budget.py", "tests/unit/test_router_lease.py")


@dataclass(frozen=True, slots=True)
class Mutant:
    """``find`` stands exactly once in the file at ``path`` and becomes ``put``; ``tests`` must then fail."""

    name: str
    path: str
    find: str
    put: str
    tests: tuple[str, ...]


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a message counts twice",
        ESCROW,
        'return "Duplicate" if seq <= session.seq else "Apply"',
        'return "Apply"',
        MACHINE,
    ),
    Mutant(
        "a gap is accepted",
        ESCROW,
        "if seq > session.seq + 1:",
        "if seq > session.seq + 1000:",
        (*MACHINE, "tests/unit/test_ledger_escrow.py"),
    ),
    Mutant("unbacked is not held", ESCROW, " + (new.unbacked - row.unbacked),", ",", MACHINE),
)
