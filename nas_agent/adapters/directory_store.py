"""A vault in a directory as a `VaultStore`: USB disk, mounted share, or the fair comparison with restic (design §6.13).

Rules
- Files are the truth, the index follows: pack fsynced under its name before its index rows; `.root` appears last.
- One writer, or several readers: a lock file. The clock is this computer's (no service, no receipts; §10 of the format).
- The caller computed a pack's name from its bytes in this very process: it is not hashed a second time here.
- At most GENERATIONS_MAX generations per backup set and device; then expiry and key-less collection (AZK-70).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar, TypeVarTuple, Unpack

import trio

from nas_agent.adapters.directory_files import LocalRecord, VaultFiles
from nas_agent.adapters.directory_index import DirectoryIndex, GenerationRow
from nas_agent.adapters.directory_recovery import open_index
from nas_agent.ports import (
    PACK_STORED,
    PACK_UNKNOWN,
    Committed,
    GenerationInfo,
    Head,
    Location,
    Missing,
    Opened,
    PackAccepted,
    Refs,
    Refusal,
)
from runtime.clock import Clock
from runtime.errors import LocalError
from wire.errors import WireError
from wire.vault.pack import FOOTER_BYTES, parse_trailer, trailer_length
from wire.vault.root import GenerationRoot, open_root, root_hash
from wire.vault.session import VerifiedHeader, open_header

GENERATIONS_MAX: Final = 10
LEASE_S: Final = 14 * 24 * 3600
MISSING_MAX: Final = 4096
_IDS_PER_CALL_MAX: Final = 4096
_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class DirectoryStore:
    """See the module and `nas_agent.ports.VaultStore`."""

    def __init__(self, root: Path, *, contract: str, contract_sign_key: bytes, clock: Clock) -> None:
        """Name the vault; nothing is opened before `open_session`.

        Args:
            root: a directory made by `create_vault`.
            contract: whose vault it must be.
            contract_sign_key: 32 bytes; only devices it certified may write.
            clock: for `received_at` and leases.
        """
        self._files = VaultFiles(root)
        self._contract = contract
        self._contract_sign_key = contract_sign_key
        self._clock = clock
        self._limiter = trio.CapacityLimiter(1)
        self._index: DirectoryIndex | None = None
        self._lock_fd: int | None = None
        self._header: VerifiedHeader | None = None
        self._owner = 0
        self._backup_set = ""

    async def open_session(
        self, mode: Literal["append", "read"], backup_set: str, session_header: bytes | None
    ) -> Opened | Refusal:
        """See `VaultStore`. Refusals: `conflict` (in use), `refused` (device not certified), `bad-format`."""
        return await self._run(self._open, mode, backup_set, session_header)

    async def have(self, ids: Sequence[bytes]) -> Sequence[bool] | Refusal:
        """See `VaultStore`."""
        return await self._run(lambda: self._opened().have(self._owner, _checked(ids)))

    async def put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        """See `VaultStore`. A full disk is `quota-full`."""
        return await self._run(self._put_pack, name, data)

    async def pack_states(self, names: Sequence[str]) -> Sequence[int] | Refusal:
        """See `VaultStore`."""
        index = self._opened
        return await self._run(lambda: [PACK_STORED if index().has_pack(n) else PACK_UNKNOWN for n in names])

    async def commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        """See `VaultStore`."""
        return await self._run(self._commit, root_blob, refs)

    async def list_generations(self) -> tuple[GenerationInfo, ...] | Refusal:
        """See `VaultStore`."""
        return await self._run(self._list)

    async def read_root(self, generation: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._run(self._read_root, generation)

    async def read_receipt(self, generation: str) -> bytes | Refusal | None:
        """Return None: a directory signs no receipts."""
        return None

    async def locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        """See `VaultStore`."""
        return await self._run(self._locate, generation, _checked(ids))

    async def read_pack_range(self, name: str, offset: int, length: int) -> bytes | Refusal:
        """See `VaultStore`."""
        data = await self._run(self._files.read_pack, name, offset, length)
        return Refusal("not-found", f"pack {name[:16]}…: not there, or too short") if data is None else data

    async def read_session_header(self, session: str) -> bytes | Refusal:
        """See `VaultStore`."""
        blob = await self._run(self._files.read_header, session)
        return Refusal("not-found", f"session {session}: no header") if blob is None else blob

    async def close(self) -> None:
        """See `VaultStore`."""
        with trio.CancelScope(shield=True):
            await self._run(self._close)

    async def _run(self, fn: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)

    def _open(
        self, mode: Literal["append", "read"], backup_set: str, session_header: bytes | None
    ) -> Opened | Refusal:
        self._files.check(self._contract)
        self._close()
        self._lock_fd = self._files.lock(exclusive=mode == "append")
        if self._lock_fd is None:
            return Refusal("conflict", f"vault {self._files.root}: another program is using it")
        self._index = open_index(self._files, contract_sign_key=self._contract_sign_key)
        self._backup_set = backup_set
        if mode == "read":
            return Opened(session="", head=None)
        refusal = self._begin(session_header)
        if refusal is not None:
            self._close()
            return refusal
        return Opened(session=self._session(), head=self._head())

    def _begin(self, session_header: bytes | None) -> Refusal | None:
        if session_header is None:
            raise LocalError("append mode needs a session header")
        try:
            verified = open_header(session_header, contract_sign_key=self._contract_sign_key)
        except WireError as error:
            return Refusal("refused", f"session header: {error}")
        header = verified.header
        if header.contract != self._contract or header.backup_set != self._backup_set:
            return Refusal("bad-format", "session header: for another contract or backup set")
        self._files.write_header(header.session, session_header)
        now_s = int(self._clock.now_s())
        index = self._opened()
        index.add_session(header.session, verified.device_key, header.epoch, opened_at=now_s, is_open=True)
        self._owner = index.owner(verified.device_key, header.epoch)
        self._header = verified
        return None

    def _put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        try:
            tail = trailer_length(data[-FOOTER_BYTES:])
            blob = bytes(data[-FOOTER_BYTES - tail : -FOOTER_BYTES])
            trailer = parse_trailer(blob, device_key=self._appending().device_key)
        except WireError as error:
            return Refusal("bad-format", str(error))
        if trailer.session.hex() != self._session():
            return Refusal("bad-format", f"pack {name[:16]}…: made in another session")
        if self._opened().has_pack(name):
            return PackAccepted("stored", new=False)
        try:
            self._files.write_pack(name, data)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            text = f"vault {self._files.root}: the disk is full"
            return Refusal("quota-full", text, needed_bytes=len(data))
        self._opened().add_pack(name, trailer, len(data))
        return PackAccepted("stored", new=True)

    def _commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        verified = self._appending()
        try:
            root = open_root(root_blob, device_key=verified.device_key)
        except WireError as error:
            return Refusal("bad-format", str(error))
        if (root.contract, root.backup_set, root.epoch) != (
            self._contract,
            self._backup_set,
            verified.header.epoch,
        ):
            return Refusal("stale-epoch", "generation root: for another contract, backup set or epoch")
        digest = root_hash(root_blob)
        head = self._head()
        if head is not None and head.root_sha256 == digest:
            return Committed(generation_name(digest), None)
        expected = (head.sequence + 1, head.root_sha256) if head else (1, None)
        if (root.sequence, root.parent) != expected:
            text = f"expected sequence {expected[0]} after {expected[1]}, got {root.sequence} after {root.parent}"
            return Refusal("parent-mismatch", text)
        counted = self._count_refs(refs, root)
        if not isinstance(counted, int):
            return counted
        return self._write_generation(root, root_blob, refs, counted)

    def _count_refs(self, refs: Refs, root: GenerationRoot) -> int | Missing | Refusal:
        """Return the size of the packs the references need, or say which are not live.

        A pack whose file is gone or cut short is not live, whatever the index says: it is forgotten, so that its
        chunks are sent again. Its bytes are not read: that is what `verify` does.
        """
        index, last, count = self._opened(), b"", 0
        missing: list[bytes] = []
        sizes: dict[int, int] = {}
        lost: set[int] = set()
        for block in refs.blocks():
            for start in range(0, len(block), 32):
                chunk = block[start : start + 32]
                if chunk <= last:
                    return Refusal("bad-format", "references: expected sorted, distinct chunk IDs")
                last, count = chunk, count + 1
                found = index.pack_of(self._owner, chunk)
                if found is not None and found.number not in sizes and found.number not in lost:
                    if self._files.pack_size(found.name) == found.size_bytes:
                        sizes[found.number] = found.size_bytes
                    else:
                        lost.add(found.number)
                if (found is None or found.number in lost) and len(missing) < MISSING_MAX:
                    missing.append(chunk)
        if missing:
            index.remove_packs(sorted(lost))
            return Missing(tuple(missing))
        if (count, refs.sha256) != (root.refs_count, root.refs_sha256):
            return Refusal("bad-format", "references: not those the root was signed for")
        return sum(sizes.values())

    def _write_generation(
        self, root: GenerationRoot, root_blob: bytes, refs: Refs, stored_bytes: int
    ) -> Committed | Refusal:
        device_key, digest = self._appending().device_key, root_hash(root_blob)
        self._opened().sync()
        record = LocalRecord(
            sequence=root.sequence,
            root_sha256=digest,
            received_at=int(self._clock.now_s()),
            stored_bytes=stored_bytes,
        )
        path = self._files.generation_path(self._backup_set, device_key, root.sequence)
        if not self._files.write_generation(path, root=root_blob, record=record, refs=refs.blocks()):
            return Refusal("conflict", f"generation {root.sequence} exists already")
        row = GenerationRow(
            generation=generation_name(digest),
            backup_set=self._backup_set,
            owner=self._owner,
            sequence=root.sequence,
            root_sha256=digest,
            received_at=record.received_at,
            stored_bytes=stored_bytes,
            path=path,
        )
        self._opened().add_generation(row)
        if self._expire():
            self._collect()
        return Committed(row.generation, None)

    def _expire(self) -> int:
        """Drop the oldest generations of this device and set beyond GENERATIONS_MAX; return how many."""
        device_key = self._appending().device_key
        rows = self._opened().device_generations(self._backup_set, device_key)
        surplus = rows[: max(0, len(rows) - GENERATIONS_MAX)]
        for row in surplus:
            self._files.remove_generation(row.path)
            self._opened().remove_generation(row.generation)
        return len(surplus)

    def _collect(self) -> int:
        """Delete packs that no generation and no unfinished session needs; return how many.

        None are deleted while some generation's `.refs` is missing or damaged: what it needs is not known then.
        """
        index = self._opened()
        if not all(self._files.refs_are_whole(row.path) for row in index.generations()):
            return 0
        index.begin()
        index.clear_live()
        for row in index.generations():
            for block in self._files.read_refs(row.path):
                ids = (block[start : start + 32] for start in range(0, len(block), 32))
                index.mark_live(row.owner, ids)
        index.commit()
        oldest_lease = int(self._clock.now_s()) - LEASE_S
        dead = index.dead_packs(opened_before=oldest_lease)
        index.remove_packs([number for number, _ in dead])
        index.sync()
        for _, name in dead:
            self._files.remove_pack(name)
        return len(dead)

    def _list(self) -> tuple[GenerationInfo, ...]:
        rows = self._opened().generations(self._backup_set)
        return tuple(
            GenerationInfo(
                generation=row.generation,
                sequence=row.sequence,
                root_sha256=row.root_sha256,
                received_at=row.received_at,
                keep_until=row.received_at,
                stored_bytes=row.stored_bytes,
            )
            for row in sorted(rows, key=lambda row: (row.received_at, row.sequence))
        )

    def _read_root(self, generation: str) -> bytes | Refusal:
        row = self._opened().generation(self._backup_set, generation)
        found = self._files.read_generation(row.path) if row is not None else None
        return found[0] if found is not None else _no_generation(generation)

    def _locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        row = self._opened().generation(self._backup_set, generation)
        return self._opened().locate(row.owner, ids) if row is not None else _no_generation(generation)

    def _head(self) -> Head | None:
        rows = self._opened().device_generations(self._backup_set, self._appending().device_key)
        return Head(rows[-1].sequence, rows[-1].root_sha256) if rows else None

    def _session(self) -> str:
        return self._appending().header.session

    def _opened(self) -> DirectoryIndex:
        if self._index is None:
            raise LocalError("vault: no session is open")
        return self._index

    def _appending(self) -> VerifiedHeader:
        if self._header is None:
            raise LocalError("vault: no append session is open")
        return self._header

    def _close(self) -> None:
        if self._index is not None:
            if self._header is not None:
                self._index.close_session(self._session())
            self._index.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
        self._index = self._lock_fd = self._header = None


def generation_name(root_sha256: str) -> str:
    """Return the ID of a generation in a directory: 32 hex digits of its hash."""
    return root_sha256[:32]


def _no_generation(generation: str) -> Refusal:
    return Refusal("not-found", f"generation {generation}: not in this vault")


def _checked(ids: Sequence[bytes]) -> Sequence[bytes]:
    if len(ids) > _IDS_PER_CALL_MAX or any(len(chunk) != 32 for chunk in ids):
        raise LocalError(f"expected at most {_IDS_PER_CALL_MAX} IDs of 32 bytes, got {len(ids)}")
    return ids
