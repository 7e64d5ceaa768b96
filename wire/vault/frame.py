"""Frames: one chunk, compressed, padded and encrypted (vault-format.md §6).

Rules
- (key, nonce) is (subkey of session key and pack salt, place in the pack): the caller never passes a nonce.
- The frame header is associated data; the chunk ID is recomputed from the plaintext on opening.
- `cryptography` does the bulk work and writes into the caller's buffer; nothing here keeps a copy.
- It does not do: drawing salts, choosing the codec, remembering which salts were used.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import Final

import attrs
import blake3
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from wire.errors import FormatError, SignatureError
from wire.vault.document import VERSION, check_version

CHUNK_BYTES_MAX: Final = 4 << 20
FRAME_HEADER_BYTES: Final = 96
TAG_BYTES: Final = 16
BODY_HEADER_BYTES: Final = 12
SALT_BYTES: Final = 32

_HEADER: Final = struct.Struct(">BBHI16s32sQ32s")
_BODY: Final = struct.Struct(">B3sII")
_NO_BYTES: Final = b"\0\0\0"


class Algorithm(enum.IntEnum):
    """AEAD of a frame; the writer takes AES where the CPU has it."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


class Codec(enum.IntEnum):
    """How the chunk is stored inside the frame."""

    RAW = 0
    ZSTD = 1


@attrs.frozen
class FrameHeader:
    """The clear, authenticated part of a frame. `ciphertext_bytes` includes the tag."""

    algorithm: Algorithm
    ciphertext_bytes: int
    session: bytes
    salt: bytes
    counter: int
    chunk: bytes
    raw: bytes = attrs.field(repr=False)


def padme(length: int) -> int:
    """Return `length` rounded up to its Padmé length: at most ⌊log2 log2 length⌋ + 1 leading bits vary."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask


def frame_bytes(stored_bytes: int) -> int:
    """Return the length of the frame that holds `stored_bytes` of raw or compressed chunk."""
    return FRAME_HEADER_BYTES + padme(BODY_HEADER_BYTES + stored_bytes) + TAG_BYTES


def chunk_id(id_key: bytes, chunk: bytes | memoryview) -> bytes:
    """Return the ID of a chunk: BLAKE3 keyed with the epoch's ID key (32 bytes)."""
    return blake3.blake3(chunk, key=id_key).digest()


def pack_key(session_key: bytes, algorithm: Algorithm, salt: bytes) -> bytes:
    """Return the AEAD key of one pack (32 bytes) from its session key and 256-bit salt."""
    return hashlib.blake2b(
        bytes((algorithm,)) + salt, key=session_key, person=b"hgw/pack-key/1", digest_size=32
    ).digest()


class FrameSealer:
    """Seals the frames of one pack in order; made with a fresh salt for every pack. Not for two threads."""

    def __init__(self, *, session: bytes, session_key: bytes, salt: bytes, algorithm: Algorithm) -> None:
        """Bind to a pack: `session` 16, `session_key` and `salt` 32 bytes."""
        self._session = session
        self._salt = salt
        self._algorithm = algorithm
        self._cipher = _cipher(algorithm, pack_key(session_key, algorithm, salt))
        self._counter = 0

    def seal(self, chunk: bytes, body: bytes | memoryview, out: memoryview) -> int:
        """Write the frame of chunk ID `chunk` into the start of `out` and return its length.

        `body` comes from `frame_body`; `out` must have room for it plus header and tag.
        """
        header = _HEADER.pack(
            VERSION,
            self._algorithm,
            0,
            len(body) + TAG_BYTES,
            self._session,
            self._salt,
            self._counter,
            chunk,
        )
        nonce = self._counter.to_bytes(12, "big")
        self._counter += 1
        out[:FRAME_HEADER_BYTES] = header
        end = FRAME_HEADER_BYTES + len(body) + TAG_BYTES
        self._cipher.encrypt_into(nonce, body, header, out[FRAME_HEADER_BYTES:end])
        return end


def frame_body(codec: Codec, chunk_bytes: int, stored: bytes | memoryview) -> bytes:
    """Return the plaintext of a frame: small header, the stored bytes, zero padding to the Padmé length."""
    length = BODY_HEADER_BYTES + len(stored)
    head = _BODY.pack(codec, _NO_BYTES, chunk_bytes, len(stored))
    return b"".join((head, stored, bytes(padme(length) - length)))


def parse_frame_header(frame: bytes | memoryview) -> FrameHeader:
    """Return the header of a frame; raises `FormatError` or `UpgradeNeededError`."""
    if len(frame) < FRAME_HEADER_BYTES + TAG_BYTES + BODY_HEADER_BYTES:
        message = f"frame: expected at least {FRAME_HEADER_BYTES + TAG_BYTES + BODY_HEADER_BYTES} bytes, got {len(frame)}"
        raise FormatError(message)
    raw = bytes(frame[:FRAME_HEADER_BYTES])
    version, algorithm, reserved, length, session, salt, counter, chunk = _HEADER.unpack(raw)
    check_version("frame", version)
    if reserved or algorithm not in {1, 2} or length != len(frame) - FRAME_HEADER_BYTES:
        message = f"frame: algorithm {algorithm}, length {length} of {len(frame) - FRAME_HEADER_BYTES}"
        raise FormatError(message)
    return FrameHeader(Algorithm(algorithm), length, session, salt, counter, chunk, raw)


def open_frame(frame: bytes | memoryview, header: FrameHeader, *, session_key: bytes, id_key: bytes) -> bytes:
    """Return the chunk in a frame.

    Args:
        frame: the whole frame.
        header: its parsed header.
        session_key: of the session the header names.
        id_key: of that session's epoch.

    Raises `SignatureError` if the AEAD or the chunk ID does not hold, `FormatError` if the plaintext is malformed.
    """
    cipher = _cipher(header.algorithm, pack_key(session_key, header.algorithm, header.salt))
    try:
        body = cipher.decrypt(header.counter.to_bytes(12, "big"), frame[FRAME_HEADER_BYTES:], header.raw)
    except InvalidTag as error:
        message = f"frame of chunk {header.chunk.hex()[:16]}…: does not authenticate"
        raise SignatureError(message) from error
    chunk = _open_body(body)
    if chunk_id(id_key, chunk) != header.chunk:
        message = f"frame of chunk {header.chunk.hex()[:16]}…: the plaintext has another ID"
        raise SignatureError(message)
    return chunk


def _open_body(body: bytes) -> bytes:
    codec, reserved, chunk_bytes, stored_bytes = _BODY.unpack_from(body)
    end = BODY_HEADER_BYTES + stored_bytes
    canonical = reserved == _NO_BYTES and len(body) == padme(end) and not any(body[end:])
    if not canonical or not 0 < chunk_bytes <= CHUNK_BYTES_MAX:
        message = f"frame body: {stored_bytes} stored of {chunk_bytes} bytes do not fit {len(body)}"
        raise FormatError(message)
    stored = body[BODY_HEADER_BYTES:end]
    if codec == Codec.RAW:
        chunk = stored
    elif codec == Codec.ZSTD:
        chunk = _decompress(stored, chunk_bytes)
    else:
        message = f"frame body: unknown codec {codec}"
        raise FormatError(message)
    if len(chunk) != chunk_bytes:
        message = f"frame body: expected a chunk of {chunk_bytes} bytes, got {len(chunk)}"
        raise FormatError(message)
    return chunk


def _decompress(stored: bytes, chunk_bytes: int) -> bytes:
    # The frame's own content size is checked first: decompress() would otherwise allocate what the frame asks for.
    try:
        declared = zstandard.frame_content_size(stored)
        if declared != chunk_bytes:
            message = f"frame body: zstd frame declares {declared} bytes, expected {chunk_bytes}"
            raise FormatError(message)
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        message = f"frame body: {error}"
        raise FormatError(message) from error


def _cipher(algorithm: Algorithm, key: bytes) -> AESGCM | ChaCha20Poly1305:
    return AESGCM(key) if algorithm is Algorithm.AES_256_GCM else ChaCha20Poly1305(key)
