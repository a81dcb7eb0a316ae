"""The script of helm test, against servers that answer as Fairlead does, and otherwise."""

import datetime as dt
import importlib.util
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
def server(answers: dict[str, list[int]], certificate: Path | None = None) -> Iterator[str]:
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
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def certificate_of(name: str, folder: Path) -> Path:
    """A certificate that nobody vouches for, and its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "both.pem"
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private)
    return file


def test_a_gateway_with_a_certificate_for_its_callers_names_passes(tmp_path: Path) -> None:
    ready, gateway = {"GET /readyz": [200]}, {"POST /v1/chat/completions": [401]}
    own = certificate_of("llm.example.com", tmp_path)
    with server(ready) as operator, server(ready) as ledger, server(gateway, own) as entry:
        assert load().main([operator, ledger, entry], 0) == 0


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
