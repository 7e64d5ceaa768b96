"""TUF client workflow for the image repository (specification 5.3 to 5.7), without I/O and with explicit time.

Rules, enforced by the order in which this object can be driven:
- root -> timestamp -> snapshot -> targets -> delegated targets, each verified by the one before.
- A stored or fetched file may be expired (or, for a snapshot, not the one the timestamp names) only as an
  *intermediate*: it serves to detect rollback of its successor and for nothing else.
- Verified bytes are stored before the next file is asked for, so a power cut leaves versions that only grow.
- Fast-forward recovery (5.3.11) follows from the order: stored timestamp and snapshot are checked under the new
  root, so after a key rotation the old ones do not verify and are not used.
- `find_target` walks delegations depth first in order of trust; a terminating delegation ends the walk.

One object serves one refresh. It does not decide what to install, and it fetches no packages.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final
from urllib.parse import quote

from hgwd.core.tuf_keys import MetaFile, RepositoryError, Root, Snapshot, TargetFile, Targets, Timestamp
from hgwd.core.update_metadata import (
    Delegator,
    is_expired,
    load_root,
    parse_metadata,
    verify_signed_by,
)
from hgwd.core.update_types import (
    DELEGATIONS_MAX,
    ROOT_BYTES_MAX,
    ROOT_ROTATIONS_MAX,
    SNAPSHOT_BYTES_MAX,
    TARGETS_BYTES_MAX,
    TIMESTAMP_BYTES_MAX,
    Cause,
    Load,
    Need,
    RefusedError,
    Source,
    Steps,
    Store,
)


def update_root_chain(source: Source, pinned: bytes) -> Steps[Root]:
    """Return the newest root reachable from the stored one, or from `pinned` at first contact (5.3.2 to 5.3.9).

    Raises `RefusedError`: a link that does not verify (the links before it are kept), or more than
    `ROOT_ROTATIONS_MAX` new ones in one go.
    """
    root = load_root(pinned, None, f"{source} root (pinned)")
    stored = yield Load(source, Root.type)
    kept = None if stored is None else load_root(stored, None, f"{source} root (stored)")
    if kept is None or kept.version < root.version:  # first contact, or a firmware that pins a newer root
        yield Store(source, Root.type, pinned)
    else:
        root = kept
    for _ in range(ROOT_ROTATIONS_MAX):
        data = yield Need(source, f"{root.version + 1}.root.json", ROOT_BYTES_MAX)
        if data is None:
            return root
        root = load_root(data, root, f"{source} root {root.version + 1}")
        yield Store(source, Root.type, data)
    raise RefusedError(Cause.ROOT_CHAIN, f"{source}: more than {ROOT_ROTATIONS_MAX} new roots in one refresh")


class ImageRepository:
    """The verified state of the image repository at one moment (`now_s`, unix seconds, fixed for the refresh)."""

    def __init__(self, pinned_root: bytes, now_s: float) -> None:
        self._pinned_root: Final = pinned_root
        self._now_s: Final = now_s
        self._root: Root | None = None
        self._timestamp: Timestamp | None = None
        self._snapshot: Snapshot | None = None
        self._roles: dict[str, Targets] = {}
        self._verified: set[tuple[str, str]] = set()

    @property
    def consistent(self) -> bool:
        """Whether file names carry versions and targets carry hashes (5.2, consistent snapshots)."""
        assert self._root is not None  # noqa: S101 - only asked after refresh
        return bool(self._root.consistent_snapshot)

    def refresh(self) -> Steps[None]:
        """Bring root, timestamp, snapshot and top-level targets up to date. Raises `RefusedError`."""
        self._root = yield from update_root_chain(Source.IMAGE, self._pinned_root)
        yield from self._refresh_timestamp(self._root)
        yield from self._refresh_snapshot(self._root)
        yield from self._load_role(Targets.type, Root.type)

    def find_target(self, path: str) -> Steps[TargetFile | None]:
        """Return what the most trusted role says about `path`, or None (5.6.7). Call `refresh` first.

        Raises `RefusedError` if a role on the way does not verify or the walk passes `DELEGATIONS_MAX` roles.
        """
        to_visit = [(Targets.type, Root.type)]
        visited: set[str] = set()
        while to_visit and len(visited) <= DELEGATIONS_MAX:
            role, parent = to_visit.pop()
            if role in visited:
                continue
            targets = yield from self._load_role(role, parent)
            visited.add(role)
            found = targets.targets.get(path)
            if found is not None:
                return found
            if targets.delegations is None:
                continue
            children: list[tuple[str, str]] = []
            for child, terminating in targets.delegations.get_roles_for_target(path):
                children.append((child, role))
                if terminating:
                    to_visit.clear()
                    break
            to_visit.extend(reversed(children))
        if to_visit:
            raise RefusedError(Cause.DELEGATIONS, f"{path}: more than {DELEGATIONS_MAX} delegations visited")
        return None

    def target_url_path(self, target: TargetFile) -> str:
        """Return the path of a target below the targets base, hash-prefixed for consistent snapshots."""
        if not self.consistent:
            return target.path
        directory, slash, name = target.path.rpartition("/")
        return f"{directory}{slash}{next(iter(target.hashes.values()))}.{name}"

    # -- timestamp (5.4) -------------------------------------------------------------------------------------

    def _refresh_timestamp(self, root: Root) -> Steps[None]:
        if is_expired(root, self._now_s):  # 5.3.10
            raise RefusedError(Cause.EXPIRED, f"image root {root.version}: expired {root.expires}")
        stored = yield Load(Source.IMAGE, Timestamp.type)
        if stored is not None:
            # One signed by keys of an older root, or damaged, is not used for anything.
            with suppress(RefusedError):
                self._accept_timestamp(root, stored, "stored timestamp")
        data = yield Need(Source.IMAGE, "timestamp.json", TIMESTAMP_BYTES_MAX)
        if data is None:
            raise RefusedError(Cause.MISSING, "timestamp.json: not there")
        newer = self._accept_timestamp(root, data, "timestamp")
        timestamp = self._timestamp
        if timestamp is None or is_expired(timestamp, self._now_s):  # 5.4.4
            raise RefusedError(Cause.EXPIRED, f"timestamp: expired {timestamp and timestamp.expires}")
        if newer:
            yield Store(Source.IMAGE, Timestamp.type, data)

    def _accept_timestamp(self, root: Root, data: bytes, what: str) -> bool:
        """Take `data` as timestamp if it is newer; return False for the version we have (5.4.3)."""
        metadata = parse_metadata(data, Timestamp.type, what)
        verify_signed_by(root, Timestamp.type, metadata, what)
        new = metadata.signed
        assert isinstance(new, Timestamp)  # noqa: S101 - the type was checked by name
        old = self._timestamp
        if old is not None:
            if new.version == old.version:
                return False
            if new.version < old.version:
                raise RefusedError(Cause.ROLLBACK, f"{what}: version {new.version} after {old.version}")
            if new.snapshot_meta.version < old.snapshot_meta.version:
                raise RefusedError(
                    Cause.ROLLBACK,
                    f"{what}: names snapshot {new.snapshot_meta.version} after {old.snapshot_meta.version}",
                )
        self._timestamp = new
        return True

    # -- snapshot (5.5) --------------------------------------------------------------------------------------

    def _refresh_snapshot(self, root: Root) -> Steps[None]:
        timestamp = self._timestamp
        assert timestamp is not None  # noqa: S101 - set by the step before
        meta = timestamp.snapshot_meta
        stored = yield Load(Source.IMAGE, Snapshot.type)
        if stored is not None:
            try:
                self._snapshot = self._verify_snapshot(root, stored, "stored snapshot")
                self._check_final_snapshot(meta)
            except RefusedError:
                pass  # kept as intermediate if it verified, ignored otherwise
            else:
                return
        name = f"{meta.version}.snapshot.json" if root.consistent_snapshot else "snapshot.json"
        data = yield Need(Source.IMAGE, name, _bounded(meta, SNAPSHOT_BYTES_MAX))
        if data is None:
            raise RefusedError(Cause.MISSING, f"{name}: not there")
        _check_meta(meta, data, "snapshot")  # 5.5.2
        new = self._verify_snapshot(root, data, "snapshot")
        self._check_no_rollback(new)
        self._snapshot = new
        self._check_final_snapshot(meta)
        yield Store(Source.IMAGE, Snapshot.type, data)

    def _verify_snapshot(self, root: Root, data: bytes, what: str) -> Snapshot:
        metadata = parse_metadata(data, Snapshot.type, what)
        verify_signed_by(root, Snapshot.type, metadata, what)
        assert isinstance(metadata.signed, Snapshot)  # noqa: S101 - the type was checked by name
        return metadata.signed

    def _check_no_rollback(self, new: Snapshot) -> None:
        if self._snapshot is None:
            return
        for name, known in self._snapshot.meta.items():  # 5.5.5
            offered = new.meta.get(name)
            if offered is None or offered.version < known.version:
                got = "nothing" if offered is None else f"version {offered.version}"
                raise RefusedError(Cause.ROLLBACK, f"snapshot: {name}: {got} after version {known.version}")

    def _check_final_snapshot(self, meta: MetaFile) -> None:
        snapshot = self._snapshot
        assert snapshot is not None  # noqa: S101 - called right after it was set
        if is_expired(snapshot, self._now_s):
            raise RefusedError(Cause.EXPIRED, f"snapshot {snapshot.version}: expired {snapshot.expires}")
        if snapshot.version != meta.version:
            raise RefusedError(
                Cause.MIX_AND_MATCH,
                f"snapshot: timestamp names version {meta.version}, got {snapshot.version}",
            )

    # -- targets and delegations (5.6) -----------------------------------------------------------------------

    def _load_role(self, role: str, parent: str) -> Steps[Targets]:
        if (role, parent) in self._verified:
            return self._roles[role]
        assert self._snapshot is not None  # noqa: S101 - refresh came first
        assert self._root is not None  # noqa: S101 - refresh came first
        meta = self._snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise RefusedError(Cause.MIX_AND_MATCH, f"{role}: delegated, but not in the snapshot")
        stored = yield Load(Source.IMAGE, role)
        if stored is not None:
            try:
                return self._accept_role(role, parent, meta, stored)
            except RefusedError:
                pass  # older than the snapshot says, or not signed under today's delegation
        prefix = f"{meta.version}." if self._root.consistent_snapshot else ""
        name = f"{prefix}{quote(role, safe='')}.json"
        data = yield Need(Source.IMAGE, name, _bounded(meta, TARGETS_BYTES_MAX))
        if data is None:
            raise RefusedError(Cause.MISSING, f"{name}: not there")
        targets = self._accept_role(role, parent, meta, data)
        yield Store(Source.IMAGE, role, data)
        return targets

    def _accept_role(self, role: str, parent: str, meta: MetaFile, data: bytes) -> Targets:
        _check_meta(meta, data, role)
        metadata = parse_metadata(data, Targets.type, role)
        verify_signed_by(self._delegator(parent), role, metadata, role)
        targets = metadata.signed
        assert isinstance(targets, Targets)  # noqa: S101 - the type was checked by name
        if targets.version != meta.version:
            raise RefusedError(
                Cause.MIX_AND_MATCH, f"{role}: snapshot names version {meta.version}, got {targets.version}"
            )
        if is_expired(targets, self._now_s):
            raise RefusedError(Cause.EXPIRED, f"{role} {targets.version}: expired {targets.expires}")
        self._roles[role] = targets
        self._verified.add((role, parent))
        return targets

    def _delegator(self, name: str) -> Delegator:
        if name == Root.type:
            assert self._root is not None  # noqa: S101 - refresh came first
            return self._root
        return self._roles[name]


def _bounded(meta: MetaFile, limit_bytes: int) -> int:
    """Return how much to fetch at most: a length in metadata narrows our limit, it never widens it."""
    return min(meta.length or limit_bytes, limit_bytes)


def _check_meta(meta: MetaFile, data: bytes, what: str) -> None:
    try:
        meta.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise RefusedError(Cause.MIX_AND_MATCH, f"{what}: not the file its parent names: {error}") from error
