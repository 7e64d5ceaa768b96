"""Carries spooled packs to the service and drops one only when it is *stored* (design §6, §6.10–6.11).

Rules
- Packs start in the order in which they were acknowledged, at most `uploads_max` at a time, each streamed from flash.
- Line or service not well: all wait, doubling from 1 s to 60 s with jitter, and the same pack is sent again; the service
  takes a pack by its hash, so a lost answer costs one upload and nothing else.
- Refused for now (quota, line assignment): that session waits and is asked again; others go on. Session over: its packs
  wait for the NAS to ask for them in a new session. Refused for good: *rejected*, with the reason.
- It does not do: sessions, commits, anything the NAS decides.
"""

from __future__ import annotations

import errno
import math
import random
from typing import assert_never

import attrs
import trio

from hgwd.adapters import spool_rows as rows
from hgwd.adapters.spool import Spool
from hgwd.core.relay import (
    HOLD_S,
    CheckLocal,
    Hold,
    Reject,
    Retry,
    ServiceError,
    SessionOver,
    Stored,
    Verdict,
    backoff_s,
    hold_s,
    judge_upload,
    parse_retry_after_s,
    parse_service_error,
)
from hgwd.core.spool import PackState
from hgwd.ports import Upstream
from runtime.clock import Clock
from runtime.errors import RemoteError, Unavailable
from runtime.logs import Logger

DAMAGED_REASON = "damaged-on-gateway"


@attrs.frozen
class HeldSession:
    """A session whose packs the service refuses for now; asked again at `until_s` (trio's clock)."""

    error: ServiceError
    until_s: float


@attrs.define
class ForwardStats:
    """Counters since the start, for metrics and status."""

    forwarded_bytes: int = 0
    forwarded_packs: int = 0
    failures: int = 0
    last_stored_at_s: float | None = None
    last_problem: str | None = None


class Forwarder:
    """`run` forwards until cancelled; cancellation leaves every pack in the spool or stored."""

    def __init__(
        self,
        spool: Spool,
        upstream: Upstream,
        clock: Clock,
        log: Logger,
        *,
        uploads_max: int,
        hold_s: float = HOLD_S,
    ) -> None:
        self.stats = ForwardStats()
        self.held: dict[str, HeldSession] = {}
        self._spool = spool
        self._upstream = upstream
        self._clock = clock
        self._log = log
        self._uploads_max = uploads_max
        self._hold_s = hold_s
        self._failures_in_a_row = 0
        self._not_before_s = 0.0

    async def run(self) -> None:
        """Forward for ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._uploads_max):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            await trio.sleep_until(self._not_before_s)
            try:
                await self._forward_one()
            except (
                Unavailable
            ) as error:  # the line's faults are verdicts: this is our own database, full or busy
                self._pause("flash", error.retry_after_s or 0.0)

    async def _forward_one(self) -> None:
        """Send the oldest pack that may go, or wait until there is one."""
        wake = self._spool.wake.ticket()
        found = await self._spool.next_to_forward(self._held_now())
        if found is None:
            await self._wait(wake)
            return
        pack, session = found
        try:
            if pack.session not in self._held_now():  # another worker may have been told to wait meanwhile
                await self._settle(pack, await self._send(pack, session))
        finally:
            self._spool.release(pack.number)

    async def _wait(self, wake: trio.Event) -> None:
        """Sleep until a pack comes or a held session is due."""
        next_due_s = min((held.until_s for held in self.held.values()), default=math.inf)
        with trio.move_on_at(next_due_s):
            await wake.wait()

    def _held_now(self) -> frozenset[str]:
        now_s = trio.current_time()
        return frozenset(session for session, held in self.held.items() if now_s < held.until_s)

    async def _send(self, pack: rows.PackRow, session: rows.SessionRow) -> Verdict:
        try:
            answer = await self._upstream.put_pack(
                session.session, session.token, pack.pack, self._spool.path(pack.pack), pack.size_bytes
            )
        except OSError:  # the file is gone, or of another size than its row says
            return CheckLocal()
        except Unavailable as error:
            return Retry("line-down", after_s=error.retry_after_s or 0.0)
        except RemoteError as error:
            return Retry(error.code)
        verdict = judge_upload(
            answer.status, parse_service_error(answer.body), parse_retry_after_s(answer.headers)
        )
        if not isinstance(verdict, Retry):
            self._failures_in_a_row = 0
        return verdict

    async def _settle(self, pack: rows.PackRow, verdict: Verdict) -> None:
        match verdict:
            case Stored():
                await self._stored(pack)
            case Retry(reason, after_s):
                self._pause(reason, after_s)
            case Hold(reason, error):
                pause_s = min(self._hold_s, hold_s(reason))
                self.held[pack.session] = HeldSession(error, trio.current_time() + pause_s)
                self._note(pack, "pack_held", reason)
            case SessionOver(reason):
                await self._spool.end_session(pack.session, reason)
                self._note(pack, "session_over", reason)
            case Reject(reason):
                await self._spool.settle(pack.number, PackState.REJECTED, reason)
                self._note(pack, "pack_rejected", reason)
            case CheckLocal():
                await self._check_local(pack)
            case _:
                assert_never(verdict)

    async def _stored(self, pack: rows.PackRow) -> None:
        await self._spool.settle(pack.number, PackState.STORED)
        self.held.pop(pack.session, None)
        self.stats.forwarded_packs += 1
        self.stats.forwarded_bytes += pack.size_bytes
        self.stats.last_stored_at_s = self._clock.now_s()
        self.stats.last_problem = None

    async def _check_local(self, pack: rows.PackRow) -> None:
        """The service found other bytes than the name says: if ours are damaged the NAS must send again.

        A file that cannot be looked at now (out of descriptors or memory) is neither: it stays and is tried again.
        """
        try:
            intact = await self._spool.is_intact(pack.pack)
        except OSError as error:
            self._pause(f"flash-{errno.errorcode.get(error.errno or 0, 'error')}", 0.0)
            return
        if intact:
            await self._spool.settle(pack.number, PackState.REJECTED, "bad-hash")
            self._note(pack, "pack_rejected", "bad-hash")
        else:
            await self._spool.settle(pack.number, PackState.UNKNOWN, DAMAGED_REASON)
            self._note(pack, "pack_damaged", DAMAGED_REASON)

    def _pause(self, reason: str, after_s: float) -> None:
        self._failures_in_a_row += 1
        self.stats.failures += 1
        pause_s = max(after_s, backoff_s(self._failures_in_a_row, random.random()))  # noqa: S311 - spread, no secret
        self._not_before_s = trio.current_time() + pause_s
        if self.stats.last_problem != reason:
            self._log.warning("forwarding_paused", cause=reason, pause_s=round(pause_s, 1))
        self.stats.last_problem = reason

    def _note(self, pack: rows.PackRow, event: str, reason: str) -> None:
        self.stats.last_problem = reason
        self._log.warning(event, pack_id=pack.pack, session_id=pack.session, cause=reason)
