"""The spool: takes packs from the LAN, answers for them until the service has them (design §6, §6.10).

Rules
- A pack is acknowledged only after: file fsynced, renamed, directory fsynced, row committed. kill -9 or a power cut at
  any point leaves an acknowledged pack whole, and of any other at most garbage that the next start removes.
- Never more than one piece of a body (`PIECE_BYTES`) is in memory. The hash is taken while writing and must equal the name.
- A failed fsync, or a failed write that is not "flash full", stops the intake until the next start: the kernel may have
  dropped what it could not write, so asking again would lie. What was acknowledged before is still forwarded.
- It does not do: HTTP (`lan.py`), sending (`forwarder.py`), deciding on admission (`core/spool.py`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final, NoReturn, Protocol, TypeVar

import attrs
import trio

from hgwd.adapters import spool_rows as rows
from hgwd.adapters.spool_recovery import Recovered, recover
from hgwd.adapters.wake import Wake
from hgwd.core.spool import (
    OVER_KEEP_S,
    REJECTED_KEEP_S,
    RETRY_AFTER_LINE_UP_S,
    SESSION_KEEP_S,
    WANTED_S,
    Admitted,
    AlreadyRejected,
    AlreadyStored,
    Full,
    IntakeStopped,
    NoLongerAllowed,
    PackState,
    Reception,
    Spooled,
    SpoolLimits,
    TooLarge,
    WrongHash,
    decide_admission,
)
from hgwd.ports import SpoolFiles
from runtime.clock import Clock
from runtime.errors import Unavailable
from runtime.sqlite import Database

PIECE_BYTES: Final = 128 * 1024
"""What of one body is in memory at most, but for one chunk (64 KiB) of the HTTP edge."""

ROOM_WAIT_S: Final = 2.0

_T = TypeVar("_T")
_FLASH_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNREADABLE: Final = frozenset({errno.ENOENT, errno.EIO, errno.EUCLEAN, errno.EBADMSG})
"""What says that a file's bytes are gone for good, and not only out of reach now."""


class Hash(Protocol):
    """What `hashlib.sha256()` returns."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""
        ...


@attrs.frozen
class Offer:
    """A pack that a device wants to leave here. `still_allowed` is asked again for every piece (AZK-73)."""

    device: str
    session: str
    pack: str
    size_bytes: int
    still_allowed: Callable[[], bool]


class Spool:
    """One per daemon; `recover` first. Methods may be called from any task of the loop."""

    def __init__(
        self,
        files: SpoolFiles,
        database: Database,
        limits: SpoolLimits,
        clock: Clock,
        *,
        room_wait_s: float = ROOM_WAIT_S,
    ) -> None:
        self.limits = limits
        self.wake = Wake()
        self.failure: str | None = None
        self.line_up: Callable[[], bool] = lambda: True
        self._room = Wake()
        self._room_wait_s = room_wait_s
        self._files = files
        self._db = database
        self._clock = clock
        self._receiving: Counter[str] = Counter()
        self._wanted_at_s: dict[str, float] = {}
        self._sending: set[int] = set()
        self._commit = trio.Lock()

    async def recover(self) -> Recovered:
        """Bring files and rows together after a stop of any kind, before anything is received."""
        return await self._db.run(recover, self._files, self._clock.now_s())

    async def receive(self, offer: Offer, chunks: Callable[[], AsyncIterator[bytes]]) -> Reception:
        """Take one pack. `chunks` is called only once the pack is admitted, so a refusal reads no body.

        Errors of the sender's stream pass through; nothing is kept then. Cancellation keeps nothing either, unless the
        row was committed: then the pack is simply here, and offering it again says so.
        """
        if self.failure is not None:
            return IntakeStopped()
        known = await self._known(offer)
        if known is not None:
            return known
        admission = await self._admit_soon(offer)
        if not isinstance(admission, Admitted):
            return admission
        self._receiving[offer.device] += offer.size_bytes
        try:
            return await self._take(offer, chunks)
        finally:
            self._receiving[offer.device] -= offer.size_bytes

    async def states(self, device: str, session: str, packs: list[str]) -> list[PackState]:
        """Answer for each pack what is known here; UNKNOWN means: ask the service.

        Asking in a newer session for a pack that lies here moves it to that session: the older one is over or will
        not be committed any more.
        """
        answers, moved = await self._db.run(rows.states_of, device, session, packs, frozenset(self._sending))
        if moved:
            self.wake.set()
        return answers

    async def next_to_forward(
        self, held_sessions: frozenset[str]
    ) -> tuple[rows.PackRow, rows.SessionRow] | None:
        """Claim the oldest pack that may go; `release` gives the claim back."""
        found = await self._db.read(rows.next_to_forward, frozenset(self._sending), held_sessions)
        if found is None or found[0].number in self._sending:
            return None
        self._sending.add(found[0].number)
        return found

    def release(self, number: int) -> None:
        """End the claim of `next_to_forward`."""
        self._sending.discard(number)

    async def settle(self, number: int, state: PackState, reason: str | None = None) -> None:
        """Record what became of a pack; the file goes when nobody needs it here any more.

        The row is committed before the file is removed, so a cut in between leaves a file without a need, no loss.
        """
        async with self._commit:
            with trio.CancelScope(shield=True):
                gone = await self._db.run(rows.set_state, number, state, reason, self._clock.now_s())
                await self._remove(gone)

    async def end_session(self, session: str, reason: str) -> None:
        """The service says the session is over: its packs wait for a newer one."""
        await self._db.run(rows.end_session, session, reason, self._clock.now_s())

    async def drop_session(self, session: str) -> None:
        """Forget a session and free what it left here: the NAS has acknowledged."""
        async with self._commit:
            with trio.CancelScope(shield=True):
                await self._remove(await self._db.run(rows.drop_session, session))

    async def tidy(self) -> None:
        """Free rejected packs after `REJECTED_KEEP_S`; give up packs whose session nobody renewed in `OVER_KEEP_S`."""
        now_s = self._clock.now_s()
        freed, over = await self._db.read(rows.stale_packs, now_s - REJECTED_KEEP_S, now_s - OVER_KEEP_S)
        for row in over:
            await self.settle(row.number, PackState.REJECTED, "session-over")
        async with self._commit:
            for row in freed:
                await self._remove(await self._db.run(rows.forget_pack, row.number))
        await self._db.run(rows.forget_sessions, now_s - SESSION_KEEP_S)

    async def is_intact(self, pack: str) -> bool:
        """Hash a pack's file again; False when it is gone, or the flash gives other bytes or none.

        Raises `OSError` when it could not be looked at now (descriptors or memory ran out): that says nothing about it.
        """
        return await trio.to_thread.run_sync(_hash_file, self._files.path(pack)) == pack

    async def session(self, session: str) -> rows.SessionRow | None:
        """Return a session that was opened here, or None."""
        return await self._db.read(rows.get_session, session)

    async def put_session(self, session: str, device: str, token: str) -> None:
        """Remember a session that the service has just opened."""
        await self._db.run(rows.put_session, session, device, token, self._clock.now_s())

    async def count_waiting(self, session: str) -> int:
        """Return how many packs of the session are spooled and not stored yet."""
        return await self._db.read(rows.count_waiting, session)

    async def totals(self) -> rows.SpoolTotals:
        """Return what lies here now."""
        return await self._db.read(rows.totals)

    def path(self, pack: str) -> Path:
        """Return where a pack's file lies."""
        return self._files.path(pack)

    async def _known(self, offer: Offer) -> Reception | None:
        row = await self._db.read(rows.get_pack, offer.device, offer.pack)
        if row is None:
            return None
        if row.state is PackState.SPOOLED:
            if row.session != offer.session and row.number not in self._sending:
                await self._db.run(rows.move_pack, row.number, offer.session)
                self.wake.set()
            return Spooled(fresh=False)
        if row.session == offer.session and row.state is PackState.STORED:
            return AlreadyStored()
        if row.session == offer.session and row.state is PackState.REJECTED:
            return AlreadyRejected(row.reason or "refused")
        return None

    async def _admit_soon(self, offer: Offer) -> Admitted | TooLarge | Full:
        """Decide; while packs are leaving, wait up to `room_wait_s` for room before saying "full".

        On a small spool that turns start and stop into a steady flow; the body is still unread.
        """
        deadline_s = trio.current_time() + self._room_wait_s
        while True:
            ticket = self._room.ticket()
            admission = await self._admit(offer)
            if not isinstance(admission, Full) or not self.line_up():
                return admission
            with trio.move_on_at(deadline_s) as waiting:
                await ticket.wait()
            if waiting.cancelled_caught:
                return admission

    async def _admit(self, offer: Offer) -> Admitted | TooLarge | Full:
        now_s = self._clock.monotonic_s()
        self._wanted_at_s[offer.device] = now_s
        self._wanted_at_s = {
            device: at_s for device, at_s in self._wanted_at_s.items() if now_s < at_s + WANTED_S
        }
        held_bytes = await self._db.read(rows.used_bytes)
        free_bytes = await trio.to_thread.run_sync(self._files.free_bytes)
        return decide_admission(
            size_bytes=offer.size_bytes,
            device=offer.device,
            used_bytes=Counter(held_bytes) + self._receiving,
            wanting=frozenset(self._wanted_at_s),
            free_bytes=free_bytes,
            line_up=self.line_up(),
            limits=self.limits,
        )

    async def _take(self, offer: Offer, chunks: Callable[[], AsyncIterator[bytes]]) -> Reception:
        part = secrets.token_hex(16)
        try:
            refusal = await self._write_part(part, offer, chunks)
            if refusal is not None:
                return refusal
            await self._publish(part, offer)
        except _FlashFullError:
            return Full(RETRY_AFTER_LINE_UP_S, "flash-full")
        except _FlashBrokenError as error:
            self.failure = str(error)
            return IntakeStopped()
        finally:
            self._files.discard(part)
        self.wake.set()
        return Spooled(fresh=True)

    async def _write_part(
        self, part: str, offer: Offer, chunks: Callable[[], AsyncIterator[bytes]]
    ) -> WrongHash | NoLongerAllowed | None:
        """Write, hash and fsync a part; a part with the wrong hash is not even synced."""
        hasher = hashlib.sha256()
        descriptor = await _on_flash(self._files.create, part)
        try:
            async with aclosing(_gathered(chunks())) as pieces:
                async for piece in pieces:
                    if not offer.still_allowed():
                        return NoLongerAllowed()
                    await _on_flash(_write_and_hash, self._files, descriptor, hasher, piece)
            if hasher.hexdigest() != offer.pack:
                return WrongHash(hasher.hexdigest())
            await _on_flash(self._files.sync, descriptor, full_is_broken=True)
        finally:
            os.close(descriptor)
        return None

    async def _publish(self, part: str, offer: Offer) -> None:
        """Name the synced part and commit its row; not interrupted half-way by a cancellation."""
        values = (offer.device, offer.session, offer.pack, offer.size_bytes, self._clock.now_s())
        async with self._commit:
            with trio.CancelScope(shield=True):
                await _on_flash(self._files.publish, part, offer.pack, full_is_broken=True)
                try:
                    await self._db.run(rows.put_pack, *values)
                except Unavailable as error:
                    await self._undo_publish(offer.pack, error)

    async def _undo_publish(self, pack: str, error: Unavailable) -> NoReturn:
        """The row was not committed. Full or busy: as if nothing had come. Any other fault: the flash is broken.

        After a broken commit the file stays: should the row have reached the flash after all, it must find its file.
        """
        code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
        if code not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise _FlashBrokenError(str(error)) from error
        await self._remove(await self._db.read(rows.unreferenced, [pack]))
        raise _FlashFullError from error

    async def _remove(self, names: list[str]) -> None:
        for name in names:
            await trio.to_thread.run_sync(self._files.remove, name)
        if names:
            self._room.set()


class _FlashFullError(Exception):
    """The flash took less than it was given, and said so before we relied on it."""


class _FlashBrokenError(Exception):
    """The flash may have lost what it had taken."""


async def _on_flash(operation: Callable[..., _T], *arguments: object, full_is_broken: bool = False) -> _T:
    """Run a blocking flash operation in a thread and sort its errors.

    `full_is_broken`: "no space" from an fsync or a rename comes too late to be an ordinary refusal.
    """
    try:
        return await trio.to_thread.run_sync(operation, *arguments)
    except OSError as error:
        if error.errno in _FLASH_FULL and not full_is_broken:
            raise _FlashFullError from error
        raise _FlashBrokenError(f"{type(error).__name__}: {error.strerror or error}") from error


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Join what TLS delivers in 16 KiB records into pieces worth a trip to a thread (half of the CPU time otherwise)."""
    pending, pending_bytes = list[bytes](), 0
    async for data in chunks:
        pending.append(data)
        pending_bytes += len(data)
        if pending_bytes >= PIECE_BYTES:
            yield b"".join(pending)
            pending, pending_bytes = [], 0
    if pending:
        yield b"".join(pending)


def _write_and_hash(files: SpoolFiles, descriptor: int, hasher: Hash, data: bytes) -> None:
    hasher.update(data)
    files.write(descriptor, data)


def _hash_file(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno in _UNREADABLE:
            return None
        raise
