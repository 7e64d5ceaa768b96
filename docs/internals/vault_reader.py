"""Restore a generation from a vault in a directory, with nothing but this file and the passphrase.

Written from vault-format.md alone; imports nothing of this project, so that a backup outlives it. Needs PyNaCl,
cryptography, zstandard and blake3. Every check of vault-format.md §9 that a lone reader can make is made.
Usage: python vault_reader.py VAULT TARGET [SET [SEQUENCE]]; the passphrase is asked for, or the first line of standard
input if that is no terminal. Left out: the only backup set, the newest generation.
"""
# ruff: noqa: ANN001, ANN002, ANN201, ANN204, B019, N818, PTH101, PTH102, PTH108, PTH118, PTH123, PTH208, PTH211

import contextlib
import functools
import getpass
import hashlib
import json
import os
import struct
import sys
import unicodedata
from base64 import b64decode
from pathlib import Path

import blake3
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

FRAME = struct.Struct(">BBHI16s32sQ32s")


class Refused(Exception):
    """The vault contradicts its keys; the message starts with a name of vault-format.md §9."""


def check(condition, reason):
    if not condition:
        raise Refused(reason)


def attempt(reason, open_or_verify, *arguments):
    try:
        return open_or_verify(*arguments)
    except (CryptoError, InvalidTag, ValueError):
        raise Refused(reason) from None


def blake2b(data, key, person):
    return hashlib.blake2b(data, key=key, person=person, digest_size=32).digest()


def open_contract(vault, passphrase):
    """Return (box public, box secret, signing public) of the contract (§2)."""
    copy = json.loads((vault / "contract.json").read_bytes())
    check(copy["v"] == 1 and copy["kdf"] == "argon2id", "upgrade-needed: contract.json")
    password, salt = unicodedata.normalize("NFKC", passphrase).encode(), b64decode(copy["salt"])
    key = argon2id.kdf(32, password, salt, opslimit=copy["passes"], memlimit=copy["memory_bytes"])
    sealed = b64decode(copy["sealed"])
    secret = attempt("wrong passphrase", bindings.crypto_secretbox_open, sealed[24:], sealed[:24], key)
    box_public, box_secret = bindings.crypto_box_seed_keypair(blake2b(b"", secret, b"hgw contract box"))
    sign_public = bindings.crypto_sign_seed_keypair(blake2b(b"", secret, b"hgw contract sgn"))[0]
    named = copy["box_key"] + copy["sign_key"]
    check(named == box_public.hex() + sign_public.hex(), "contract.json: altered")
    return box_public, box_secret, sign_public


def verified(blob, context, key, reason):
    """Return the payload of a signed blob (protocols.md §1)."""
    attempt(reason, bindings.crypto_sign_open, blob[:64] + b"hgw/" + context + b"\0" + blob[64:], key)
    return blob[64:]


def document(blob, context, key, reason):
    """Return a signed JSON document of version 0, which defines no critical fields."""
    value = json.loads(verified(blob, context, key, reason))
    check(value["v"] == 0 and not value.get("critical"), "upgrade-needed")
    return value


class Vault:
    """A vault in a directory, opened with the owner's passphrase."""

    def __init__(self, path, passphrase):
        self.path, self.sessions = path, {}
        about = json.loads((path / "vault.json").read_bytes())
        check((about["format"], about["v"]) == ("hgw-vault", 0), "upgrade-needed: vault.json")
        self.contract = about["contract"]
        self.box_public, self.box_secret, self.sign_key = open_contract(path, passphrase)

    def session(self, name):
        """Return (header, device key, session key, ID key) of a session (§3, §4)."""
        if name not in self.sessions:
            blob = (self.path / "sessions" / f"{name}.header").read_bytes()
            cert_blob = b64decode(attempt("header-format", json.loads, blob[64:])["device_cert"])
            cert = document(cert_blob, b"device-cert/1", self.sign_key, "device-not-certified")
            device = bytes.fromhex(cert["device_key"])
            header = document(blob, b"session-header/1", device, "header-signature")
            check(header["contract"] == cert["contract"] == self.contract, "header-foreign")
            check(header["session"] == name, "header-foreign")
            sealed, keys = b64decode(header["sealed"]), (self.box_public, self.box_secret)
            plain = attempt("header-sealed", bindings.crypto_box_seal_open, sealed, *keys)
            self.sessions[name] = header, device, plain[:32], plain[32:64]
        return self.sessions[name]

    def roots(self, backup_set):
        """Return the roots of a set after checking signatures and chain (§9.1, §9.3)."""
        found = {}
        for path in sorted((self.path / "generations" / backup_set).glob("*/*.root")):
            blob = path.read_bytes()
            header, device = self.session(attempt("root-format", json.loads, blob[64:])["session"])[:2]
            root = document(blob, b"generation-root/1", device, "root-signature")
            check(root["contract"] == self.contract and root["device_key"] == device.hex(), "root-foreign")
            check(root["backup_set"] == header["backup_set"] == backup_set, "root-foreign")
            check(root["epoch"] == header["epoch"], "root-foreign")
            found[device, root["sequence"]] = root, hashlib.sha256(blob).hexdigest()
        for (device, sequence), (root, _) in found.items():
            named = dict(map(tuple, root["history"]))
            if root["parent"] is not None:
                named[sequence - 1] = root["parent"]
            for older, digest in named.items():
                listed = found.get((device, older), (None, digest))
                check(older < sequence and listed[1] == digest, "chain-broken")
        return [root for root, _ in found.values()]

    @functools.cached_property
    def places(self):
        """Map (device key, epoch, chunk ID) to (pack path, offset, length), from the signed trailers (§5)."""
        places = {}
        for path in (self.path / "packs").glob("*/*"):
            data = path.read_bytes()
            try:
                magic, version, _, session = struct.unpack_from(">4sHH16s", data)
                length, end = struct.unpack(">I4s", data[-8:])
                check((magic, version, end) == (b"HGWP", 0, b"HGWE"), "pack-format")
                header, device = self.session(session.hex())[:2]
                payload = verified(data[-8 - length : -8], b"pack/1", device, "trailer-signature")
            except (Refused, OSError, struct.error) as error:
                print(f"pack {path.name[:16]}… left out: {error}", file=sys.stderr)
                continue
            for chunk, offset, frame in struct.iter_unpack(">32sII", payload[88:]):
                places.setdefault((device, header["epoch"], chunk), (path, offset, frame))
        return places

    @functools.lru_cache(maxsize=8)
    def chunk(self, device_key, epoch, chunk):
        """Return the plaintext of a chunk (§6, §9.4)."""
        device, name = bytes.fromhex(device_key), f"damaged-chunk: {chunk.hex()[:16]}…"
        path, offset, length = self.places.get((device, epoch, chunk), (None, 0, 0))
        check(path is not None, f"{name} is not in the vault")
        frame = path.read_bytes()[offset : offset + length]
        check(len(frame) == length > 124, f"{name} is cut short")
        version, algorithm, zero, size, session, salt, count, said = FRAME.unpack_from(frame)
        check((version, zero, size, said) == (0, 0, length - 96, chunk), f"{name} has another header")
        header, writer, session_key, id_key = self.session(session.hex())
        check((writer, header["epoch"]) == (device, epoch), "chunk-foreign")
        key = blake2b(bytes([algorithm]) + salt, session_key, b"hgw/pack-key/1")
        cipher = {1: AESGCM, 2: ChaCha20Poly1305}[algorithm](key)
        sealed = count.to_bytes(12, "big"), frame[96:], frame[:96]
        body = attempt(f"{name} does not authenticate", cipher.decrypt, *sealed)
        codec, _, plain_bytes, stored_bytes = struct.unpack_from(">B3sII", body)
        stored = body[12 : 12 + stored_bytes]
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=4 << 20) if codec else stored
        good = len(data) == plain_bytes and blake3.blake3(data, key=id_key).digest() == chunk
        check(good, f"{name} has another content than its ID says")
        return data

    def manifest(self, root):
        """Yield the records of the manifest (§7)."""
        place = root["device_key"], root["epoch"]
        items = [(bytes.fromhex(chunk), length) for chunk, length in root["manifest"]["items"]]
        for _ in range(root["manifest"]["depth"]):
            joined = b"".join(self.chunk(*place, chunk) for chunk, _ in items)
            items = list(struct.iter_unpack(">32sI", joined))
        rest, last, total, directories = b"", None, 0, {b""}
        for chunk, _ in items:
            rest += self.chunk(*place, chunk)
            while len(rest) >= 4 and len(rest) - 4 >= int.from_bytes(rest[:4], "big"):
                record, end = unpack(rest, 4)
                size = 4 + int.from_bytes(rest[:4], "big")
                path, order = record[0], record[0].replace(b"/", b"\0")
                check(end == size and len(record) == 15 and (last is None or order > last), "manifest-format")
                check(not path or not {b"", b".", b".."} & set(path.split(b"/")), "manifest-format")
                check(b"\0" not in path and path.rpartition(b"/")[0] in directories, "manifest-format")
                if record[1] == "d":
                    directories.add(path)
                rest, last, total = rest[size:], order, total + size
                yield record
        check(not rest and total == root["manifest"]["bytes"], "manifest-format")


def unpack(data, at):
    """Return (value, next position): the part of MessagePack that manifests use."""
    kind, at = data[at], at + 1
    if kind <= 0x7F or kind >= 0xE0:
        return (kind if kind <= 0x7F else kind - 256), at
    if 0xCC <= kind <= 0xD3:
        size = 1 << (kind & 3)
        return int.from_bytes(data[at : at + size], "big", signed=kind >= 0xD0), at + size
    if 0xA0 <= kind <= 0xBF:
        return data[at : at + (kind & 31)].decode(), at + (kind & 31)
    if 0xC4 <= kind <= 0xC6:
        start = at + (1 << (kind - 0xC4))
        end = start + int.from_bytes(data[at:start], "big")
        return data[start:end], end
    check(0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD), f"manifest-format: MessagePack byte {kind:#x}")
    width = 0 if kind <= 0x9F else 2 << (kind - 0xDC)
    at, values, counted = at + width, [], int.from_bytes(data[at : at + width], "big")
    for _ in range(counted if width else kind & 15):
        value, at = unpack(data, at)
        values.append(value)
    return values, at


def write_file(vault, root, path, size, holes, content):
    """Write the bytes of a file around its holes."""
    with open(path, "xb") as file:
        position, gaps = 0, [*map(tuple, holes), (size, 0)]
        for chunk, offset, length in content:
            data = memoryview(vault.chunk(root["device_key"], root["epoch"], chunk))[offset : offset + length]
            while data:
                while gaps[0][0] == position:
                    position += gaps.pop(0)[1]
                file.seek(position)
                count = file.write(data[: gaps[0][0] - position])
                position, data = position + count, data[count:]
        file.truncate(size)


def make(vault, root, path, record, linked):
    """Create one object without its metadata."""
    kind, size, group, link_target, device, holes, content = record[1], record[8], *record[10:15]
    if group and group in linked:
        os.link(linked[group], path, follow_symlinks=False)
    elif kind == "d":
        os.mkdir(path, 0o700)
    elif kind == "f":
        write_file(vault, root, path, size, holes, content)
    elif kind == "l":
        os.symlink(link_target, path)
    elif kind == "p":
        os.mkfifo(path)
    elif kind in ("c", "b", "s"):
        os.mknod(path, {"c": 0o020000, "b": 0o060000, "s": 0o140000}[kind] | 0o600, os.makedev(*device))
    linked.setdefault(group, path)


def set_metadata(path, record):
    """Set what the record says, as far as this user and file system can."""
    kind, mode, uid, gid, mtime_ns, xattrs = record[1], record[2], record[3], record[4], record[7], record[9]
    steps = [lambda: os.chown(path, uid, gid, follow_symlinks=False)]
    steps += [lambda n=n, v=v: os.setxattr(path, n, v, follow_symlinks=False) for n, v in xattrs]
    steps += [lambda: os.chmod(path, mode)] if kind != "l" else []
    steps += [lambda: os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)]
    for step in steps:
        with contextlib.suppress(OSError):
            step()


def restore(vault, root, target):
    """Restore into a new directory; return how many objects failed."""
    sum(1 for _ in vault.manifest(root))  # §9.5: the whole manifest holds before the first byte is written
    failed, linked, made = 0, {}, []
    for record in vault.manifest(root):
        path = os.path.join(os.fsencode(target), record[0]).rstrip(b"/")
        try:
            make(vault, root, path, record, linked)
            made.append((path, record)) if record[1] == "d" else set_metadata(path, record)
        except (OSError, Refused) as error:
            failed += 1
            print(f"{record[0]!r}: {error}", file=sys.stderr)
            if isinstance(error, Refused) and os.path.lexists(path):
                os.unlink(path)
    for path, record in reversed(made):
        set_metadata(path, record)
    return failed


def main(vault, target, backup_set=None, sequence=None):
    """Ask for the passphrase, choose the generation, restore it; return the exit code."""
    passphrase = getpass.getpass("passphrase: ") if sys.stdin.isatty() else input()
    opened, sets = Vault(Path(vault), passphrase), sorted(os.listdir(Path(vault, "generations")))
    check(backup_set or len(sets) == 1, f"name one of the backup sets {sets}")
    roots = [r for r in opened.roots(backup_set or sets[0]) if sequence in (None, str(r["sequence"]))]
    check(roots, "no such generation")
    root = max(roots, key=lambda each: (each["created_at"], each["sequence"]))
    failed = restore(opened, root, target)
    print(f"generation {root['sequence']} of {root['backup_set']}: {root['files']} files, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Refused as error:
        sys.exit(f"refused: {error}")
