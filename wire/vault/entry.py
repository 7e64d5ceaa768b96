"""The record of one file-system object in a manifest (vault-format.md §7; AZK-83).

Rules
- Names are bytes, as the kernel gave them: never decoded, never repaired. The root of the tree has path `b""`.
- Order in a manifest is `sort_key` (depth first, children by byte value): a directory stands before its content.
- `content` covers the bytes that are not in `holes`, in order. Every name of a hard-linked file carries the content.
- What only serves the change check (ctime, inode, device) stays on the NAS: see `Observed` in `nas_agent/ports.py`.
- It does not do: any file-system call, and no judgement whether a path is safe to write (the restore side does).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from wire.errors import FormatError

PATH_BYTES_MAX: Final = 64 << 10
RECORD_BYTES_MAX: Final = 8 << 20
"""One encoded entry; a file of 30 GiB in the smallest chunks stays below it."""
_XATTRS_MAX: Final = 4096


class Kind(enum.StrEnum):
    """What an entry is."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    FIFO = "p"
    SOCKET = "s"
    CHARACTER = "c"
    BLOCK = "b"


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`length` bytes at `offset` of the plaintext of chunk `chunk` (32-byte ID); whole chunks have offset 0."""

    chunk: bytes
    offset: int
    length: int


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One file-system object.

    Attributes:
        path: relative to the backup root, components joined by `/`, no leading `/`; `b""` is the root itself.
        kind: one letter of `Kind`.
        mode: permission bits with setuid, setgid and sticky (`st_mode & 0o7777`).
        uid: numeric owner. `user` is its name at backup time, `b""` if it had none.
        gid: numeric group. `group` is its name at backup time.
        mtime_ns: modification time, nanoseconds since 1970, may be negative.
        size: length in bytes including holes (regular files), else 0.
        xattrs: (name, value) sorted by name, raw, ACLs among them (`system.posix_acl_access`, …).
        link_group: 0, or a number ≥ 1 shared by all names of one inode within this generation.
        target: what a symlink holds.
        device: (major, minor) of a device node.
        holes: (offset, length) of unwritten ranges, ascending, not touching; a trailing hole included.
        content: where the bytes outside `holes` are.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    user: bytes = b""
    group: bytes = b""
    mtime_ns: int
    size: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    link_group: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    holes: tuple[tuple[int, int], ...] = ()
    content: tuple[Span, ...] = ()


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Entry)


def sort_key(path: bytes) -> bytes:
    """Return the key whose byte order is the order of a manifest: depth first, children by byte value."""
    return path.replace(b"/", b"\0")


def data_bytes(entry: Entry) -> int:
    """Return how many bytes of the file lie outside its holes."""
    return entry.size - sum(length for _, length in entry.holes)


def encode_entry(entry: Entry) -> bytes:
    """Return the record as it stands in a manifest, without its length prefix."""
    return _encoder.encode(entry)


def decode_entry(record: bytes | memoryview) -> Entry:
    """Return the entry of one record.

    Raises `FormatError` for another form, an unsafe path, or content and holes that do not add up to the size.
    """
    try:
        entry = _decoder.decode(record)
    except (msgspec.MsgspecError, RecursionError) as error:
        message = f"manifest entry: {error}"
        raise FormatError(message) from error
    _check_path(entry.path)
    _check_numbers(entry)
    _check_layout(entry)
    return entry


def _check_path(path: bytes) -> None:
    if len(path) > PATH_BYTES_MAX or b"\0" in path:
        message = f"manifest entry: expected a path of at most {PATH_BYTES_MAX} bytes without NUL"
        raise FormatError(message)
    if path and any(part in {b"", b".", b".."} for part in path.split(b"/")):
        message = f"manifest entry: path {path[:80]!r} has an empty, '.' or '..' component"
        raise FormatError(message)


def _check_numbers(entry: Entry) -> None:
    unsigned = (entry.uid, entry.gid, entry.size, entry.link_group, *entry.device)
    if not 0 <= entry.mode <= 0o7777 or min(unsigned) < 0 or len(entry.xattrs) > _XATTRS_MAX:
        message = f"manifest entry: {entry.path[:80]!r}: a number is out of range"
        raise FormatError(message)


def _check_layout(entry: Entry) -> None:
    end = -1
    for offset, length in entry.holes:
        if length <= 0 or offset <= end or offset + length > entry.size:
            message = f"manifest entry: {entry.path[:80]!r}: holes are not ascending inside the file"
            raise FormatError(message)
        end = offset + length
    covered = 0
    for span in entry.content:
        if len(span.chunk) != 32 or span.offset < 0 or span.length <= 0:
            message = f"manifest entry: {entry.path[:80]!r}: a content span is malformed"
            raise FormatError(message)
        covered += span.length
    expected = data_bytes(entry) if entry.kind is Kind.FILE else 0
    if covered != expected:
        message = f"manifest entry: {entry.path[:80]!r}: content covers {covered} bytes, expected {expected}"
        raise FormatError(message)
