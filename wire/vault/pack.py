"""Packs: the container of frames (vault-format.md §5). No key is needed for anything here but signing a trailer.

Rules: a pack's name is its SHA-256; a trailer is read only after its length and signature were checked; frames lie
in trailer order without gap. It does not do: opening frames (`wire/vault/frame.py`), file access.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

import attrs

from wire.errors import FormatError, SignatureError
from wire.signing import SIGNATURE_BYTES, Context, SigningKey, sign_blob, unverified_payload, verify_blob
from wire.vault.document import VERSION, check_version

PACK_BYTES_MAX: Final = 64 << 20
HEADER_BYTES: Final = 24
FOOTER_BYTES: Final = 8
FRAMES_MAX: Final = 1 << 16
FRAME_BYTES_MIN: Final = 96 + 16 + 1

_HEADER: Final = struct.Struct(">4sHH16s")
_FOOTER: Final = struct.Struct(">I4s")
_TRAILER: Final = struct.Struct(">HH16s32s32sI")
_ITEM: Final = struct.Struct(">32sII")
_MAGIC: Final = b"HGWP"
_END_MAGIC: Final = b"HGWE"
TRAILER_BYTES_MAX: Final = SIGNATURE_BYTES + _TRAILER.size + FRAMES_MAX * _ITEM.size


@attrs.frozen
class PackItem:
    """One frame in a pack: chunk ID (32 bytes), offset from the start of the pack, length, both in bytes."""

    chunk: bytes
    offset: int
    length: int


@attrs.frozen
class Trailer:
    """What the device says the pack holds. `body_sha256` is over header and frames."""

    session: bytes
    device_key: bytes
    body_sha256: bytes
    items: tuple[PackItem, ...]


def pack_header(session: bytes) -> bytes:
    """Return the 24 bytes a pack of vault session `session` (16 bytes) starts with."""
    return _HEADER.pack(_MAGIC, VERSION, 0, session)


def parse_pack_header(data: bytes | memoryview) -> bytes:
    """Return the session (16 bytes) named in the first 24 bytes of a pack; `FormatError`, `UpgradeNeededError`."""
    if len(data) < HEADER_BYTES:
        message = f"pack header: expected {HEADER_BYTES} bytes, got {len(data)}"
        raise FormatError(message)
    magic, version, reserved, session = _HEADER.unpack(data[:HEADER_BYTES])
    if magic != _MAGIC:
        message = f"pack header: expected {_MAGIC!r}, got {bytes(magic)!r}"
        raise FormatError(message)
    check_version("pack", version)
    if reserved:
        message = "pack header: reserved bytes are not zero"
        raise FormatError(message)
    return bytes(session)


def sign_trailer(key: SigningKey, *, session: bytes, body_sha256: bytes, items: Sequence[PackItem]) -> bytes:
    """Return trailer and footer, the bytes that follow the frames."""
    head = _TRAILER.pack(VERSION, 0, session, key.public, body_sha256, len(items))
    body = b"".join(_ITEM.pack(item.chunk, item.offset, item.length) for item in items)
    blob = sign_blob(key, Context.PACK, head + body)
    return blob + _FOOTER.pack(len(blob), _END_MAGIC)


def trailer_length(footer: bytes | memoryview) -> int:
    """Return the length of the trailer blob that ends before the footer, the last 8 bytes of a pack."""
    if len(footer) != FOOTER_BYTES:
        message = f"pack footer: expected {FOOTER_BYTES} bytes, got {len(footer)}"
        raise FormatError(message)
    length, magic = _FOOTER.unpack(footer)
    if magic != _END_MAGIC or not SIGNATURE_BYTES + _TRAILER.size <= length <= TRAILER_BYTES_MAX:
        message = (
            f"pack footer: expected {_END_MAGIC!r} after a trailer, got {bytes(magic)!r}, length {length}"
        )
        raise FormatError(message)
    return int(length)


def parse_trailer(blob: bytes, *, device_key: bytes | None = None) -> Trailer:
    """Return the trailer in a signed blob, verified under `device_key` or, if None, under the key it names itself.

    Raises `SignatureError`, `FormatError` or `UpgradeNeededError`.
    """
    claimed = unverified_payload(blob)
    if len(claimed) < _TRAILER.size:
        message = f"pack trailer: expected at least {_TRAILER.size} bytes, got {len(claimed)}"
        raise FormatError(message)
    named_key = _TRAILER.unpack_from(claimed)[3]
    if device_key is not None and named_key != device_key:
        message = f"pack trailer: made by device {named_key.hex()[:16]}…, expected {device_key.hex()[:16]}…"
        raise SignatureError(message)
    payload = verify_blob(blob, Context.PACK, named_key)
    version, reserved, session, _, body_sha256, count = _TRAILER.unpack_from(payload)
    check_version("pack trailer", version)
    if reserved or not 1 <= count <= FRAMES_MAX or len(payload) != _TRAILER.size + count * _ITEM.size:
        message = f"pack trailer: {count} items do not fit its length of {len(payload)} bytes"
        raise FormatError(message)
    items = tuple(PackItem(*fields) for fields in _ITEM.iter_unpack(payload[_TRAILER.size :]))
    _check_items(items)
    return Trailer(session, named_key, body_sha256, items)


def verify_pack(data: bytes | memoryview, *, name: str, device_key: bytes | None = None) -> Trailer:
    """Return the trailer of a whole pack after checking everything that needs no secret.

    Args:
        data: the pack, at most 64 MiB.
        name: its expected SHA-256, hex.
        device_key: the device that must have signed it (32 bytes), or None for "whoever it names".

    Raises `FormatError`, `SignatureError` or `UpgradeNeededError`.
    """
    if not HEADER_BYTES + FOOTER_BYTES < len(data) <= PACK_BYTES_MAX:
        message = f"pack: expected up to {PACK_BYTES_MAX} bytes, got {len(data)}"
        raise FormatError(message)
    if hashlib.sha256(data).hexdigest() != name:
        message = f"pack {name[:16]}…: its bytes have another SHA-256"
        raise FormatError(message)
    session = parse_pack_header(data[:HEADER_BYTES])
    trailer_bytes = trailer_length(data[-FOOTER_BYTES:])
    body_end = len(data) - FOOTER_BYTES - trailer_bytes
    if body_end <= HEADER_BYTES:
        message = f"pack {name[:16]}…: no room for frames"
        raise FormatError(message)
    trailer = parse_trailer(bytes(data[body_end:-FOOTER_BYTES]), device_key=device_key)
    last = trailer.items[-1]
    if trailer.session != session or last.offset + last.length != body_end:
        message = f"pack {name[:16]}…: trailer and body disagree"
        raise FormatError(message)
    if hashlib.sha256(data[:body_end]).digest() != trailer.body_sha256:
        message = f"pack {name[:16]}…: the frames are not those the trailer was signed for"
        raise FormatError(message)
    return trailer


def _check_items(items: Sequence[PackItem]) -> None:
    expected = HEADER_BYTES
    for item in items:
        if item.offset != expected or item.length < FRAME_BYTES_MIN:
            message = (
                f"pack trailer: frame at {item.offset} of {item.length} bytes, expected offset {expected}"
            )
            raise FormatError(message)
        expected += item.length
    if len({item.chunk for item in items}) != len(items):
        message = "pack trailer: a chunk ID stands twice"
        raise FormatError(message)
