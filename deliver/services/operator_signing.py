"""The operator's own side: sign targets metadata with the operator's own keys, at home (design §5.1).

Rules
- `<operator>.targets.json` is what the carrier accepted last; `<operator>.targets.new.json` is signed and waits.
- A new version lists every file of the accepted one, unchanged, and the new package.
- It does not do: talking to the carrier (commands/operator.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from deliver.domain.pricing import Measured
from deliver.services.operator_metadata import make_target_file
from deliver.signing.image_repository import OFFLINE_LIFE_S, expiry
from deliver.signing.tuf import DeserializationError, Metadata, SodiumSigner, Targets, encode, sign
from runtime.errors import LocalError
from runtime.files import write_atomic
from wire.errors import WireError
from wire.package_archive import FileStart, PackageReader, footprint_of
from wire.signing import SigningKey

_PIECE_BYTES: Final = 64 * 1024


@attrs.frozen
class OperatorState:
    """The two metadata files of one operator below `directory`."""

    directory: Path
    operator: str

    @property
    def accepted(self) -> Path:
        """What the carrier accepted last; missing before the first package."""
        return self.directory / f"{self.operator}.targets.json"

    @property
    def waiting(self) -> Path:
        """Signed, not yet accepted."""
        return self.directory / f"{self.operator}.targets.new.json"

    def mark_accepted(self) -> None:
        """Say that the carrier accepted what was waiting."""
        write_atomic(self.accepted, self.waiting.read_bytes())
        self.waiting.unlink()


def measure_package(path: Path) -> Measured:
    """Read a package file and return what the carrier will measure too; raises `LocalError`."""
    reader, digest, stored_bytes = PackageReader(), hashlib.sha256(), 0
    sizes_bytes: list[int] = []
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                stored_bytes += len(piece)
                sizes_bytes += [e.size_bytes for e in reader.feed(piece) if isinstance(e, FileStart)]
        manifest = reader.finish()
    except (WireError, OSError) as error:
        raise LocalError(f"{path}: {error}") from error
    return Measured(manifest, digest.hexdigest(), stored_bytes, footprint_of(sizes_bytes))


def sign_package(
    state: OperatorState, package: Measured, keys: Sequence[SigningKey], *, now_s: float
) -> Path:
    """Write metadata that lists the package, signed with `keys`; returns its path."""
    version, targets = 1, {}
    if state.accepted.exists():
        before = _load(state.accepted).signed
        version, targets = before.version + 1, dict(before.targets)
    targets[package.target_path] = make_target_file(package)
    signed = Targets(version=version, expires=expiry(now_s, OFFLINE_LIFE_S), targets=targets)
    write_atomic(state.waiting, encode(sign(Metadata(signed), keys)))
    return state.waiting


def cosign(path: Path, key: SigningKey) -> int:
    """Add a signature to a metadata file (thresholds above 1); returns how many it has."""
    metadata = _load(path)
    metadata.sign(SodiumSigner(key), append=True)
    write_atomic(path, encode(metadata))
    return len(metadata.signatures)


def _load(path: Path) -> Metadata[Targets]:
    try:
        metadata = Metadata.from_bytes(path.read_bytes())
    except (OSError, DeserializationError) as error:
        raise LocalError(f"{path}: expected TUF metadata: {error}") from error
    if not isinstance(metadata.signed, Targets):
        raise LocalError(f"{path}: expected targets metadata, got {metadata.signed.type}")
    return metadata
