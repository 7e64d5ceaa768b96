"""Blobs as files: temporary file, fsync, rename, fsync of the directory; names fan out by hash.

Rules
- A key is `<contract>/<sha256 hex>-<incarnation hex>` (see `ports.BlobStore`); anything else is refused before it
  becomes a path, so no key can leave the root.
- Files are made mode 0440: nothing rewrites a published blob.
- Crash: before the rename there is only a file in `incoming/`, which `open` removes later; after it the blob is whole.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from carrier.errors import CorruptDataError, LocalCarrierError, UnavailableError
from carrier.storage.ports import BlobInfo
from runtime.files import fsync_dir, make_dirs, remove_durably, write_all

KEY_FORM: Final = re.compile(r"([A-Z]{3}[0-9]{10})/([0-9a-f]{64})-([0-9a-f]{32})")
INCOMING_LIFE_S: Final = 3600
"""No upload writes longer without a byte: what is older was left by a crash."""

_MODE: Final = 0o440


class FilesBlobStore:
    """See `carrier.storage.ports.BlobStore`. `open` makes the directories; idempotent."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

    def open(self) -> None:
        """Make the directories and drop what a crash left unfinished, once no upload can still be writing it."""
        make_dirs(self._incoming)
        oldest_s = time.time() - INCOMING_LIFE_S
        for left in self._incoming.iterdir():
            if left.stat().st_mtime < oldest_s:
                left.unlink(missing_ok=True)

    def begin(self) -> FileBlobWriter:
        """See BlobStore."""
        return FileBlobWriter(self._root, self._incoming / secrets.token_hex(16))

    def read(self, key: str, offset: int, length_bytes: int) -> bytes:
        """See BlobStore."""
        try:
            with self._path(key).open("rb") as file:
                data = os.pread(file.fileno(), length_bytes, offset)
        except FileNotFoundError as error:
            raise CorruptDataError(f"blob {key}: expected a file, there is none") from error
        if len(data) != length_bytes:
            raise CorruptDataError(f"blob {key}: expected {length_bytes} bytes at {offset}, got {len(data)}")
        return data

    def size(self, key: str) -> int | None:
        """See BlobStore."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """See BlobStore."""
        remove_durably(self._path(key))

    def list_blobs(self) -> Iterator[BlobInfo]:
        """See BlobStore."""
        for path in sorted(self._root.glob("*/??/*")):
            status = path.stat()
            key = f"{path.parent.parent.name}/{path.name}"
            if KEY_FORM.fullmatch(key):
                yield BlobInfo(key, status.st_size, int(status.st_mtime))

    def _path(self, key: str) -> Path:
        return blob_path(self._root, key)


class FileBlobWriter:
    """See `carrier.storage.ports.BlobWriter`."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self._root = root
        self._temporary = temporary
        self._fd = -1
        try:
            self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        except OSError as error:
            raise UnavailableError(f"blob store: cannot write: {error.strerror}") from error

    def read(self, offset: int, length_bytes: int) -> bytes:
        """See BlobWriter."""
        return os.pread(self._fd, length_bytes, offset)

    def write(self, data: bytes) -> None:
        """See BlobWriter."""
        try:
            write_all(self._fd, data)
        except OSError as error:
            raise UnavailableError(f"blob store: cannot write: {error.strerror}") from error

    def publish(self, key: str) -> None:
        """See BlobWriter."""
        target = blob_path(self._root, key)
        try:
            os.fsync(self._fd)
            self._close()
            make_dirs(target.parent)
            self._temporary.rename(target)
            fsync_dir(target.parent)
        except OSError as error:
            raise UnavailableError(f"blob {key}: cannot publish: {error.strerror}") from error

    def discard(self) -> None:
        """See BlobWriter."""
        self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def blob_path(root: Path, key: str) -> Path:
    """Return where a key lies; raises `LocalCarrierError` for a key of another form."""
    match = KEY_FORM.fullmatch(key)
    if match is None:
        raise LocalCarrierError(
            f"blob key: expected <contract>/<sha256>-<incarnation>, got {ascii(key)[:120]}"
        )
    contract, sha256, incarnation = match.groups()
    return root / contract / sha256[:2] / f"{sha256}-{incarnation}"
