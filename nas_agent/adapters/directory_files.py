"""The files of a vault in a directory (vault-format.md §10): names, durable writes, and the lock.

Rules: a file appears under its name only whole and fsynced, its directory entry too; nothing is overwritten. Only names
made from checked hex, numbers and set names become paths. Blocking; no index here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from runtime.errors import CorruptDataError, LocalError
from runtime.files import fsync_dir, make_dirs, write_all, write_atomic
from wire.errors import WireError
from wire.ids import BackupSetName
from wire.vault.document import VERSION
from wire.vault.pack import FOOTER_BYTES, HEADER_BYTES, Trailer, parse_trailer, trailer_length
from wire.vault.root import unverified_root

VAULT_FILE: Final = "vault.json"
OWNER_FILE: Final = "contract.json"
REFS_BLOCK_BYTES: Final = 64 << 10
_PACK_NAME: Final = re.compile(r"[0-9a-f]{64}")


class VaultDescription(msgspec.Struct, frozen=True, kw_only=True):
    """`vault.json`."""

    v: int = VERSION
    format: str = "hgw-vault"
    contract: str


class LocalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`.local`: what stands in for a receipt. Nobody signed it."""

    v: int = VERSION
    local: bool = True
    sequence: int
    root_sha256: str
    received_at: int
    stored_bytes: int


def create_vault(root: Path, *, contract: str, owner_copy: bytes) -> None:
    """Make an empty vault in a new or empty directory; `owner_copy` is the wrapped contract secret (§2).

    Raises `LocalError` if something is there already, `OSError` if it cannot be written.
    """
    make_dirs(root)
    if any(root.iterdir()):
        raise LocalError(f"vault {root}: expected an empty directory")
    for name in ("packs", "sessions", "generations"):
        make_dirs(root / name)
    write_atomic(root / OWNER_FILE, owner_copy)
    write_atomic(root / VAULT_FILE, msgspec.json.encode(VaultDescription(contract=contract)))


class VaultFiles:
    """Access to one vault's files."""

    def __init__(self, root: Path) -> None:
        """Remember where the vault is; nothing is opened."""
        self.root = root
        self._pack_dirs: set[str] = set()

    def check(self, contract: str) -> None:
        """Raise `LocalError` unless this is a vault of `contract` in a version we know."""
        try:
            data = (self.root / VAULT_FILE).read_bytes()
            description = msgspec.json.decode(data, type=VaultDescription)
        except FileNotFoundError as error:
            raise LocalError(f"vault {self.root}: no {VAULT_FILE} there; make one with `init`") from error
        except msgspec.MsgspecError as error:
            raise CorruptDataError(f"vault {self.root}: {VAULT_FILE}: {error}") from error
        if description.v != VERSION or description.format != "hgw-vault":
            raise LocalError(f"vault {self.root}: version {description.v}: upgrade needed")
        if description.contract != contract:
            expected = f"expected contract {contract}, it is of {description.contract}"
            raise LocalError(f"vault {self.root}: {expected}")

    def lock(self, *, exclusive: bool) -> int | None:
        """Take the vault's lock; return a descriptor to close, or None if another program has it."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def write_pack(self, name: str, data: memoryview) -> None:
        """Put a pack under its name, durably. A pack that is there already stays."""
        directory = self._pack_dir(name)
        path = directory / name
        temporary = directory / f".{secrets.token_hex(8)}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        fsync_dir(directory)

    def pack_size(self, name: str) -> int | None:
        """Return the size of a pack file in bytes, None if there is none."""
        try:
            return self.pack_path(name).stat().st_size
        except FileNotFoundError:
            return None

    def read_pack(self, name: str, offset: int, length: int) -> bytes | None:
        """Return a range of a pack, or None if pack or range is not there."""
        try:
            fd = os.open(self.pack_path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(fd, length, offset)
        finally:
            os.close(fd)
        return data if len(data) == length else None

    def read_trailer(self, name: str) -> tuple[Trailer, int]:
        """Return the verified trailer of a pack and the pack's size in bytes.

        Raises `wire.errors.WireError` if it is no whole pack, `OSError` if it cannot be read.
        """
        with self.pack_path(name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - FOOTER_BYTES, 0))
            length = trailer_length(file.read(FOOTER_BYTES))
            file.seek(max(size - FOOTER_BYTES - length, HEADER_BYTES))
            return parse_trailer(file.read(length)), size

    def pack_names(self) -> Iterator[str]:
        """Yield the names of all pack files; leftovers of interrupted writes are removed on the way."""
        for directory in sorted((self.root / "packs").iterdir()):
            for path in directory.iterdir():
                if path.name.endswith(".tmp"):
                    path.unlink(missing_ok=True)
                elif _PACK_NAME.fullmatch(path.name):
                    yield path.name

    def remove_pack(self, name: str) -> None:
        """Remove a pack file."""
        self.pack_path(name).unlink(missing_ok=True)

    def pack_path(self, name: str) -> Path:
        """Return where a pack lies; raises `LocalError` for anything but 64 hex digits."""
        if not _PACK_NAME.fullmatch(name):
            raise LocalError(f"pack name: expected 64 hex digits, got {ascii(name)[:80]}")
        return self.root / "packs" / name[:2] / name

    def write_header(self, session: str, blob: bytes) -> None:
        """Keep a session header."""
        write_atomic(self.root / "sessions" / f"{session}.header", blob)

    def read_header(self, session: str) -> bytes | None:
        """Return a session header, None if there is none."""
        try:
            return (self.root / "sessions" / f"{session}.header").read_bytes()
        except FileNotFoundError:
            return None

    def sessions(self) -> Iterator[str]:
        """Yield the sessions that have a header."""
        for path in sorted((self.root / "sessions").glob("*.header")):
            yield path.name.removesuffix(".header")

    def generation_path(self, backup_set: str, device_key: bytes, sequence: int) -> str:
        """Return the path of a `.root` file relative to the vault."""
        BackupSetName.parse(backup_set)
        return f"generations/{backup_set}/{device_key.hex()[:16]}/{sequence:010d}.root"

    def write_generation(self, path: str, *, root: bytes, record: LocalRecord, refs: Iterable[bytes]) -> bool:
        """Write `.refs`, `.local` and last, as the commit point, `.root`; False if that sequence exists already."""
        target = self.root / path
        make_dirs(target.parent)
        self._write_refs(target.with_suffix(".refs"), refs)
        write_atomic(target.with_suffix(".local"), msgspec.json.encode(record))
        temporary = target.with_suffix(f".{secrets.token_hex(8)}.tmp")
        write_atomic(temporary, root)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        fsync_dir(target.parent)
        return True

    def generation_files(self) -> Iterator[str]:
        """Yield the paths of all `.root` files relative to the vault."""
        for path in sorted((self.root / "generations").glob("*/*/*.root")):
            yield path.relative_to(self.root).as_posix()

    def read_generation(self, path: str) -> tuple[bytes, LocalRecord] | None:
        """Return root blob and local record, None if they are not (both) there."""
        target = self.root / path
        try:
            record = msgspec.json.decode(target.with_suffix(".local").read_bytes(), type=LocalRecord)
            return target.read_bytes(), record
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def read_refs(self, path: str) -> Iterator[bytes]:
        """Yield the references of a generation in blocks of whole 32-byte IDs."""
        with (self.root / path).with_suffix(".refs").open("rb") as file:
            while block := file.read(REFS_BLOCK_BYTES):
                yield block

    def refs_are_whole(self, path: str) -> bool:
        """Say whether a generation's references are those its root was signed for."""
        try:
            root = unverified_root((self.root / path).read_bytes())
            return refs_digest(self.read_refs(path)) == root.refs_sha256
        except (OSError, WireError):
            return False

    def remove_generation(self, path: str) -> None:
        """Remove a generation: `.root` first, so that what is left is no generation."""
        target = self.root / path
        target.unlink(missing_ok=True)
        fsync_dir(target.parent)
        target.with_suffix(".local").unlink(missing_ok=True)
        target.with_suffix(".refs").unlink(missing_ok=True)

    def _write_refs(self, target: Path, refs: Iterable[bytes]) -> None:
        temporary = target.with_suffix(".refs.tmp")
        with temporary.open("wb") as file:
            for block in refs:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)

    def _pack_dir(self, name: str) -> Path:
        directory = self.pack_path(name).parent
        if directory.name not in self._pack_dirs:
            make_dirs(directory)
            self._pack_dirs.add(directory.name)
        return directory


def refs_digest(blocks: Iterable[bytes]) -> str:
    """Return the SHA-256 (hex) over all blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
