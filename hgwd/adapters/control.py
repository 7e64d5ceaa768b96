"""The local control socket: `hgwd status` and `hgwd pair` ask the running daemon (one JSON line each way).

Rules: a Unix socket in the state directory, mode 0600, and the kernel's word for the caller (root or hgwd's own user).
One request per connection, bounded in size and time. Nothing here is reachable from a network.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
import trio

from hgwd.errors import LocalUseError

SOCKET_FILE: Final = "control.sock"
LINE_BYTES_MAX: Final = 256 * 1024
ANSWER_S: Final = 10.0
_CONNECTIONS_MAX: Final = 8
_PEERCRED: Final = struct.Struct("3i")


class ControlRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the command line may ask."""

    command: Literal["status", "pair-list", "pair-approve", "pair-refuse", "revoke", "poll"]
    pair: str = ""
    digits: str = ""
    device: str = ""


class ControlAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`result` is the command's own document; `error` is set instead when it was refused."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str | None = None


async def serve_control(
    path: Path,
    handle: Callable[[ControlRequest], Awaitable[ControlAnswer]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. The caller holds the lock of the state directory: an old socket is a dead one."""
    limiter = trio.CapacityLimiter(_CONNECTIONS_MAX)
    with trio.socket.from_stdlib_socket(_bind(path)) as listener:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(_serve_one, connection, handle, limiter)


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(old_mask)
    sock.listen(_CONNECTIONS_MAX)
    return sock


async def _serve_one(
    connection: trio.socket.SocketType,
    handle: Callable[[ControlRequest], Awaitable[ControlAnswer]],
    limiter: trio.CapacityLimiter,
) -> None:
    with connection, trio.move_on_after(ANSWER_S), contextlib.suppress(OSError):
        async with limiter:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            if _PEERCRED.unpack(credentials)[1] not in {0, os.geteuid()}:
                return
            line = await _read_line(connection)
            try:
                answer = await handle(msgspec.json.decode(line, type=ControlRequest))
            except msgspec.MsgspecError as error:
                answer = ControlAnswer(error=str(error))
            stream = trio.SocketStream(connection)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(msgspec.json.encode(answer) + b"\n")


async def _read_line(connection: trio.socket.SocketType) -> bytes:
    data = bytearray()
    while b"\n" not in data and len(data) <= LINE_BYTES_MAX:
        piece = await connection.recv(4096)
        if not piece:
            break
        data += piece
    return bytes(data.partition(b"\n")[0])


def ask_control(path: Path, request: ControlRequest) -> ControlAnswer:
    """Ask the running daemon. Blocking; raises `LocalUseError` when none runs or it does not answer in `ANSWER_S`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_S)
            sock.connect(str(path))
            sock.sendall(msgspec.json.encode(request) + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline(LINE_BYTES_MAX + 1)
    except OSError as error:
        raise LocalUseError(
            f"{path}: expected a running hgwd and the right to ask it: {error.strerror or error}"
        ) from error
    try:
        return msgspec.json.decode(line, type=ControlAnswer)
    except msgspec.MsgspecError as error:
        raise LocalUseError(f"{path}: expected a whole answer of hgwd, got {len(line)} bytes") from error
