"""Every refusal of the storage service, and that it changed nothing (protocols.md §2, X-03, X-04, AZK-12, AZK-15)."""

from __future__ import annotations

import hashlib
import os

import attrs
import pytest

from carrier.storage import facts
from carrier.storage.authority import Caller
from carrier.storage.outcomes import Code, Committed, Refused
from wire.ids import ContractId
from wire.signing import generate_key
from wire.statement import Audience, Kind, make_statement
from wire.storage import DeviceEnrolled, SessionOpened, to_base64
from wire.vault.session import DeviceCert, sign_device_cert


async def enrol_with(world, **how):
    """Enrol with one thing changed: `nas`, `code`, `blob`, `caller`, or a field of the body."""
    caller_changes = how.pop("caller", {})
    blob = how.pop("blob", None) or world.enrol_statement(**how)
    return await world.storage.enrol_device(world.caller("devices", blob, **caller_changes), blob)


def foreign_nas(world):
    return attrs.evolve(world.nas, contract_key=generate_key(), key=generate_key())


def wrong_enrolments(world):
    nas = world.nas
    other = world.add_customer(2, "2001:db8:2::/56")
    other_gateway = world.add_gateway(other, "GW00000009")
    cert_of_another = sign_device_cert(
        nas.contract_key,
        DeviceCert(contract=nas.contract.text, device_key="ab" * 32, name="x", issued_at=1),
    )
    ended = ContractId.parse("AZK0000000009")
    world.carrier.admin.add_contract(ended, "10gb", world.customer)
    world.carrier.admin.end_contract(ended)
    blob = world.enrol_statement()
    bad_signature = bytes([blob[0] ^ 1]) + blob[1:]
    return {
        "wrong code": {"code": "00" * 16},
        "code of another form": {"code": "zz"},
        "another contract": {"contract": "AZK0000000002"},
        "contract over": {"contract": ended.text},
        "certificate of another device": {"device_cert": to_base64(cert_of_another)},
        "certificate by another owner": {"contract_sign_key": generate_key().public.hex()},
        "bad signature": {"blob": bad_signature},
        "no statement": {"blob": b"hello"},
        "foreign line": {"caller": {"peer": "2001:db8:2::1", "key": other_gateway}},
        "unknown line": {"caller": {"peer": "2001:db8:ffff::1"}},
        "ipv4": {"caller": {"peer": "192.0.2.1"}},
        "unknown gateway": {"caller": {"key": generate_key()}},
        "gateway of another line": {"caller": {"key": other_gateway}},
    }


@pytest.mark.parametrize(
    "case",
    [
        "wrong code",
        "code of another form",
        "another contract",
        "contract over",
        "certificate of another device",
        "certificate by another owner",
        "bad signature",
        "no statement",
        "foreign line",
        "unknown line",
        "ipv4",
        "unknown gateway",
        "gateway of another line",
    ],
)
async def test_enrolment_has_one_answer_for_every_cause(world, case):
    how = wrong_enrolments(world)[case]
    before = world.dump()
    answer = await enrol_with(world, **how)
    assert isinstance(answer, Refused)
    assert (answer.code, answer.message) == (Code.REFUSED, "not allowed")
    assert world.dump() == before
    assert isinstance(await world.enrol(), DeviceEnrolled), "the code was not spent"


async def test_enrolment_code_is_single_use(world):
    assert isinstance(await world.enrol(), DeviceEnrolled)
    second = attrs.evolve(world.nas, key=generate_key())
    assert (await enrol_with(world, nas=second)).code is Code.REFUSED
    again = await world.enrol()
    assert isinstance(again, DeviceEnrolled), "the device that spent it gets the same answer"


async def test_enrolment_code_ends_after_thirty_days(world):
    world.clock.advance(30 * 86_400)
    world.carrier.directory.refresh()
    assert (await world.enrol()).code is Code.REFUSED


async def test_second_device_needs_its_own_code_and_the_pinned_contract_keys(enrolled):
    world = enrolled
    second = attrs.evolve(world.nas, key=generate_key())
    code = world.carrier.admin.add_code(world.contract)
    swapped = attrs.evolve(foreign_nas(world))
    assert (await enrol_with(world, nas=swapped, code=code)).code is Code.REFUSED
    boxed = attrs.evolve(second, box_key=b"x" * 32)
    assert (await enrol_with(world, nas=boxed, code=code)).code is Code.REFUSED
    assert isinstance(await enrol_with(world, nas=second, code=code), DeviceEnrolled)


async def test_enrolment_names_the_receipt_key_and_root(world):
    answer = await world.enrol()
    assert answer.service_root == world.root_key.public.hex() == world.notice.service_root
    assert answer.receipt_key_cert == to_base64(world.storage.receipts.cert)


async def open_with(world, *, caller=None, blob=None, nas=None, **how):
    blob = blob or world.session_statement(nas, **how)
    return await world.storage.open_session(world.caller("sessions", blob, **(caller or {})), blob)


async def test_stranger_gets_one_answer_whatever_else_is_wrong(enrolled):
    """Without an enrolled key nothing is learnt about lines, contracts or gateways."""
    world = enrolled
    stranger = attrs.evolve(world.nas, key=generate_key())
    before = world.dump()
    answers = [
        await open_with(world, nas=stranger),
        await open_with(world, nas=stranger, caller={"peer": "192.0.2.1"}),
        await open_with(world, nas=stranger, caller={"peer": "2001:db8:ffff::1"}),
        await open_with(world, nas=stranger, contract="AZK0000000002"),
        await open_with(world, nas=stranger, caller={"key": generate_key()}),
        await open_with(world, contract="AZK0000000002"),
        await open_with(world, blob=b"x" * 200),
        await world.storage.check(Caller("2001:db8:1:100::1"), "ab" * 16, "cd" * 32, None),
        await world.storage.check(Caller("192.0.2.1"), "ab" * 16, None, None),
        await world.storage.check(Caller("192.0.2.1"), "..", "zz", None),
    ]
    assert {(answer.code, answer.message) for answer in answers} == {(Code.REFUSED, "not allowed")}
    assert world.dump() == before


async def wrong_openings(world, case):
    """Bring about the case; return what `open_with` needs and the code expected."""
    other = world.add_customer(2, "2001:db8:2::/56")
    other_gateway = world.add_gateway(other, "GW00000009")
    match case:
        case "unknown line":
            return {"caller": {"peer": "2001:db8:ffff::1"}}, Code.LINE_UNKNOWN
        case "ipv4 mapped":
            return {"caller": {"peer": "::ffff:192.0.2.1"}}, Code.LINE_UNKNOWN
        case "zone":
            return {"caller": {"peer": "fe80::1%lan0"}}, Code.LINE_UNKNOWN
        case "another contract's line":
            return {"caller": {"peer": "2001:db8:2::1", "key": other_gateway}}, Code.LINE_NOT_CONTRACT
        case "unknown gateway":
            return {"caller": {"key": generate_key()}}, Code.GATEWAY_ENDED
        case "gateway of another line":
            return {"caller": {"key": other_gateway}}, Code.GATEWAY_ENDED
        case "device revoked":
            world.carrier.admin.revoke_device(world.nas.key.public)
            return {}, Code.DEVICE_REVOKED
        case "device locked":
            world.carrier.admin.lock_device(world.nas.key.public)
            return {}, Code.DEVICE_REVOKED
        case "contract over":
            world.carrier.admin.end_contract(world.contract)
            return {}, Code.CONTRACT_ENDED
        case "header of another backup set":
            return {"header": world.nas.header("other")}, Code.BAD_FORMAT
        case "header of another owner":
            return {"header": foreign_nas(world).header()}, Code.BAD_FORMAT
        case "append without header":
            blob = world.session_statement(session_header=None)
            return {"blob": blob}, Code.BAD_FORMAT
        case _:
            return {"backup_set": "../etc", "header": world.nas.header("../etc")}, Code.BAD_FORMAT


@pytest.mark.parametrize(
    "case",
    [
        "unknown line",
        "ipv4 mapped",
        "zone",
        "another contract's line",
        "unknown gateway",
        "gateway of another line",
        "device revoked",
        "device locked",
        "contract over",
        "header of another backup set",
        "header of another owner",
        "append without header",
        "name that is a path",
    ],
)
async def test_enrolled_device_learns_why_a_session_is_refused(enrolled, case):
    world = enrolled
    how, code = await wrong_openings(world, case)
    before = world.dump()
    answer = await open_with(world, **how)
    assert isinstance(answer, Refused)
    assert answer.code is code
    assert world.dump() == before


async def test_gateway_statement_must_name_this_very_request(enrolled):
    world = enrolled
    blob = world.session_statement()
    for caller in (
        world.caller("devices", blob),
        world.caller("sessions", blob + b"x"),
        Caller("2001:db8:1:100::1", None),
        Caller("2001:db8:1:100::1", "not base64!"),
    ):
        assert (await world.storage.open_session(caller, blob)).code in {Code.GATEWAY_ENDED, Code.REFUSED}


async def test_gateway_with_a_wrong_clock_is_asked_to_try_again(enrolled):
    """Its clock converges by itself (design §5.6): the NAS must not be told that a contract has ended."""
    world = enrolled
    world.clock.unix_s += 3600
    blobs = {"sessions": world.session_statement(), "devices": world.enrol_statement()}
    callers = {path: world.caller(path, blob) for path, blob in blobs.items()}
    world.clock.unix_s -= 3600
    fresh = {"sessions": world.session_statement(), "devices": world.enrol_statement()}
    opened = await world.storage.open_session(callers["sessions"], fresh["sessions"])
    assert opened.code is Code.UNAVAILABLE
    assert (await world.storage.enrol_device(callers["devices"], fresh["devices"])).code is Code.UNAVAILABLE


async def test_replayed_statement_is_refused(enrolled):
    world = enrolled
    blob = world.session_statement()
    assert isinstance(await open_with(world, blob=blob), SessionOpened)
    before = world.dump()
    answer = await open_with(world, blob=blob)
    assert (answer.code, answer.reason) == (Code.REFUSED, "statement: replayed")
    assert world.dump() == before


async def test_replayed_gateway_statement_is_refused(enrolled):
    world = enrolled
    blob = world.session_statement()
    caller = world.caller("sessions", blob)
    assert isinstance(await world.storage.open_session(caller, blob), SessionOpened)
    other = world.session_statement()
    stolen = attrs.evolve(caller)
    assert (await world.storage.open_session(stolen, other)).code is Code.GATEWAY_ENDED


@pytest.mark.parametrize(("off_s", "code"), [(-91, Code.CLOCK), (31, Code.CLOCK), (-89, None), (29, None)])
async def test_statement_counts_only_inside_its_minute(enrolled, off_s, code):
    world = enrolled
    world.clock.unix_s += off_s
    blob = world.session_statement()
    world.clock.unix_s -= off_s
    answer = await open_with(world, blob=blob)
    assert (answer.code if isinstance(answer, Refused) else None) is code
    if code:
        assert answer.extra == {"server_time": int(world.clock.now_s())}


async def test_statement_for_another_audience_or_kind_is_refused(enrolled):
    world = enrolled
    from wire.storage import SessionOpen

    body = SessionOpen(contract=world.contract.text, backup_set="home", mode="read")
    for kind, audience in ((Kind.SESSION_OPEN, Audience.JOINT), (Kind.DEVICE_ENROL, Audience.STORAGE)):
        blob = make_statement(
            world.nas.key, kind, audience, now_s=world.clock.now_s(), nonce=os.urandom(16), body=body
        )
        assert (await open_with(world, blob=blob)).code is Code.REFUSED


async def test_session_id_of_another_header_conflicts(enrolled):
    world = enrolled
    opened = await world.open()
    before = world.dump()
    world.nas.epoch = "cd" * 16
    answer = await open_with(world, header=world.nas.header(session=opened.session))
    assert answer.code is Code.CONFLICT
    assert world.dump() == before


async def test_same_header_again_gives_a_new_token_and_ends_the_old(enrolled):
    world = enrolled
    header = world.nas.header()
    first = await world.open(header=header)
    second = await world.open(header=header)
    assert second.session == first.session
    old = await world.storage.check(Caller("2001:db8:1:100::1"), first.session, first.token, None)
    assert old.code is Code.REFUSED
    await world.session(second)


async def test_token_serves_its_own_session_only(enrolled):
    world = enrolled
    one, two = await world.open(), await world.open()
    answer = await world.storage.check(Caller("2001:db8:1:100::1"), one.session, two.token, None)
    assert (answer.code, answer.message) == (Code.REFUSED, "not allowed")


async def test_token_is_stored_hashed(enrolled):
    world = enrolled
    opened = await world.open()
    everything = "\n".join(world.dump()).lower()
    assert opened.token not in everything
    assert hashlib.sha256(bytes.fromhex(opened.token)).hexdigest() in everything
    assert world.notice.enrolment_code not in everything


async def ended_sessions(world, case):
    match case:
        case "device revoked":
            world.carrier.admin.revoke_device(world.nas.key.public)
            return {}, Code.DEVICE_REVOKED
        case "device locked":
            world.carrier.admin.lock_device(world.nas.key.public)
            return {}, Code.DEVICE_REVOKED
        case "contract over":
            world.carrier.admin.end_contract(world.contract)
            return {}, Code.CONTRACT_ENDED
        case "lease over":
            world.clock.advance(14 * 86_400)
            world.carrier.directory.refresh()
            return {}, Code.SESSION_OVER
        case "line unbound":
            world.carrier.admin.unbind_line(world.customer)
            return {}, Code.LINE_NOT_CONTRACT
        case "foreign line":
            world.add_customer(2, "2001:db8:2::/56")
            return {"peer": "2001:db8:2::1"}, Code.LINE_NOT_CONTRACT
        case _:
            return {"peer": "2001:db8:ffff::1"}, Code.LINE_UNKNOWN


@pytest.mark.parametrize(
    "case",
    [
        "device revoked",
        "device locked",
        "contract over",
        "lease over",
        "line unbound",
        "foreign line",
        "unknown line",
    ],
)
async def test_open_session_is_checked_again_on_every_request(enrolled, case):
    """AZK-15, X-03: what held at opening must hold at the next request."""
    world = enrolled
    opened = await world.open()
    how, code = await ended_sessions(world, case)
    peer = how.get("peer", "2001:db8:1:100::1")
    answer = await world.storage.check(Caller(peer), opened.session, opened.token, None)
    assert isinstance(answer, Refused)
    assert answer.code is code


async def test_unlocked_device_goes_on_with_its_session_and_revoked_never(enrolled):
    world = enrolled
    opened = await world.open()
    world.carrier.admin.lock_device(world.nas.key.public)
    assert world.carrier.admin.unlock_device(world.nas.key.public)
    await world.session(opened)
    assert world.carrier.admin.revoke_device(world.nas.key.public)
    assert not world.carrier.admin.unlock_device(world.nas.key.public)


async def test_lock_between_check_and_write_stores_nothing(enrolled):
    """A transfer that was running when the device was locked ends without a pack or a generation."""
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    data = world.nas.pack(given.session.text, [os.urandom(32)])
    world.carrier.admin.lock_device(world.nas.key.public)
    before, blobs = world.dump(), world.blob_names()
    assert (await world.put(given, data)).code is Code.DEVICE_REVOKED
    commit = await world.storage.commit(given, world.nas.commit_body(given.session.text, [chunk]))
    assert commit.code is Code.DEVICE_REVOKED
    assert await world.storage.have(given, (chunk,)) == b"\0"
    assert (world.dump(), world.blob_names()) == (before, blobs)


async def test_lock_stops_a_pack_that_is_being_sent(enrolled):
    """AZK-15: within a second, in mid-transfer."""
    from carrier.storage.packs import PackBytes, TransferStoppedError, find_pack, read_pack

    world = enrolled
    given = await world.session(await world.open())
    name = await world.store(given, [os.urandom(32)], frame_bytes=3 << 20)
    reading = await world.session(await world.open(mode="read"))
    pack = await find_pack(world.storage, reading, name.hex())
    parts = read_pack(world.storage, reading, PackBytes(pack, 0, pack.size_bytes))
    assert len(await anext(parts)) == 1 << 20
    world.carrier.admin.lock_device(world.nas.key.public)
    world.clock.advance(1)
    with pytest.raises(TransferStoppedError):
        await anext(parts)


@pytest.mark.parametrize(("opened_as", "needed"), [("append", facts.Mode.READ), ("read", facts.Mode.APPEND)])
async def test_session_of_the_other_mode_is_refused(enrolled, opened_as, needed):
    world = enrolled
    opened = await world.open(mode=opened_as)
    answer = await world.storage.check(Caller("2001:db8:1:100::1"), opened.session, opened.token, needed)
    assert answer.code is Code.REFUSED


async def test_closed_session_is_over(enrolled):
    world = enrolled
    opened = await world.open()
    await world.storage.close_session(await world.session(opened))
    answer = await world.storage.check(Caller("2001:db8:1:100::1"), opened.session, opened.token, None)
    assert answer.code is Code.SESSION_OVER


async def test_lease_is_renewed_by_contact(enrolled):
    world = enrolled
    opened = await world.open()
    for _ in range(4):
        world.clock.advance(10 * 86_400)
        world.carrier.directory.refresh()
        given = await world.session(opened)
        assert given.lease_until == int(world.clock.now_s()) + 14 * 86_400


async def commit_with(world, given, chunks, **how):
    return await world.storage.commit(given, world.nas.commit_body(given.session.text, chunks, **how))


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"epoch": "ab" * 16}, Code.STALE_EPOCH),
        ({"backup_set": "other"}, Code.BAD_FORMAT),
        ({"sequence": 2}, Code.PARENT_MISMATCH),
        ({"parent": "ab" * 32}, Code.PARENT_MISMATCH),
    ],
)
async def test_root_that_does_not_belong_here_is_refused(enrolled, how, code):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    before = world.dump()
    answer = await commit_with(world, given, [chunk], **how)
    assert answer.code is code
    assert world.dump() == before


async def test_root_of_another_device_is_refused(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    body = attrs.evolve(world.nas, key=generate_key()).commit_body(given.session.text, [chunk])
    assert (await world.storage.commit(given, body)).code is Code.BAD_FORMAT


@pytest.mark.parametrize("change", ["swap", "double", "cut", "other", "empty"])
async def test_references_must_be_those_that_were_signed(enrolled, change):
    world = enrolled
    given = await world.session(await world.open())
    chunks = sorted(os.urandom(32) for _ in range(3))
    await world.store(given, chunks)
    body = world.nas.commit_body(given.session.text, chunks)
    head, refs = body[:-96], [body[-96:-64], body[-64:-32], body[-32:]]
    changed = {
        "swap": [refs[1], refs[0], refs[2]],
        "double": [refs[0], refs[0], refs[2]],
        "cut": refs[:2],
        "other": [refs[0], refs[1], b"\xff" * 32],
        "empty": [],
    }[change]
    before = world.dump()
    answer = await world.storage.commit(given, head + b"".join(changed))
    assert answer.code in {Code.BAD_FORMAT, Code.BAD_HASH}
    assert world.dump() == before


async def test_missing_chunks_are_named(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    there, gone = os.urandom(32), os.urandom(32)
    await world.store(given, [there])
    before = world.dump()
    answer = await commit_with(world, given, [there, gone])
    assert (answer.code, answer.extra["chunks"]) == (Code.MISSING, [gone.hex()])
    assert world.dump() == before


async def second_device(world, contract=None):
    nas = attrs.evolve(world.nas, key=generate_key())  # even of the same epoch
    code = world.carrier.admin.add_code(world.contract)
    assert isinstance(await enrol_with(world, nas=nas, code=code), DeviceEnrolled)
    return nas


async def test_chunk_of_another_device_is_missing(enrolled):
    """Design §6.2: no deduplication across devices; a NAS gone bad can confirm nothing of another's files."""
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    name = await world.store(given, [chunk])
    other = await second_device(world)
    theirs = await world.session(await world.open(nas=other))
    assert await world.storage.have(theirs, (chunk,)) == b"\0"
    assert await world.storage.pack_states(theirs, (name,)) == b"\0"
    body = other.commit_body(theirs.session.text, [chunk])
    assert (await world.storage.commit(theirs, body)).code is Code.MISSING


async def test_chunk_of_another_epoch_is_missing(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    world.nas.epoch = "cd" * 16
    later = await world.session(await world.open())
    assert await world.storage.have(later, (chunk,)) == b"\0"
    assert (await commit_with(world, later, [chunk])).code is Code.MISSING


async def test_another_device_of_the_contract_may_read_but_not_push_out(enrolled):
    """A replaced NAS restores; its commits count for its own history only."""
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    assert isinstance(await commit_with(world, given, [chunk]), Committed)
    other = await second_device(world)
    reading = await world.session(await world.open(nas=other, mode="read"))
    assert len(await world.storage.list_generations(reading)) == 1
    opened = await world.open(nas=other)
    assert opened.head is None


async def test_another_contract_sees_nothing(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    name = await world.store(given, [chunk])
    done = await commit_with(world, given, [chunk])
    contract = ContractId.parse("AZK0000000002")
    notice = world.carrier.admin.add_contract(contract, "10gb", world.customer)
    nas = attrs.evolve(world.nas, contract=contract, contract_key=generate_key(), key=generate_key())
    assert isinstance(await enrol_with(world, nas=nas, code=notice.enrolment_code), DeviceEnrolled)
    reading = await world.session(await world.open(nas=nas, mode="read"))
    from carrier.storage.packs import find_pack

    assert await world.storage.list_generations(reading) == []
    assert (await world.storage.read_generation(reading, done.generation.text)).code is Code.NOT_FOUND
    assert (await world.storage.read_header(reading, given.session.text)).code is Code.NOT_FOUND
    assert (await find_pack(world.storage, reading, name.hex())).code is Code.NOT_FOUND
    assert (await world.storage.locate(reading, done.generation.text, (chunk,))).code is Code.NOT_FOUND


def without_sessions(rows):
    """A refused pack may have taken a step of the reservation, nothing else."""
    return [row for row in rows if not row.startswith("session ")]


@pytest.mark.parametrize(
    "case", ["other bytes", "flipped bit", "cut", "other device", "other session", "garbage"]
)
async def test_pack_that_is_not_what_it_says_is_never_stored(enrolled, case):
    world = enrolled
    given = await world.session(await world.open())
    nas, session = world.nas, given.session.text
    good = nas.pack(session, [os.urandom(32)])
    flipped = bytes([*good[:60], good[60] ^ 1, *good[61:]])
    data, options = {
        "other bytes": (good, {"name": "ab" * 32}),
        "flipped bit": (flipped, {}),
        "cut": (good[:-1], {}),
        "other device": (attrs.evolve(nas, key=generate_key()).pack(session, [os.urandom(32)]), {}),
        "other session": (nas.pack("ab" * 16, [os.urandom(32)]), {}),
        "garbage": (os.urandom(500), {}),
    }[case]
    before = world.dump()
    answer = await world.put(given, data, **options)
    assert isinstance(answer, Refused)
    assert answer.code is (Code.BAD_HASH if case == "other bytes" else Code.BAD_FORMAT)
    usage = world.carrier.admin.read_usage(world.contract)
    assert (usage.used_bytes, usage.in_flight_bytes, usage.packs) == (0, 0, 0)
    assert world.blob_names() == []
    assert without_sessions(world.dump()) == without_sessions(before)


@pytest.mark.parametrize(
    ("size", "name", "code"),
    [
        (None, "ab" * 32, Code.BAD_FORMAT),
        (0, "ab" * 32, Code.TOO_LARGE),
        ((64 << 20) + 1, "ab" * 32, Code.TOO_LARGE),
        (100, "../../etc/passwd", Code.BAD_FORMAT),
        (100, "AB" * 32, Code.BAD_FORMAT),
    ],
)
async def test_pack_of_another_form_is_refused_unread(enrolled, size, name, code):
    world = enrolled
    given = await world.session(await world.open())
    before = world.dump()
    assert (await world.put(given, b"x", name=name, size=size)).code is code
    assert world.dump() == before


async def test_same_name_with_other_bytes_is_refused_even_when_stored(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    name = await world.store(given, [os.urandom(32)])
    answer = await world.put(given, b"other bytes", name=name.hex(), size=11)
    assert answer.code is Code.BAD_HASH
