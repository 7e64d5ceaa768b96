"""What the relay half of hgwd asks of the world. Engines stand in `hgwd.adapters`; tests bring their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol


class SpoolFiles(Protocol):
    """The spool's files on flash: packs under their hash, and parts that are still being received.

    All methods block. `OSError` from `write` and `publish` may mean "flash full" (the part is dropped, the device
    tries later); from `sync` it means that the flash lost what it had taken, and the call is never repeated.
    """

    def create(self, part: str) -> int:
        """Make the empty part `part` (a name never used before) and return a descriptor; the caller closes it."""
        ...

    def write(self, descriptor: int, data: bytes) -> None:
        """Append all of `data`. After an error the part's content is undefined."""
        ...

    def sync(self, descriptor: int) -> None:
        """Return only when everything written to the descriptor is on flash. Never call again after an error."""
        ...

    def publish(self, part: str, pack: str) -> None:
        """Give a synced part the name of its hash; on return the name is on flash. Replaces an equal pack."""
        ...

    def discard(self, part: str) -> None:
        """Remove a part if it is there. Never raises: an unremoved part is removed at the next start."""
        ...

    def remove(self, pack: str) -> None:
        """Remove a pack if it is there; may come back after a power cut, which recovery expects."""
        ...

    def sizes_bytes(self) -> dict[str, int]:
        """Return the size of every published pack."""
        ...

    def clear_parts(self) -> int:
        """Remove all parts, none of which was ever acknowledged; return how many. Only before anything is received."""
        ...

    def free_bytes(self) -> int:
        """Return what the file system would still take."""
        ...

    def path(self, pack: str) -> Path:
        """Return where a published pack lies."""
        ...


class ServiceAnswer(Protocol):
    """An answer of the storage service whose body has not been read."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body in pieces of at most 64 KiB; close it when left early; raises `runtime.errors.Unavailable` when cut."""
        ...


class Upstream(Protocol):
    """The storage service over the WAN line. Every call may be repeated; `Unavailable` means the line or the far end."""

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes],
        length: int,
    ) -> AbstractAsyncContextManager[ServiceAnswer]:
        """Send one request below `/storage/v1`; leaving the context drops what was not read."""
        ...

    async def put_pack(
        self, session: str, token: str, pack: str, path: Path, size_bytes: int
    ) -> UploadAnswer:
        """Upload one file as a pack; idempotent by hash. Cancellation may leave the pack stored or not."""
        ...

    def note_answer(self, status: int, body: bytes) -> None:
        """Take what a whole answer says about the line."""
        ...


class UploadAnswer(Protocol):
    """The whole answer to an upload."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, names in lower case."""
        ...

    @property
    def body(self) -> bytes:
        """Body, bounded by the adapter."""
        ...
