"""Makes the vault vectors that do not exist yet; one that exists is frozen and never written again.

Usage: PYTHONPATH=. python tests/vectors/vault/make_vectors.py. Each NAME.json holds {kind, error, note, …hex fields};
`error` is null for accept vectors, else the class that the parser must raise. Secrets are fixed bytes: test data.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
from nacl import bindings

from wire.signing import Context, SigningKey, sign_blob
from wire.storage import to_base64
from wire.vault.entry import Entry, Kind, Span, encode_entry
from wire.vault.frame import Algorithm, Codec, FrameSealer, chunk_id, frame_body
from wire.vault.pack import PackItem, pack_header, sign_trailer
from wire.vault.root import GenerationRoot, Manifest, sign_root
from wire.vault.session import (
    DeviceCert,
    SessionHeader,
    SessionSecrets,
    seal_secrets,
    sign_device_cert,
    sign_header,
)

HERE = Path(__file__).parent
CONTRACT = "AZK0000000001"
CONTRACT_KEY = SigningKey(b"\x01" * 32)
DEVICE = SigningKey(b"\x02" * 32)
OTHER = SigningKey(b"\x03" * 32)
BOX_PUBLIC, BOX_SECRET = bindings.crypto_box_seed_keypair(b"\x04" * 32)
SESSION, SESSION_KEY, ID_KEY, SALT = b"\x05" * 16, b"\x06" * 32, b"\x07" * 32, b"\x08" * 32
CHUNKS = (b"the first chunk of a pack", b"text that compresses " * 60)
Vector = dict[str, object]


def seal(
    codec: Codec,
    chunk: bytes,
    *,
    counter: int = 0,
    algorithm: Algorithm = Algorithm.AES_256_GCM,
    **changes: bytes,
) -> bytes:
    import zstandard

    stored = chunk if codec is Codec.RAW else zstandard.ZstdCompressor(level=3).compress(chunk)
    body = changes.get("body") or frame_body(codec, len(chunk), stored)
    name = changes.get("chunk_id") or chunk_id(ID_KEY, chunk)
    sealer = FrameSealer(session=SESSION, session_key=SESSION_KEY, salt=SALT, algorithm=algorithm)
    sealer._counter = counter
    out = bytearray(len(body) + 200)
    return bytes(out[: sealer.seal(name, body, memoryview(out))])


def frame_vector(frame: bytes, error: str | None, note: str, *, chunk: bytes = CHUNKS[0]) -> Vector:
    return {
        "kind": "frame",
        "error": error,
        "note": note,
        "frame": frame.hex(),
        "session_key": SESSION_KEY.hex(),
        "id_key": ID_KEY.hex(),
        "chunk": None if error else chunk.hex(),
    }


def pack(
    *, signer: SigningKey = DEVICE, session: bytes = SESSION, swap: bool = False, shift: int = 0
) -> bytes:
    frames = [seal(Codec.RAW, CHUNKS[0]), seal(Codec.ZSTD, CHUNKS[1], counter=1)]
    items, offset = [], 24
    for chunk, frame in zip(CHUNKS, frames, strict=True):
        items.append(PackItem(chunk_id(ID_KEY, chunk), offset + shift, len(frame)))
        offset += len(frame)
    body = pack_header(SESSION) + b"".join(reversed(frames) if swap else frames)
    tail = sign_trailer(
        signer,
        session=session,
        body_sha256=hashlib.sha256(pack_header(SESSION) + b"".join(frames)).digest(),
        items=items,
    )
    return body + tail


def pack_vector(data: bytes, error: str | None, note: str, *, name: str | None = None) -> Vector:
    return {
        "kind": "pack",
        "error": error,
        "note": note,
        "pack": data.hex(),
        "name": name or hashlib.sha256(data).hexdigest(),
        "device_key": DEVICE.public.hex(),
    }


def flipped(data: bytes, position: int, bit: int = 1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= bit
    return bytes(changed)


def packs() -> Iterator[tuple[str, Vector]]:
    good = pack()
    trailer_bytes = struct.unpack(">I", good[-8:-4])[0]
    trailer_at = len(good) - 8 - trailer_bytes
    yield "accept-pack", pack_vector(good, None, "two frames, one raw and one zstd")
    yield "reject-pack-name-wrong", pack_vector(good, "FormatError", "name is not the SHA-256", name="0" * 64)
    yield (
        "reject-trailer-signature-flipped",
        pack_vector(flipped(good, trailer_at), "SignatureError", "one bit of the signature"),
    )
    yield (
        "reject-trailer-item-flipped",
        pack_vector(flipped(good, -20), "SignatureError", "one bit of the last item"),
    )
    yield (
        "reject-trailer-other-device",
        pack_vector(pack(signer=OTHER), "SignatureError", "signed by another device"),
    )
    yield (
        "reject-trailer-other-session",
        pack_vector(pack(session=b"\x09" * 16), "FormatError", "trailer of another session"),
    )
    yield "reject-trailer-gap", pack_vector(pack(shift=1), "FormatError", "first frame not at 24")
    yield (
        "reject-pack-frames-swapped",
        pack_vector(pack(swap=True), "FormatError", "frames in another order than signed"),
    )
    yield (
        "reject-pack-frame-flipped",
        pack_vector(flipped(good, 200), "FormatError", "body is not what the trailer signed"),
    )
    yield "reject-pack-footer-magic", pack_vector(flipped(good, -1), "FormatError", "end magic")
    yield "reject-pack-header-magic", pack_vector(flipped(good, 0), "FormatError", "start magic")
    yield "reject-pack-version-newer", pack_vector(flipped(good, 5), "UpgradeNeededError", "version 1")
    yield "reject-pack-truncated", pack_vector(good[:-1], "FormatError", "last byte missing")
    yield (
        "reject-pack-trailer-longer-than-pack",
        pack_vector(
            good[:-8] + struct.pack(">I4s", 1 << 20, b"HGWE"),
            "FormatError",
            "trailer length beyond the start",
        ),
    )


def frames() -> Iterator[tuple[str, Vector]]:
    good = seal(Codec.RAW, CHUNKS[0])
    yield "accept-frame-raw", frame_vector(good, None, "stored as is")
    zstd = seal(Codec.ZSTD, CHUNKS[1], counter=3)
    yield "accept-frame-zstd", frame_vector(zstd, None, "zstd, counter 3", chunk=CHUNKS[1])
    chacha = seal(Codec.RAW, CHUNKS[0], algorithm=Algorithm.CHACHA20_POLY1305)
    yield "accept-frame-chacha", frame_vector(chacha, None, "ChaCha20-Poly1305")
    yield "reject-frame-ciphertext-flipped", frame_vector(flipped(good, 100), "SignatureError", "AEAD")
    yield (
        "reject-frame-counter-changed",
        frame_vector(flipped(good, 63), "SignatureError", "header is authenticated"),
    )
    yield (
        "reject-frame-chunk-id-changed",
        frame_vector(flipped(good, 64), "SignatureError", "header is authenticated"),
    )
    yield (
        "reject-frame-algorithm-changed",
        frame_vector(
            flipped(flipped(good, 1), 1)[:1] + b"\x02" + good[2:],
            "SignatureError",
            "other algorithm, other key",
        ),
    )
    yield (
        "reject-frame-algorithm-unknown",
        frame_vector(good[:1] + b"\x03" + good[2:], "FormatError", "algorithm 3"),
    )
    yield "reject-frame-version-newer", frame_vector(flipped(good, 0), "UpgradeNeededError", "version 1")
    yield "reject-frame-length-wrong", frame_vector(good + b"\0", "FormatError", "length says less")
    yield (
        "reject-frame-wrong-content",
        frame_vector(
            seal(Codec.RAW, CHUNKS[0], chunk_id=b"\x0a" * 32),
            "SignatureError",
            "authentic, but not the chunk its ID names",
        ),
    )
    body = frame_body(Codec.RAW, len(CHUNKS[0]), CHUNKS[0])
    yield (
        "reject-frame-padding-not-zero",
        frame_vector(
            seal(Codec.RAW, CHUNKS[0], body=body[:-1] + b"\1"), "FormatError", "padding must be zero"
        ),
    )
    yield (
        "reject-frame-padding-missing",
        frame_vector(
            seal(Codec.RAW, CHUNKS[0], body=body[: 12 + len(CHUNKS[0])]), "FormatError", "not a Padmé length"
        ),
    )
    yield (
        "reject-frame-codec-unknown",
        frame_vector(seal(Codec.RAW, CHUNKS[0], body=b"\2" + body[1:]), "FormatError", "codec 2"),
    )
    bomb = struct.pack(">B3sII", 1, bytes(3), 5 << 20, 17) + b"\x28\xb5\x2f\xfd" + bytes(20)
    yield (
        "reject-frame-chunk-too-large",
        frame_vector(seal(Codec.RAW, CHUNKS[0], body=bomb), "FormatError", "5 MiB chunk"),
    )
    import zstandard

    stored = zstandard.ZstdCompressor().compress(bytes(1 << 16))
    lie = frame_body(Codec.ZSTD, 100, stored)
    yield (
        "reject-frame-zstd-size-lies",
        frame_vector(seal(Codec.RAW, CHUNKS[0], body=lie), "FormatError", "inflates beyond its chunk length"),
    )


def cert(contract: str = CONTRACT, signer: SigningKey = CONTRACT_KEY) -> bytes:
    return sign_device_cert(
        signer, DeviceCert(contract=contract, device_key=DEVICE.public.hex(), name="nas", issued_at=1)
    )


def header(
    *,
    signer: SigningKey = DEVICE,
    certificate: bytes | None = None,
    box_public: bytes = BOX_PUBLIC,
    **changes: object,
) -> bytes:
    value = SessionHeader(
        contract=CONTRACT,
        device_cert=to_base64(certificate or cert()),
        epoch="0a" * 16,
        session=SESSION.hex(),
        backup_set="set",
        sequence=1,
        created_at=1_700_000_000,
        box_key=BOX_PUBLIC.hex(),
        sealed=seal_secrets(SessionSecrets(SESSION_KEY, ID_KEY, 77), box_key=box_public),
    )
    return sign_header(signer, msgspec.structs.replace(value, **changes))


def header_vector(blob: bytes, error: str | None, note: str) -> Vector:
    return {
        "kind": "header",
        "error": error,
        "note": note,
        "header": blob.hex(),
        "contract_sign_key": CONTRACT_KEY.public.hex(),
        "box_public": BOX_PUBLIC.hex(),
        "box_secret": BOX_SECRET.hex(),
        "session_key": SESSION_KEY.hex(),
        "id_key": ID_KEY.hex(),
        "chunk_seed": 77,
    }


def headers() -> Iterator[tuple[str, Vector]]:
    good = header()
    extra = msgspec.json.decode(good[64:]) | {"future": 1}
    yield "accept-header", header_vector(good, None, "certificate, signature and sealed keys hold")
    yield (
        "accept-header-unknown-field",
        header_vector(
            sign_blob(DEVICE, Context.SESSION_HEADER, msgspec.json.encode(extra)),
            None,
            "an unknown field that is not critical",
        ),
    )
    yield (
        "reject-header-critical-unknown",
        header_vector(
            sign_blob(DEVICE, Context.SESSION_HEADER, msgspec.json.encode(extra | {"critical": ["future"]})),
            "UpgradeNeededError",
            "unknown critical field",
        ),
    )
    yield "reject-header-version-newer", header_vector(header(v=1), "UpgradeNeededError", "version 1")
    yield (
        "reject-header-signature-flipped",
        header_vector(flipped(good, 0), "SignatureError", "one bit of the signature"),
    )
    yield (
        "reject-header-field-flipped",
        header_vector(
            flipped(good, good.index(b'"sequence":1') + 11, 2), "SignatureError", "sequence changed"
        ),
    )
    yield (
        "reject-header-other-device",
        header_vector(
            header(signer=OTHER), "SignatureError", "signed by a key the certificate does not name"
        ),
    )
    yield (
        "reject-header-uncertified-device",
        header_vector(
            header(certificate=cert(signer=OTHER)), "SignatureError", "certificate of another contract key"
        ),
    )
    yield (
        "reject-header-certificate-other-contract",
        header_vector(
            header(certificate=cert("AZK0000000002")), "FormatError", "certificate for another contract"
        ),
    )
    other_box = bindings.crypto_box_seed_keypair(b"\x0b" * 32)[0]
    yield (
        "reject-header-sealed-to-another",
        header_vector(header(box_public=other_box), "SignatureError", "sealed to another key"),
    )
    yield (
        "reject-header-signed-as-root",
        header_vector(
            sign_blob(DEVICE, Context.GENERATION_ROOT, good[64:]), "SignatureError", "context of another use"
        ),
    )
    yield (
        "reject-header-sequence-zero",
        header_vector(header(sequence=0), "FormatError", "sequence starts at 1"),
    )
    yield (
        "reject-header-epoch-malformed",
        header_vector(header(epoch="0a" * 15), "FormatError", "epoch of 30 digits"),
    )


def root(*, signer: SigningKey = DEVICE, **changes: object) -> bytes:
    value = GenerationRoot(
        contract=CONTRACT,
        backup_set="set",
        device_key=DEVICE.public.hex(),
        epoch="0a" * 16,
        sequence=3,
        session=SESSION.hex(),
        created_at=1_700_000_000,
        parent="0b" * 32,
        history=((2, "0b" * 32), (1, "0c" * 32)),
        manifest=Manifest(depth=0, items=(("0d" * 32, 100),), bytes=100),
        files=1,
        logical_bytes=5,
        complete=True,
        refs_count=1,
        refs_sha256="0e" * 32,
    )
    return sign_root(signer, msgspec.structs.replace(value, **changes))


def root_vector(blob: bytes, error: str | None, note: str) -> Vector:
    return {
        "kind": "root",
        "error": error,
        "note": note,
        "root": blob.hex(),
        "device_key": DEVICE.public.hex(),
    }


def roots() -> Iterator[tuple[str, Vector]]:
    good = root()
    many = tuple(("0d" * 32, 1) for _ in range(65))
    yield "accept-root", root_vector(good, None, "third generation")
    yield (
        "reject-root-signature-flipped",
        root_vector(flipped(good, 63), "SignatureError", "one bit of the signature"),
    )
    yield (
        "reject-root-field-flipped",
        root_vector(flipped(good, good.index(b'"files":1') + 8), "SignatureError", "files changed"),
    )
    yield (
        "reject-root-other-device",
        root_vector(root(signer=OTHER), "SignatureError", "signed by another device"),
    )
    yield (
        "reject-root-names-another-device",
        root_vector(root(device_key=OTHER.public.hex()), "FormatError", "our signature, another's name"),
    )
    yield "reject-root-version-newer", root_vector(root(v=1), "UpgradeNeededError", "version 1")
    yield (
        "reject-root-critical-unknown",
        root_vector(root(critical=("future",)), "UpgradeNeededError", "unknown critical field"),
    )
    yield (
        "reject-root-manifest-too-many-items",
        root_vector(root(manifest=Manifest(depth=0, items=many, bytes=65)), "FormatError", "65 items"),
    )
    yield (
        "reject-root-manifest-chunk-too-long",
        root_vector(
            root(manifest=Manifest(depth=0, items=(("0d" * 32, (1 << 20) + 1),), bytes=1)),
            "FormatError",
            "chunk above 1 MiB",
        ),
    )
    yield (
        "reject-root-backup-set-is-a-path",
        root_vector(root(backup_set="../etc"), "FormatError", "set name"),
    )
    yield (
        "reject-root-history-without-parent",
        root_vector(root(parent=None), "FormatError", "history needs a parent"),
    )
    yield (
        "reject-root-not-json",
        root_vector(sign_blob(DEVICE, Context.GENERATION_ROOT, b"{"), "FormatError", "not JSON"),
    )


def record(entry: Entry) -> bytes:
    data = encode_entry(entry)
    return struct.pack(">I", len(data)) + data


def entry(path: bytes, kind: Kind = Kind.FILE, **changes: object) -> Entry:
    return Entry(path=path, kind=kind, mode=0o644, uid=0, gid=0, mtime_ns=-5, **changes)  # type: ignore[arg-type]


def manifest_vector(data: bytes, error: str | None, note: str) -> Vector:
    return {"kind": "manifest", "error": error, "note": note, "manifest": data.hex()}


def manifests() -> Iterator[tuple[str, Vector]]:
    top = record(entry(b"", Kind.DIRECTORY))
    span = Span(b"\x0d" * 32, 0, 5)
    file = entry(
        b"file\xff",
        user=b"u",
        group=b"g",
        size=9,
        holes=((5, 4),),
        content=(span,),
        link_group=7,
        xattrs=((b"user.x", b"\0\1"), (b"system.posix_acl_access", b"acl")),
    )
    good = (
        top
        + record(entry(b"a", Kind.DIRECTORY))
        + record(entry(b"a/b", Kind.SYMLINK, target=b"../x"))
        + record(entry(b"a.c", Kind.BLOCK, device=(8, 1)))
        + record(file)
    )
    yield (
        "accept-manifest",
        manifest_vector(good, None, "directory, symlink, device, file with hole, xattr and link group"),
    )
    yield "reject-manifest-empty", manifest_vector(b"", "FormatError", "no root")
    yield (
        "reject-manifest-root-missing",
        manifest_vector(record(entry(b"a")), "FormatError", "first entry is not the root"),
    )
    yield (
        "reject-manifest-root-is-a-file",
        manifest_vector(record(entry(b"")), "FormatError", "root of kind f"),
    )
    yield (
        "reject-manifest-out-of-order",
        manifest_vector(top + record(entry(b"b")) + record(entry(b"a")), "FormatError", "b before a"),
    )
    yield (
        "reject-manifest-path-twice",
        manifest_vector(top + record(entry(b"a")) + record(entry(b"a")), "FormatError", "a twice"),
    )
    yield (
        "reject-manifest-orphan",
        manifest_vector(top + record(entry(b"a/b")), "FormatError", "no directory a"),
    )
    yield (
        "reject-manifest-below-a-symlink",
        manifest_vector(
            top + record(entry(b"a", Kind.SYMLINK, target=b"/etc")) + record(entry(b"a/b")),
            "FormatError",
            "parent is a symlink",
        ),
    )
    for name, path in (
        ("dot-dot", b"a/../b"),
        ("absolute", b"/a"),
        ("empty-component", b"a//b"),
        ("nul", b"a\0b"),
        ("dot", b"."),
    ):
        yield (
            f"reject-manifest-path-{name}",
            manifest_vector(
                top + record(entry(b"a", Kind.DIRECTORY)) + record(entry(path)), "FormatError", repr(path)
            ),
        )
    yield (
        "reject-manifest-content-short",
        manifest_vector(
            top + record(entry(b"a", size=6, content=(span,))), "FormatError", "covers 5 of 6 bytes"
        ),
    )
    yield (
        "reject-manifest-holes-overlap",
        manifest_vector(
            top + record(entry(b"a", size=8, holes=((0, 4), (3, 5)))), "FormatError", "holes overlap"
        ),
    )
    yield (
        "reject-manifest-hole-beyond-end",
        manifest_vector(
            top + record(entry(b"a", size=4, holes=((0, 5),))), "FormatError", "hole of 5 in 4 bytes"
        ),
    )
    yield (
        "reject-manifest-mode-too-large",
        manifest_vector(
            top + record(msgspec.structs.replace(entry(b"a"), mode=0o10000)),
            "FormatError",
            "mode beyond 7777",
        ),
    )
    yield "reject-manifest-record-truncated", manifest_vector(good[:-1], "FormatError", "last byte missing")
    yield (
        "reject-manifest-record-too-long",
        manifest_vector(struct.pack(">I", (8 << 20) + 1), "FormatError", "record above 8 MiB"),
    )
    yield (
        "reject-manifest-not-messagepack",
        manifest_vector(struct.pack(">I", 1) + b"\xc1", "FormatError", "byte 0xc1"),
    )


def main() -> None:
    for group in (packs(), frames(), headers(), roots(), manifests()):
        for name, vector in group:
            path = HERE / f"{name}.json"
            if not path.exists():
                path.write_text(json.dumps(vector, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
