"""Director documents, rollouts, reports (design §5.2, JNT-20…26, JNT-31)."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from carrier.ledger.billing import bill
from carrier.ledger.events import TargetChanged, TargetEnded, TargetRegistered
from carrier.ledger.rules import Month
from carrier.ledger.store import read_events
from carrier.lines.outcomes import EnrolmentRefused
from carrier.lines.tables import AccessType
from deliver.engines.schema import joint_target
from deliver.services.director_documents import want_new_document
from deliver.services.gateways import GatewayService, ReportRefused, ReportStored
from deliver.services.operators import find_operator
from deliver.signing.tuf import Metadata
from wire.director import parse_director_body
from wire.ids import CustomerId, GatewaySerial
from wire.joint import GatewayReport, OperatorSubmit, RolloutRequest, SoftwareReport


@pytest.fixture
def line(program, kit):
    kit.add_line(program)


@pytest.fixture
def gateway(program, kit, line):
    return kit.enrol(program)


def document(program, gateway):
    data = (program.home.director_dir / gateway[1].director_path.text / "director.json").read_bytes()
    root = Metadata.from_bytes((program.home.directory / "trust" / "director-root.json").read_bytes())
    metadata = Metadata.from_bytes(data)
    root.signed.verify_delegate("targets", metadata.signed_bytes, metadata.signatures)
    return metadata.signed, parse_director_body(json.loads(data)["signed"]["hgw"])


def roll_out(program, kit, *customers, version="1.0", action="install", software="lights"):
    order = OperatorSubmit(
        operator="acme-home", software=software, version=version, change="rollout", body_sha256="0" * 64
    )
    request = RolloutRequest(customers=customers or (kit.CUSTOMER.text,), action=action)
    with program.database.read() as connection:
        operator = find_operator(connection, kit.OperatorId.parse("acme-home"))
    return program.rollout().roll_out(operator, order, request, now_s=int(program.clock.now_s()))


def report(program, gateway, counter=1, customer=None, **entry):
    registry = program.carrier.registry
    service = GatewayService(program.database, registry, program.documents())
    defaults = {"software": "acme-home/lights", "version": "1.0", "release": 1, "state": "Active"}
    software = (SoftwareReport(**{**defaults, **entry}),)
    body = GatewayReport(counter=counter, director_version=1, bytes_down=0, software=software)
    line = registry.find_line(customer or gateway[1].customer_id)
    return service.report(gateway[0].public, line, body, b"signed", now_s=int(program.clock.now_s()))


def target_state(program):
    with program.database.read() as connection:
        return connection.execute(joint_target.select()).mappings().one()["state"]


def test_an_enrolled_gateway_gets_a_signed_document_of_its_own_for_three_days(program, gateway, kit):
    signed, body = document(program, gateway)
    assert (body.gateway, body.serial, body.software) == (gateway[1].gateway.text, kit.SERIAL.text, ())
    assert signed.version == 1
    assert signed.expires == dt.datetime.fromtimestamp(kit.NOW_S + 3 * 86_400, dt.UTC)
    text = (program.home.director_dir / gateway[1].director_path.text / "director.json").read_text()
    assert kit.CUSTOMER.text not in text


def test_a_rollout_names_exact_hashes_and_raises_the_version_once(program, acme, gateway, kit):
    package, _ = acme.publish()
    (target,) = roll_out(program, kit).targets
    assert (target.state, target.rule) == ("delivering", None)
    signed, body = document(program, gateway)
    (entry,) = body.software
    assert (entry.software, entry.action, entry.target) == (
        "acme-home/lights",
        "install",
        package.target_path,
    )
    assert signed.targets[package.target_path].hashes == {"sha256": package.sha256}
    assert signed.targets[package.target_path].length == package.stored_bytes
    assert signed.version == 2
    assert roll_out(program, kit).targets[0].state == "delivering"
    assert document(program, gateway)[0].version == 2


def test_nothing_is_signed_again_before_half_of_its_life_and_then_with_a_new_version(program, gateway, clock):
    documents = program.documents()
    clock.advance(86_400)
    assert documents.publish_pending(now_s=clock.now_s()) == 0
    clock.advance(43_201)
    assert documents.publish_pending(now_s=clock.now_s()) == 1
    assert document(program, gateway)[0].version == 2


def test_a_crash_before_the_file_is_written_is_made_good_by_the_next_call(program, acme, gateway, kit):
    with program.database.write() as connection:
        want_new_document(connection, kit.CUSTOMER.text)
    assert document(program, gateway)[0].version == 1
    assert program.documents().publish_pending(now_s=kit.NOW_S) == 1
    assert document(program, gateway)[0].version == 2
    assert program.documents().publish_pending(now_s=kit.NOW_S) == 0


def test_JNT_20_an_ineligible_line_is_refused_with_rule_and_reason(program, acme, kit):
    acme.publish()
    premium = CustomerId.parse("CAF0000000002")
    kit.add_line(program, premium, prefix=None, access=AccessType.HIKARI_PREMIUM)
    unknown, premium_line, bad = roll_out(program, kit, "CAF9999999999", premium.text, "CAF1").targets
    assert (unknown.state, unknown.rule) == ("refused", "JNT-20")
    assert (premium_line.state, premium_line.rule) == ("refused", "JNT-20")
    assert "hikari-premium" in premium_line.message
    assert (bad.state, bad.rule) == ("refused", "JNT-31")


@pytest.mark.parametrize(
    ("model", "maker", "rule", "word"),
    [
        (None, None, "JNT-22", "enrolled"),
        ("PR-600", "KI", "JNT-21", "PR-600"),
        ("PR-500", "NE", "JNT-07", "NE"),
    ],
)
def test_a_line_without_a_fitting_gateway_is_refused(program, acme, kit, line, model, maker, rule, word):
    acme.publish()
    if model:
        kit.enrol(program, model=model, maker=maker)
    before = kit.dump(program)
    (target,) = roll_out(program, kit).targets
    assert (target.state, target.rule) == ("refused", rule)
    assert word in target.message
    assert kit.dump(program) == before


def test_an_operator_cannot_roll_out_for_another_or_an_unknown_version(program, acme, gateway, kit):
    acme.publish()
    other = kit.add_operator_kit(program, "other-co")
    order = OperatorSubmit(
        operator="acme-home", software="lights", version="1.0", change="rollout", body_sha256="0" * 64
    )
    request = RolloutRequest(customers=(kit.CUSTOMER.text,))
    assert (
        program.rollout().roll_out(other.operator, order, request, now_s=kit.NOW_S).code == "wrong-operator"
    )
    assert roll_out(program, kit, version="9.9").code == "not-found"


def test_reports_move_the_target_and_count_once(program, acme, gateway, kit):
    acme.publish()
    roll_out(program, kit)
    assert report(program, gateway, 1, state="Starting") == ReportStored()
    assert target_state(program) == "delivering"
    assert report(program, gateway, 2) == ReportStored()
    assert target_state(program) == "active"
    again = report(program, gateway, 2, fault="7226")
    assert isinstance(again, ReportRefused)
    assert again.code == "conflict"
    assert target_state(program) == "active"
    assert report(program, gateway, 3, fault="7226") == ReportStored()
    assert target_state(program) == "failed"


def test_a_report_from_another_line_or_key_changes_nothing(program, acme, gateway, kit):
    acme.publish()
    roll_out(program, kit)
    other = CustomerId.parse("CAF0000000002")
    kit.add_line(program, other, prefix=None)
    before = kit.dump(program)
    assert report(program, gateway, 5, customer=other).code == "line-not-contract"
    stranger = (kit.generate_key(), gateway[1])
    assert report(program, stranger, 5).code == "gateway-ended"
    assert kit.dump(program) == before


def test_a_removal_ends_the_charge_and_the_gateway_is_told(program, acme, gateway, kit):
    acme.publish()
    roll_out(program, kit)
    report(program, gateway, 1)
    assert roll_out(program, kit, action="remove").targets[0].state == "ending"
    (entry,) = document(program, gateway)[1].software
    assert (entry.action, entry.target) == ("remove", None)
    assert roll_out(program, kit, action="remove").targets[0].state == "ending"
    report(program, gateway, 2, state="Uninstalled")
    assert target_state(program) == "ended"
    with program.database.read() as connection:
        kinds = [type(event) for event in read_events(connection, "acme-home")]
    assert kinds.count(TargetRegistered) == kinds.count(TargetEnded) == 1


def test_a_new_version_is_an_update_and_charges_only_another_footprint(program, acme, gateway, kit):
    first, _ = acme.publish()
    roll_out(program, kit)
    report(program, gateway, 1)
    data, second = acme.measure(b"y" * 2_000_000, version="2.0", release=2)
    quote = acme.quote(data, second, "change")
    acme.accept(quote.quote_id, acme.metadata([first, second], version=2))
    roll_out(program, kit, version="2.0")
    (entry,) = document(program, gateway)[1].software
    assert (entry.action, entry.target) == ("update", second.target_path)
    with program.database.read() as connection:
        events = read_events(connection, "acme-home")
    assert [type(e) for e in events].count(TargetChanged) == 1
    after = bill(events, Month.parse("2026-12"), "acme-home")
    assert {line.code for line in after.lines} == {"basic-fee/menu-1", "target-fee/plan-2"}


@pytest.mark.parametrize("event", ["gateway contract", "line"])
def test_JNT_25_delivery_ends_with_the_contract_and_the_gateway_is_told(
    program, acme, gateway, kit, clock, event
):
    acme.publish()
    roll_out(program, kit)
    report(program, gateway, 1)
    rollout = program.rollout()
    assert rollout.end_what_ended(now_s=int(clock.now_s())) == 0
    if event == "line":
        program.carrier.events.terminate_line(kit.CUSTOMER)
    else:
        program.carrier.registry.end_gateway_contract(kit.SERIAL)
    clock.advance(1)
    assert rollout.end_what_ended(now_s=int(clock.now_s())) == 1
    assert target_state(program) == "ending"
    assert [entry.action for entry in document(program, gateway)[1].software] == ["remove"]
    assert rollout.end_what_ended(now_s=int(clock.now_s())) == 0
    assert roll_out(program, kit).targets[0].rule == ("JNT-20" if event == "line" else "JNT-22")
    with program.database.read() as connection:
        assert [type(e) for e in read_events(connection, "acme-home")].count(TargetEnded) == 1


def test_JNT_25_another_gateway_of_the_line_keeps_the_target(program, acme, gateway, kit, clock):
    other = kit.enrol(program, serial=GatewaySerial.parse("PR500KI00002"))
    acme.publish()
    roll_out(program, kit)
    report(program, gateway, 1)
    program.carrier.registry.end_gateway_contract(kit.SERIAL)
    clock.advance(1)
    assert program.rollout().end_what_ended(now_s=int(clock.now_s())) == 0
    assert [entry.action for entry in document(program, gateway)[1].software] == ["remove"]
    assert [entry.action for entry in document(program, other)[1].software] == ["install"]


def test_an_unbound_key_ends_no_delivery(program, acme, gateway, kit, clock):
    acme.publish()
    roll_out(program, kit)
    program.carrier.registry.forget_gateway_key(kit.SERIAL)
    assert program.rollout().end_what_ended(now_s=int(clock.now_s())) == 0
    renewed = kit.enrol(program)
    assert [entry.action for entry in document(program, renewed)[1].software] == ["install"]


def test_enrolling_the_same_key_again_gives_the_same_answer(program, gateway, kit):
    registry = program.carrier.registry
    before = kit.dump(program)
    _key, outcome = kit.enrol(program, key=gateway[0])
    assert (outcome.gateway, outcome.director_path) == (gateway[1].gateway, gateway[1].director_path)
    assert kit.dump(program) == before
    assert registry.list_alarms() == ()


def test_a_second_key_for_a_serial_changes_nothing_and_leaves_an_alarm(program, gateway, kit):
    before = kit.dump(program)
    _, outcome = kit.enrol(program)
    assert isinstance(outcome, EnrolmentRefused)
    assert kit.dump(program) == before
    assert len(program.carrier.registry.list_alarms()) == 1


def test_a_new_binding_gets_a_new_path_and_the_old_document_is_gone(program, gateway, kit):
    program.carrier.registry.forget_gateway_key(kit.SERIAL)
    renewed = kit.enrol(program)
    assert renewed[1].director_path != gateway[1].director_path
    assert not (program.home.director_dir / gateway[1].director_path.text / "director.json").exists()
    assert document(program, renewed)[1].gateway == renewed[1].gateway.text


def test_two_gateways_of_a_line_have_documents_of_their_own(program, acme, gateway, kit):
    second = kit.enrol(program, serial=GatewaySerial.parse("PR500KI00002"))
    acme.publish()
    roll_out(program, kit)
    for item in (gateway, second):
        assert [entry.action for entry in document(program, item)[1].software] == ["install"]
    assert second[1].director_path != gateway[1].director_path


def test_JNT_02_a_line_takes_at_most_32_softwares(program, acme, gateway, kit):
    packages = []
    for number in range(33):
        name = f"soft-{number:02d}"
        package, outcome = acme.publish(version=number + 1, earlier=packages, software=name)
        assert outcome.role_version == number + 1
        packages.append(package)
        (target,) = roll_out(program, kit, software=name).targets
        expected = ("delivering", None) if number < 32 else ("refused", "JNT-02")
        assert (target.state, target.rule) == expected
    assert len(document(program, gateway)[1].software) == 32
    roll_out(program, kit, software="soft-00", action="remove")
    report(program, gateway, 1, software="acme-home/soft-00", state="Uninstalled")
    assert roll_out(program, kit, software="soft-32").targets[0].state == "delivering"
