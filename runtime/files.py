"""Files that survive a power cut: data, then name, then directory entry, each fsynced before we say "done".

Rules: a failed fsync is never retried (the kernel may have dropped the pages): the error goes up and nothing
is acknowledged. Everything here blocks; async code calls it through `trio.to_thread` or for small files only.
Does not lock, does not decide where files live.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from runtime.errors import LocalError

SECRET_FILE_BYTES_MAX = 64 * 1024
SECRET_MODE_FORBIDDEN = 0o077


def fsync_dir(path: Path | str) -> None:
    """Fsync a directory, so that names created, renamed or removed in it are on disk.

    Raises:
        OSError: the directory cannot be opened or the fsync failed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path | str, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by a file holding exactly `data`; after a cut it holds the old or the new bytes, whole.

    Args:
        path: its directory must exist.
        data: any length, also empty.
        mode: permission bits, set before the name appears, independent of the umask.

    Raises:
        OSError: the old file is untouched; the temporary one is removed.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(target.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data` at the descriptor's position; a short write is continued."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def make_dirs(path: Path | str, *, mode: int = 0o755) -> None:
    """Create a directory and its missing parents, each with its entry fsynced in its parent. Idempotent."""
    target = Path(path)
    if target.is_dir():
        return
    make_dirs(target.parent, mode=mode)
    with contextlib.suppress(FileExistsError):
        target.mkdir(mode=mode)
    fsync_dir(target.parent)


def remove_durably(path: Path | str) -> None:
    """Remove a file and fsync its directory; an absent file is not an error."""
    target = Path(path)
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
        fsync_dir(target.parent)


def load_secret(path: Path | str) -> bytes:
    """Read a secret file (≤ 64 KiB) that only its owner may read.

    Returns:
        The content without a trailing newline.

    Raises:
        LocalError: missing, a symbolic link, not a regular file, too large, or open to group or others.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise LocalError(f"secret file {path}: expected a readable file, got {exc.strerror}") from exc
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & SECRET_MODE_FORBIDDEN:
            raise LocalError(f"secret file {path}: expected mode 0600, got {status.st_mode & 0o777:04o}")
        data = file.read(SECRET_FILE_BYTES_MAX + 1)
    if len(data) > SECRET_FILE_BYTES_MAX:
        raise LocalError(f"secret file {path}: expected at most {SECRET_FILE_BYTES_MAX} bytes")
    return data.removesuffix(b"\n")
