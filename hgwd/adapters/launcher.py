"""hgwd's side of the launcher: one connection, one question at a time, bounded waits.

A launcher that is not there, or that answers nonsense, is `LauncherDownError`: softwares are then not started, and
said not to be. The next question connects anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from hgwd.core.install import SlotName
from hgwd.core.launch import (
    MESSAGE_BYTES_MAX,
    Answer,
    Barriers,
    Declined,
    Done,
    ForgetSoftware,
    Healthy,
    InspectSoftware,
    LogTail,
    ProbeBarriers,
    ProbeHealth,
    Process,
    ReadLog,
    Request,
    StartSoftware,
    StopSoftware,
    encode,
    parse_answer,
)
from hgwd.errors import HgwdError
from wire.director import SoftwareName
from wire.errors import FormatError

ANSWER_S: Final = 10.0


class LauncherDownError(HgwdError):
    """No launcher answers at the configured socket."""


class Launcher:
    """The launcher behind a UNIX socket; None: this gateway has none, and every question fails."""

    def __init__(self, path: Path | None) -> None:
        self._path: Final = path
        self._socket: trio.socket.SocketType | None = None
        self._turn: Final = trio.Lock()

    async def barriers(self) -> Barriers:
        """Ask which barriers there are. Raises `LauncherDownError`, as every question does."""
        answer = await self._ask(ProbeBarriers())
        if isinstance(answer, Barriers):
            return answer
        raise _odd(answer)

    async def start(self, name: SoftwareName, slot: SlotName) -> Process | Declined:
        """Start what stands in a slot."""
        answer = await self._ask(StartSoftware(software=name.text, slot=slot))
        if isinstance(answer, Process | Declined):
            return answer
        raise _odd(answer)

    async def stop(self, name: SoftwareName) -> None:
        """Ask a software to end; `inspect` tells when it has."""
        await self._ask(StopSoftware(software=name.text))

    async def inspect(self, name: SoftwareName) -> Process:
        """Return what a software does."""
        answer = await self._ask(InspectSoftware(software=name.text))
        if isinstance(answer, Process):
            return answer
        raise _odd(answer)

    async def health(self, name: SoftwareName) -> Healthy:
        """Run the health probe once."""
        answer = await self._ask(ProbeHealth(software=name.text))
        if isinstance(answer, Healthy):
            return answer
        raise _odd(answer)

    async def log(self, name: SoftwareName) -> str:
        """Return the newest log text of a software."""
        answer = await self._ask(ReadLog(software=name.text))
        if isinstance(answer, LogTail):
            return answer.text
        raise _odd(answer)

    async def forget(self, name: SoftwareName) -> bool:
        """Remove data and log of a stopped software; False while it still runs."""
        answer = await self._ask(ForgetSoftware(software=name.text))
        return isinstance(answer, Done)

    def close(self) -> None:
        """Close the connection. Idempotent; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    async def _ask(self, request: Request) -> Answer:
        async with self._turn:
            try:
                with trio.fail_after(ANSWER_S):
                    connection = self._socket or await self._connect()
                    await connection.send(encode(request))
                    data = await connection.recv(MESSAGE_BYTES_MAX + 1)
                return parse_answer(data)
            except (OSError, trio.TooSlowError, FormatError) as error:
                self.close()
                raise LauncherDownError(f"launcher: {error or 'no answer in time'}") from error
            except BaseException:
                # A cancelled question may still be answered: never read that answer as the next one's.
                self.close()
                raise

    async def _connect(self) -> trio.socket.SocketType:
        if self._path is None:
            raise LauncherDownError("this gateway has no launcher (update.launcher_socket is not set)")
        connection = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET)
        try:
            await connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        return connection


def _odd(answer: Answer) -> LauncherDownError:
    detail = answer.message if isinstance(answer, Declined) else type(answer).__name__
    return LauncherDownError(f"launcher: unexpected answer: {detail}")
