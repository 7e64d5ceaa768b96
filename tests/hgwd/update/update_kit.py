"""An in-memory image repository and director that answer the update core as the network would.

What it simulates: files by name, signed with real Ed25519 keys. Every test starts from a repository that installs
one package, then breaks exactly one thing; `Kit.sign_image` re-signs what the test changed, with whatever keys the test chose.
It implements the driver's side of the core's contract (`Need`, `Load`, `Store`), nothing of the core.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import attrs
from securesystemslib.signer import Signer
from tuf.api.metadata import DelegatedRole, Delegations, MetaFile, Role

from hgwd.core.tuf_keys import (
    Key,
    Metadata,
    Root,
    Signature,
    Snapshot,
    SodiumKey,
    TargetFile,
    Targets,
    Timestamp,
)
from hgwd.core.update_director import GatewayIdentity
from hgwd.core.update_types import Cause, Load, Need, RefusedError, Source, Steps, Store
from wire.director import (
    DirectorBody,
    DirectorSoftware,
    SoftwareName,
    TargetCustom,
    TargetPath,
    operator_role,
    shard_of,
    shard_role,
    to_plain,
)
from wire.ids import GatewaySerial, OperatorId, RandomId, VersionText
from wire.signing import SigningKey

T = TypeVar("T")
NOW_S = 1_800_000_000.0
DAY_S = 24 * 3600
IDENTITY = GatewayIdentity(RandomId.parse("ab" * 16), GatewaySerial.parse("PR500AB12345"), "PR-500", "KI")
NAME = SoftwareName.parse("mimamori/sensor")
OPERATOR = NAME.operator
PACKAGE = b"package bytes of release 1" * 40


class KitSigner(Signer):
    """A key by a small number; the same number is the same key everywhere."""

    def __init__(self, number: int) -> None:
        self._key = SigningKey(hashlib.sha256(b"kit %d" % number).digest())
        public = self._key.public.hex()
        self.key = SodiumKey(
            hashlib.sha256(public.encode()).hexdigest(), "ed25519", "ed25519", {"public": public}
        )

    @property
    def public_key(self) -> Key:
        return self.key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> Signer:
        raise AssertionError("a test key is never loaded by URI")

    def sign(self, payload: bytes) -> Signature:
        return Signature(self.key.keyid, self._key.sign(payload).hex())


ROOT, TARGETS, SNAPSHOT, TIMESTAMP, SHARD, OPER, DIR_ROOT, DIRECTOR = (KitSigner(n) for n in range(1, 9))
STRANGER = KitSigner(99)


def expiry(days: float) -> datetime:
    return datetime.fromtimestamp(NOW_S, UTC).replace(microsecond=0) + timedelta(days=days)


def make_root(keys: dict[str, KitSigner], *, version: int = 1, days: float = 365) -> Root:
    return Root(
        version=version,
        expires=expiry(days),
        keys={signer.key.keyid: signer.key for signer in keys.values()},
        roles={role: Role([signer.key.keyid], 1) for role, signer in keys.items()},
        consistent_snapshot=True,
    )


def delegate(role: str, signer: KitSigner, pattern: str, *, terminating: bool) -> Delegations:
    delegated = DelegatedRole(role, [signer.key.keyid], 1, terminating, paths=[pattern])
    return Delegations({signer.key.keyid: signer.key}, {role: delegated})


def signed_by(signed: Any, *signers: KitSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def target_for(
    package: bytes, *, release: int = 1, floor: int = 0, version: str = "1.0.0", **custom: Any
) -> TargetFile:
    path = TargetPath(NAME, VersionText.parse(version), "PR-500").text
    fields = {"series": ("PR-500",), "makers": ("KI", "MI", "NE"), "footprint_bytes": 1000, **custom}
    body = to_plain(TargetCustom(release=release, floor=floor, **fields))
    return TargetFile.from_data(path, package, ["sha256"]), body  # type: ignore[return-value]


def listed(package: bytes, **custom: Any) -> TargetFile:
    target, body = target_for(package, **custom)  # type: ignore[misc]
    target.unrecognized_fields["custom"] = {"hgw": body}
    return target


@attrs.define
class Store_:  # noqa: N801 - the kit's store, beside the core's `Store`
    """What a gateway has on flash."""

    files: dict[tuple[Source, str], bytes] = attrs.field(factory=dict)


@attrs.define
class Kit:
    """Both repositories as objects a test can change, the files they are served as, and one gateway's flash."""

    root: Root
    targets: Targets
    shard: Targets
    operator: Targets
    snapshot: Snapshot
    timestamp: Timestamp
    director_root: Root
    document: Targets
    served: dict[tuple[Source, str], bytes] = attrs.field(factory=dict)
    flash: Store_ = attrs.field(factory=Store_)
    asked: list[str] = attrs.field(factory=list)
    pinned: dict[Source, bytes] = attrs.field(factory=dict)

    # -- serving ---------------------------------------------------------------------------------------------

    def sign_image(self, **signers: KitSigner | tuple[KitSigner, ...]) -> None:
        """Serve the image repository as it stands, bumping nothing; `signers` replaces the key of a role."""

        def keys(role: str, default: KitSigner) -> tuple[KitSigner, ...]:
            chosen = signers.get(role, default)
            return chosen if isinstance(chosen, tuple) else (chosen,)

        shard = shard_role(shard_of(OPERATOR))
        for name, signed, default in (
            (operator_role(OPERATOR), self.operator, OPER),
            (shard, self.shard, SHARD),
            ("targets", self.targets, TARGETS),
        ):
            role = {operator_role(OPERATOR): "operator", shard: "shard"}.get(name, name)
            data = signed_by(signed, *keys(role, default))
            self.served[Source.IMAGE, f"{signed.version}.{name}.json"] = data
            self.snapshot.meta[f"{name}.json"] = MetaFile(signed.version)
        data = signed_by(self.snapshot, *keys("snapshot", SNAPSHOT))
        self.served[Source.IMAGE, f"{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = MetaFile(
            self.snapshot.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()}
        )
        self.served[Source.IMAGE, "timestamp.json"] = signed_by(self.timestamp, *keys("timestamp", TIMESTAMP))

    def publish(self, *targets: TargetFile, **signers: KitSigner | tuple[KitSigner, ...]) -> None:
        """An operator lists `targets` and the online roles follow, each one version up."""
        for target in targets:
            self.operator.targets[target.path] = target
        for signed in (self.operator, self.snapshot, self.timestamp):
            signed.version += 1
        self.sign_image(**signers)

    def direct(
        self, *entries: DirectorSoftware, targets: tuple[TargetFile, ...] = (), **changes: Any
    ) -> bytes:
        """Return the next signed director document for this gateway."""
        self.document.version += 1
        self.document.targets = {target.path: _bare(target) for target in targets}
        body = DirectorBody(gateway=IDENTITY.gateway.text, serial=IDENTITY.serial.text, software=entries)
        self.document.unrecognized_fields["hgw"] = {**to_plain(body), **changes}
        return signed_by(self.document, DIRECTOR)

    def rotate_root(self, source: Source, *signers: KitSigner, **keys: KitSigner) -> None:
        """Serve the next root: same roles, `keys` replaced, signed by `signers`."""
        old = self.root if source is Source.IMAGE else self.director_root
        root = copy.deepcopy(old)
        root.version += 1
        for role, signer in keys.items():
            root.roles[role] = Role([signer.key.keyid], 1)
            root.keys[signer.key.keyid] = signer.key
        self.served[source, f"{root.version}.root.json"] = signed_by(root, *signers)
        if source is Source.IMAGE:
            self.root = root
        else:
            self.director_root = root

    # -- the driver's side -----------------------------------------------------------------------------------

    def drive(
        self, steps: Steps[T], *, tamper: Callable[[Need, bytes | None], bytes | None] | None = None
    ) -> T:
        """Run one operation of the core to its end, as the fetch adapter does, and return its result."""
        answer: bytes | None = None
        try:
            while True:
                step = steps.send(answer) if answer is not None else next(steps)
                answer = self._answer(step, tamper)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _answer(
        self, step: Need | Load | Store, tamper: Callable[[Need, bytes | None], bytes | None] | None
    ) -> bytes | None:
        if isinstance(step, Load):
            return self.flash.files.get((step.source, step.name))
        if isinstance(step, Store):
            self.flash.files[step.source, step.name] = step.data
            return None
        self.asked.append(f"{step.source}/{step.path}")
        data = self.served.get((step.source, step.path))
        data = tamper(step, data) if tamper else data
        if data is not None and len(data) > step.max_bytes:
            raise RefusedError(Cause.TOO_LARGE, f"{step.path}: more than {step.max_bytes} bytes")
        return data


def _bare(target: TargetFile) -> TargetFile:
    return TargetFile(target.length, dict(target.hashes), target.path)


def make_kit() -> Kit:
    """A repository with one operator, one package of release 1, and a director that knows this gateway."""
    shard = shard_of(OPERATOR)
    root = make_root({"root": ROOT, "targets": TARGETS, "snapshot": SNAPSHOT, "timestamp": TIMESTAMP})
    director_root = make_root(
        {"root": DIR_ROOT, "targets": DIRECTOR, "snapshot": DIR_ROOT, "timestamp": DIR_ROOT}
    )
    kit = Kit(
        root=root,
        targets=Targets(
            1,
            expires=expiry(90),
            delegations=delegate(shard_role(shard), SHARD, f"{shard}/*/*/*/*", terminating=True),
        ),
        shard=Targets(
            1,
            expires=expiry(90),
            delegations=delegate(
                operator_role(OPERATOR), OPER, f"{shard}/{OPERATOR}/*/*/*", terminating=True
            ),
        ),
        operator=Targets(1, expires=expiry(90)),
        snapshot=Snapshot(1, expires=expiry(3)),
        timestamp=Timestamp(1, expires=expiry(1)),
        director_root=director_root,
        document=Targets(1, expires=expiry(3)),
    )
    kit.pinned = {Source.IMAGE: signed_by(root, ROOT), Source.DIRECTOR: signed_by(director_root, DIR_ROOT)}
    kit.publish(listed(PACKAGE))
    return kit


def entry(target: TargetFile, **changes: Any) -> DirectorSoftware:
    return DirectorSoftware(**{"software": NAME.text, "action": "install", "target": target.path, **changes})


__all__ = [
    "DAY_S",
    "DIRECTOR",
    "DIR_ROOT",
    "IDENTITY",
    "NAME",
    "NOW_S",
    "OPER",
    "OPERATOR",
    "PACKAGE",
    "ROOT",
    "SHARD",
    "SNAPSHOT",
    "STRANGER",
    "TARGETS",
    "TIMESTAMP",
    "Cause",
    "Kit",
    "KitSigner",
    "OperatorId",
    "RefusedError",
    "Source",
    "delegate",
    "entry",
    "expiry",
    "listed",
    "make_kit",
    "make_root",
    "signed_by",
]  # fmt: skip
