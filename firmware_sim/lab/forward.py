"""Make a page inside the lab reachable for a browser on this machine: one listener on loopback, one target in a host.

A program of its own, started by `Lab.publish`: `python -m firmware_sim.lab.forward NAMESPACE ADDRESS PORT LOCAL_PORT`. It opens
a listener on 127.0.0.1, then enters the namespace for good: what it accepts comes from the machine, what it opens
belongs to the host. Prints `listening PORT` and ends when its standard input ends.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import trio

from firmware_sim.lab.host import enter_network

CONNECTIONS_MAX = 32
PIECE_BYTES = 65_536


async def forward(listener: trio.SocketListener, address: str, port: int) -> None:
    """Carry connections from `listener` to address and port until standard input ends."""
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def carry(browser: trio.SocketStream) -> None:
        async with limit, browser:
            try:
                page = await trio.open_tcp_stream(address, port)
            except OSError:
                return  # the page is not there now: the browser sees a closed connection
            async with page, trio.open_nursery() as nursery:
                nursery.start_soon(_copy, browser, page)
                nursery.start_soon(_copy, page, browser)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, carry, [listener]))
        await trio.lowlevel.wait_readable(sys.stdin.fileno())  # nobody writes there: readable means ended
        nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for piece in source:
            await target.send_all(piece)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # one side went away: its other direction ends by itself


async def main(namespace: str, address: str, port: int, local_port: int) -> None:
    """Listen outside, then move inside and carry."""
    listener = (await trio.open_tcp_listeners(local_port, host="127.0.0.1"))[0]
    print(f"listening {listener.socket.getsockname()[1]}", flush=True)
    enter_network(namespace)
    await forward(listener, address, port)


if __name__ == "__main__":
    os.umask(0o077)
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
