"""The ledger's own metrics, in a registry of each process."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fairlead_operator.ledger.escrow import Refusal
from fairlead_operator.ledger.upkeep import Health
from fairlead_router.contract import SyncAnswer

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024)
STATES = ("Open", "Lost", "Replaying", "Closed")
REFUSING = frozenset({"Wait", "Exhausted", "Paced", "Recovering", "TooLarge"})
"""Verdicts by which a demand got nothing."""


def _gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(f"fairlead_ledger_{name}", text, registry=registry)


@dataclass(slots=True)
class Metrics:
    """What Prometheus is told."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    transactions: Histogram = field(init=False)
    syncs: Counter = field(init=False)
    refusals: Counter = field(init=False)
    losses: Counter = field(init=False)
    recoveries: Counter = field(init=False)
    violations: Gauge = field(init=False)
    clock_suspect: Gauge = field(init=False)
    sessions: Gauge = field(init=False)
    accounts: Gauge = field(init=False)
    holdings: Gauge = field(init=False)
    dims: Gauge = field(init=False)
    _applied: Counter = field(init=False)

    def __post_init__(self) -> None:
        """Register everything."""
        name, text = "fairlead_ledger_transaction_seconds", "Time of one committed group of messages."
        self.transactions = Histogram(name, text, buckets=SECONDS, registry=self.registry)
        name, text = "fairlead_ledger_syncs", "Sync messages by the status they were answered with."
        self.syncs = Counter(name, text, ["status"], registry=self.registry)
        name, text = "fairlead_ledger_refused_demands", "Demands that got nothing, by verdict."
        self.refusals = Counter(name, text, ["verdict"], registry=self.registry)
        text = "Messages that show that commits were lost: one is missing, or unknown grants are told. Must be 0."
        self.losses = Counter("fairlead_ledger_losses", text, registry=self.registry)
        text = "Times that grants were stopped for one ttl after a loss."
        self.recoveries = Counter("fairlead_ledger_recoveries", text, registry=self.registry)
        text = "1 while the clock is not trusted to open windows."
        self.clock_suspect = _gauge("clock_suspect", text, self.registry)
        self._applied = self.syncs.labels("200")  # labels are looked up under a lock: once for what is frequent
        text = "Accounts whose books break an invariant; anything but 0 is a defect."
        self.violations = _gauge("invariant_violations", text, self.registry)
        text = "Router sessions by state."
        self.sessions = Gauge("fairlead_ledger_sessions", text, ["state"], registry=self.registry)
        self.accounts = _gauge("accounts", "Accounts, of all windows.", self.registry)
        self.holdings = _gauge("holdings", "Holdings of sessions in accounts.", self.registry)
        self.dims = _gauge("usage_dimensions", "Combinations of dimensions that usage is kept for.", self.registry)

    def answered(self, outcome: SyncAnswer | Refusal) -> None:
        """Count the answer to a message, and what it asked for in vain."""
        if isinstance(outcome, Refusal):
            self.syncs.labels(str(outcome.status)).inc()
            return
        self._applied.inc()
        for account in outcome.accounts:
            if account.verdict in REFUSING:
                self.refusals.labels(account.verdict).inc()

    def record(self, health: Health) -> None:
        """Take over what upkeep found."""
        self.violations.set(health.violations)
        self.accounts.set(health.accounts)
        self.holdings.set(health.holdings)
        self.dims.set(health.dims)
        for state in STATES:
            self.sessions.labels(state).set(health.sessions.get(state, 0))
