"""Instant queries to Prometheus through its client, which is synchronous: in a thread, bounded in time and size."""

import asyncio
import io
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from fairlead_operator.decide.node_prices import OpenCostSource
from fairlead_operator.errors import FairleadError

TIMEOUT_S = 8.0
"""For all queries of one round; Prometheus itself gives up on one a second earlier."""
QUERY_TIMEOUT = "7s"
MAX_BYTES = 4 * 1024 * 1024
CHUNK = 64 * 1024
MAX_HEADERS = 16
MAX_HEADER_BYTES = 8192
MAX_TEXT = 200

_ADDRESS = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>:? ?")
_Answer = TypeVar("_Answer")


class PrometheusError(FairleadError):
    """Prometheus does not answer, or with something that is no answer; the text says what."""


class _BoundedSession(requests.Session):
    """Follows no redirect, takes nothing from the environment (proxies, .netrc), and reads only so much for so long."""

    def __init__(self, source: OpenCostSource, deadline: float) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = source.ca_file or True
        self._deadline = deadline

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """The response with its whole body read.

        Raises:
            PrometheusError: it is too long, or does not end in time.
        """
        options.update(stream=True, allow_redirects=False)
        response = super().send(request, **options)
        body = io.BytesIO()
        for chunk in response.iter_content(CHUNK):
            body.write(chunk)
            if body.tell() > MAX_BYTES:
                raise PrometheusError(f"its answer is longer than {MAX_BYTES} bytes")
            if time.monotonic() > self._deadline:
                raise PrometheusError("its answer does not end")
        bounded = requests.Response()
        bounded.status_code, bounded.headers, bounded.url = response.status_code, response.headers, response.url
        bounded.encoding, bounded.raw = response.encoding, io.BytesIO(body.getvalue())
        response.close()
        return bounded


class Prometheus:
    """Asks one round of queries at a time."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._asking = False

    async def ask(self, source: OpenCostSource, queries: Sequence[str]) -> list[Any]:
        """The result of each query, as Prometheus has it.

        Raises:
            PrometheusError: one of them has none in time, or the round before has not ended.
        """
        if self._asking:
            raise PrometheusError("the last question has not ended yet")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._in_thread(lambda: _results(source, queries, self._timeout_s))
        except TimeoutError:
            raise PrometheusError(f"no answer within {self._timeout_s:g} s") from None

    async def _in_thread(self, work: Callable[[], _Answer]) -> _Answer:
        """A thread of its own, so that one that hangs keeps neither the operator's end nor other work waiting."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer] = loop.create_future()

        def settle(answer: _Answer | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer)  # type: ignore[arg-type]  # without an error there is an answer

        def run() -> None:
            try:
                told: tuple[_Answer | None, Exception | None] = (work(), None)
            except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
                told = (None, error)
            self._asking = False
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, *told)

        self._asking = True
        threading.Thread(target=run, name="prometheus", daemon=True).start()
        return await future


def _results(source: OpenCostSource, queries: Sequence[str], timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    try:
        with _BoundedSession(source, deadline) as session:
            client = PrometheusConnect(
                url=source.url, headers=_headers(source), session=session, retry=Retry(0), timeout=timeout_s
            )
            return [client.custom_query(query, params={"timeout": QUERY_TIMEOUT}) for query in queries]
    except requests.exceptions.InvalidHeader:  # its text holds the value, which is a secret
        raise PrometheusError(f"a file in {source.headers_dir} is no header: no name, or more than a line") from None
    except (requests.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise PrometheusError(f"what it answers is no result of a query: {_short(error)}") from None
    except (requests.RequestException, PrometheusApiClientException, OSError, ValueError) as error:
        raise PrometheusError(_short(error)) from None


def _headers(source: OpenCostSource) -> dict[str, str]:
    """A header of each file: its name and what it holds. Read at each round, since a Secret's files change."""
    if not source.headers_dir:
        return {}
    # The kubelet's own entries begin with dots.
    files = sorted(path for path in Path(source.headers_dir).iterdir() if not path.name.startswith("."))
    return {path.name: _first_bytes(path) for path in files[:MAX_HEADERS]}


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_HEADER_BYTES).decode("latin-1").strip()


def _short(error: Exception) -> str:
    text = " ".join(_ADDRESS.sub("", str(error)).split()) or type(error).__name__
    # The cause stands at the end of what urllib3 says.
    return text if len(text) <= MAX_TEXT else f"…{text[1 - MAX_TEXT :]}"
