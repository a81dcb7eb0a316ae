"""The script of helm test, against servers that answer as Fairlead does, and otherwise."""

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest

from tests.builders.chart import CHART, find, objects

SCRIPT = CHART / "files" / "check.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def server(answers: dict[str, list[int]]) -> Iterator[str]:
    """A server that gives each path its statuses in turn, and the last one from then on; it refuses other paths."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            statuses = answers.get(f"{self.command} {self.path}", [404])
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Keep quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_a_fairlead_that_serves_passes(capsys: pytest.CaptureFixture[str]) -> None:
    ready, gateway = {"GET /readyz": [200]}, {"POST /v1/chat/completions": [401]}
    with server(ready) as operator, server(ready) as ledger, server(gateway) as entry:
        assert load().main([operator, ledger, entry]) == 0
    assert capsys.readouterr().out.count("ok ") == 3


def test_what_is_not_ready_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check = load()
    monkeypatch.setattr(check, "PAUSE_S", 0.01)
    late, gateway = {"GET /readyz": [503, 503, 200]}, {"POST /v1/chat/completions": [401]}
    with server(late) as operator, server({"GET /readyz": [200]}) as ledger, server(gateway) as entry:
        assert check.main([operator, ledger, entry]) == 0


def test_a_gateway_that_serves_strangers_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    ready, gateway = {"GET /readyz": [200]}, {"POST /v1/chat/completions": [200]}
    with server(ready) as operator, server(ready) as ledger, server(gateway) as entry:
        assert load().main([operator, ledger, entry], 0) == 1
    assert "WRONG gateway refuses a caller without a token: 200" in capsys.readouterr().out


def test_a_part_that_does_not_answer_is_wrong_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    with server({}) as gone:
        pass
    ready, gateway = {"GET /readyz": [200]}, {"POST /v1/chat/completions": [401]}
    with server(ready) as operator, server(gateway) as entry:
        assert load().main([operator, gone, entry], 0) == 1
    assert "WRONG ledger is ready" in capsys.readouterr().out


def test_the_chart_ships_this_very_script() -> None:
    shipped = find(objects(), "ConfigMap", "fairlead-check")["data"]["check.py"]
    assert shipped.strip() == SCRIPT.read_text(encoding="utf-8").strip()
