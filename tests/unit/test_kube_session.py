"""The session to the API server ends cleanly, whatever the server does."""

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubernetes.aio.client import Configuration

from fairlead_operator.kube.session import Login, open_session
from tests.unit.test_tokens import certificate

WATCH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@contextmanager
def mute_server(tls: ssl.SSLContext) -> Iterator[int]:
    """Begins a watch and never reads or writes again: no goodbye is answered."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with tls.wrap_socket(accepted, server_side=True) as connection:
            connection.recv(65536)
            connection.sendall(WATCH)
            done.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            thread.join()


async def give_up_a_watch(who: Login) -> None:
    async with open_session(who) as session:
        response = await session.get(who.server)
        await response.content.readany()
        response.close()


def test_a_watch_that_is_given_up_leaves_no_open_socket_behind_though_the_server_never_says_goodbye(
    tmp_path: Path,
) -> None:
    with mute_server(certificate(tmp_path)) as port:
        settings = Configuration()
        settings.host, settings.ssl_ca_cert = f"https://127.0.0.1:{port}", str(tmp_path / "ca.crt")
        asyncio.run(give_up_a_watch(Login(settings)))
        gc.collect()  # an open transport would warn here, and a warning is an error
