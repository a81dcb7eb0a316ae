"""Traces: the context that requests carry, and spans as a collector receives them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fairlead_router.access_log import Record
from fairlead_router.tracing import (
    TraceContext,
    TracingUnavailableError,
    attributes,
    open_tracing,
    operation,
    parse_traceparent,
)

HEADER = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTEXT = TraceContext(b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331", sampled=True)
RECORD = Record(
    request="fl-gw0-1", path="/v1/chat/completions", tenant="support", caller="sa:web", model="chat",
    pool="ai-platform/chat-8b", replica="ai-platform/chat-8b-x", route="small", priority="Standard", outcome="ok",
    status=200, stream=True, prompt=100, cached=40, output=7, nano_usd=142_000, router_s=0.00003, queue_s=0.0,
    connect_s=0.0, engine_s=0.04, stream_s=1.5, ttft_s=0.041,
)  # fmt: skip


class Collector:
    """An OTLP/HTTP receiver on a port of its own."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.received: Queue[ExportTraceServiceRequest] = Queue()
        self.answers = threading.Event()
        self.answers.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.answers.wait(20)
                outer.paths.append(self.path)
                outer.received.put(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Not to stderr."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def resource_and_spans(self) -> tuple[dict[str, Any], list[Any]]:
        """Of the next message."""
        resource = self.received.get(timeout=10).resource_spans[0]
        return _plain(resource.resource.attributes), list(resource.scope_spans[0].spans)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


# --- the context ---


def test_a_trace_context_is_read() -> None:
    assert parse_traceparent(HEADER) == CONTEXT
    assert parse_traceparent(HEADER[:-2] + b"00") == CONTEXT._replace(sampled=False)
    assert parse_traceparent(HEADER[:-2] + b"03") == CONTEXT


@pytest.mark.parametrize(
    "value",
    [
        b"",
        HEADER + b"-more",
        HEADER + b"\n",
        b" " + HEADER,
        HEADER.upper(),
        HEADER.replace(b"00-", b"ff-", 1),
        HEADER.replace(b"00-", b"01-", 1),
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
        HEADER[:-1],
        HEADER.replace(b"-", b"_"),
        HEADER.replace(b"0af", b"0ag"),
    ],
)
def test_a_malformed_context_is_none(value: bytes) -> None:
    assert parse_traceparent(value) is None


@given(st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1), st.integers(0, 255))
def test_every_well_formed_context_comes_back(trace: int, span: int, flags: int) -> None:
    found = parse_traceparent(b"00-%032x-%016x-%02x" % (trace, span, flags))
    assert found == TraceContext(b"%032x" % trace, b"%016x" % span, sampled=flags % 2 == 1)


@given(st.binary() | st.text(alphabet="0123456789abcdefg-", min_size=50, max_size=60).map(str.encode))
def test_whatever_is_no_context_is_none(value: bytes) -> None:
    found = parse_traceparent(value)
    if found is not None:
        assert value[:3] + found.trace_id + b"-" + found.span_id == value[:52]
        assert found.trace_id.strip(b"0")
        assert found.span_id.strip(b"0")


# --- spans ---


def test_a_span_arrives_at_the_collector_as_a_child_of_the_callers(collector: Collector) -> None:
    tracing = open_tracing(collector.url, 0.0, "ai-platform/gw-0")
    span = tracing.begin(CONTEXT)
    assert span.recording
    assert span.trace_id == CONTEXT.trace_id
    span.end(RECORD)
    tracing.close()
    resource, (found,) = collector.resource_and_spans()
    assert collector.paths == ["/v1/traces"]
    assert (resource["service.name"], resource["service.instance.id"]) == ("fairlead-router", "ai-platform/gw-0")
    assert found.name == "chat chat"
    assert found.trace_id.hex().encode() == CONTEXT.trace_id
    assert found.parent_span_id.hex().encode() == CONTEXT.span_id
    assert span.traceparent == b"00-%b-%b-01" % (CONTEXT.trace_id, found.span_id.hex().encode())
    assert _plain(found.attributes) == attributes(RECORD)
    assert found.end_time_unix_nano >= found.start_time_unix_nano


def test_a_request_without_a_context_begins_a_trace_of_its_own(collector: Collector) -> None:
    tracing = open_tracing(collector.url, 1.0, "gw-0")
    spans = [tracing.begin(None) for _ in range(2)]
    contexts = [parse_traceparent(span.traceparent) for span in spans]
    assert all(context is not None and context.sampled for context in contexts)
    assert spans[0].trace_id != spans[1].trace_id
    for span in spans:
        span.end(RECORD)
    tracing.close()
    _, found = collector.resource_and_spans()
    assert [span.parent_span_id for span in found] == [b"", b""]


def test_a_caller_that_does_not_sample_is_followed(collector: Collector) -> None:
    tracing = open_tracing(collector.url, 1.0, "gw-0")
    span = tracing.begin(CONTEXT._replace(sampled=False))
    assert not span.recording
    found = parse_traceparent(span.traceparent)
    assert found is not None
    assert (found.trace_id, found.sampled) == (CONTEXT.trace_id, False)
    span.end(RECORD)
    tracing.close()
    assert collector.received.empty()


def test_a_share_of_0_makes_no_spans_and_still_a_valid_context(collector: Collector) -> None:
    tracing = open_tracing(collector.url, 0.0, "gw-0")
    span = tracing.begin(None)
    assert not span.recording
    assert parse_traceparent(span.traceparent) is not None
    span.end(RECORD)
    tracing.close()
    assert collector.received.empty()


def test_an_endpoint_with_a_path_is_used_as_it_is(collector: Collector) -> None:
    tracing = open_tracing(f"{collector.url}/otlp/v1/traces", 1.0, "gw-0")
    tracing.begin(None).end(RECORD)
    tracing.close()
    collector.resource_and_spans()
    assert collector.paths == ["/otlp/v1/traces"]


def test_a_failure_is_an_error_of_the_span(collector: Collector) -> None:
    tracing = open_tracing(f"{collector.url}/", 1.0, "gw-0")
    tracing.begin(None).end(Record(request="fl-1", model="chat", outcome="upstream_error", status=502))
    tracing.begin(None).end(Record(request="fl-2", outcome="model_not_found", status=404))
    tracing.close()
    _, (failed, refused) = collector.resource_and_spans()
    assert (failed.status.code, failed.status.message) == (2, "upstream_error")
    assert _plain(failed.attributes)["error.type"] == "upstream_error"
    assert refused.status.code == 0
    assert "error.type" not in _plain(refused.attributes)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(collector: Collector) -> None:
    collector.answers.clear()
    tracing = open_tracing(collector.url, 1.0, "gw-0")
    tracing.begin(None).end(RECORD)
    tracing.close(timeout_s=0.05)
    assert collector.received.empty()
    collector.answers.set()
    _, spans = collector.resource_and_spans()
    assert len(spans) == 1


def test_attributes_follow_the_conventions_for_generative_ai() -> None:
    assert attributes(RECORD) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "chat",
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "fl-gw0-1",
        "gen_ai.response.time_to_first_chunk": 0.041,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "http.response.status_code": 200,
        "fairlead.outcome": "ok",
        "fairlead.tenant": "support",
        "fairlead.caller": "sa:web",
        "fairlead.pool": "ai-platform/chat-8b",
        "fairlead.replica": "ai-platform/chat-8b-x",
        "fairlead.route": "small",
        "fairlead.priority": "Standard",
        "fairlead.cost_usd": "0.000142",
        "fairlead.router.duration": 0.00003,
        "fairlead.queue.duration": 0.0,
        "fairlead.connect.duration": 0.0,
        "fairlead.engine.duration": 0.04,
        "fairlead.stream.duration": 1.5,
    }


def test_an_operation_is_named_by_its_path() -> None:
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank")
    assert [operation(path) for path in paths] == ["chat", "text_completion", "embeddings", "rerank"]


# --- optional ---


def test_opentelemetry_is_not_imported_unless_traces_are_on() -> None:
    program = "import sys, fairlead_router.tracing; print([name for name in sys.modules if 'opentelemetry' in name])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingUnavailableError, match=r"install fairlead\[router,otel\]"):
        open_tracing("http://127.0.0.1:4318", 1.0, "gw-0")


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://", "/v1/traces"])
def test_an_endpoint_that_is_no_url_is_told(endpoint: str) -> None:
    with pytest.raises(TracingUnavailableError, match="write one such as http://collector:4318"):
        open_tracing(endpoint, 1.0, "gw-0")
