"""Traces: the W3C trace context that a request carries, and a span for each request where OpenTelemetry is on.

Without an OTLP endpoint a valid context passes through and nothing else happens; OpenTelemetry is imported only by
``open_tracing``. Its SDK batches spans and sends them from a thread of its own.
https://www.w3.org/TR/trace-context/ https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import re
from threading import Thread
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from fairlead_router.access_log import MAX_TEXT, Record
from fairlead_router.answers import usd

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import StatusCode

FLUSH_S: Final = 5.0
EXPORT_TIMEOUT_S: Final = 4.0
"""For one batch."""
SERVICE: Final = "fairlead-router"
PROVIDER: Final = "vllm"
OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""``gen_ai.operation.name`` by path; other paths have none that is well known and give their own name."""
_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SERVER_ERROR: Final = 500


class TraceContext(NamedTuple):
    """What a ``traceparent`` says; both ids as hex digits."""

    trace_id: bytes
    span_id: bytes
    sampled: bool


class TracingUnavailableError(Exception):
    """Traces were asked for and cannot be sent; the text says what to do."""


def parse_traceparent(value: bytes) -> TraceContext | None:
    """The context of a header of version 00; None for every other value, which nobody may pass on."""
    found = _TRACEPARENT.fullmatch(value)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def attributes(record: Record) -> dict[str, str | int | float | bool]:
    """A request as the attributes of its span. Nothing of prompts, answers, keys or tokens is in a record."""
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": operation(record.path),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record.model[:MAX_TEXT],
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.id": record.request,
        "gen_ai.usage.input_tokens": record.prompt,
        "gen_ai.usage.output_tokens": record.output,
        "gen_ai.usage.cache_read.input_tokens": record.cached,
        "http.response.status_code": record.status,
        "fairlead.outcome": record.outcome,
    }
    texts = {
        "tenant": record.tenant, "caller": record.caller[:MAX_TEXT], "feature": record.feature[:MAX_TEXT],
        "pool": record.pool, "replica": record.replica, "route": record.route, "priority": record.priority,
        "cost_usd": "" if record.nano_usd is None else usd(record.nano_usd),
    }  # fmt: skip
    found |= {f"fairlead.{name}": text for name, text in texts.items() if text}
    times = {
        "fairlead.router.duration": record.router_s, "fairlead.queue.duration": record.queue_s,
        "fairlead.connect.duration": record.connect_s, "fairlead.engine.duration": record.engine_s,
        "fairlead.stream.duration": record.stream_s, "gen_ai.response.time_to_first_chunk": record.ttft_s,
    }  # fmt: skip
    found |= {name: seconds for name, seconds in times.items() if seconds is not None}
    if record.status >= _SERVER_ERROR:
        found["error.type"] = record.outcome
    return found


def operation(path: str) -> str:
    """The name of what a path does, as the conventions call it."""
    return OPERATIONS.get(path, path.rpartition("/")[2][:MAX_TEXT])


class Span:
    """The span of one request."""

    __slots__ = ("_span", "trace_id", "traceparent")

    def __init__(self, span: "OtelSpan") -> None:
        context = span.get_span_context()
        self._span = span
        self.trace_id = b"%032x" % context.trace_id
        """32 hex digits."""
        self.traceparent = b"00-%b-%016x-%02x" % (self.trace_id, context.span_id, context.trace_flags)
        """The header for the next hop, in place of the client's."""

    @property
    def recording(self) -> bool:
        """Whether the record of the request's end is wanted."""
        return self._span.is_recording()

    def end(self, record: Record) -> None:
        """The request ended; once for each span, also for one that does not record."""
        span = self._span
        if span.is_recording():
            span.update_name(f"{operation(record.path)} {record.model[:MAX_TEXT]}".strip())
            span.set_attributes(attributes(record))
            if record.status >= _SERVER_ERROR:
                span.set_status(_error(), record.outcome)
        span.end()


def _error() -> "StatusCode":
    from opentelemetry.trace import StatusCode  # noqa: PLC0415 - only where traces are on

    return StatusCode.ERROR


class Tracing:
    """Makes spans and sends them."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)

    def begin(self, context: TraceContext | None) -> Span:
        """A span of a request that has arrived; a caller's decision to sample is followed."""
        from opentelemetry import trace  # noqa: PLC0415 - only where traces are on

        parent = trace.INVALID_SPAN
        if context is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT)
            ids = int(context.trace_id, 16), int(context.span_id, 16)
            parent = trace.NonRecordingSpan(trace.SpanContext(*ids, is_remote=True, trace_flags=flags))
        within = trace.set_span_in_context(parent)
        return Span(self._tracer.start_span("request", within, trace.SpanKind.SERVER))

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Send what is left; blocks for at most so long, then what a slow collector did not take is lost."""
        # The SDK's own time-outs are for one batch each. A daemon does not keep the process from ending.
        last = Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(timeout_s)


def open_tracing(endpoint: str, share: float, pod: str) -> Tracing:
    """Spans for this share of the requests that bring no decision of their own, sent to a collector's OTLP/HTTP port.

    ``endpoint`` is a URL such as http://collector:4318; without a path, spans go to /v1/traces.

    Raises:
        TracingUnavailableError: OpenTelemetry is not installed, or the endpoint is no URL.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise TracingUnavailableError(
            f"FAIRLEAD_OTLP_ENDPOINT {endpoint!r} is not a URL: write one such as http://collector:4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415
    except ImportError as error:
        raise TracingUnavailableError(
            f"FAIRLEAD_OTLP_ENDPOINT is set, and OpenTelemetry is not installed ({error}): "
            "install fairlead[router,otel], or unset it"
        ) from error
    url = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(share),
        resource=Resource.create({"service.name": SERVICE, "service.instance.id": pod}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S)))
    return Tracing(provider)
