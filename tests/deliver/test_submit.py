"""What the portal accepts from an operator, and every way to be refused (JNT-05, -13, -50; design §5.1)."""

from __future__ import annotations

import hashlib
import os

import pytest

from carrier.ledger.events import SoftwareChanged, SoftwareRegistered
from carrier.ledger.store import read_events
from deliver.domain.pricing import Refused, Registered
from deliver.services.submit import Accepted
from deliver.signing.tuf import Delegations, TargetFile, tuf_key
from wire.ids import RandomId
from wire.joint import OperatorSubmit, Quote
from wire.signing import generate_key


def events_of(program, payer="acme-home"):
    with program.database.read() as connection:
        return read_events(connection, payer)


def test_a_quote_names_both_sizes_and_all_fees_and_registers_nothing(acme, program, kit):
    before = kit.dump(program)
    data, package = acme.measure()
    quote = acme.quote(data, package)
    assert isinstance(quote, Quote)
    assert (quote.stored_bytes, quote.footprint_bytes) == (len(data), len(b"print('lights')"))
    assert (quote.menu, quote.plan, quote.basic_fee_yen, quote.target_fee_yen) == (
        "menu-1",
        "plan-1",
        11_000,
        110,
    )
    assert (quote.one_off_yen, quote.rule) == (29_480, "JNT-12")
    rows, files = kit.dump(program)
    assert files == before[1]
    assert {name for name in rows if rows[name] != before[0][name]} == {"joint_quote"}


def test_an_accepted_package_is_published_charged_once_and_accepting_again_changes_nothing(
    acme, program, kit
):
    data, package = acme.measure()
    quote = acme.quote(data, package)
    metadata = acme.metadata([package])
    assert acme.accept(quote.quote_id, metadata) == Accepted(package.target_path, 1)
    folder = program.home.image_dir / "targets" / package.target_path.rpartition("/")[0]
    assert [p.read_bytes() for p in folder.iterdir()] == [data]
    assert program.image.published()["operator-acme-home"] == 1
    (event,) = events_of(program)
    assert isinstance(event, SoftwareRegistered)
    assert event.stored_bytes == len(data)
    before = kit.dump(program)
    assert acme.accept(quote.quote_id, metadata) == Accepted(package.target_path, 1)
    assert kit.dump(program) == before
    assert kit.staged(program) == []


def test_the_same_bytes_again_cost_nothing_and_other_bytes_are_refused(acme, program, kit):
    package, _ = acme.publish()
    data, same = acme.measure()
    assert acme.quote(data, same, "change") == Registered(package.target_path)
    data, other = acme.measure(b"print('other')")
    refusal = acme.quote(data, other, "change")
    assert (refusal.code, refusal.rule) == ("conflict", "JNT-50")
    assert kit.staged(program) == []


def test_JNT_13_a_new_version_is_change_work(acme, program):
    first, _ = acme.publish()
    data, second = acme.measure(version="2.0", release=2)
    assert acme.quote(data, second, "new").code == "wrong-change"
    quote = acme.quote(data, second, "change")
    assert quote.one_off_yen == 26_400
    assert acme.accept(quote.quote_id, acme.metadata([first, second], version=2)) == Accepted(
        second.target_path, 2
    )
    assert [type(event) for event in events_of(program)] == [SoftwareRegistered, SoftwareChanged]


@pytest.mark.parametrize("release", [5, 4])
def test_releases_only_rise(acme, release):
    acme.publish(release=5)
    data, package = acme.measure(version="2.0", release=release)
    refusal = acme.quote(data, package, "change")
    assert (refusal.code, refusal.rule) == ("release-not-higher", "JNT-50")


def test_JNT_06_variants_of_a_version_count_together(acme):
    first, _ = acme.publish()
    data, second = acme.measure(b"other model", series=("RT-500",))
    quote = acme.quote(data, second, "change")
    assert quote.stored_bytes == first.stored_bytes + len(data)
    assert quote.footprint_bytes == len(b"other model")


def sparse(acme, size_bytes):
    """A package whose installed size is `size_bytes`."""
    return acme.measure(bytes(size_bytes))


def test_JNT_05_a_footprint_of_7_5_M_is_refused_naming_the_rule(acme):
    data, package = sparse(acme, 7_864_319)
    assert acme.quote(data, package).plan == "plan-5"
    data, package = sparse(acme, 7_864_320)
    refusal = acme.quote(data, package)
    assert (refusal.code, refusal.rule) == ("size-footprint", "JNT-05")
    assert "7864319" in refusal.message


def test_JNT_05_an_empty_footprint_is_refused(acme):
    data, package = acme.measure(b"")
    refusal = acme.quote(data, package)
    assert (refusal.code, refusal.rule) == ("size-footprint", "JNT-05")


def test_JNT_07_a_series_with_less_room_is_refused_at_upload(acme):
    data, package = acme.measure(bytes(7 * 2**20), series=("PR-500", "PR-400"))
    refusal = acme.quote(data, package)
    assert (refusal.code, refusal.rule) == ("size-model", "JNT-07")
    assert "PR-400" in refusal.message


@pytest.mark.parametrize("field", ["description", "price_text"])
def test_JNT_32_content_and_price_must_be_shown_to_customers(acme, field):
    data, package = acme.measure(**{field: " "})
    refusal = acme.quote(data, package)
    assert (refusal.code, refusal.rule) == ("text-missing", "JNT-32")
    assert field in refusal.message


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"operator": "other-co"}, "wrong-operator"),
        ({"software": "blinds"}, "wrong-package"),
        ({"version": "9.9"}, "wrong-package"),
        ({"body_sha256": "0" * 64}, "bad-hash"),
    ],
)
def test_an_order_that_does_not_match_its_package_is_refused(acme, program, kit, changes, code):
    data, package = acme.measure()
    good = {
        "operator": "acme-home",
        "software": "lights",
        "version": "1.0",
        "change": "new",
        "body_sha256": package.sha256,
    }
    submit, quote = program.submit(), RandomId.parse("0" * 32)
    submit.staged_path(quote).write_bytes(data)
    before = kit.dump(program)
    order = OperatorSubmit(**{**good, **changes})
    refusal = submit.make_quote(acme.operator, order, package, quote, now_s=kit.NOW_S)
    assert refusal.code == code
    assert kit.dump(program) == before
    assert kit.staged(program) == []


def test_an_operator_waits_for_the_ceremony(program, kit):
    waiting = kit.add_operator_kit(program, delegate=False)
    data, package = waiting.measure()
    assert waiting.quote(data, package).code == "not-delegated"
    kit.run_ceremony(program)
    assert isinstance(waiting.quote(data, package), Quote)


def add_target(path, **fields):
    def change(signed):
        known = next(iter(signed.targets.values()))
        signed.targets[path] = TargetFile(
            **{"length": known.length, "hashes": known.hashes, "path": path, **fields}
        )

    return change


def set_custom(**changes):
    def change(signed):
        custom = next(iter(signed.targets.values())).unrecognized_fields["custom"]["hgw"]
        custom.update(changes)

    return change


def set_hash(signed):
    next(iter(signed.targets.values())).hashes["sha256"] = "0" * 64


def delegate(signed):
    key = tuf_key(generate_key().public)
    signed.delegations = Delegations({key.keyid: key}, {})


def empty(signed):
    signed.targets.clear()


OTHER_SHARD = "00/acme-home/lights/1.1/PR-500.hgwpkg"
OTHER_OPERATOR = f"{hashlib.sha256(b'other-co').hexdigest()[:2]}/other-co/lights/1.1/PR-500.hgwpkg"

REFUSALS = {
    "unsigned": ({"keys": []}, "bad-signature"),
    "signed by another operator's key": ({"keys": "stranger"}, "bad-signature"),
    "version skipped": ({"version": 2}, "metadata-version"),
    "expired": ({"expires_s": -1}, "expired"),
    "valid for longer than two years": ({"expires_s": 3 * 365 * 86_400}, "expired"),
    "delegates further": ({"change": delegate}, "delegates"),
    "path of another shard": ({"change": add_target(OTHER_SHARD)}, "wrong-path"),
    "path of another operator": ({"change": add_target(OTHER_OPERATOR)}, "wrong-path"),
    "a file that was never quoted": (
        {"change": add_target("b6/acme-home/lights/1.1/PR-500.hgwpkg")},
        "unknown-target",
    ),
    "the package is not listed": ({"change": empty}, "not-listed"),
    "other bytes": ({"change": set_hash}, "bad-hash"),
    "another release than the manifest's": ({"change": set_custom(release=7)}, "bad-format"),
    "another floor than the manifest's": ({"change": set_custom(floor=1)}, "bad-format"),
    "more series than the manifest's": ({"change": set_custom(series=["PR-500", "RT-500"])}, "bad-format"),
    "a critical field nobody knows": ({"change": set_custom(critical=["chip"])}, "bad-format"),
}


@pytest.mark.parametrize(("changes", "code"), REFUSALS.values(), ids=list(REFUSALS))
def test_metadata_is_refused_and_changes_nothing(acme, program, kit, changes, code):
    data, package = acme.measure()
    quote = acme.quote(data, package)
    if changes.get("keys") == "stranger":
        changes = {"keys": [generate_key()]}
    before = kit.dump(program)
    outcome = acme.accept(quote.quote_id, acme.metadata([package], **changes))
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.rule) == (code, "JNT-50")
    assert kit.dump(program) == before


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"signed":{},"signatures":[]}'])
def test_bytes_that_are_no_metadata_are_refused(acme, data):
    packed, package = acme.measure()
    quote = acme.quote(packed, package)
    assert acme.accept(quote.quote_id, data).code == "bad-format"


def test_a_file_once_registered_stays_listed_unchanged(acme, program, kit):
    acme.publish()
    data, second = acme.measure(version="2.0", release=2)
    quote = acme.quote(data, second, "change")
    before = kit.dump(program)
    outcome = acme.accept(quote.quote_id, acme.metadata([second], version=2))
    assert outcome.code == "conflict"
    assert kit.dump(program) == before


def test_a_threshold_counts_different_keys_only(program, kit):
    two = kit.add_operator_kit(program, key_count=3, threshold=2)
    data, package = two.measure()
    quote = two.quote(data, package)
    one = two.keys[0]
    assert two.accept(quote.quote_id, two.metadata([package], keys=[one])).code == "bad-signature"
    assert two.accept(quote.quote_id, two.metadata([package], keys=[one, one])).code == "bad-signature"
    assert isinstance(two.accept(quote.quote_id, two.metadata([package], keys=two.keys[:2])), Accepted)


def test_an_operator_cannot_accept_the_quote_of_another(acme, program, kit):
    other = kit.add_operator_kit(program, "other-co")
    data, package = acme.measure()
    quote = acme.quote(data, package)
    assert other.accept(quote.quote_id, other.metadata([package])).code == "not-found"


def test_a_quote_lasts_a_day_and_its_file_is_dropped_afterwards(acme, program, clock, kit):
    data, package = acme.measure()
    quote = acme.quote(data, package)
    clock.advance(86_401)
    assert acme.accept(quote.quote_id, acme.metadata([package])).code == "not-found"
    assert kit.staged(program) != []

    for name in kit.staged(program):
        path = program.submit().staging_dir / name
        os.utime(path, (kit.NOW_S, kit.NOW_S))
    assert program.submit().drop_old_quotes(now_s=int(clock.now_s())) == 1
    assert kit.staged(program) == []


def test_a_quote_whose_price_changed_meanwhile_must_be_asked_again(acme):
    data, first = acme.measure()
    quote = acme.quote(data, first)
    other_data, other = acme.measure(b"other model", series=("RT-500",))
    other_quote = acme.quote(other_data, other)
    assert isinstance(acme.accept(quote.quote_id, acme.metadata([first])), Accepted)
    outcome = acme.accept(other_quote.quote_id, acme.metadata([first, other], version=2))
    assert outcome.code in {"wrong-change", "conflict"}


def test_two_operators_live_side_by_side(acme, program, kit):
    other = kit.add_operator_kit(program, "other-co")
    _, mine = acme.publish()
    _, theirs = other.publish()
    assert isinstance(mine, Accepted)
    assert isinstance(theirs, Accepted)
    assert {"operator-acme-home", "operator-other-co"} <= set(program.image.published())
