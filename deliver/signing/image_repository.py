"""The image repository: plain TUF 1.0 files under `metadata/` and `targets/`, consistent snapshots (design §5.1).

Rules
- Roles: root (offline, 2 of 3) → targets (offline) → 256 shards (offline batch key) → operators (their own keys and
  threshold). Every delegation is terminating and scoped to `<shard>/…` and `<shard>/<operator>/…`.
- Every file is written whole, fsynced and renamed. A client sees what `timestamp.json` leads to: its rename is the
  moment of publication; files nothing leads to yet are harmless.
- `publish` takes a lock, so that the server and a command of an administrator may both call it.
- It does not do: deciding what may be published (services/submit.py), HTTP.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from deliver.signing.tuf import (
    DelegatedRole,
    Delegations,
    DeserializationError,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    encode,
    sign,
    tuf_key,
)
from runtime.errors import CorruptDataError
from runtime.files import fsync_dir, make_dirs, write_all, write_atomic
from wire.director import SHARD_COUNT, operator_role, shard_of, shard_role
from wire.ids import OperatorId
from wire.signing import SigningKey

ROOT_LIFE_S: Final = 5 * 365 * 86_400
OFFLINE_LIFE_S: Final = 365 * 86_400
SNAPSHOT_LIFE_S: Final = 7 * 86_400
TIMESTAMP_LIFE_S: Final = 3 * 86_400
ROOT_KEYS: Final = 3
ROOT_THRESHOLD: Final = 2
METADATA_BYTES_MAX: Final = 5_000_000
"""python-tuf's own limit for targets metadata."""


@attrs.frozen
class OperatorKeys:
    """What a shard delegates to one operator: raw Ed25519 public keys and how many must sign."""

    operator: OperatorId
    public_keys: tuple[bytes, ...]
    threshold: int


@attrs.frozen
class ImageKeys:
    """Online keys: all that a serving program needs to publish."""

    snapshot: SigningKey
    timestamp: SigningKey


@attrs.frozen
class ImageRepository:
    """The files of one image repository below `directory`."""

    directory: Path

    @property
    def metadata_dir(self) -> Path:
        """Where metadata files lie."""
        return self.directory / "metadata"

    @property
    def targets_dir(self) -> Path:
        """Where packages lie."""
        return self.directory / "targets"

    def load(self, role: str, version: int) -> Metadata[Any]:
        """Return one version of a role's metadata; raises `CorruptDataError` when it is missing or damaged."""
        path = self.metadata_dir / f"{version}.{role}.json"
        try:
            return Metadata.from_bytes(path.read_bytes())
        except (OSError, DeserializationError) as error:
            raise CorruptDataError(f"image metadata {path.name}: {error}") from error

    def published(self) -> dict[str, int]:
        """Return role → version of the snapshot that clients see now; empty before the first one."""
        snapshot = self._snapshot()
        return {} if snapshot is None else _versions(snapshot.signed)

    def add_metadata(self, role: str, version: int, data: bytes) -> None:
        """Write one metadata file; not visible to clients before `publish` names it. Idempotent."""
        write_atomic(self.metadata_dir / f"{version}.{role}.json", data)

    def add_target(self, target_path: str, sha256: str, source: Path) -> None:
        """Move the fsynced file `source` to where consistent snapshots look for it. Idempotent.

        `source` and the repository are on one file system; a repeated call with the source gone changes nothing.
        """
        directory, _, name = target_path.rpartition("/")
        folder = self.targets_dir / directory
        make_dirs(folder)
        with contextlib.suppress(FileNotFoundError):
            source.rename(folder / f"{sha256}.{name}")
        fsync_dir(folder)

    def publish(self, roles: Mapping[str, int], keys: ImageKeys, *, now_s: float) -> int:
        """Make clients see exactly `roles` (role → version); returns the snapshot version now visible.

        Writes nothing when they do already and neither file is in the second half of its life. A role may only rise.
        """
        with self._lock():
            current = self._snapshot()
            wanted = dict(roles)
            if current is not None:
                known = _versions(current.signed)
                wanted = {
                    role: max(version, known.get(role, 0)) for role, version in {**known, **wanted}.items()
                }
            fresh = current is not None and _versions(current.signed) == wanted
            if current is None or not fresh or _half_over(current.signed.expires, SNAPSHOT_LIFE_S, now_s):
                version = 1 if current is None else current.signed.version + 1
                self._write_snapshot(version, wanted, keys.snapshot, now_s)
                self._write_timestamp(version, keys.timestamp, now_s)
                return version
            timestamp = self._timestamp()
            if timestamp is None or _half_over(timestamp.signed.expires, TIMESTAMP_LIFE_S, now_s):
                self._write_timestamp(current.signed.version, keys.timestamp, now_s)
            return int(current.signed.version)

    def _write_snapshot(self, version: int, roles: Mapping[str, int], key: SigningKey, now_s: float) -> None:
        meta = {f"{role}.json": MetaFile(version=number) for role, number in sorted(roles.items())}
        snapshot = Snapshot(version=version, expires=expiry(now_s, SNAPSHOT_LIFE_S), meta=meta)
        self.add_metadata("snapshot", version, encode(sign(Metadata(snapshot), [key])))

    def _write_timestamp(self, snapshot_version: int, key: SigningKey, now_s: float) -> None:
        before = self._timestamp()
        timestamp = Timestamp(
            version=1 if before is None else before.signed.version + 1,
            expires=expiry(now_s, TIMESTAMP_LIFE_S),
            snapshot_meta=MetaFile(version=snapshot_version),
        )
        write_atomic(self.metadata_dir / "timestamp.json", encode(sign(Metadata(timestamp), [key])))

    def _timestamp(self) -> Metadata[Timestamp] | None:
        path = self.metadata_dir / "timestamp.json"
        if not path.exists():
            return None
        try:
            return Metadata.from_bytes(path.read_bytes())
        except DeserializationError as error:
            raise CorruptDataError(f"image metadata timestamp.json: {error}") from error

    def _snapshot(self) -> Metadata[Snapshot] | None:
        timestamp = self._timestamp()
        return None if timestamp is None else self.load("snapshot", timestamp.signed.snapshot_meta.version)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        fd = os.open(self.directory / ".publish.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def expiry(now_s: float, life_s: int) -> dt.datetime:
    """Return `now + life`, whole seconds, UTC."""
    return dt.datetime.fromtimestamp(int(now_s) + life_s, dt.UTC)


def make_root(
    root_keys: Sequence[SigningKey], targets: bytes, snapshot: bytes, timestamp: bytes, *, now_s: float
) -> Metadata[Root]:
    """Return version 1 of the root: three root keys of which two must sign; the rest are raw public keys."""
    root = Root(version=1, expires=expiry(now_s, ROOT_LIFE_S), consistent_snapshot=True)
    for key in root_keys:
        root.add_key(tuf_key(key.public), "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role, public in (("targets", targets), ("snapshot", snapshot), ("timestamp", timestamp)):
        root.add_key(tuf_key(public), role)
    return sign(Metadata(root), root_keys)


def make_targets(targets_key: SigningKey, shard_public: bytes, *, now_s: float) -> Metadata[Targets]:
    """Return version 1 of the top-level targets: no target of its own, 256 shards."""
    key = tuf_key(shard_public)
    shards = [f"{number:02x}" for number in range(SHARD_COUNT)]
    roles = {
        shard_role(shard): DelegatedRole(
            shard_role(shard), [key.keyid], 1, terminating=True, paths=[f"{shard}/*/*/*/*"]
        )
        for shard in shards
    }
    signed = Targets(
        version=1, expires=expiry(now_s, OFFLINE_LIFE_S), delegations=Delegations({key.keyid: key}, roles)
    )
    return sign(Metadata(signed), [targets_key])


def make_shard(
    shard_key: SigningKey, operators: Sequence[OperatorKeys], *, version: int, now_s: float
) -> Metadata[Targets]:
    """Return a shard that delegates to `operators`, each with its own keys and threshold, path-scoped."""
    keys = {(key := tuf_key(public)).keyid: key for entry in operators for public in entry.public_keys}
    roles = {}
    for entry in sorted(operators, key=lambda item: item.operator.text):
        name = operator_role(entry.operator)
        paths = [f"{shard_of(entry.operator)}/{entry.operator}/*/*/*"]
        keyids = [tuf_key(public).keyid for public in entry.public_keys]
        roles[name] = DelegatedRole(name, keyids, entry.threshold, terminating=True, paths=paths)
    signed = Targets(
        version=version, expires=expiry(now_s, OFFLINE_LIFE_S), delegations=Delegations(keys, roles)
    )
    return sign(Metadata(signed), [shard_key])


def create_repository(
    repository: ImageRepository, offline: Mapping[str, SigningKey], keys: ImageKeys, *, now_s: float
) -> None:
    """Write root, targets and 256 empty shards and publish them.

    `offline` holds `root-1`, `root-2`, `root-3`, `targets` and `shards`.
    """
    make_dirs(repository.metadata_dir)
    make_dirs(repository.targets_dir)
    root_keys = [offline[f"root-{number}"] for number in range(1, ROOT_KEYS + 1)]
    root = make_root(
        root_keys, offline["targets"].public, keys.snapshot.public, keys.timestamp.public, now_s=now_s
    )
    repository.add_metadata("root", 1, encode(root))
    repository.add_metadata(
        "targets", 1, encode(make_targets(offline["targets"], offline["shards"].public, now_s=now_s))
    )
    empty = encode(make_shard(offline["shards"], (), version=1, now_s=now_s))
    roles = {"targets": 1}
    for number in range(SHARD_COUNT):
        role = shard_role(f"{number:02x}")
        _write_quickly(repository.metadata_dir / f"1.{role}.json", empty)
        roles[role] = 1
    fsync_dir(repository.metadata_dir)
    repository.publish(roles, keys, now_s=now_s)


def _write_quickly(path: Path, data: bytes) -> None:
    """Write and fsync a file of a repository that nobody sees yet; the caller fsyncs the directory once."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _versions(snapshot: Snapshot) -> dict[str, int]:
    return {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}


def _half_over(expires: dt.datetime, life_s: int, now_s: float) -> bool:
    return expires.timestamp() - now_s < life_s / 2
