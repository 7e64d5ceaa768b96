"""What the backup engine needs from outside: a store for packs, a tree to read, a tree to write.

`VaultStore` mirrors the storage protocol (protocols.md §3); engines are a directory (`file://`) and HTTPS (service or
gateway). Every engine runs `tests/contract/vault_store_suite.py`. `TreeSource` and `TreeSink` are synchronous: the
engine calls each from one worker thread. Expected answers are returned; faults are raised:
`runtime.errors.Unavailable` (retry), `RemoteError` (the peer broke the protocol), `CorruptDataError` (never retry).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import attrs

from nas_agent.core.observed import Observed as Observed  # noqa: PLC0414 - part of the port
from wire.vault.entry import Entry

PACK_UNKNOWN = 0
PACK_SPOOLED = 1
PACK_STORED = 2
PACK_REJECTED = 3


@attrs.frozen
class Refusal:
    """The store said no, in the words of protocols.md §2.

    Attributes:
        code: e.g. `quota-full`, `spool-full`, `line-down`, `refused`, `session-over`, `stale-epoch`.
        message: for a person; no secret inside.
        retry_after_s: set where waiting may help (`spool-full`, `line-down`, `unavailable`, `draining`).
        needed_bytes: with `quota-full`: what the refused pack needs; `limit_bytes` and `used_bytes` likewise.
    """

    code: str
    message: str
    retry_after_s: float | None = None
    needed_bytes: int | None = None
    limit_bytes: int | None = None
    used_bytes: int | None = None


@attrs.frozen
class Head:
    """The newest generation of this device in the backup set."""

    sequence: int
    root_sha256: str


@attrs.frozen
class Opened:
    """A session is open. Sizes in bytes; 0 as `limit_bytes` means the store sets no limit."""

    session: str
    head: Head | None
    limit_bytes: int = 0
    used_bytes: int = 0


@attrs.frozen
class PackAccepted:
    """The pack is on stable storage there: `spooled` on the gateway or `stored` at the service or in the directory."""

    state: Literal["spooled", "stored"]
    new: bool


@attrs.frozen
class Committed:
    """A generation exists. `receipt` is the signed receipt, or None for a directory, which signs nothing."""

    generation: str
    receipt: bytes | None


@attrs.frozen
class Missing:
    """The commit names chunks that are not live; none of the generation was kept. At most 4096 are listed."""

    chunks: tuple[bytes, ...]


@attrs.frozen
class GenerationInfo:
    """One generation as the store lists it; nothing here is believed before the root is verified."""

    generation: str
    sequence: int
    root_sha256: str
    received_at: int
    keep_until: int
    stored_bytes: int
    in_trash: bool = False


@attrs.frozen
class Location:
    """Where a frame lies: pack name (64 hex), offset and length in bytes."""

    pack: str
    offset: int
    length: int


class Refs(Protocol):
    """The sorted, distinct chunk IDs a generation needs; may be walked more than once (a commit is repeated)."""

    @property
    def count(self) -> int:
        """Number of IDs."""

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over all IDs in order."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the IDs in order, joined, in blocks of at most 64 KiB. Blocking."""


class VaultStore(Protocol):
    """A place for packs and generations of one contract and backup set.

    Every call may be repeated after a fault with the same effect as once. Nothing can be deleted or overwritten
    through this port. One session is open at a time; calls are not made concurrently except `put_pack` with
    `have`. Cancelling a call leaves it either done or not done, never half visible.
    """

    async def open_session(
        self, mode: Literal["append", "read"], backup_set: str, session_header: bytes | None
    ) -> Opened | Refusal:
        """Open a session; append mode needs the signed session header, read mode takes None."""

    async def have(self, ids: Sequence[bytes]) -> Sequence[bool] | Refusal:
        """Say for each chunk ID (≤ 4096) whether it is live in this device's epoch. Append mode."""

    async def put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        """Hand over one pack named by the SHA-256 (hex) of its bytes (≤ 64 MiB).

        Returns once it is on stable storage there. The caller may reuse the buffer afterwards.
        """

    async def pack_states(self, names: Sequence[str]) -> Sequence[int] | Refusal:
        """Return for each pack (≤ 4096) PACK_UNKNOWN, PACK_SPOOLED, PACK_STORED or PACK_REJECTED."""

    async def commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        """Make a generation of what was put. The same commit again returns the same answer.

        Refusal codes of its own: `draining` (packs are still spooled: wait), `parent-mismatch`, `conflict`.
        """

    async def list_generations(self) -> tuple[GenerationInfo, ...] | Refusal:
        """List the backup set's generations, oldest first. Read mode, as all calls below."""

    async def read_root(self, generation: str) -> bytes | Refusal:
        """Return the signed root blob as committed; `not-found` if there is none."""

    async def read_receipt(self, generation: str) -> bytes | Refusal | None:
        """Return the signed receipt, None where the store signs none."""

    async def locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        """Say where each chunk's frame lies (≤ 4096 IDs) in the device and epoch of a listed generation.

        None if it is not live there; `not-found` if there is no such generation. Frames that another device stored
        under the same ID are never named.
        """

    async def read_pack_range(self, name: str, offset: int, length: int) -> bytes | Refusal:
        """Return exactly `length` bytes (1 to 64 MiB) of a pack; `not-found` if the pack or range is not there."""

    async def read_session_header(self, session: str) -> bytes | Refusal:
        """Return the signed header of a past vault session (32 hex: the `session` field of that header)."""

    async def close(self) -> None:
        """End the session if one is open and free connections. Never raises for a store that is gone."""


@attrs.frozen
class Problem:
    """One path that could not be backed up or restored as it is; the run goes on.

    `reason` is a stable code: `unreadable` (EACCES, EIO), `vanished`, `changed-while-reading`, `too-large`,
    `damaged-chunk`, `refused-path`, `metadata` (written, but an attribute could not be set), `write-failed`.
    """

    path: bytes
    reason: str
    detail: str


class SourceFile(Protocol):
    """One regular file, open for reading its data (holes left out)."""

    @property
    def size(self) -> int:
        """Length in bytes including holes, as at opening."""

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of holes as at opening, ascending."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` with the next data bytes; 0 at the end of the data. Raises `OSError`."""

    def changed(self) -> bool:
        """Say whether the file changed since it was listed (ctime, mtime or size). Raises `OSError`."""

    def close(self) -> None:
        """Close the descriptor."""


class TreeSource(Protocol):
    """The tree to back up. Used by one thread."""

    def walk(self) -> Iterator[Observed | Problem]:
        """Yield every object once in manifest order (`wire.vault.entry.sort_key`), the root first.

        What cannot be listed is yielded as a `Problem` and its subtree left out.
        """

    def open(self, observed: Observed) -> SourceFile:
        """Open a regular file that `walk` just yielded.

        Raises `FileNotFoundError` (vanished), other `OSError` (unreadable), or `SourceChangedError` if the object
        at that path is no longer the inode that was listed.
        """


class TreeSink(Protocol):
    """The tree to restore into. Used by one thread, entries come in manifest order."""

    def put(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> tuple[Problem, ...]:
        """Create one object with all its metadata; directories get theirs in `finish`.

        `pieces` yields the file's bytes outside its holes, in order, as many as `data_bytes(entry)`; it yields nothing
        for other kinds, nor is it drawn from when the entry is linked to an already written member of its link group.
        If it raises, the partial file is removed and the exception passed on. Returns what could not be set;
        raises `OSError` when the object could not be created at all.
        """

    def finish(self) -> tuple[Problem, ...]:
        """Set the metadata of directories, deepest first, and fsync what was written."""


class Progress(Protocol):
    """Called now and then from the engine's thread while it works; must return quickly."""

    def __call__(self, phase: str, files: int, read_bytes: int, sent_bytes: int) -> None:
        """`phase` is `scan`, `drain`, `commit`, `restore` or `verify`; counts are totals so far."""
