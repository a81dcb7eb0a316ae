"""PURE: who may say and see what.

Whoever may create pods in a namespace is trusted with that namespace's budgets, no more: a router there leases and
charges accounts of its own namespace, and the one account of each budget per Total that covers it. The gateway and
routers in platform namespaces speak for all.
"""

from dataclasses import dataclass

from fairlead_operator.ledger.escrow import BATCH, MAX_AMOUNT, OTHERS, Refusal
from fairlead_operator.tokens import Identity
from fairlead_router.contract import Ask, Holding, LedgerBudget, SyncRequest, Unknown, UsageLine

MAX_LINES = 10_000
MAX_TEXT = 256
BIN_DIGITS = 3
BINS = frozenset(map(str, range(10**BIN_DIGITS)))
"""The names of bins, as they nearly always are written."""
CLASSES = frozenset({BATCH, OTHERS})
OPERATOR_ACCOUNT = "fairlead-operator"
GATEWAY_ACCOUNT = "fairlead-gateway"


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller. ``trusted``: speaks for all namespaces. ``operator``: may write budgets and prices."""

    identity: Identity
    trusted: bool
    operator: bool

    @property
    def namespace(self) -> str:
        """The namespace of the caller's pod."""
        return self.identity.namespace

    @property
    def account(self) -> str:
        """Namespace and name of the caller's ServiceAccount."""
        return f"{self.identity.namespace}/{self.identity.service_account}"

    def covers(self, budget: LedgerBudget, namespace: str) -> bool:
        """Whether the caller may use the budget's account of a namespace (empty: the one account of a Total)."""
        covered = budget.namespaces or (budget.namespace,)
        return self.trusted or (self.namespace in covered and namespace in {"", self.namespace})


def caller_of(identity: Identity, release: str, platform: frozenset[str]) -> Caller:
    """What a verified identity may do."""
    in_release = identity.namespace == release
    return Caller(
        identity,
        trusted=identity.namespace in platform or (in_release and identity.service_account == GATEWAY_ACCOUNT),
        operator=in_release and identity.service_account == OPERATOR_ACCOUNT,
    )


def objection(caller: Caller, message: SyncRequest) -> Refusal | None:
    """Why a message cannot be taken, before anything is looked up: its size, its speaker, its values."""
    lines = len(message.holdings) + len(message.asks) + len(message.usage) + len(_unknown(message))
    if lines > MAX_LINES:
        return Refusal(413, reason=f"{lines} lines, {MAX_LINES} are allowed; nothing was applied: send fewer at a time")
    if not caller.identity.pod_uid:
        return Refusal(403, reason="the token is not bound to a pod; mount a projected ServiceAccount token")
    return _foreign(caller, message) or _malformed(message)


def _foreign(caller: Caller, message: SyncRequest) -> Refusal | None:
    if caller.trusted:
        return None
    named = [(f"asks[{index}]", ask.namespace) for index, ask in enumerate(message.asks) if ask.namespace]
    named += [(f"usage[{index}]", line.namespace) for index, line in enumerate(message.usage)]
    for line, namespace in named:
        if namespace != caller.namespace:
            return Refusal(
                403,
                reason=f"{line} is of namespace {namespace}; a router in {caller.namespace} speaks only for its own",
            )
    return None


PRINTABLE = "names have printable characters only"
"""PostgreSQL cannot store all others, and they would reach people's terminals."""


def _malformed(message: SyncRequest) -> Refusal | None:
    well_named = 0 < len(message.session) <= MAX_TEXT and message.session.isprintable()
    faults = [] if well_named else [f"session: 1 to {MAX_TEXT} printable characters are needed"]
    faults += [] if _in_range(message.sent_at) else [f"sentAt: {message.sent_at} is no time in ms since the epoch"]
    faults += [] if 0 < message.seq <= MAX_AMOUNT else [f"seq: messages are numbered from 1, not {message.seq}"]
    faults += [f"holdings[{i}]: {fault}" for i, line in enumerate(message.holdings) if (fault := _holding_fault(line))]
    faults += [
        f"close.unknown[{i}]: {fault}" for i, line in enumerate(_unknown(message)) if (fault := _unknown_fault(line))
    ]
    faults += [f"asks[{i}]: {fault}" for i, line in enumerate(message.asks) if (fault := _ask_fault(line))]
    faults += [f"usage[{i}]: {fault}" for i, line in enumerate(message.usage) if (fault := _usage_fault(line))]
    if len({(holding.account, holding.klass) for holding in message.holdings}) < len(message.holdings):
        faults.append("holdings: an account is named twice in one class")
    return Refusal(422, reason=faults[0]) if faults else None


def _unknown(message: SyncRequest) -> tuple[Unknown, ...]:
    return message.close.unknown if message.close else ()


def _unknown_fault(line: Unknown) -> str:
    return _fault(line.klass, (line.account, line.amount))


def _holding_fault(line: Holding) -> str:
    asked = line.want | line.need | line.first
    if line.final and (line.reserved or asked):
        return "final, but something is reserved or asked for"
    totals = line.granted | line.returned | line.charged | line.unbacked | line.reserved
    if _in_range(line.account | totals | asked) and line.klass in CLASSES:
        return ""
    amounts = line.granted, line.returned, line.charged, line.unbacked, line.reserved, line.want, line.need, line.first
    return _fault(line.klass, (line.account, *amounts))


def _ask_fault(line: Ask) -> str:
    if max(len(line.budget), len(line.namespace)) > 2 * MAX_TEXT:
        return f"budget and namespace have at most {2 * MAX_TEXT} characters"
    if not f"{line.budget}{line.namespace}{line.key}".isprintable():
        return PRINTABLE
    return _fault(line.klass, (line.want, line.need, line.first))


def _in_range(bits: int) -> bool:
    """Whether all amounts, of which these are the bits, are in range: quicker than to look at each."""
    return 0 <= bits < MAX_AMOUNT


def _fault(klass: int, amounts: tuple[int, ...]) -> str:
    if klass not in CLASSES:
        return f"class {klass}; {BATCH} (Batch) and {OTHERS} (all others) exist"
    return _range_fault(amounts)


def _range_fault(amounts: tuple[int, ...]) -> str:
    if min(amounts) < 0 or max(amounts) > MAX_AMOUNT:
        return f"amounts are {min(amounts)} to {max(amounts)}, 0 to {MAX_AMOUNT} are allowed"
    return ""


def _usage_fault(line: UsageLine) -> str:
    names = line.namespace, line.caller, line.feature, line.model, line.pool, line.variant, line.route, line.cache
    joined = "".join(names)
    if len(joined) > 2 * MAX_TEXT and max(map(len, names)) > 2 * MAX_TEXT:
        return f"names have at most {2 * MAX_TEXT} characters"
    if not joined.isprintable():
        return PRINTABLE
    bins = line.bins
    if not bins.keys() <= BINS and not all(name.isdecimal() and len(name) <= BIN_DIGITS for name in bins):
        return f"bins are named by numbers of at most {BIN_DIGITS} digits"
    bits = line.requests | line.prompt | line.cached | line.output | line.nano_usd | line.saved | line.bucket
    bits |= line.card
    for count in bins.values():
        bits |= count
    if _in_range(bits):
        return ""
    amounts = line.requests, line.prompt, line.cached, line.output, line.nano_usd, line.saved, line.bucket, line.card
    return _range_fault((*amounts, *bins.values()))
