"""What router, operator and ledger say to each other: the one module that all three share.

Part 1 is the configuration that the operator compiles and each router long-polls, part 2 the signals that a router
reports, part 3 the budget protocol between router and ledger, part 4 what the operator tells and asks the ledger.
Amounts of an account are integers in the unit of its budget: nano-USD, tokens or requests. Times are milliseconds
since the epoch, UTC, unless a name says otherwise. ``pool`` is always ``namespace/name``.
"""

from typing import Literal

import msgspec

CONTRACT_VERSION = 1
NANO_PER_USD = 1_000_000_000
PICO_PER_NANO = 1_000
BUCKET_MS = 15 * 60 * 1000
"""Usage and costs are kept in quarter hours: the finest step between the time zones in use."""
OTHER = "~other"
"""The key, caller or feature under which values beyond a bound are counted together."""
MAX_LABEL = 128
"""Characters of a feature or workflow."""

AUDIENCE_CALLER = "fairlead.dev"
AUDIENCE_CONTROL = "fairlead.dev/control"
AUDIENCE_LEDGER = "fairlead.dev/ledger"
AUDIENCE_ROUTER = "fairlead.dev/router"
AUDIENCE_SIGNALS = "fairlead.dev/signals"

Unit = Literal["USD", "Tokens", "Requests"]
Per = Literal["Total", "Namespace", "Caller", "Feature", "Workflow"]
Period = Literal["Minute", "Hour", "Day", "Week", "Month", "Quarter", "Year"]
Enforcement = Literal["Enforce", "Audit"]
Verdict = Literal["Granted", "Wait", "Exhausted", "Paced", "Recovering", "TooLarge", "None"]
Attempt = Literal["Primary", "Cascade", "Fallback", "Embedding", "Shadow", "Wasted"]
Basis = Literal["Usage", "Streamed", "Bound"]
Priority = Literal["Interactive", "Standard", "Batch"]
Action = Literal["Alert", "Pace", "Deprioritize", "Downgrade", "RejectBatch"]
Trouble = Literal["Unavailable", "Saturated", "ScaledToZero", "Downgraded"]


class Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all messages: immutable, camelCase on the wire, unknown fields ignored."""


# --- 1. Configuration: operator → router -------------------------------------------------------------------------


class Card(Wire, frozen=True, kw_only=True):
    """A pool's rate card, in pico-USD for one token (= micro-USD for a million)."""

    version: int
    prompt_pico: int
    cached_pico: int
    output_pico: int


class AdapterConfig(Wire, frozen=True, kw_only=True):
    """A LoRA adapter of a pool's model. ``path`` is what the engine loads: a path in its container or a repository."""

    name: str
    path: str


class PoolConfig(Wire, frozen=True, kw_only=True):
    """What a router must know of a pool.

    ``max_context_tokens`` is 0 while unknown. ``slots`` is how many requests one replica runs at once (the engine's
    maxSequences). ``card`` is absent while the pool has no price: USD budgets then refuse its requests.
    ``cold_start_s`` is how long a replica usually takes to start, for Retry-After. ``ttft_ms`` and ``tpot_ms`` are the
    pool's objectives, by which entry routers judge requests that ended; 0 = none. ``variant_slots`` are (variant,
    requests that one of its replicas should run at once): beside more the objectives do not hold. ``unpaid``: its
    budgets do not pay for a replica now, so whoever would wait for its start is refused.
    """

    pool: str
    max_context_tokens: int = 0
    slots: int = 256
    card: Card | None = None
    cold_start_s: int = 120
    ttft_ms: int = 0
    tpot_ms: int = 0
    adapters: tuple[AdapterConfig, ...] = ()
    """Those that the engines should have loaded."""
    variant_slots: tuple[tuple[str, int], ...] = ()
    unpaid: bool = False


class WeightedPool(Wire, frozen=True, kw_only=True):
    """One pool of a route and its share of the route's requests; ``adapter`` answers them, if one is named."""

    pool: str
    weight: int = 1
    adapter: str = ""


class FallbackConfig(Wire, frozen=True, kw_only=True):
    """A pool that serves a route's requests when its own pools are in one of the troubles of ``when``."""

    pool: str
    when: tuple[Trouble, ...]
    adapter: str = ""


class RouteConfig(Wire, frozen=True, kw_only=True):
    """One route of a policy. ``max_context_tokens`` counts prompt + output; 0 = unknown, the route takes nothing."""

    name: str
    max_context_tokens: int
    pools: tuple[WeightedPool, ...]
    fallbacks: tuple[FallbackConfig, ...] = ()
    max_wait_ms: int = 30_000
    max_cold_start_wait_ms: int = 600_000


class PolicyConfig(Wire, frozen=True, kw_only=True):
    """One RoutingPolicy, with everything resolved.

    ``namespaces`` are those that may call these models, the policy's own namespace among them; ``None`` = all.
    A caller's own namespace's policy wins over an exported one; conflicts between exports are already resolved
    (``excluded`` names the (namespace, model) pairs that another policy won). Routes are sorted from small to large.
    """

    namespace: str
    name: str
    models: tuple[str, ...]
    routes: tuple[RouteConfig, ...]
    namespaces: tuple[str, ...] | None = None
    excluded: tuple[tuple[str, str], ...] = ()
    default_output_tokens: int = 0
    """0: ``max_output_tokens``."""
    max_output_tokens: int = 0
    """0: whatever the route's context leaves."""
    priority: Priority = "Standard"
    """The highest that a request may have; a header may lower it."""


class BudgetConfig(Wire, frozen=True, kw_only=True):
    """One CostBudget as the routers need it. ``namespaces`` are those whose callers it covers."""

    namespace: str
    name: str
    unit: Unit
    per: Per
    namespaces: tuple[str, ...]
    enforcement: Enforcement = "Enforce"
    price_known: bool = True
    window_ms: int = 86_400_000
    """Usual length of the period, for sizing leases."""
    time_zone: str = ""
    """Tells a router that the budget counts in other windows than before."""
    models: tuple[str, ...] = ()
    """Names that clients send; empty: all."""
    batch_apart: bool = False
    """Batch requests lease in class 0, because the budget keeps headroom for the others (RejectBatch)."""


class Issuer(Wire, frozen=True, kw_only=True):
    """A token issuer: ``iss`` must equal ``issuer``, and the signature fit a key of ``jwks`` (a JWKS document).

    Without ``namespace_claim`` it is a cluster's, and its tokens are ServiceAccounts' for Fairlead's audiences. With
    it, it is an OIDC provider's: ``audience`` must be among the token's, and these claims name the caller; its tokens
    are never good for the control plane.
    """

    issuer: str
    jwks: str
    audience: str = ""
    namespace_claim: str = ""
    name_claim: str = "sub"


class ApiKey(Wire, frozen=True, kw_only=True):
    """An API key of a namespace: ``hash`` is the SHA-256 of the key, in hex; the key itself never travels.

    ``feature`` is charged when the request names none; ``expires_ms`` 0 = never.
    """

    hash: str
    namespace: str
    name: str
    feature: str = ""
    expires_ms: int = 0


class RouterConfig(Wire, frozen=True, kw_only=True):
    """The policy part of the configuration. Its version is the hash of its canonical encoding."""

    contract: int = CONTRACT_VERSION
    pools: tuple[PoolConfig, ...] = ()
    policies: tuple[PolicyConfig, ...] = ()
    budgets: tuple[BudgetConfig, ...] = ()
    issuers: tuple[Issuer, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    platform_namespaces: tuple[str, ...] = ()
    release_namespace: str = "fairlead"
    unbudgeted_namespaces: Literal["Admit", "Reject"] = "Admit"
    adapter_policies: tuple[PolicyConfig, ...] = ()
    """Policies that name adapters. They stand apart from ``policies``, so that a router that knows no adapters yet
    refuses their models instead of answering with the bare model."""


class Endpoint(Wire, frozen=True, kw_only=True):
    """A ready replica of a pool that is not terminating: the router in that pod."""

    pod: str
    """namespace/name of the pod."""
    address: str
    """IP of the pod; requests go to port 8000."""
    variant: str


class PoolEndpoints(Wire, frozen=True, kw_only=True):
    """The replicas of one pool. ``waking``: replicas were asked for but none is ready yet."""

    pool: str
    endpoints: tuple[Endpoint, ...] = ()


class Endpoints(Wire, frozen=True, kw_only=True):
    """The second part of the configuration: it changes with pods, not with policy."""

    pools: tuple[PoolEndpoints, ...] = ()


class ConfigAnswer(Wire, frozen=True, kw_only=True):
    """Answer of ``GET /v1/config``: a part is absent when the router already has that version."""

    version: str
    endpoints_version: str
    config: RouterConfig | None = None
    endpoints: Endpoints | None = None
    budgets_version: tuple[int, int] = (0, 0)


# --- 2. Signals: router → operator -------------------------------------------------------------------------------


class PoolSignals(Wire, frozen=True, kw_only=True):
    """What one router sees of one pool now.

    ``running`` and ``peak_running`` count requests at this pod's own engine (target side, sidecars only); ``held``
    and ``peak_held`` count requests that this router, as their entry, holds because no replica has room or none
    exists. Peaks are since the previous scrape of the same scraper. ``last_request_ms`` is when a request for the
    pool last arrived or ended at this router; 0 = never.

    What follows ``tpot_ms_p99`` is of the requests whose entry this router is. Totals begin at 0 with the process.
    Prompt tokens are estimates from the prompts' bytes until the engine has told them.
    """

    pool: str
    running: int = 0
    peak_running: int = 0
    held: int = 0
    peak_held: int = 0
    last_request_ms: int = 0
    requests_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    output_tokens_total: int = 0
    charged_nano_usd_total: int = 0
    ttft_ms_p99: int = 0
    """Over the last five minutes; 0 = no data."""
    tpot_ms_p99: int = 0
    arrivals_total: int = 0
    """Requests for the pool that the budgets admitted, once each; those that are held are among them."""
    arrived_tokens_total: int = 0
    """Prompt tokens of the arrivals."""
    finished_total: int = 0
    """Requests that were answered whole."""
    met_total: int = 0
    """Judged requests that met all of the pool's objectives."""
    missed_total: int = 0
    """Judged requests that did not; those that the pool had no room for in time are among them."""
    met_ttft_total: int = 0
    missed_ttft_total: int = 0
    met_tpot_total: int = 0
    missed_tpot_total: int = 0
    waiting_tokens: int = 0
    """Prompt tokens of requests without a first token yet, held ones and those sent to an engine."""
    decoding: int = 0
    """Requests whose output is being made; one that is no stream counts from when it is sent."""
    context_tokens: int = 0
    """Prompt tokens of the requests in ``decoding``."""
    samples: tuple[tuple[int, int], ...] = ()
    """Uncached prompt tokens and output tokens of the last requests that finished, newest last, at most 16."""


class EngineSignals(Wire, frozen=True, kw_only=True):
    """What this pod's engine says of itself; read about once a second while requests run, -1 = unknown."""

    kv_tokens: int = -1
    """Tokens that its KV cache holds."""
    kv_permille: int = -1
    running: int = -1
    waiting: int = -1
    drafts_total: int = -1
    """Times that tokens were drafted ahead of the model; -1 also without speculative decoding."""
    accepted_total: int = -1
    """Tokens of drafts that were kept; each draft gave one more than those."""
    gaps_total: int = -1
    """Times between two output tokens of a request, and their sum in microseconds."""
    gaps_us_total: int = -1
    computed_total: int = -1
    """Prompt tokens that were computed, not found in a cache."""
    draft_tokens_total: int = -1
    accepted_by_position: tuple[int, ...] = ()
    """Of the drafts' tokens those kept, by their place in the draft; empty also without speculative decoding."""


class AdapterSignals(Wire, frozen=True, kw_only=True):
    """One of the adapters that this pod's engine should have; ``error``: why the last try to load it failed."""

    name: str
    loaded: bool = False
    error: str = ""


class Signals(Wire, frozen=True, kw_only=True):
    """Answer of ``GET /-/signals`` on a router's admin port."""

    router: str
    """namespace/name of the router's pod."""
    config_version: str
    endpoints_version: str
    budgets_version: tuple[int, int] = (0, 0)
    """The newest budgets version that the ledger has confirmed to this router."""
    now_ms: int = 0
    uptime_s: int = 0
    draining: bool = False
    max_context_tokens: int = 0
    """What the engine in this pod reports (``/v1/models`` max_model_len); 0 = unknown."""
    engine: EngineSignals | None = None
    """``None``: no engine here, or none that could be read lately."""
    pools: tuple[PoolSignals, ...] = ()
    adapters: tuple[AdapterSignals, ...] = ()
    engine_trouble: str = ""
    """Why the engine in this pod may not take requests yet; empty when it may, or when there is none."""


class DrainReport(Wire, frozen=True, kw_only=True):
    """What a sidecar leaves as its container's termination message: how the last requests at its engine ended."""

    requests: int
    """Requests at the engine when the drain began."""
    left: int = 0
    """Those that had not ended when drainTimeout had passed."""
    took_s: float
    timeout_s: float


# --- 3. The budget protocol: router ↔ ledger ---------------------------------------------------------------------


class Holding(Wire, frozen=True, kw_only=True):
    """Running totals of what a session holds of an account, and what it wants (all in the account's unit)."""

    account: int
    klass: int = msgspec.field(name="class", default=1)
    granted: int = 0
    returned: int = 0
    charged: int = 0
    unbacked: int = 0
    reserved: int = 0
    want: int = 0
    need: int = 0
    first: int = 0
    final: bool = False


class Ask(Wire, frozen=True, kw_only=True):
    """A request for an account whose id the router does not know yet."""

    budget: str
    """namespace/name of the CostBudget."""
    namespace: str
    """The caller's namespace; empty for a budget per Total."""
    key: str = ""
    at: Literal["Now", "Next"] = "Now"
    klass: int = msgspec.field(name="class", default=1)
    want: int = 0
    need: int = 0
    first: int = 0


class UsageLine(Wire, frozen=True, kw_only=True):
    """Requests of one dimension settled since the last message. ``bins`` counts requests by cost bin (see cost_bin)."""

    bucket: int
    namespace: str
    caller: str
    feature: str
    model: str
    pool: str
    variant: str
    route: str
    cache: str = "None"
    attempt: Attempt = "Primary"
    basis: Basis = "Usage"
    card: int = 0
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    nano_usd: int = 0
    saved: int = 0
    bins: dict[str, int] = {}


class Unknown(Wire, frozen=True, kw_only=True):
    """An amount that a closing session cannot account for."""

    account: int
    klass: int = msgspec.field(name="class", default=1)
    amount: int = 0


class Close(Wire, frozen=True, kw_only=True):
    """The last word of a session."""

    complete: bool
    unknown: tuple[Unknown, ...] = ()


class SyncRequest(Wire, frozen=True, kw_only=True):
    """``POST /v1/sync``: report, return, renew and ask in one message; one in flight for each session."""

    session: str
    seq: int
    epoch: str = ""
    sent_at: int = 0
    replay: bool = False
    rewind: bool = False
    holdings: tuple[Holding, ...] = ()
    asks: tuple[Ask, ...] = ()
    usage: tuple[UsageLine, ...] = ()
    close: Close | None = None

    @property
    def plain(self) -> bool:
        """Whether it is about no other accounts than its holdings name."""
        return not (self.asks or self.close or self.replay or self.rewind)


class Window(Wire, frozen=True, kw_only=True):
    """A calendar window of a budget: [start, end)."""

    id: int
    start: int
    end: int


class AccountAnswer(Wire, frozen=True, kw_only=True):
    """What the ledger says of one account: the holder's running total of grants, and how the account stands."""

    account: int
    klass: int = msgspec.field(name="class", default=1)
    budget: str = ""
    series: int = 0
    namespace: str = ""
    key: str = ""
    asked_key: str | None = None
    window: Window
    granted: int = 0
    verdict: Verdict = "None"
    recall: bool = False
    available: int = 0
    holders: int = 0
    limit: int = 0
    used: int = 0
    action: str = "None"
    active: tuple[Action, ...] = ()
    """Every action in force, by the share that it began at."""
    pace_per_hour: int = 0
    """While paced: how fast what may be held grows."""
    retry_after_ms: int = 0


class SyncAnswer(Wire, frozen=True, kw_only=True):
    """Answer 200 of ``POST /v1/sync``."""

    epoch: str
    seq: int
    now: int
    ttl_ms: int = 300_000
    sync_after_ms: int = 1_000
    budgets_version: tuple[int, int] = (0, 0)
    accounts: tuple[AccountAnswer, ...] = ()
    unknown_budgets: tuple[str, ...] = ()
    """Asked for, but the ledger has no such budget (yet)."""


class SyncRefusal(Wire, frozen=True, kw_only=True):
    """Body of 409 (``expected``), 410 and 422 (``reason``), 425 and 503 (``retry_after_ms``)."""

    expected: int = 0
    reason: str = ""
    retry_after_ms: int = 0


# --- 4. Operator ↔ ledger ----------------------------------------------------------------------------------------


class BudgetAction(Wire, frozen=True, kw_only=True):
    """An action that begins at a share of the limit."""

    at_percent: int
    action: Action


class TemporaryIncrease(Wire, frozen=True, kw_only=True):
    """An addition to the limit until ``until`` (ms)."""

    amount: int
    until: int


class LedgerBudget(Wire, frozen=True, kw_only=True):
    """One CostBudget as the ledger keeps it; ``limit`` in the budget's unit (nano-USD for USD)."""

    namespace: str
    name: str
    uid: str
    unit: Unit
    per: Per
    period: Period
    time_zone: str
    limit: int
    namespaces: tuple[str, ...] = ()
    """Whose callers the budget covers (empty: its own namespace's): other namespaces' routers may not lease of it."""
    enforcement: Enforcement = "Enforce"
    actions: tuple[BudgetAction, ...] = ()
    idle_namespaces: tuple[str, ...] = ()
    temporary_increase: TemporaryIncrease | None = None


class PutBudgets(Wire, frozen=True, kw_only=True):
    """``PUT /v1/budgets``: the whole state; what is absent is deleted. Version = [lease transitions, counter]."""

    version: tuple[int, int]
    budgets: tuple[LedgerBudget, ...] = ()


class CardRow(Wire, frozen=True, kw_only=True):
    """One rate card of ``PUT /v1/cards``."""

    pool: str
    version: int
    prompt_pico: int
    cached_pico: int
    output_pico: int
    source: str
    at_ms: int


class PutCards(Wire, frozen=True, kw_only=True):
    """``PUT /v1/cards``: cards to add; a version once stored never changes. Also the answer of ``GET /v1/cards``."""

    cards: tuple[CardRow, ...] = ()


class CostRow(Wire, frozen=True, kw_only=True):
    """Running totals of replica time and cost in one bucket; stored totals only grow (merged by max)."""

    pool: str
    variant: str
    bucket: int
    replica_ms: int
    nano_usd: int
    charged: int = 0
    """Only in answers about usage: what everybody's requests were charged in it; idle = nano_usd - charged."""


class PutCosts(Wire, frozen=True, kw_only=True):
    """``PUT /v1/costs``; ``until`` is the time up to which the sender has counted. Also the answer of ``GET``."""

    costs: tuple[CostRow, ...] = ()
    until: int = 0


class KeySpend(Wire, frozen=True, kw_only=True):
    """One account of a budget's current window. ``leased`` and ``reserved`` are parts of what is held."""

    namespace: str
    key: str
    charged: int
    leased: int
    reserved: int
    unreconciled: int
    unbacked: int
    counted_from: int


class SessionSpend(Wire, frozen=True, kw_only=True):
    """What one router session still holds of a budget."""

    pod: str
    out: int
    state: str


class SpendAnswer(Wire, frozen=True, kw_only=True):
    """Answer of ``GET /v1/spend?namespace=&name=[&at=]``: a budget's window and its accounts, fullest first."""

    namespace: str
    name: str
    unit: Unit
    per: Per
    limit: int
    extra: int
    charged: int
    leased: int
    reserved: int
    unreconciled: int
    unbacked: int
    remaining: int
    """limit + extra - charged - unreconciled - reserved of the fullest account."""
    window: Window
    window_label: str
    """Such as 2026-11 or 2026-11-20."""
    counted_from: int
    action: str
    active: tuple[Action, ...] = ()
    """Every action in force for the fullest account."""
    pace_per_hour: int = 0
    idle: int = 0
    """Idle cost of the covered namespaces' pools in this window; counted only with ``idle_namespaces``."""
    keys: tuple[KeySpend, ...] = ()
    """At most the 10 fullest."""
    keys_total: int = 0
    keys_limited: int = 0
    sessions: tuple[SessionSpend, ...] = ()


class WriteOff(Wire, frozen=True, kw_only=True):
    """``POST /v1/write-off``: a person declares what a dead session still held of a window as not spent."""

    namespace: str
    name: str
    window: int
    session: str
    reason: str


class SpendList(Wire, frozen=True, kw_only=True):
    """Answer of ``GET /v1/spend`` without a name: every budget that the caller may see."""

    budgets: tuple[SpendAnswer, ...] = ()
    budgets_version: tuple[int, int] = (0, 0)
    now: int = 0


class UsageRow(Wire, frozen=True, kw_only=True):
    """One row of ``GET /v1/usage``: ``group`` holds the values of the dimensions asked for by ``by=``."""

    group: tuple[str, ...]
    requests: int
    prompt: int
    cached: int
    output: int
    nano_usd: int
    saved: int
    cost_p50_nano: int
    cost_p95_nano: int
    cost_p99_nano: int


class UsageAnswer(Wire, frozen=True, kw_only=True):
    """Answer of ``GET /v1/usage?by=namespace,pool&since=&until=``; ``costs`` are the pools' bills of the same time.

    bill = Σ costs' nano_usd; idle = bill - Σ costs' charged. If everybody was asked for, Σ rows' nano_usd is charged.
    """

    since: int
    until: int
    by: tuple[str, ...]
    rows: tuple[UsageRow, ...] = ()
    costs: tuple[CostRow, ...] = ()
    settled: int = 0
    """Every router that is heard has told its charges, and the operator the bills, up to here (ms)."""
    days_until: int = 0
    """Before this instant sums exist by day (UTC) only; ``since`` and ``until`` were widened to days there."""


def is_label(text: str) -> bool:
    """Whether this may name a feature or workflow."""
    return 0 < len(text) <= MAX_LABEL and text.isprintable() and text.isascii()


def cost_bin(nano_usd: int) -> int:
    """The histogram bin of a request's cost: four bins to each factor of two, 0 for free; bins merge by addition."""
    if nano_usd <= 0:
        return 0
    exponent = nano_usd.bit_length() - 1
    quarter = ((nano_usd << 2) >> exponent) & 3
    return 1 + 4 * exponent + quarter


def bin_upper_nano(index: int) -> int:
    """The largest cost, in nano-USD, that falls into a bin of :func:`cost_bin`."""
    if index <= 0:
        return 0
    exponent, quarter = divmod(index - 1, 4)
    return max(1, (((5 + quarter) << exponent) - 1) >> 2)


def charge_nano(card: Card, prompt: int, cached: int, output: int) -> int:
    """Cost of a request: Σ tokens × card, rounded half to even. ``prompt`` counts all prompt tokens, cached or not."""
    pico = (prompt - cached) * card.prompt_pico + cached * card.cached_pico + output * card.output_pico
    quotient, rest = divmod(pico, PICO_PER_NANO)
    half = PICO_PER_NANO // 2
    return quotient + (rest > half or (rest == half and quotient % 2 == 1))


def reserve_nano(card: Card, prompt_bound: int, output_bound: int) -> int:
    """Upper bound of a request's cost, rounded up: every prompt token at the dearest prompt rate."""
    pico = prompt_bound * max(card.prompt_pico, card.cached_pico) + output_bound * card.output_pico
    return -(-pico // PICO_PER_NANO)
