"""Opening the index of a vault in a directory, and making it again from the files when it is missing or behind.

Rules: only clear, signed parts are read (headers, trailers, roots): no secret is needed. A pack or generation that does
not verify is left where it is, out of the index. Blocking.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nas_agent.adapters.directory_files import LocalRecord, VaultFiles
from nas_agent.adapters.directory_index import DirectoryIndex, GenerationRow
from runtime.errors import CorruptDataError
from wire.errors import WireError
from wire.vault.root import GenerationRoot, open_root, root_hash, unverified_root
from wire.vault.session import VerifiedHeader, open_header

INDEX_FILE = "index.sqlite"


def open_index(files: VaultFiles, *, contract_sign_key: bytes) -> DirectoryIndex:
    """Open the index; bring it up to the files after a crash, or make it anew if it is missing or damaged."""
    path = files.root / INDEX_FILE
    if not path.exists():
        return rebuild_index(files, contract_sign_key=contract_sign_key)
    try:
        index = DirectoryIndex(path)
    except CorruptDataError:
        return rebuild_index(files, contract_sign_key=contract_sign_key)
    if index.has_open_sessions():
        index_packs(files, index)
        index.mark_interrupted()
    index_generations(files, index, contract_sign_key=contract_sign_key)
    return index


def rebuild_index(files: VaultFiles, *, contract_sign_key: bytes) -> DirectoryIndex:
    """Make the index from session headers, pack trailers and generations (design §6.6: without any key)."""
    path = files.root / INDEX_FILE
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    index = DirectoryIndex(path)
    for session in files.sessions():
        verified = _header(files, session, contract_sign_key)
        if verified is not None:
            header = verified.header
            index.add_session(
                session, verified.device_key, header.epoch, opened_at=header.created_at, is_open=False
            )
    index_packs(files, index)
    index_generations(files, index, contract_sign_key=contract_sign_key)
    return index


def index_packs(files: VaultFiles, index: DirectoryIndex) -> int:
    """Add packs that are on disk but not in the index; return how many."""
    added = 0
    for name in files.pack_names():
        if index.has_pack(name):
            continue
        with contextlib.suppress(WireError, OSError):
            trailer, size = files.read_trailer(name)
            found = index.session_owner(trailer.session.hex())
            if found is not None and found[1] == trailer.device_key:
                index.add_pack(name, trailer, size)
                added += 1
    return added


def index_generations(files: VaultFiles, index: DirectoryIndex, *, contract_sign_key: bytes) -> None:
    """Make the list of generations equal to the `.root` files."""
    known = {row.path: row for row in index.generations()}
    found = set(files.generation_files())
    for path in sorted(known.keys() - found):
        index.remove_generation(known[path].generation)
    for path in sorted(found - known.keys()):
        pair = files.read_generation(path)
        if pair is not None:
            row = _generation_row(files, index, path, *pair, contract_sign_key)
            if row is not None:
                index.add_generation(row)


def _generation_row(
    files: VaultFiles,
    index: DirectoryIndex,
    path: str,
    blob: bytes,
    record: LocalRecord,
    contract_sign_key: bytes,
) -> GenerationRow | None:
    root = _root(files, blob, contract_sign_key)
    if root is None:
        return None
    device_key, digest = bytes.fromhex(root.device_key), root_hash(blob)
    if files.generation_path(root.backup_set, device_key, root.sequence) != path:
        return None
    return GenerationRow(
        generation=digest[:32],
        backup_set=root.backup_set,
        owner=index.owner(device_key, root.epoch),
        sequence=root.sequence,
        root_sha256=digest,
        received_at=record.received_at,
        stored_bytes=record.stored_bytes,
        path=path,
    )


def _root(files: VaultFiles, blob: bytes, contract_sign_key: bytes) -> GenerationRoot | None:
    try:
        verified = _header(files, unverified_root(blob).session, contract_sign_key)
        return None if verified is None else open_root(blob, device_key=verified.device_key)
    except WireError:
        return None


def _header(files: VaultFiles, session: str, contract_sign_key: bytes) -> VerifiedHeader | None:
    blob = files.read_header(session)
    try:
        return None if blob is None else open_header(blob, contract_sign_key=contract_sign_key)
    except WireError:
        return None
