"""The launcher: a small root process that starts delivered softwares, because hgwd itself runs without root.

Rules
- It listens on one UNIX socket (`SOCK_SEQPACKET`), answers root and one user (`--client-uid`), and obeys the fixed
  requests of `core/launch.py`: IDs and slots, never a command or a path.
- It finds out at start which barriers exist; with one missing it runs on, answers, and starts nothing.
- It has one thread and does not use trio: it stays small, and `fork` stays safe.
- When it ends, every software ends with it.

`python -m hgwd.launcher_main --socket PATH --software-dir DIR --state-dir DIR [--client-uid N] [--interpreter PATH]`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, assert_never

from hgwd.core.faults import Fault
from hgwd.core.launch import (
    MESSAGE_BYTES_MAX,
    Answer,
    Barriers,
    Declined,
    ForgetSoftware,
    InspectSoftware,
    ProbeBarriers,
    ProbeHealth,
    ReadLog,
    Request,
    StartSoftware,
    StopSoftware,
    encode,
    parse_request,
)
from hgwd.sandbox.cgroup import base_name, clear_base
from hgwd.sandbox.confine import find_interpreter
from hgwd.sandbox.packages import Packages, Places
from hgwd.sandbox.probe import probe_barriers
from hgwd.sandbox.users import PackageUsers
from runtime.errors import ConfigError
from runtime.files import make_dirs
from wire.director import SoftwareName
from wire.errors import WireError

TICK_S: Final = 0.5
CLIENTS_MAX: Final = 4
FIRST_UID_DEFAULT: Final = 61_000
_CREDENTIALS: Final = struct.Struct("=iII")


class Launcher:
    """Socket side of the launcher; `serve` runs until `stop`."""

    def __init__(self, packages: Packages, barriers: dict[str, str], client_uid: int) -> None:
        self._packages: Final = packages
        self._barriers: Final = barriers
        self._client_uids: Final = frozenset({0, client_uid})
        self._clients: set[socket.socket] = set()
        self._stopping = False
        self._woken, self._waker = socket.socketpair()

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Signal handler: leave `serve` at once."""
        self._stopping = True
        self._waker.send(b"x")

    def serve(self, listener: socket.socket) -> None:
        """Answer clients, read logs, tick; returns after `stop`, with every software ended."""
        next_tick_s = 0.0
        try:
            while not self._stopping:
                self._wait(listener)
                if time.monotonic() >= next_tick_s:
                    self._packages.tick(time.monotonic())
                    next_tick_s = time.monotonic() + TICK_S
        finally:
            self._packages.close()
            for end in (*self._clients, self._woken, self._waker):
                end.close()

    def _wait(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            outputs = self._packages.descriptors()
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            for client in self._clients:
                selector.register(client, selectors.EVENT_READ)
            for fd in outputs:
                selector.register(fd, selectors.EVENT_READ)
            for key, _ in selector.select(TICK_S):
                if key.fileobj is listener:
                    self._accept(listener)
                elif key.fileobj in self._clients and isinstance(key.fileobj, socket.socket):
                    self._serve_client(key.fileobj)
                elif key.fd in self._packages.descriptors():
                    self._packages.read(outputs[key.fd], key.fd, time.monotonic())

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(peer)
        if uid not in self._client_uids or len(self._clients) >= CLIENTS_MAX:
            client.close()
            return
        client.settimeout(0)
        self._clients.add(client)

    def _serve_client(self, client: socket.socket) -> None:
        try:
            data = client.recv(MESSAGE_BYTES_MAX + 1)
            if data:
                client.send(encode(self._answer(data)))
                return
        except OSError:
            pass  # the client went away, or does not read its answers: it may connect again
        self._clients.discard(client)
        client.close()

    def _answer(self, data: bytes) -> Answer:
        try:
            request = parse_request(data)
        except WireError as error:
            return Declined(fault=Fault.INVALID_DU_STATE, message=str(error)[:400])
        return self._obey(request, time.monotonic())

    def _obey(self, request: Request, now_s: float) -> Answer:  # noqa: PLR0911 - one per request
        match request:
            case ProbeBarriers():
                return Barriers(barriers=self._barriers)
            case StartSoftware():
                return self._packages.start(SoftwareName.parse(request.software), request.slot, now_s)
            case StopSoftware():
                return self._packages.stop(SoftwareName.parse(request.software), now_s)
            case InspectSoftware():
                return self._packages.inspect(SoftwareName.parse(request.software), now_s)
            case ProbeHealth():
                return self._packages.health(SoftwareName.parse(request.software))
            case ReadLog():
                return self._packages.log(SoftwareName.parse(request.software), request.max_bytes)
            case ForgetSoftware():
                return self._packages.forget(SoftwareName.parse(request.software))
            case _:
                assert_never(request)


def listen(path: Path, client_uid: int) -> socket.socket:
    """Return the listening socket at `path`, which root and `client_uid` alone may connect to."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    if os.geteuid() == 0:
        os.chown(path, client_uid, -1, follow_symlinks=False)
    listener.listen(CLIENTS_MAX)
    return listener


def check_directory(path: Path) -> None:
    """Raise `ConfigError` if others than root could put something else at `path`: `listen` changes its owner."""
    try:
        status = path.parent.stat()
    except OSError as error:
        raise ConfigError(f"--socket: expected a directory, got {error.strerror}: {path.parent}") from error
    foreign = status.st_uid not in {0, os.geteuid()}
    loose = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    if foreign or loose:
        raise ConfigError(
            f"--socket: expected a directory that only root can write to, got {path.parent} "
            f"(owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the launcher until SIGTERM or SIGINT. Returns the exit code."""
    options = _parse(arguments)
    try:
        check_directory(options.socket)
    except ConfigError as error:
        sys.stderr.write(f"hgwd-launcher: {error}\n")
        return ConfigError.exit_code
    state_dir: Path = options.state_dir
    for directory in (state_dir, state_dir / "data", state_dir / "logs"):
        make_dirs(directory, mode=0o700)
    interpreter = find_interpreter(options.interpreter)
    base = base_name(state_dir)
    clear_base(options.cgroup_root, base)
    barriers = probe_barriers(options.cgroup_root, base, interpreter, options.first_uid)
    users = PackageUsers(state_dir, options.first_uid)
    users.open()
    places = Places(options.software_dir, state_dir, options.cgroup_root, base)
    packages = Packages(places, users, interpreter, barriers)
    launcher = Launcher(packages, barriers, options.client_uid)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, launcher.stop)
    with listen(options.socket, options.client_uid) as listener:
        launcher.serve(listener)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hgwd-launcher", description="start delivered softwares, isolated")
    parser.add_argument("--socket", type=Path, required=True, help="UNIX socket to listen on")
    parser.add_argument("--software-dir", type=Path, required=True, help="hgwd's update.software_dir")
    parser.add_argument("--state-dir", type=Path, required=True, help="root-only: users, data volumes, logs")
    parser.add_argument("--client-uid", type=int, default=0, help="user hgwd runs as (default: root)")
    parser.add_argument(
        "--first-uid", type=int, default=FIRST_UID_DEFAULT, help="first user number of packages"
    )
    parser.add_argument(
        "--interpreter", default=sys.executable, help="Python that runs python-zipapp packages"
    )
    parser.add_argument("--cgroup-root", type=Path, default=Path("/sys/fs/cgroup"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
