"""The frozen vectors of the vault format: each accept opens, each reject is refused with its class, and no other way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wire import errors
from wire.vault.frame import Algorithm, chunk_id, open_frame, pack_key, padme, parse_frame_header
from wire.vault.manifest import ManifestReader
from wire.vault.pack import verify_pack
from wire.vault.root import open_root
from wire.vault.session import SessionSecrets, open_header, unseal_secrets

VECTORS = {
    path.stem: path for path in sorted((Path(__file__).parents[1] / "vectors" / "vault").glob("*.json"))
}

VECTOR_COUNT = 75
VECTORS_SHA256 = "6a766d977b972378254161a78cc218c01a90cacff4f6db3c8cc2d05ee363c644"
CHUNK_ID = "f76855b070a01f104ffe7461f0783e134cf67999c0d51b88ae34538704ff6b02"
PACK_KEY = "90c5b46fe20d5f95491d297a9e6f1cfccb191dc5de14c4a22965588467900c17"


def open_pack_vector(vector: dict[str, str]) -> None:
    data = bytes.fromhex(vector["pack"])
    trailer = verify_pack(data, name=vector["name"], device_key=bytes.fromhex(vector["device_key"]))
    assert len(trailer.items) == 2


def open_frame_vector(vector: dict[str, str]) -> None:
    frame = bytes.fromhex(vector["frame"])
    keys = {"session_key": bytes.fromhex(vector["session_key"]), "id_key": bytes.fromhex(vector["id_key"])}
    assert open_frame(frame, parse_frame_header(frame), **keys).hex() == vector["chunk"]


def open_header_vector(vector: dict[str, object]) -> None:
    verified = open_header(
        bytes.fromhex(str(vector["header"])),
        contract_sign_key=bytes.fromhex(str(vector["contract_sign_key"])),
    )
    secrets = unseal_secrets(
        verified.header,
        box_public=bytes.fromhex(str(vector["box_public"])),
        box_secret=bytes.fromhex(str(vector["box_secret"])),
    )
    assert secrets == SessionSecrets(
        bytes.fromhex(str(vector["session_key"])),
        bytes.fromhex(str(vector["id_key"])),
        vector["chunk_seed"],  # type: ignore[arg-type]
    )


def open_root_vector(vector: dict[str, str]) -> None:
    root = open_root(bytes.fromhex(vector["root"]), device_key=bytes.fromhex(vector["device_key"]))
    assert root.sequence == 3


def open_manifest_vector(vector: dict[str, str]) -> None:
    data, reader = bytes.fromhex(vector["manifest"]), ManifestReader()
    entries = [entry for start in range(0, len(data), 7) for entry in reader.feed(data[start : start + 7])]
    reader.finish()
    assert [entry.path for entry in entries] == [b"", b"a", b"a/b", b"a.c", b"file\xff"]


OPENERS: dict[str, Callable[[dict], None]] = {
    "pack": open_pack_vector,
    "frame": open_frame_vector,
    "header": open_header_vector,
    "root": open_root_vector,
    "manifest": open_manifest_vector,
}


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    vector = json.loads(VECTORS[name].read_text())
    assert name.startswith("reject-") == (vector["error"] is not None)
    opener = OPENERS[vector["kind"]]
    if vector["error"] is None:
        opener(vector)
        return
    with pytest.raises(errors.WireError) as caught:
        opener(vector)
    assert type(caught.value).__name__ == vector["error"], caught.value


def test_the_vectors_are_those_that_were_frozen() -> None:
    digest = hashlib.sha256()
    for name, path in VECTORS.items():
        digest.update(name.encode() + path.read_bytes())
    assert len(VECTORS) == VECTOR_COUNT
    assert digest.hexdigest() == VECTORS_SHA256, (
        "a frozen vector changed, or one was added: say so in the changelog"
    )


def test_padme_keeps_few_leading_bits() -> None:
    table = {
        0: 0,
        1: 1,
        2: 2,
        3: 3,
        9: 10,
        15: 15 + 1,
        100: 104,
        1000: 1024,
        65_537: 67_584,
        262_156: 270_336,
    }
    assert {length: padme(length) for length in table} == table


def test_padme_never_shrinks_and_adds_at_most_12_percent() -> None:
    for length in [*range(5000), *range(1 << 16, 1 << 20, 997)]:
        padded = padme(length)
        assert length <= padded <= max(length * 1.12, length + 1)
        assert padme(padded) == padded


def test_derived_values_are_those_of_the_format() -> None:
    assert chunk_id(bytes(32), b"chunk").hex() == CHUNK_ID
    assert pack_key(bytes(32), Algorithm.AES_256_GCM, b"\1" * 32).hex() == PACK_KEY
    assert pack_key(bytes(32), Algorithm.CHACHA20_POLY1305, b"\1" * 32).hex() != PACK_KEY
