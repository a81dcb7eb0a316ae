"""Reasons that Fairlead writes into conditions, scaling decisions and Events: one word each, for programs."""

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of conditions, by the condition that carries them."""

    # Accepted
    ACCEPTED = "Accepted"
    REVISION_NOT_PINNED = "RevisionNotPinned"
    UNSUPPORTED_QUANTIZATION = "UnsupportedQuantization"
    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    MODEL_NAME_CONFLICT = "ModelNameConflict"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    UNKNOWN_TIME_ZONE = "UnknownTimeZone"
    LIMIT_TOO_LARGE = "LimitTooLarge"
    NAME_CONFLICT = "NameConflict"
    FORBIDDEN = "Forbidden"
    # Ready
    READY = "Ready"
    NOT_ACCEPTED = "NotAccepted"
    # Available
    REPLICAS_READY = "ReplicasReady"
    REPLICAS_MISSING = "ReplicasMissing"
    SCALED_TO_ZERO = "ScaledToZero"
    STARTING = "Starting"
    # Progressing, UpToDate
    ROLLING_OUT = "RollingOut"
    COMPLETE = "Complete"
    NO_CAPACITY_FOR_SURGE = "NoCapacityForSurge"
    STARTUP_TIMED_OUT = "StartupTimedOut"
    UP_TO_DATE = "UpToDate"
    RESTART_PENDING = "RestartPending"
    # ScalingActive, ScalingLimited
    SIGNALS_FRESH = "SignalsFresh"
    SIGNALS_MISSING = "SignalsMissing"
    REPLICAS_SET = "ReplicasSet"
    SECOND_WRITER = "SecondWriter"
    NOT_LIMITED = "NotLimited"
    MIN_REPLICAS = "MinReplicas"
    MAX_REPLICAS = "MaxReplicas"
    VARIANT_BOUNDS = "VariantBounds"
    COST_PER_REQUEST = "CostPerRequest"
    BUDGET = "Budget"
    NO_CAPACITY = "NoCapacity"
    # PriceKnown
    PRICED = "Priced"
    NO_PRICE = "NoPrice"
    # ResolvedRefs, Programmed
    RESOLVED = "Resolved"
    POOL_NOT_FOUND = "PoolNotFound"
    CONTEXT_TOO_LONG = "ContextTooLong"
    CONTEXT_UNKNOWN = "ContextUnknown"
    PROGRAMMED = "Programmed"
    NO_ROUTERS = "NoRouters"
    ROUTERS_LAGGING = "RoutersLagging"
    # Enforced, WithinBudget, ForecastWithinBudget
    ENFORCED = "Enforced"
    AUDIT = "Audit"
    LEDGER_UNREACHABLE = "LedgerUnreachable"
    WITHIN_LIMIT = "WithinLimit"
    LIMIT_REACHED = "LimitReached"
    FORECAST_ABOVE_LIMIT = "ForecastAboveLimit"
    NO_FORECAST = "NoForecast"


class ScalingReason(StrEnum):
    """Why the number of replicas was changed."""

    FORECAST = "Forecast"
    BACKLOG = "Backlog"
    UNNEEDED = "Unneeded"
    QUEUE_DEPTH = "QueueDepth"
    HELD_REQUESTS = "HeldRequests"
    LOW_DEMAND = "LowDemand"
    IDLE = "Idle"
    MIN_REPLICAS = "MinReplicas"
    MAX_REPLICAS = "MaxReplicas"
    REPLICAS_SET = "ReplicasSet"


class EventReason(StrEnum):
    """Reasons of Events."""

    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    SCALE_UP_BLOCKED = "ScaleUpBlocked"
    SECOND_WRITER = "SecondWriter"
    REPLICA_READY = "ReplicaReady"
    REPLICA_TROUBLED = "ReplicaTroubled"
    ROLLOUT_STARTED = "RolloutStarted"
    ROLLOUT_FINISHED = "RolloutFinished"
    PRICE_UNKNOWN = "PriceUnknown"
    UNKNOWN_QUANTIZATION = "UnknownQuantization"
    KEY_IN_FORCE = "KeyInForce"
    KEY_REFUSED = "KeyRefused"
    BUDGET_ACTION = "BudgetAction"
    LIMIT_RAISED = "LimitRaised"
    LIMIT_RESTORED = "LimitRestored"
    LIMIT_CHANGED = "LimitChanged"
    COUNTING_RESTARTED = "CountingRestarted"
    LEDGER_UNREACHABLE = "LedgerUnreachable"
