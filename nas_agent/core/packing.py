"""Building a pack in memory (vault-format.md §5, §6).

Rules
- A pack exists only in the buffer until it is finished: its salt has then not been on any disk or wire.
- An unfinished pack is dropped, never continued; every pack gets a new salt from the caller.
- The buffer is preallocated and reused; frames are encrypted straight into it.
"""

from __future__ import annotations

import hashlib
from typing import Final

import attrs

from wire.signing import SigningKey
from wire.vault.frame import FRAME_HEADER_BYTES, TAG_BYTES, Algorithm, FrameSealer
from wire.vault.pack import HEADER_BYTES, PackItem, pack_header, sign_trailer

PACK_TARGET_BYTES: Final = 4 << 20
"""A pack is finished before its frames would grow beyond this."""
_TRAILER_ROOM_BYTES: Final = 64 << 10
FRAMES_PER_PACK_MAX: Final = 1024
BUFFER_BYTES: Final = PACK_TARGET_BYTES + _TRAILER_ROOM_BYTES


@attrs.frozen
class SessionKeys:
    """What a pack of one vault session is made with; `session_key` lives in memory only."""

    session: bytes
    session_key: bytes = attrs.field(repr=False)
    algorithm: Algorithm
    device: SigningKey


@attrs.frozen
class FinishedPack:
    """A pack ready to go: `data` is a view into the builder's buffer, valid until that is reused."""

    name: str
    data: memoryview
    items: tuple[PackItem, ...]


class PackBuilder:
    """One pack under construction in `buffer` (BUFFER_BYTES)."""

    def __init__(self, keys: SessionKeys, salt: bytes, buffer: bytearray | memoryview) -> None:
        """Begin a pack with a fresh 32-byte salt."""
        self._keys = keys
        self._view = memoryview(buffer)
        self._sealer = FrameSealer(
            session=keys.session, session_key=keys.session_key, salt=salt, algorithm=keys.algorithm
        )
        self._view[:HEADER_BYTES] = pack_header(keys.session)
        self._length = HEADER_BYTES
        self.items: list[PackItem] = []

    def has_room(self, body: bytes) -> bool:
        """Say whether the frame with this body fits; an empty pack takes any chunk of CHUNK_MAX bytes."""
        frame = FRAME_HEADER_BYTES + len(body) + TAG_BYTES
        return self._length + frame <= PACK_TARGET_BYTES and len(self.items) < FRAMES_PER_PACK_MAX

    def add(self, chunk: bytes, body: bytes) -> int:
        """Seal one frame into the pack and return its length in bytes."""
        length = self._sealer.seal(chunk, body, self._view[self._length :])
        self.items.append(PackItem(chunk, self._length, length))
        self._length += length
        return length

    def finish(self) -> FinishedPack:
        """Sign the trailer and name the pack; the builder is then of no further use."""
        digest = hashlib.sha256(self._view[: self._length])
        tail = sign_trailer(
            self._keys.device, session=self._keys.session, body_sha256=digest.digest(), items=self.items
        )
        end = self._length + len(tail)
        self._view[self._length : end] = tail
        digest.update(tail)
        return FinishedPack(digest.hexdigest(), self._view[:end], tuple(self.items))
