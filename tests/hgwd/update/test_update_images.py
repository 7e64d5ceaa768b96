"""The image repository under attack: each row breaks one thing and names the reason (JNT-50, design §5.7).

Every refusal must also leave the flash as it was, except for links of the root chain that did verify.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, MetaFile, Role
from update_kit import (
    DAY_S,
    NAME,
    NOW_S,
    OPER,
    OPERATOR,
    PACKAGE,
    ROOT,
    SNAPSHOT,
    STRANGER,
    TARGETS,
    TIMESTAMP,
    Cause,
    Kit,
    KitSigner,
    RefusedError,
    Source,
    delegate,
    expiry,
    listed,
    make_kit,
    signed_by,
)

from hgwd.core.tuf_keys import SodiumKey, TargetFile
from hgwd.core.update_images import ImageRepository
from hgwd.core.update_types import SNAPSHOT_BYTES_MAX, TARGETS_BYTES_MAX, Need
from wire.director import operator_role, shard_of, shard_role

PATH = listed(PACKAGE).path
OPERATOR_FILE = f"{operator_role(OPERATOR)}.json"


def look_up(kit: Kit, path: str = PATH, now_s: float = NOW_S, **drive: object) -> TargetFile | None:
    repository = ImageRepository(kit.pinned[Source.IMAGE], now_s)
    kit.drive(repository.refresh(), **drive)  # type: ignore[arg-type]
    return kit.drive(repository.find_target(path), **drive)  # type: ignore[arg-type]


def refused(kit: Kit, **kwargs: object) -> Cause:
    with pytest.raises(RefusedError) as caught:
        look_up(kit, **kwargs)  # type: ignore[arg-type]
    return caught.value.cause


def test_finds_a_target_through_shard_and_operator() -> None:
    kit = make_kit()
    found = look_up(kit)
    assert found is not None
    assert found.length == len(PACKAGE)
    assert [name.rpartition("/")[2] for name in kit.asked] == [
        "2.root.json", "timestamp.json", "2.snapshot.json", "1.targets.json",
        f"1.{shard_role(shard_of(OPERATOR))}.json", f"2.{OPERATOR_FILE}",
    ]  # fmt: skip


def test_second_refresh_asks_only_for_root_and_timestamp() -> None:
    kit = make_kit()
    look_up(kit)
    kit.asked.clear()
    assert look_up(kit) is not None
    assert kit.asked == ["image/2.root.json", "image/timestamp.json"]


def test_unlisted_target_is_not_found() -> None:
    assert look_up(make_kit(), path=PATH.replace("1.0.0", "9.9.9")) is None


def unsigned(role: str) -> Callable[[Kit], None]:
    return lambda kit: kit.sign_image(**{role: ()})


def by_stranger(role: str) -> Callable[[Kit], None]:
    return lambda kit: kit.sign_image(**{role: STRANGER})


def expired(part: str) -> Callable[[Kit], None]:
    def change(kit: Kit) -> None:
        getattr(kit, part).expires = expiry(-0.5)
        kit.publish()

    return change


def swap_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Kit], None]:
    def apply(kit: Kit) -> None:
        key = next(key for key in kit.served if key[1].endswith(name))
        kit.served[key] = change(kit.served[key])

    return apply


def flip_bit(data: bytes) -> bytes:
    index = data.index(b'"sig":"') + 8 if b'"sig":"' in data else data.index(b'"sig": "') + 9
    return data[:index] + (b"0" if data[index : index + 1] != b"0" else b"1") + data[index + 1 :]


def other_operator(kit: Kit) -> None:
    """An operator signs a target on a path of another operator, with its own, valid key."""
    kit.sign_image(operator=KitSigner(55))


def no_snapshot_entry(kit: Kit) -> None:
    del kit.snapshot.meta[OPERATOR_FILE]
    data = signed_by(kit.snapshot, SNAPSHOT)
    kit.served[Source.IMAGE, "2.snapshot.json"] = data
    kit.timestamp.snapshot_meta = MetaFile(2)
    kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)


def snapshot_names_another_version(kit: Kit) -> None:
    """Mix and match: files each validly signed, but not of one moment."""
    kit.served[Source.IMAGE, f"2.{OPERATOR_FILE}"] = kit.served[
        Source.IMAGE, f"1.{shard_role(shard_of(OPERATOR))}.json"
    ]
    older = copy.deepcopy(kit.operator)
    older.version = 1
    kit.served[Source.IMAGE, f"2.{OPERATOR_FILE}"] = signed_by(older, OPER)


def timestamp_names_other_snapshot(kit: Kit) -> None:
    other = copy.deepcopy(kit.snapshot)
    other.meta.clear()
    kit.served[Source.IMAGE, "2.snapshot.json"] = signed_by(other, SNAPSHOT)


def same_key_twice(kit: Kit) -> None:
    """Two key IDs, one key: a threshold of two must not be met by one signer."""
    twin = SodiumKey("aa" * 32, "ed25519", "ed25519", dict(OPER.key.keyval))
    role = operator_role(OPERATOR)
    delegated = DelegatedRole(
        role, [OPER.key.keyid, twin.keyid], 2, True, paths=[f"{shard_of(OPERATOR)}/*/*/*/*"]
    )
    kit.shard.delegations = Delegations({OPER.key.keyid: OPER.key, twin.keyid: twin}, {role: delegated})
    kit.shard.version += 1

    class Twin(KitSigner):
        def sign(self, payload: bytes):  # type: ignore[no-untyped-def]
            signature = OPER.sign(payload)
            signature.keyid = twin.keyid
            return signature

    kit.publish(operator=(OPER, Twin(6)))


def root_not_signed_by_old_root(kit: Kit) -> None:
    kit.rotate_root(Source.IMAGE, STRANGER, root=STRANGER)


def root_skips_a_version(kit: Kit) -> None:
    kit.root.version += 1
    kit.served[Source.IMAGE, "2.root.json"] = signed_by(_bumped(kit.root), ROOT)


def root_rolls_back(kit: Kit) -> None:
    kit.served[Source.IMAGE, "2.root.json"] = kit.pinned[Source.IMAGE]


def _bumped(root):  # type: ignore[no-untyped-def]
    root = copy.deepcopy(root)
    root.version += 1
    return root


ATTACKS: list[tuple[str, Callable[[Kit], None], Cause]] = [
    ("timestamp unsigned", unsigned("timestamp"), Cause.UNSIGNED),
    ("snapshot unsigned", unsigned("snapshot"), Cause.UNSIGNED),
    ("targets unsigned", unsigned("targets"), Cause.UNSIGNED),
    ("shard unsigned", unsigned("shard"), Cause.UNSIGNED),
    ("operator unsigned", unsigned("operator"), Cause.UNSIGNED),
    ("timestamp by a stranger", by_stranger("timestamp"), Cause.UNSIGNED),
    ("snapshot by a stranger", by_stranger("snapshot"), Cause.UNSIGNED),
    ("shard by a stranger", by_stranger("shard"), Cause.UNSIGNED),
    ("operator by another operator's key", other_operator, Cause.UNSIGNED),
    ("timestamp expired: freeze", expired("timestamp"), Cause.EXPIRED),
    ("snapshot expired", expired("snapshot"), Cause.EXPIRED),
    ("operator expired", expired("operator"), Cause.EXPIRED),
    ("timestamp truncated", swap_file("timestamp.json", lambda data: data[:-7]), Cause.BAD_FORMAT),
    ("snapshot truncated", swap_file("2.snapshot.json", lambda data: data[:-7]), Cause.MIX_AND_MATCH),
    ("operator truncated", swap_file(f"2.{OPERATOR_FILE}", lambda data: data[:-7]), Cause.BAD_FORMAT),
    ("one bit flipped in a timestamp signature", swap_file("timestamp.json", flip_bit), Cause.UNSIGNED),
    ("one bit flipped in an operator signature", swap_file(f"2.{OPERATOR_FILE}", flip_bit), Cause.UNSIGNED),
    ("timestamp too large", swap_file("timestamp.json", lambda data: data + b" " * 20_000), Cause.TOO_LARGE),
    (
        "operator missing on the server",
        lambda kit: kit.served.pop((Source.IMAGE, f"2.{OPERATOR_FILE}")) and None,
        Cause.MISSING,
    ),
    ("operator not in the snapshot", no_snapshot_entry, Cause.MIX_AND_MATCH),
    ("operator version is not the snapshot's", snapshot_names_another_version, Cause.MIX_AND_MATCH),
    ("snapshot is not the timestamp's", timestamp_names_other_snapshot, Cause.MIX_AND_MATCH),
    ("one key under two IDs for a threshold of two", same_key_twice, Cause.UNSIGNED),
    ("new root not signed by the old one", root_not_signed_by_old_root, Cause.UNSIGNED),
    ("new root skips a version", root_skips_a_version, Cause.ROLLBACK),
    ("new root is an old one", root_rolls_back, Cause.ROLLBACK),
]


@pytest.mark.parametrize(("attack", "cause"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_refuses_and_keeps_what_it_had(attack: Callable[[Kit], None], cause: Cause) -> None:
    kit = make_kit()
    attack(kit)
    assert refused(kit) is cause
    assert (Source.IMAGE, operator_role(OPERATOR)) not in kit.flash.files


@pytest.mark.parametrize("part", ["timestamp", "snapshot", "operator"])
def test_refuses_a_rolled_back_role_once_it_saw_a_newer_one(part: str) -> None:
    kit = make_kit()
    old = {key: data for key, data in kit.served.items() if part in key[1]}
    kit.publish(listed(b"two", release=2, version="2.0.0"))
    assert look_up(kit) is not None
    if part == "timestamp":
        kit.served.update(old)
    elif part == "snapshot":  # the thief of the timestamp key points at the old snapshot
        kit.timestamp.version += 1
        kit.timestamp.snapshot_meta = MetaFile(2)
        kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)
    else:  # the thief of snapshot and timestamp points at the old operator file
        kit.snapshot.version += 1
        kit.snapshot.meta[OPERATOR_FILE] = MetaFile(2)
        kit.timestamp.version += 1
        data = signed_by(kit.snapshot, SNAPSHOT)
        kit.served[Source.IMAGE, f"{kit.snapshot.version}.snapshot.json"] = data
        kit.timestamp.snapshot_meta = MetaFile(kit.snapshot.version)
        kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)
    before = dict(kit.flash.files)
    assert refused(kit) is Cause.ROLLBACK
    assert kit.flash.files[Source.IMAGE, "snapshot"] == before[Source.IMAGE, "snapshot"]


def test_refuses_an_older_timestamp_that_names_the_same_snapshot() -> None:
    kit = make_kit()
    old = kit.served[Source.IMAGE, "timestamp.json"]
    kit.timestamp.version += 1
    kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)
    look_up(kit)
    kit.served[Source.IMAGE, "timestamp.json"] = old
    assert refused(kit) is Cause.ROLLBACK


def test_refuses_a_timestamp_that_goes_back_to_an_older_snapshot_of_the_same_files() -> None:
    """TUF 5.4.3: nothing below the snapshot tells the two apart, so the timestamp has to."""
    kit = make_kit()
    kit.snapshot.version += 1
    kit.timestamp.version += 1
    kit.sign_image()
    look_up(kit)
    kit.timestamp.version += 1
    kit.timestamp.snapshot_meta = MetaFile(kit.snapshot.version - 1)
    kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)
    assert refused(kit) is Cause.ROLLBACK


@pytest.mark.parametrize("part", ["snapshot", "operator"])
def test_a_length_in_metadata_never_widens_the_limit_of_memory(part: str) -> None:
    """The holder of the online keys announces a file of a terabyte: no more is asked for than ever."""
    kit = make_kit()
    if part == "operator":
        kit.snapshot.meta[OPERATOR_FILE] = MetaFile(2, 10**12)
        kit.served[Source.IMAGE, "2.snapshot.json"] = signed_by(kit.snapshot, SNAPSHOT)
    kit.timestamp.snapshot_meta = MetaFile(2, 10**12 if part == "snapshot" else None)
    kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)
    limits = []

    def watch(need: Need, data: bytes | None) -> bytes | None:
        limits.append(need.max_bytes)
        return data

    refused(kit, tamper=watch)
    assert max(limits) <= max(SNAPSHOT_BYTES_MAX, TARGETS_BYTES_MAX)


def test_expired_timestamp_is_not_kept() -> None:
    kit = make_kit()
    look_up(kit)
    before = dict(kit.flash.files)
    kit.publish()
    assert refused(kit, now_s=NOW_S + 2 * DAY_S) is Cause.EXPIRED
    assert kit.flash.files == before


def test_recovers_from_fast_forward_once_the_stolen_key_is_rotated() -> None:
    kit = make_kit()
    kit.timestamp.version = kit.snapshot.version = 2**31
    kit.sign_image()
    look_up(kit)
    kit.timestamp.version = kit.snapshot.version = 5
    new_snapshot, new_timestamp = KitSigner(21), KitSigner(22)
    kit.rotate_root(Source.IMAGE, ROOT, snapshot=new_snapshot, timestamp=new_timestamp)
    kit.sign_image(snapshot=new_snapshot, timestamp=new_timestamp)
    assert look_up(kit) is not None


def test_follows_a_root_key_rotation_signed_by_old_and_new() -> None:
    kit = make_kit()
    new = KitSigner(31)
    kit.rotate_root(Source.IMAGE, ROOT, new, root=new)
    assert look_up(kit) is not None
    assert json.loads(kit.flash.files[Source.IMAGE, "root"])["signed"]["version"] == 2


def test_keeps_the_good_links_of_a_root_chain_that_breaks_later() -> None:
    kit = make_kit()
    kit.rotate_root(Source.IMAGE, ROOT)
    kit.rotate_root(Source.IMAGE, STRANGER)
    assert refused(kit) is Cause.UNSIGNED
    assert json.loads(kit.flash.files[Source.IMAGE, "root"])["signed"]["version"] == 2


def test_endless_root_chain_ends_at_the_limit() -> None:
    kit = make_kit()

    def endless(need: Need, data: bytes | None) -> bytes | None:
        if need.path.endswith("root.json"):
            kit.root.version = int(need.path.partition(".")[0])
            return signed_by(kit.root, ROOT)
        return data

    assert refused(kit, tamper=endless) is Cause.ROOT_CHAIN


def test_expired_root_stops_the_refresh_whatever_is_below_it() -> None:
    kit = make_kit()
    kit.root.expires = expiry(-0.5)
    kit.pinned[Source.IMAGE] = signed_by(kit.root, ROOT)
    assert refused(kit) is Cause.EXPIRED
    assert kit.asked == ["image/2.root.json"]


def test_firmware_that_pins_a_newer_root_wins_over_the_stored_one() -> None:
    kit = make_kit()
    look_up(kit)
    kit.rotate_root(Source.IMAGE, ROOT, root=KitSigner(31))
    kit.pinned[Source.IMAGE] = signed_by(kit.root, KitSigner(31))
    kit.served.pop((Source.IMAGE, "2.root.json"))
    assert look_up(kit) is not None
    assert json.loads(kit.flash.files[Source.IMAGE, "root"])["signed"]["version"] == 2


def test_terminating_delegation_hides_what_comes_after_it() -> None:
    kit = make_kit()
    shard = shard_of(OPERATOR)
    first = delegate("first", STRANGER, f"{shard}/*/*/*/*", terminating=True)
    second = delegate(shard_role(shard), KitSigner(5), f"{shard}/*/*/*/*", terminating=True)
    assert first.roles is not None
    assert second.roles is not None
    kit.targets.delegations = Delegations({**first.keys, **second.keys}, {**first.roles, **second.roles})
    kit.targets.version += 1
    kit.publish()
    empty = copy.deepcopy(kit.operator)
    empty.version, empty.targets = 1, {}
    kit.served[Source.IMAGE, "1.first.json"] = signed_by(empty, STRANGER)
    kit.snapshot.meta["first.json"] = MetaFile(1)
    kit.publish()
    assert look_up(kit) is None


def test_operator_cannot_list_a_path_of_another_operator() -> None:
    kit = make_kit()
    foreign = PATH.replace(f"/{NAME.operator}/", "/yubin-box/")
    target = listed(PACKAGE)
    target.path = foreign
    kit.publish(target)
    assert look_up(kit, path=foreign) is None


def test_walk_stops_at_the_limit_of_delegations() -> None:
    kit = make_kit()
    names = [f"deep{n:02}" for n in range(40)]
    roles = {n: DelegatedRole(n, [TARGETS.key.keyid], 1, False, paths=["*/*/*/*/*"]) for n in names}
    kit.targets.delegations = Delegations({TARGETS.key.keyid: TARGETS.key}, roles)
    kit.targets.version += 1
    for name in names:
        leaf = copy.deepcopy(kit.operator)
        leaf.version, leaf.targets = 1, {}
        kit.served[Source.IMAGE, f"1.{name}.json"] = signed_by(leaf, TARGETS)
        kit.snapshot.meta[f"{name}.json"] = MetaFile(1)
    kit.publish()
    assert refused(kit) is Cause.DELEGATIONS


def test_unknown_fields_are_accepted() -> None:
    kit = make_kit()
    kit.timestamp.unrecognized_fields["x-new"] = {"a": 1}
    kit.publish()
    assert look_up(kit) is not None


def test_threshold_of_two_needs_two_keys() -> None:
    kit = make_kit()
    other = KitSigner(41)
    role = operator_role(OPERATOR)
    keys = {signer.key.keyid: signer.key for signer in (OPER, other)}
    delegated = DelegatedRole(role, list(keys), 2, True, paths=[f"{shard_of(OPERATOR)}/{OPERATOR}/*/*/*"])
    kit.shard.delegations = Delegations(keys, {role: delegated})
    kit.shard.version += 1
    kit.publish(operator=OPER)
    assert refused(kit) is Cause.UNSIGNED
    kit.publish(operator=(OPER, other))
    assert look_up(kit) is not None


def test_root_role_object_is_what_decides_not_the_file_name() -> None:
    """A targets file served as timestamp is refused by its type."""
    kit = make_kit()
    kit.served[Source.IMAGE, "timestamp.json"] = kit.served[Source.IMAGE, "1.targets.json"]
    assert refused(kit) is Cause.BAD_FORMAT
    assert Role  # the kit's roles are tuf's own
