"""Reading an answer's whole body, up to a bound."""

import aiohttp

from fairlead_operator.errors import FairleadError


class TooLongError(FairleadError, OSError):
    """An answer has more bytes than it may have."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body. ``StreamReader.read(n)`` would answer with whatever has arrived so far.

    Raises:
        TooLongError: there is more than ``limit``.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise TooLongError(f"the answer has more than {limit} bytes")
    return bytes(body)
