"""Finished packs on their way to the store, beside the thread that builds the next one.

Rules
- One pack is under way at a time, so an interruption costs at most one pack; the next one is built meanwhile.
- A chunk becomes known to the catalogue only after its pack was acknowledged.
- When the store refuses for good, building stops at the next hand-over; the refusal is kept for the result.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio
from nacl import bindings

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.core.buffers import make_buffer
from nas_agent.core.packing import BUFFER_BYTES, PackBuilder, SessionKeys
from nas_agent.errors import StoreRefusedError
from nas_agent.ports import PackAccepted, Refusal, VaultStore
from runtime.errors import EdgeError
from wire.vault.frame import SALT_BYTES

PACK_BUFFERS: Final = 2


class Shipper:
    """The `PackSink` of a run: `begin` and `ship` in the pipeline's thread, `run` as a task."""

    def __init__(
        self,
        *,
        store: VaultStore,
        catalogue: Catalogue,
        keys: SessionKeys,
        unacknowledged: set[bytes],
    ) -> None:
        """Allocate the buffers; chunk IDs leave `unacknowledged` when their pack was acknowledged."""
        self._store = store
        self._catalogue = catalogue
        self._keys = keys
        self._unacknowledged = unacknowledged
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(PACK_BUFFERS):
            self._free.put(make_buffer(BUFFER_BYTES))
        self._building: memoryview | None = None
        self._send, self._receive = trio.open_memory_channel[tuple[PackBuilder, memoryview]](0)
        self.refusal: Refusal | None = None
        self.failure: EdgeError | None = None
        self.sent_bytes = 0
        self.packs = 0
        self.spooled = 0

    def begin(self) -> PackBuilder:
        """Return an empty pack with a fresh salt; blocks until a buffer is free."""
        self._building = self._free.get()
        return PackBuilder(self._keys, bindings.randombytes(SALT_BYTES), self._building)

    def ship(self, pack: PackBuilder) -> None:
        """Hand over a pack; blocks while another is under way. Raises `StoreRefusedError` once the store refused."""
        buffer, self._building = self._building, None
        if buffer is None:
            raise RuntimeError("ship: no pack was begun")
        try:
            trio.from_thread.run(self._send.send, (pack, buffer))
        except trio.BrokenResourceError as error:
            self._free.put(buffer)
            raise self._stopped() from error

    async def run(self) -> None:
        """Send packs until the pipeline is done, the store refuses, or a fault is kept in `failure`."""
        async with self._receive:
            async for pack, buffer in self._receive:
                going_on = False
                try:
                    going_on = await self._send_pack(pack)
                except EdgeError as error:
                    self.failure = error
                finally:
                    self._free.put(buffer)
                if not going_on:
                    return

    async def finish(self) -> None:
        """Say that no more packs come."""
        await self._send.aclose()

    def _stopped(self) -> StoreRefusedError:
        refusal = self.refusal or Refusal("unavailable", "the store stopped taking packs")
        return StoreRefusedError(refusal.code, refusal.message)

    async def _send_pack(self, pack: PackBuilder) -> bool:
        finished = await trio.to_thread.run_sync(pack.finish)
        answer = await self._store.put_pack(finished.name, finished.data)
        if isinstance(answer, Refusal):
            self.refusal = answer
            return False
        self.packs += 1
        self.sent_bytes += len(finished.data)
        chunks = tuple(item.chunk for item in finished.items)
        await trio.to_thread.run_sync(self._acknowledge, finished.name, chunks, answer)
        return True

    def _acknowledge(self, name: str, chunks: Sequence[bytes], answer: PackAccepted) -> None:
        spooled = answer.state == "spooled"
        self.spooled += spooled
        self._catalogue.add_chunks(chunks, spooled_pack=name if spooled else None)
        self._unacknowledged.difference_update(chunks)


def cpu_has_aes() -> bool:
    """Say whether this machine's CPU has AES instructions (x86 `flags`, arm64 `Features`); False if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"flags", "Features"}:
                return "aes" in value.split()
    return False
