"""A port of 127.0.0.1 that leads to the API server inside a cluster's network namespace.

usage: forward.py STATE PID HOST PORT
Writes its own port to STATE/forward.port. Lives as long as process PID, whose network namespace it enters.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
MOST_CONNECTIONS = 1024


def enter_network(pid: int) -> None:
    """Move this process, not the sockets that it has, to the network namespace of `pid`."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns to the network of process {pid}")
    os.close(descriptor)


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until the source ends, and then end the sink's direction only."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


async def serve(listener: socket.socket, pid: int, host: str, port: int) -> None:
    """Forward every connection until `pid` ends."""
    slots = asyncio.Semaphore(MOST_CONNECTIONS)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with slots:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(host, port)
                await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
                far_writer.close()
            writer.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(os.pidfd_open(pid), ended.set)
    await asyncio.start_server(connection, sock=listener)
    await ended.wait()


def main(state: Path, pid: int, host: str, port: int) -> None:
    """Listen outside, then enter."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    enter_network(pid)
    temporary = state / "forward.port.new"
    temporary.write_text(f"{listener.getsockname()[1]}\n")
    temporary.rename(state / "forward.port")
    asyncio.run(serve(listener, pid, host, port))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
