"""Blobs in memory: for tests; the same contract suite as the files engine runs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from carrier.engines.blob_files import KEY_FORM
from carrier.errors import CorruptDataError, LocalCarrierError
from carrier.storage.ports import BlobInfo


class MemoryBlobStore:
    """See `carrier.storage.ports.BlobStore`."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.blobs: dict[str, tuple[bytes, int]] = {}
        self._now_s = now_s
        self._lock = threading.Lock()

    def open(self) -> None:
        """See BlobStore."""

    def begin(self) -> MemoryBlobWriter:
        """See BlobStore."""
        return MemoryBlobWriter(self)

    def read(self, key: str, offset: int, length_bytes: int) -> bytes:
        """See BlobStore."""
        with self._lock:
            found = self.blobs.get(_checked(key))
        if found is None:
            raise CorruptDataError(f"blob {key}: expected an object, there is none")
        data = found[0][offset : offset + length_bytes]
        if len(data) != length_bytes:
            raise CorruptDataError(f"blob {key}: expected {length_bytes} bytes at {offset}, got {len(data)}")
        return data

    def size(self, key: str) -> int | None:
        """See BlobStore."""
        with self._lock:
            found = self.blobs.get(_checked(key))
        return None if found is None else len(found[0])

    def delete(self, key: str) -> None:
        """See BlobStore."""
        with self._lock:
            self.blobs.pop(_checked(key), None)

    def list_blobs(self) -> Iterator[BlobInfo]:
        """See BlobStore."""
        with self._lock:
            rows = sorted(self.blobs.items())
        for key, (data, modified_at) in rows:
            yield BlobInfo(key, len(data), modified_at)

    def put(self, key: str, data: bytes) -> None:
        """Publish whole bytes at once."""
        with self._lock:
            self.blobs[_checked(key)] = (data, int(self._now_s()))


class MemoryBlobWriter:
    """See `carrier.storage.ports.BlobWriter`."""

    def __init__(self, store: MemoryBlobStore) -> None:
        self._store = store
        self._data = bytearray()

    def read(self, offset: int, length_bytes: int) -> bytes:
        """See BlobWriter."""
        return bytes(self._data[offset : offset + length_bytes])

    def write(self, data: bytes) -> None:
        """See BlobWriter."""
        self._data += data

    def publish(self, key: str) -> None:
        """See BlobWriter."""
        self._store.put(key, bytes(self._data))

    def discard(self) -> None:
        """See BlobWriter."""
        self._data.clear()


def _checked(key: str) -> str:
    if KEY_FORM.fullmatch(key) is None:
        raise LocalCarrierError(
            f"blob key: expected <contract>/<sha256>-<incarnation>, got {ascii(key)[:120]}"
        )
    return key
