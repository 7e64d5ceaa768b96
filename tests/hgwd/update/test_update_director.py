"""The director's document under attack, and what thieves of online keys can and cannot do (design §5.2, JNT-50)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from tuf.api.metadata import MetaFile
from update_kit import (
    DAY_S,
    DIR_ROOT,
    DIRECTOR,
    IDENTITY,
    NAME,
    NOW_S,
    OPER,
    PACKAGE,
    SNAPSHOT,
    STRANGER,
    TIMESTAMP,
    Cause,
    Kit,
    KitSigner,
    RefusedError,
    Source,
    entry,
    expiry,
    listed,
    make_kit,
    signed_by,
)

from hgwd.core.update import Installable, check_manifest, decide_install, entry_target, in_window
from hgwd.core.update_director import DirectorDocument, accept_document, load_document
from hgwd.core.update_images import ImageRepository
from wire.director import DirectorWindow, SoftwareName
from wire.ids import RandomId
from wire.package import Health, Manifest, Resources

OLD = listed(PACKAGE, release=1, version="1.0.0")
NEW = listed(b"release 5", release=5, floor=4, version="5.0.0")


def accept(kit: Kit, data: bytes, now_s: float = NOW_S) -> DirectorDocument:
    return kit.drive(accept_document(kit.pinned[Source.DIRECTOR], data, IDENTITY, now_s))


def refused(kit: Kit, data: bytes, now_s: float = NOW_S) -> Cause:
    before = dict(kit.flash.files)
    with pytest.raises(RefusedError) as caught:
        accept(kit, data, now_s)
    after = {key: value for key, value in kit.flash.files.items() if key[1] == "director"}
    assert after == {key: value for key, value in before.items() if key[1] == "director"}
    return caught.value.cause


def decide(
    kit: Kit, document: DirectorDocument, *, floor_release: int = 0, now_s: float = NOW_S
) -> Installable:
    """What hgwd does with a document: both repositories, then the decision."""
    wanted = document.body.software[0]
    director = entry_target(document, wanted)
    images = ImageRepository(kit.pinned[Source.IMAGE], now_s)
    kit.drive(images.refresh())
    image = kit.drive(images.find_target(director.path))
    return decide_install(
        wanted, director, image, url_path="x", identity=IDENTITY, floor_release=floor_release
    )


def decision_cause(kit: Kit, document: DirectorDocument, **changes: Any) -> Cause:
    with pytest.raises(RefusedError) as caught:
        decide(kit, document, **changes)
    return caught.value.cause


def test_accepts_a_document_and_finds_it_again_without_a_request() -> None:
    kit = make_kit()
    document = accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    kit.asked.clear()
    again = kit.drive(load_document(kit.pinned[Source.DIRECTOR], IDENTITY))
    assert again is not None
    assert again.version == document.version
    assert kit.asked == []


def test_the_same_document_again_is_no_rollback() -> None:
    kit = make_kit()
    data = kit.direct(entry(OLD), targets=(OLD,))
    accept(kit, data)
    assert accept(kit, data).version == 2


def document_of(**changes: Any) -> Callable[[Kit], bytes]:
    return lambda kit: kit.direct(entry(OLD), targets=(OLD,), **changes)


def unsigned(kit: Kit) -> bytes:
    kit.direct(entry(OLD), targets=(OLD,))
    return signed_by(kit.document)


def by(signer: KitSigner) -> Callable[[Kit], bytes]:
    def sign(kit: Kit) -> bytes:
        kit.direct(entry(OLD), targets=(OLD,))
        return signed_by(kit.document, signer)

    return sign


def expired(kit: Kit) -> bytes:
    kit.document.expires = expiry(-0.1)
    return kit.direct(entry(OLD), targets=(OLD,))


def flipped(kit: Kit) -> bytes:
    data = kit.direct(entry(OLD), targets=(OLD,))
    return data.replace(b'"length":' + str(OLD.length).encode(), b'"length":' + str(OLD.length ^ 1).encode())


def no_body(kit: Kit) -> bytes:
    kit.direct()
    del kit.document.unrecognized_fields["hgw"]
    return signed_by(kit.document, DIRECTOR)


DOCUMENTS: list[tuple[str, Callable[[Kit], bytes], Cause]] = [
    ("unsigned", unsigned, Cause.UNSIGNED),
    ("signed by a stranger", by(STRANGER), Cause.UNSIGNED),
    ("signed by an operator", by(OPER), Cause.UNSIGNED),
    ("signed by the image repository's snapshot key", by(SNAPSHOT), Cause.UNSIGNED),
    ("expired", expired, Cause.EXPIRED),
    ("one bit flipped", flipped, Cause.UNSIGNED),
    ("truncated", lambda kit: kit.direct(entry(OLD), targets=(OLD,))[:-5], Cause.BAD_FORMAT),
    ("not JSON", lambda kit: b"\xff\x00", Cause.BAD_FORMAT),
    ("deeply nested", lambda kit: b'{"signed":' * 100_000, Cause.BAD_FORMAT),
    ("for another gateway", document_of(gateway="cd" * 16), Cause.WRONG_GATEWAY),
    ("for another serial", document_of(serial="PR500AB99999"), Cause.WRONG_GATEWAY),
    ("unknown critical field", document_of(critical=["quarantine"], quarantine=True), Cause.UNKNOWN_CRITICAL),
    ("newer version of the format", document_of(v=2), Cause.UNKNOWN_CRITICAL),
    ("poll interval of a second", document_of(poll_s=1), Cause.BAD_FORMAT),
    ("no body", no_body, Cause.BAD_FORMAT),
]


@pytest.mark.parametrize(("make", "cause"), [row[1:] for row in DOCUMENTS], ids=[row[0] for row in DOCUMENTS])
def test_refuses_a_document_and_keeps_the_one_it_had(make: Callable[[Kit], bytes], cause: Cause) -> None:
    kit = make_kit()
    accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    assert refused(kit, make(kit)) is cause


def test_an_unknown_field_that_is_not_critical_is_passed_over() -> None:
    kit = make_kit()
    assert accept(kit, kit.direct(entry(OLD), targets=(OLD,), x_hint=1)).version == 2


def test_refuses_an_older_document() -> None:
    kit = make_kit()
    old = kit.direct(entry(OLD), targets=(OLD,))
    accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    assert refused(kit, old) is Cause.ROLLBACK


def test_refuses_another_document_of_the_same_version() -> None:
    kit = make_kit()
    accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    kit.document.version -= 1
    assert refused(kit, kit.direct()) is Cause.ROLLBACK


def test_a_rotated_director_key_ends_the_thief_and_his_fast_forward() -> None:
    kit = make_kit()
    kit.document.version = 2**40
    accept(kit, kit.direct())
    new = KitSigner(71)
    kit.rotate_root(Source.DIRECTOR, DIR_ROOT, targets=new)
    kit.document.version = 3
    stolen = kit.direct()
    assert refused(kit, stolen) is Cause.UNSIGNED
    assert accept(kit, signed_by(kit.document, new)).version == 4


def test_a_stored_document_of_another_enrolment_is_not_used() -> None:
    kit = make_kit()
    accept(kit, kit.direct())
    other = copy.copy(IDENTITY)
    object.__setattr__(other, "gateway", type(IDENTITY.gateway).parse("cd" * 16))
    assert kit.drive(load_document(kit.pinned[Source.DIRECTOR], other)) is None


# -- both must agree ---------------------------------------------------------------------------------------------


def test_versions_count_per_enrolment() -> None:
    """Enrolled anew, the gateway starts again at version 1; nobody can offer it the old enrolment's documents."""
    kit = make_kit()
    for _ in range(3):
        old = kit.direct()
        accept(kit, old)
    kit.document.version = 0
    renewed = attrs.evolve(IDENTITY, gateway=RandomId.parse("cd" * 16))
    first = kit.direct(gateway=renewed.gateway.text)
    root = kit.pinned[Source.DIRECTOR]
    assert kit.drive(accept_document(root, first, renewed, NOW_S)).version == 1
    with pytest.raises(RefusedError) as caught:
        kit.drive(accept_document(root, old, renewed, NOW_S))
    assert caught.value.cause is Cause.WRONG_GATEWAY


def test_installs_what_both_say() -> None:
    kit = make_kit()
    wanted = decide(kit, accept(kit, kit.direct(entry(OLD, rate_bytes_per_s=4096), targets=(OLD,))))
    assert (wanted.name, wanted.custom.release, wanted.rate_bytes_per_s) == (NAME, 1, 4096)
    assert wanted.sha256 == OLD.hashes["sha256"]


def other_bytes(kit: Kit) -> DirectorDocument:
    evil = listed(b"other bytes of the same length"[: OLD.length].ljust(OLD.length))
    return accept(kit, kit.direct(entry(evil), targets=(evil,)))


def other_length(kit: Kit) -> DirectorDocument:
    evil = listed(PACKAGE + b"!")
    evil.hashes = dict(OLD.hashes)
    return accept(kit, kit.direct(entry(evil), targets=(evil,)))


def another_hash_only(kit: Kit) -> DirectorDocument:
    evil = listed(PACKAGE)
    evil.hashes = {"sha512": "00" * 64}
    return accept(kit, kit.direct(entry(evil), targets=(evil,)))


def unknown_to_operators(kit: Kit) -> DirectorDocument:
    evil = listed(b"never signed by an operator", version="6.6.6")
    return accept(kit, kit.direct(entry(evil), targets=(evil,)))


def wrong_series(kit: Kit) -> DirectorDocument:
    target = listed(b"for others", version="2.0.0", series=("RT-400",))
    kit.publish(target)
    return accept(kit, kit.direct(entry(target), targets=(target,)))


def wrong_maker(kit: Kit) -> DirectorDocument:
    target = listed(b"for others", version="2.0.0", makers=("NE",))
    kit.publish(target)
    return accept(kit, kit.direct(entry(target), targets=(target,)))


def too_large(kit: Kit) -> DirectorDocument:
    target = listed(b"small", version="2.0.0")
    target.length = 25 << 20
    kit.publish(target)
    return accept(kit, kit.direct(entry(target), targets=(target,)))


def no_custom(kit: Kit) -> DirectorDocument:
    target = listed(b"bare", version="2.0.0")
    del target.unrecognized_fields["custom"]
    kit.publish(target)
    return accept(kit, kit.direct(entry(target), targets=(target,)))


def unknown_critical_custom(kit: Kit) -> DirectorDocument:
    target = listed(b"new", version="2.0.0")
    target.unrecognized_fields["custom"]["hgw"]["critical"] = ["needs-tpm"]
    kit.publish(target)
    return accept(kit, kit.direct(entry(target), targets=(target,)))


DISAGREEMENTS: list[tuple[str, Callable[[Kit], DirectorDocument], Cause]] = [
    ("director names other bytes", other_bytes, Cause.DISAGREE),
    ("director names another length", other_length, Cause.DISAGREE),
    ("director names another kind of hash", another_hash_only, Cause.DISAGREE),
    ("no operator signed the target", unknown_to_operators, Cause.NOT_IN_IMAGE),
    ("package for another series", wrong_series, Cause.WRONG_MODEL),
    ("package for another maker", wrong_maker, Cause.WRONG_MODEL),
    ("package too large to be sold", too_large, Cause.TOO_LARGE),
    ("target without operator's data", no_custom, Cause.BAD_FORMAT),
    ("target with an unknown critical field", unknown_critical_custom, Cause.UNKNOWN_CRITICAL),
]


@pytest.mark.parametrize(
    ("make", "cause"), [row[1:] for row in DISAGREEMENTS], ids=[row[0] for row in DISAGREEMENTS]
)
def test_does_not_install(make: Callable[[Kit], DirectorDocument], cause: Cause) -> None:
    kit = make_kit()
    assert decision_cause(kit, make(kit)) is cause


def test_a_rollouts_data_budget_is_kept() -> None:
    kit = make_kit()
    document = accept(kit, kit.direct(entry(OLD, budget_bytes=OLD.length - 1), targets=(OLD,)))
    assert decision_cause(kit, document) is Cause.BUDGET
    document = accept(kit, kit.direct(entry(OLD, budget_bytes=OLD.length), targets=(OLD,)))
    assert decide(kit, document).length_bytes == OLD.length


def test_image_newer_than_director_changes_nothing() -> None:
    kit = make_kit()
    document = accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    kit.publish(NEW)
    assert decide(kit, document).custom.release == 1


# -- thieves -----------------------------------------------------------------------------------------------------


def test_thief_of_the_director_key_brings_no_new_bytes() -> None:
    kit = make_kit()
    assert decision_cause(kit, unknown_to_operators(kit)) is Cause.NOT_IN_IMAGE
    assert decision_cause(kit, other_bytes(kit)) is Cause.DISAGREE


def test_thief_of_the_director_key_cannot_go_below_a_floor() -> None:
    kit = make_kit()
    kit.publish(NEW)
    document = accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    assert decision_cause(kit, document, floor_release=4) is Cause.BELOW_FLOOR


def test_thief_of_snapshot_and_timestamp_brings_no_new_bytes() -> None:
    """He can serve an operator file of his own; no operator key signs it."""
    kit = make_kit()
    evil = listed(b"evil", version="6.6.6")
    kit.publish(evil, operator=STRANGER)
    document = accept(kit, kit.direct(entry(OLD), targets=(OLD,)))
    assert decision_cause(kit, document) is Cause.UNSIGNED


def test_thief_of_snapshot_and_timestamp_cannot_bring_back_an_old_operator_file() -> None:
    kit = make_kit()
    kit.publish(NEW)
    document = accept(kit, kit.direct(entry(NEW), targets=(NEW,)))
    decide(kit, document)
    kit.snapshot.version += 1
    kit.snapshot.meta["operator-mimamori.json"] = MetaFile(2)
    kit.timestamp.version += 1
    data = signed_by(kit.snapshot, SNAPSHOT)
    kit.served[Source.IMAGE, f"{kit.snapshot.version}.snapshot.json"] = data
    kit.timestamp.snapshot_meta = MetaFile(kit.snapshot.version)
    kit.served[Source.IMAGE, "timestamp.json"] = signed_by(kit.timestamp, TIMESTAMP)
    assert decision_cause(kit, document) is Cause.ROLLBACK


def test_thief_of_all_online_keys_brings_no_new_bytes_and_no_downgrade_below_the_floor() -> None:
    kit = make_kit()
    kit.publish(NEW)
    evil = listed(b"evil", version="6.6.6")
    kit.publish(evil, operator=STRANGER)
    document = accept(kit, kit.direct(entry(evil), targets=(evil,)))
    assert decision_cause(kit, document) is Cause.UNSIGNED

    # A gateway that never saw anything newer, fed with an old but operator-signed file: only the floor is left.
    fresh = make_kit()
    document = accept(fresh, fresh.direct(entry(OLD), targets=(OLD,)))
    assert decision_cause(fresh, document, floor_release=4) is Cause.BELOW_FLOOR


# -- small decisions ---------------------------------------------------------------------------------------------


def made_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "v": 1, "operator": "mimamori", "software": "sensor", "version": "1.0.0", "release": 1, "series": ("PR-500",),
        "makers": ("KI",), "runtime": "python-zipapp", "entry": "app.pyz", "health": Health(kind="exit"),
        "resources": Resources(memory_bytes=16 << 20),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"software": "other"}, Cause.WRONG_PACKAGE),
        ({"operator": "other"}, Cause.WRONG_PACKAGE),
        ({"release": 2}, Cause.WRONG_PACKAGE),
        ({"version": "1.0.1"}, Cause.WRONG_PACKAGE),
        ({"makers": ("NE",)}, Cause.WRONG_MODEL),
        ({"series": ("RT-400",)}, Cause.WRONG_MODEL),
    ],
    ids=["software", "operator", "release", "version", "maker", "series"],
)
def test_manifest_must_be_what_the_target_announced(changes: dict[str, Any], cause: Cause) -> None:
    kit = make_kit()
    wanted = decide(kit, accept(kit, kit.direct(entry(OLD), targets=(OLD,))))
    check_manifest(made_manifest(), wanted, IDENTITY)
    with pytest.raises(RefusedError) as caught:
        check_manifest(made_manifest(**changes), wanted, IDENTITY)
    assert caught.value.cause is cause


@pytest.mark.parametrize(
    ("start", "end", "jst", "inside"),
    [
        ("02:00", "04:00", "02:00", True), ("02:00", "04:00", "03:59", True), ("02:00", "04:00", "04:00", False),
        ("02:00", "04:00", "01:59", False), ("23:00", "01:00", "23:30", True), ("23:00", "01:00", "00:30", True),
        ("23:00", "01:00", "01:00", False), ("23:00", "01:00", "12:00", False),
    ],
)  # fmt: skip
def test_window_is_in_japan_time_and_may_pass_midnight(start: str, end: str, jst: str, inside: bool) -> None:
    midnight_jst_s = 1_795_014_000 - 1_795_014_000 % DAY_S - 9 * 3600
    now_s = midnight_jst_s + int(jst[:2]) * 3600 + int(jst[3:]) * 60
    assert in_window(DirectorWindow(start=start, end=end), now_s) is inside


def test_a_software_is_known_by_operator_and_name() -> None:
    assert SoftwareName.parse("mimamori/sensor") == NAME
