"""What operators do: contracts, codes, lines, devices; each outcome once (AZK-01, AZK-14, AZK-18b)."""

from __future__ import annotations

import os

import attrs
import pytest
import sqlalchemy as sa

from carrier.engines.sql.schema import device as device_table
from carrier.lines.addresses import Prefix
from carrier.lines.outcomes import CustomerUnknown, PrefixAdded, SerialUnknown
from carrier.storage.authority import Caller
from carrier.storage.outcomes import (
    Code,
    ContractTaken,
    LineMissing,
    OpeningNotice,
    PlanUnknown,
    Rebuilt,
    Refused,
)
from carrier.storage.packs import PackPut
from wire.ids import ContractId, CustomerId, GatewaySerial
from wire.signing import Context, generate_key, sign_blob
from wire.storage import DeviceEnrolled

OTHER = ContractId.parse("AZK0000000002")
STRANGER = CustomerId.parse("CAF0000000099")


@pytest.fixture
def admin(world):
    return world.carrier.admin


def test_opening_notice_names_what_the_contractor_needs(world, admin):
    notice = admin.add_contract(OTHER, "100gb", world.customer)
    assert isinstance(notice, OpeningNotice)
    assert (notice.contract, notice.plan, notice.capacity_bytes) == (OTHER, "100gb", 100 * 2**30)
    assert notice.service_root == world.root_key.public.hex()
    assert len(bytes.fromhex(notice.enrolment_code)) == 16
    assert notice.enrolment_code != world.notice.enrolment_code


def test_contract_id_is_taken_once(world, admin):
    before = world.dump()
    assert admin.add_contract(world.contract, "10gb", world.customer) == ContractTaken(world.contract)
    assert world.dump() == before


def test_contract_needs_a_running_line_and_a_plan_of_the_table(world, admin):
    before = world.dump()
    assert admin.add_contract(OTHER, "10gb", STRANGER) == LineMissing(STRANGER)
    assert admin.add_contract(OTHER, "11gb", world.customer) == PlanUnknown("11gb")
    assert world.dump() == before


def test_ended_contract_takes_nothing_more(world, admin):
    assert admin.end_contract(world.contract)
    assert not admin.end_contract(world.contract)
    assert admin.add_code(world.contract) is None
    assert not admin.set_entitlement(world.contract, "remote-support")
    assert not admin.bind_line(world.contract, world.customer)
    assert admin.read_usage(world.contract) is not None


def test_unknown_contract_and_device_are_told_apart_from_success(world, admin):
    assert admin.read_usage(OTHER) is None
    assert admin.add_code(OTHER) is None
    assert not admin.lock_device(b"x" * 32)
    assert not world.carrier.registry.forget_gateway_key(GatewaySerial.parse("GW99999999"))
    assert world.carrier.registry.end_gateway_contract(GatewaySerial.parse("GW99999999")) == SerialUnknown(
        GatewaySerial.parse("GW99999999")
    )
    unknown = world.carrier.registry.add_gateway_contract(
        STRANGER, GatewaySerial.parse("GW99999999"), "PR-500", "KI", b"x" * 16
    )
    assert unknown == CustomerUnknown(STRANGER)


async def test_second_line_of_a_contract_works_as_well_as_the_first(enrolled):
    world, admin = enrolled, enrolled.carrier.admin
    office = world.add_customer(2, "2001:db8:2::/56")
    gateway = world.add_gateway(office, "GW00000009")
    blob = world.session_statement()
    caller = world.caller("sessions", blob, peer="2001:db8:2::1", key=gateway)
    assert (await world.storage.open_session(caller, blob)).code is Code.LINE_NOT_CONTRACT
    assert admin.bind_line(world.contract, office)
    assert not admin.bind_line(world.contract, office), "bound already"
    blob = world.session_statement()
    caller = world.caller("sessions", blob, peer="2001:db8:2::1", key=gateway)
    assert not isinstance(await world.storage.open_session(caller, blob), Refused)
    assert admin.unbind_line(office) == 1
    assert admin.unbind_line(office) == 0


def test_line_unbound_and_bound_again_in_one_second_is_bound(world, admin):
    admin.unbind_line(world.customer)
    assert admin.bind_line(world.contract, world.customer)


async def test_AZK_14_thousandth_device_is_refused_and_a_revoked_one_frees_its_place(world, admin):
    rows = [
        {
            "device": number.to_bytes(32, "big"),
            "contract": world.contract.text,
            "cert": b"",
            "state": "active",
            "enrolled_at": 0,
            "changed_at": 0,
        }
        for number in range(1, 1000)
    ]
    with world.carrier.database.write() as connection:
        connection.execute(sa.insert(device_table), rows)
    refused = await world.enrol()
    assert isinstance(refused, Refused)
    assert "AZK-14" in refused.reason
    admin.lock_device((1).to_bytes(32, "big"))
    assert isinstance(await world.enrol(), Refused), "a locked one still counts"
    admin.revoke_device((1).to_bytes(32, "big"))
    assert isinstance(await world.enrol(), DeviceEnrolled)


async def test_device_key_is_enrolled_once_only(enrolled):
    world = enrolled
    code = world.carrier.admin.add_code(world.contract)
    answer = await world.enrol(code=code)
    assert (answer.code, answer.reason) == (Code.REFUSED, "device key is enrolled already")


async def test_revoked_device_cannot_come_back_with_its_spent_code(enrolled):
    world = enrolled
    world.carrier.admin.revoke_device(world.nas.key.public)
    assert (await world.enrol()).code is Code.REFUSED


async def test_entitlement_of_the_same_start_is_changed_not_doubled(world, admin):
    assert admin.set_entitlement(world.contract, "remote-support", valid_from=5)
    assert admin.set_entitlement(world.contract, "remote-support", valid_from=5, valid_to=6)
    assert sum(row.startswith("storage_entitlement ") for row in world.dump()) == 1


def test_renumbering_that_would_overlap_changes_nothing(world):
    other = world.add_customer(2, "2001:db8:2::/56")
    old, taken = Prefix.parse("2001:db8:1:100::/56"), Prefix.parse("2001:db8:2::/56")
    before = world.dump()
    assert not isinstance(world.carrier.events.renumber(world.customer, old, taken), PrefixAdded)
    assert world.dump() == before
    assert other


async def test_rebuild_meets_blobs_it_must_not_bring_back(enrolled):
    """A pack on its way out stays so; a blob of an unknown device, and a second blob of a stored pack, are left."""
    world = enrolled
    admin, blobs = world.carrier.admin, world.storage.blobs
    given = await world.session(await world.open())
    data = world.nas.pack(given.session.text, [os.urandom(32)])
    done = await world.put(given, data)
    assert isinstance(done, PackPut)
    (key,) = world.blob_names()
    publish(blobs, key.rpartition("-")[0] + "-" + "ab" * 16, data)
    stranger = attrs.evolve(world.nas, key=generate_key()).pack(given.session.text, [os.urandom(32)])
    import hashlib

    publish(blobs, f"{world.contract}/{hashlib.sha256(stranger).hexdigest()}-{'cd' * 16}", stranger)
    before = world.dump()
    report = admin.rebuild_index()
    assert (report.refreshed, report.added, report.skipped) == (1, 0, 2)
    assert world.dump() == before
    await world.storage.close_session(given)
    admin.gc()
    world.clock.advance(3600)
    (pack,) = admin.stores.gc.claim_condemned(int(world.clock.now_s()), dry_run=False)
    facts_of = admin._inspect(next(b for b in blobs.list_blobs() if b.key == pack.key), pack.sha256.hex())
    again = admin.stores.gc.rebuild_pack(world.contract, pack.incarnation, pack.sha256, facts_of, 0)
    assert again is Rebuilt.ON_ITS_WAY_OUT


def publish(blobs, key, data):
    writer = blobs.begin()
    writer.write(data)
    writer.publish(key)


async def test_newer_formats_say_upgrade_needed(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    newer = sign_blob(world.nas.key, Context.GENERATION_ROOT, b'{"v":9}')
    answer = await world.storage.commit(given, len(newer).to_bytes(4, "big") + newer)
    assert answer.code is Code.UPGRADE_NEEDED
    header = sign_blob(world.nas.key, Context.SESSION_HEADER, b'{"v":9}')
    blob = world.session_statement(header=header)
    opened = await world.storage.open_session(world.caller("sessions", blob), blob)
    assert opened.code is Code.UPGRADE_NEEDED
    statement = sign_blob(
        world.nas.key,
        Context.STATEMENT,
        b'{"v":9,"kind":"session-open","audience":"storage","nonce":"%s","issued_at":1,"signer":"%s","body":{}}'
        % (b"ab" * 16, world.nas.key.public.hex().encode()),
    )
    late = await world.storage.open_session(world.caller("sessions", statement), statement)
    assert late.code is Code.UPGRADE_NEEDED
    pack = bytearray(world.nas.pack(given.session.text, [os.urandom(32)]))
    pack[5] = 9
    assert (await world.put(given, bytes(pack))).code is Code.UPGRADE_NEEDED


@pytest.mark.parametrize("name", ["..", "ab", "AB" * 16, "%2e%2e", "0" * 33])
async def test_names_of_another_form_are_not_found(enrolled, name):
    world = enrolled
    reading = await world.session(await world.open(mode="read"))
    assert (await world.storage.read_generation(reading, name)).code is Code.NOT_FOUND
    assert (await world.storage.read_header(reading, name)).code is Code.NOT_FOUND


async def test_lease_that_lapsed_under_a_running_commit_says_so(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    await world.storage.close_session(given)
    assert (await world.storage.commit(given, world.nas.commit_body(given.session.text, []))).code is (
        Code.SESSION_OVER
    )
    world.carrier.admin.end_contract(world.contract)
    assert (await world.storage.commit(given, world.nas.commit_body(given.session.text, []))).code is (
        Code.CONTRACT_ENDED
    )
    late = await world.storage.check(Caller("2001:db8:1:100::1"), given.session.text, "00" * 32, None)
    assert late.code is Code.REFUSED
