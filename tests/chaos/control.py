"""An operator's stand-in that serves one configuration, which does not change, to routers that poll for long."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from fairlead_router.contract import ConfigAnswer
from tests.builders.router import POOL, endpoints
from tests.chaos.proxy import read_message
from tests.chaos.world import router_configuration

_VERSION: Final = "1"


@dataclass(slots=True)
class Operator:
    """Answers ``GET /v1/config``."""

    engines: tuple[str, ...]
    _server: asyncio.Server | None = None
    _answer: bytes = field(default=b"", init=False)
    _nothing: bytes = field(default=b"", init=False)

    async def listen(self) -> str:
        """Its URL."""
        known = ConfigAnswer(version=_VERSION, endpoints_version=_VERSION)
        whole = msgspec.structs.replace(known, config=router_configuration(), endpoints=endpoints({POOL: self.engines}))
        self._answer, self._nothing = msgspec.json.encode(whole), msgspec.json.encode(known)
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Stop."""
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                asked = parse_qs(urlsplit((await read_message(reader)).split(b" ", 2)[1].decode()).query)
                body = self._answer
                if asked.get("have") == [_VERSION]:
                    await asyncio.sleep(float(asked.get("wait", ["1"])[0]))
                    body = self._nothing
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        writer.transport.abort()
