"""One health probe from inside a software's own network namespace.

A child process enters the namespace, drops to the software's user, and connects to its loopback: the probe sees what
the software offers there and can reach nothing else. Blocking, at most `PROBE_TIMEOUT_S`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from pathlib import Path
from typing import Final

from wire.package import Health

PROBE_TIMEOUT_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 400
_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


def probe_health(pid: int, uid: int, health: Health) -> tuple[bool, str]:
    """Return whether the probe succeeded now, and what was seen. `pid` is a process inside the sandbox."""
    if health.kind == "exit":
        return True, "alive"
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(namespace).st_ino == Path("/proc/self/ns/net").stat().st_ino:
        os.close(namespace)  # not inside yet: never probe our own loopback by mistake
        return False, "not started yet"
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        _probe_in_child(namespace, uid, health, write_fd)
    os.close(write_fd)
    os.close(namespace)
    with os.fdopen(read_fd, "rb") as answer:
        detail = answer.read(ANSWER_BYTES_MAX).decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return status == 0, detail or "the probe ended early"


def _probe_in_child(namespace: int, uid: int, health: Health, write_fd: int) -> None:
    """Never returns: exit code 0 for healthy, the detail in the pipe."""
    code = 1
    try:
        _enter(namespace)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        healthy, detail = _ask(health)
        code = 0 if healthy else 1
    except OSError as error:
        detail = f"{health.kind} port {health.port}: {error.strerror or error}"
    except BaseException as error:  # noqa: BLE001 - a forked child must not fall back into the launcher
        detail = f"probe failed: {type(error).__name__}"
    os.write(write_fd, detail.encode()[:ANSWER_BYTES_MAX])
    os._exit(code)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ask(health: Health) -> tuple[bool, str]:
    deadline_s = time.monotonic() + PROBE_TIMEOUT_S
    # Not create_connection: it would import a codec, which the package's user may not be allowed to read.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(PROBE_TIMEOUT_S)
        connection.connect(("127.0.0.1", health.port or 0))
        if health.kind == "tcp":
            return True, f"tcp port {health.port} accepts"
        request = f"GET {health.path} HTTP/1.1\r\nHost: localhost:{health.port}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        line = b""
        while b"\r\n" not in line and len(line) < ANSWER_BYTES_MAX:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False, f"http {health.path}: no status line within {PROBE_TIMEOUT_S:.0f} s"
            connection.settimeout(left_s)
            piece = connection.recv(ANSWER_BYTES_MAX)
            if not piece:
                break
            line += piece
    words = line.split(b"\r\n")[0].split(b" ")
    healthy = len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1] == b"200"
    return (
        healthy,
        f"http {health.path}: {line.splitlines()[0][:80].decode('ascii', 'replace') if line else 'closed'}",
    )
