"""What the storage service needs: blobs, stores of rows, and the lines.

Store methods are whole transactions: after a crash one has happened fully or not at all; none retries. Any may raise
`UnavailableError`. They decide nothing that `domain.py` decides; they run it on rows they have locked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs

from carrier.lines.domain import Line, Refusal
from carrier.storage import facts
from carrier.storage import outcomes as out
from wire.ids import BackupSetName, ContractId, CustomerId, RandomId


@attrs.frozen
class BlobInfo:
    """One published blob; `modified_at` in unix seconds."""

    key: str
    size_bytes: int
    modified_at: int


class BlobWriter(Protocol):
    """One blob on its way in. Nothing is visible under any key before `publish` returns. Not for two threads."""

    def write(self, data: bytes) -> None:
        """Append bytes; `UnavailableError` when there is no room: then only `discard` may follow."""
        ...

    def read(self, offset: int, length_bytes: int) -> bytes:
        """Return bytes written so far."""
        ...

    def publish(self, key: str) -> None:
        """Make the bytes durable under `key`, whole or not at all; on return they survive a power cut.

        Keys are never used twice by the caller. `UnavailableError`: not published as far as anyone may rely on.
        """
        ...

    def discard(self) -> None:
        """Forget the bytes; harmless after `publish`. May be called twice."""
        ...


class BlobStore(Protocol):
    """Immutable objects. A key is `<contract>/<sha256 hex>-<incarnation hex>` and is never used again."""

    def open(self) -> None:
        """Get ready; idempotent."""
        ...

    def begin(self) -> BlobWriter:
        """Start a blob."""
        ...

    def read(self, key: str, offset: int, length_bytes: int) -> bytes:
        """Return exactly these bytes; `CorruptDataError` when the blob is missing or shorter."""
        ...

    def size(self, key: str) -> int | None:
        """Return the size, or None when there is no such blob."""
        ...

    def delete(self, key: str) -> None:
        """Remove a blob durably; a missing one is no error."""
        ...

    def list_blobs(self) -> Iterator[BlobInfo]:
        """Return every published blob by key; blobs that come or go meanwhile may be missed."""
        ...


class LinePort(Protocol):
    """What storage may ask about lines: answered from memory, without I/O (`carrier.lines.LineDirectory`)."""

    def authenticate(self, peer_address: str) -> Line | Refusal:
        """Return the line of a socket peer now."""
        ...

    def gateway_on_line(self, key: bytes, line_id: int) -> bool:
        """Say whether a gateway key is enrolled on the line under a running contract."""
        ...


class ContractStore(Protocol):
    """Contracts, their lines, codes, entitlements and devices."""

    def add_contract(
        self, contract: ContractId, plan: str, customer_id: CustomerId, code: facts.Code, now_s: int
    ) -> out.ContractAdded | out.ContractTaken | out.LineMissing:
        """Open a contract bound to a running line, with one enrolment code."""
        ...

    def add_code(self, contract: ContractId, code: facts.Code) -> bool:
        """Issue a further enrolment code; False when no such contract runs."""
        ...

    def end_contract(self, contract: ContractId, now_s: int) -> bool:
        """End a contract: every request is refused from the next on; data stays."""
        ...

    def bind_line(self, contract: ContractId, customer_id: CustomerId, now_s: int) -> bool:
        """Bind a further line; False when line or contract is unknown or the line is bound already."""
        ...

    def unbind_line(self, customer_id: CustomerId, now_s: int) -> int:
        """End every contract's binding to the line of a customer ID, running or ended; returns how many."""
        ...

    def set_entitlement(
        self, contract: ContractId, service: str, category: str, valid_from: int, valid_to: int
    ) -> bool:
        """Record a service that may give the bonus; the same start again changes the end."""
        ...

    def set_device_state(self, device: bytes, state: facts.DeviceState, now_s: int) -> bool:
        """Lock, unlock or revoke a device; a revoked one stays revoked: then False."""
        ...

    def find_device(self, device: bytes, now_s: int) -> facts.DeviceFacts | None:
        """Return a device with its contract."""
        ...

    def enrol_device(
        self, claim: facts.DeviceClaim, line_id: int, now_s: int
    ) -> out.DeviceAdded | out.DeviceRefused:
        """Spend a code, pin the contract keys at the first enrolment, and register the device; all or nothing.

        The same device with the code it spent answers the same again.
        """
        ...

    def read_usage(self, contract: ContractId, now_s: int) -> out.Usage | None:
        """Return what a contract stores, has reserved and may store."""
        ...


class SessionStore(Protocol):
    """Nonces and sessions."""

    def use_nonce(self, signer: bytes, nonce: RandomId, drop_at: int) -> bool:
        """Spend a nonce; False when it was spent before. Rows live until `drop_at`."""
        ...

    def open_session(
        self, new: facts.NewSession, now_s: int
    ) -> out.SessionGranted | out.SessionConflict | out.ContractOver:
        """Open a session and move the device's reservation for this backup set to it.

        The same header by the same device again gives the session a new token and lease.
        """
        ...

    def find_session(self, token_sha256: bytes, now_s: int) -> facts.SessionFacts | None:
        """Return a session with device, contract and the contract's lines now."""
        ...

    def renew_session(self, session: RandomId, lease_until: int) -> None:
        """Lengthen a lease; never shortens."""
        ...

    def close_session(self, session: RandomId, now_s: int) -> None:
        """End lease and reservation; idempotent."""
        ...


class PackStore(Protocol):
    """Packs and the index from chunk ID to pack."""

    def begin_upload(
        self, session: facts.SessionFacts, upload: facts.Upload, now_s: int
    ) -> out.UploadGranted | out.PackStored | out.QuotaFull | out.SessionStopped:
        """Take a place in the quota for a pack, or find that it is stored already (then it is protected again)."""
        ...

    def finish_upload(
        self, session: facts.SessionFacts, upload: facts.Upload, pack: facts.PackFacts, now_s: int
    ) -> out.PackStored | out.PackForeign | out.UploadLapsed | out.SessionStopped:
        """Make the published blob of an upload a live pack, with its index rows."""
        ...

    def drop_upload(self, upload: facts.Upload) -> None:
        """Give back the place of an upload that failed; idempotent."""
        ...

    def protect_chunks(self, session: facts.SessionFacts, chunks: Sequence[bytes], now_s: int) -> bytes:
        """Return one byte per chunk, 1 = live in this device and epoch; their packs are protected by the session.

        A condemned pack is revived in the same transaction, if the quota has room for it.
        """
        ...

    def protect_packs(self, session: facts.SessionFacts, packs: Sequence[bytes], now_s: int) -> bytes:
        """Return one byte per pack name, 1 = stored for this device; protects and revives like `protect_chunks`."""
        ...

    def locate(
        self, contract: ContractId, generation: RandomId, chunks: Sequence[bytes]
    ) -> list[tuple[bytes, int, int] | None] | None:
        """Return (pack name, offset, length) of each chunk in the live packs of the generation's device and epoch.

        None: the contract has no such generation. What other devices stored under the same IDs is not looked at.
        """
        ...

    def find_pack(self, contract: ContractId, sha256: bytes) -> facts.StoredPack | None:
        """Return a live pack of the contract."""
        ...


class GenerationStore(Protocol):
    """Generations: commit and reading back."""

    def commit(
        self, session: facts.SessionFacts, claim: facts.CommitClaim, signer: facts.ReceiptMaker, now_s: int
    ) -> out.Committed | out.ChunksMissing | out.ParentMismatch | out.CommitConflict | out.SessionStopped:
        """Make a generation durable in one transaction (steps in `engines/sql/commit_store.py`)."""
        ...

    def list_generations(self, contract: ContractId, backup_set: BackupSetName) -> list[facts.GenerationRow]:
        """Return kept and trashed generations of a backup set, oldest first."""
        ...

    def find_generation(self, contract: ContractId, generation: RandomId) -> facts.GenerationRow | None:
        """Return one generation that is not gone."""
        ...

    def find_header(self, contract: ContractId, session: RandomId) -> bytes | None:
        """Return the signed header of an append session of the contract."""
        ...


class GcStore(Protocol):
    """Expiry and removal without keys: live → condemned → deleting → gone."""

    def expire_trash(self, now_s: int, *, dry_run: bool) -> int:
        """Drop the references of generations whose trash time is over; returns how many generations."""
        ...

    def condemn(self, now_s: int, *, dry_run: bool) -> list[facts.StoredPack]:
        """Condemn live packs that no generation needs and no open session protects; frees their quota."""
        ...

    def claim_condemned(self, now_s: int, *, dry_run: bool) -> list[facts.StoredPack]:
        """Move packs condemned long enough to *deleting* and drop their index rows; returns all in *deleting*."""
        ...

    def mark_gone(self, pack_id: int, now_s: int) -> None:
        """Record that the blob of a *deleting* pack is gone."""
        ...

    def drop_stale(self, now_s: int) -> None:
        """Drop spent nonces, lapsed uploads and reservations of sessions that are over."""
        ...

    def known_incarnations(self) -> set[str]:
        """Return the incarnation of every pack that is not gone and of every upload."""
        ...

    def live_packs(self) -> list[facts.StoredPack]:
        """Return every live pack, for scrubbing."""
        ...

    def generations_of(self, pack_id: int) -> list[RandomId]:
        """Return the generations that need a pack."""
        ...

    def rebuild_pack(
        self, contract: ContractId, incarnation: str, sha256: bytes, pack: facts.PackFacts, now_s: int
    ) -> out.Rebuilt:
        """Write the row and index rows of a blob again from its trailer."""
        ...


@attrs.frozen
class StorageStores:
    """All row stores of the service, over one database."""

    contracts: ContractStore
    sessions: SessionStore
    packs: PackStore
    generations: GenerationStore
    gc: GcStore
