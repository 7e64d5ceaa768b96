"""Check a pack in the blob store's hands without any key: form, frames, device signature (vault-format.md §5).

Rules: the bytes are read in pieces, so memory does not grow with packs; the SHA-256 of the whole was checked by the
caller while it streamed. Raises `wire.errors.WireError`; never looks inside a frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from carrier.storage.facts import PackFacts
from wire.errors import FormatError
from wire.ids import RandomId
from wire.vault.pack import (
    FOOTER_BYTES,
    HEADER_BYTES,
    parse_pack_header,
    parse_trailer,
    trailer_length,
)

PIECE_BYTES: Final = 1 << 20

ReadBytes = Callable[[int, int], bytes]
"""(offset, length) → bytes of the pack."""


def inspect_pack(read: ReadBytes, size_bytes: int, *, device: bytes | None = None) -> PackFacts:
    """Return what the pack holds after checking everything that needs no secret.

    Args:
        read: gives bytes of the pack.
        size_bytes: its length.
        device: the device key that must have signed it, or None for the one the trailer names.

    Raises:
        WireError: header, trailer, frame table, body hash or signature do not hold.
    """
    if size_bytes <= HEADER_BYTES + FOOTER_BYTES:
        raise FormatError(f"pack: expected more than {HEADER_BYTES + FOOTER_BYTES} bytes, got {size_bytes}")
    session = parse_pack_header(read(0, HEADER_BYTES))
    trailer_end = size_bytes - FOOTER_BYTES
    body_end = trailer_end - trailer_length(read(trailer_end, FOOTER_BYTES))
    if body_end <= HEADER_BYTES:
        raise FormatError("pack: no room for frames")
    trailer = parse_trailer(read(body_end, trailer_end - body_end), device_key=device)
    last = trailer.items[-1]
    if trailer.session != session or last.offset + last.length != body_end:
        raise FormatError("pack: trailer and body disagree")
    if _hash(read, body_end) != trailer.body_sha256:
        raise FormatError("pack: the frames are not those the trailer was signed for")
    return PackFacts(
        session=RandomId.from_bytes(session),
        device=trailer.device_key,
        size_bytes=size_bytes,
        chunks=tuple((item.chunk, item.offset, item.length) for item in trailer.items),
    )


def _hash(read: ReadBytes, end: int) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, end, PIECE_BYTES):
        digest.update(read(start, min(PIECE_BYTES, end - start)))
    return digest.digest()
