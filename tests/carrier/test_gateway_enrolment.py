"""A gateway key is bound by contract and factory secret, never by who speaks first (design §4)."""

from __future__ import annotations

import attrs
import pytest

from carrier.lines.outcomes import (
    EnrolmentRefused,
    GatewayContracted,
    GatewayContractEnded,
    GatewayEnrolled,
    SerialTaken,
    SerialUnknown,
)
from wire.ids import GatewaySerial
from wire.signing import generate_key

SERIAL = GatewaySerial.parse("GW00000002")


@pytest.fixture
def line(world):
    """The customer's line, with a second gateway in its contract."""
    done = world.carrier.registry.add_gateway_contract(
        world.customer, SERIAL, "PR-500", "KI", b"factory secret of GW"
    )
    assert done == GatewayContracted(SERIAL, world.customer)
    return world.carrier.registry.find_line(world.customer)


def alarms(world):
    return {(alarm.kind, alarm.serial): alarm.count for alarm in world.carrier.registry.list_alarms()}


def test_gateway_with_its_factory_secret_is_enrolled(world, line):
    key = generate_key()
    done = world.carrier.registry.enrol_gateway(line, world.claim(SERIAL.text, key))
    assert isinstance(done, GatewayEnrolled)
    assert (done.serial, done.model, done.maker, done.first) == (SERIAL, "PR-500", "KI", True)
    assert alarms(world) == {}


def test_same_key_again_gets_the_same_answer(world, line):
    key = generate_key()
    first = world.carrier.registry.enrol_gateway(line, world.claim(SERIAL.text, key))
    again = world.carrier.registry.enrol_gateway(line, world.claim(SERIAL.text, key))
    assert again == attrs.evolve(first, first=False)


def test_several_gateways_on_a_line_are_several_enrolments(world, line):
    world.carrier.registry.enrol_gateway(line, world.claim(SERIAL.text, generate_key()))
    gateways = world.carrier.registry.list_gateways()
    assert [gateway.serial.text for gateway in gateways] == ["GW00000001", "GW00000002"]
    assert len({gateway.director_path for gateway in gateways}) == 2


def refused_claims(world):
    other = world.add_customer(2, "2001:db8:2::/56")
    thief = generate_key()
    return {
        "serial-unknown": (world.customer, world.claim("GW99999999", thief)),
        "wrong-line": (other, world.claim(SERIAL.text, thief)),
        "wrong-proof": (world.customer, world.claim(SERIAL.text, thief, proof=b"x" * 32)),
        "wrong-model": (world.customer, world.claim(SERIAL.text, thief, model="RT-500")),
        "key-of-another-serial": (world.customer, world.claim(SERIAL.text, world.gateway_key)),
        "second-key": (world.customer, world.claim("GW00000001", thief)),
    }


@pytest.mark.parametrize(
    "alarm",
    ["serial-unknown", "wrong-line", "wrong-proof", "wrong-model", "key-of-another-serial", "second-key"],
)
def test_refused_enrolment_raises_an_alarm_and_changes_nothing(world, line, alarm):
    customer, claim = refused_claims(world)[alarm]
    registry = world.carrier.registry
    before = world.dump()
    for _ in range(3):
        answer = registry.enrol_gateway(registry.find_line(customer), claim)
        assert answer == EnrolmentRefused(alarm)
    assert world.dump() == before
    serial = "*" if alarm == "serial-unknown" else claim.serial.text
    assert alarms(world) == {(alarm, serial): 3}


def test_pc_on_the_line_that_speaks_first_gains_nothing(world, line):
    """Without the secret it is refused, and the true gateway is enrolled afterwards all the same."""
    registry = world.carrier.registry
    thief, true_key = generate_key(), generate_key()
    assert isinstance(
        registry.enrol_gateway(line, world.claim(SERIAL.text, thief, proof=b"?" * 32)), EnrolmentRefused
    )
    assert isinstance(registry.enrol_gateway(line, world.claim(SERIAL.text, true_key)), GatewayEnrolled)
    assert registry.find_gateway(thief.public) is None


def test_proof_of_another_key_or_nonce_does_not_serve(world, line):
    thief, true_key = generate_key(), generate_key()
    seen = world.claim(SERIAL.text, true_key)
    stolen = attrs.evolve(seen, key=thief.public)
    assert world.carrier.registry.enrol_gateway(line, stolen) == EnrolmentRefused("wrong-proof")


def test_ended_contract_enrols_nobody_and_ends_the_gateway(world):
    registry = world.carrier.registry
    serial = GatewaySerial.parse("GW00000001")
    line = registry.find_line(world.customer)
    assert world.carrier.directory.gateway_on_line(world.gateway_key.public, line.line_id)
    assert isinstance(registry.end_gateway_contract(serial), GatewayContractEnded)
    world.carrier.directory.refresh()
    assert not world.carrier.directory.gateway_on_line(world.gateway_key.public, line.line_id)
    assert registry.find_gateway(world.gateway_key.public) is None
    again = registry.enrol_gateway(line, world.claim(serial.text, world.gateway_key))
    assert again == EnrolmentRefused("serial-unknown")
    assert registry.end_gateway_contract(serial) == SerialUnknown(serial)


def test_serial_has_one_running_contract(world, line):
    again = world.carrier.registry.add_gateway_contract(world.customer, SERIAL, "PR-500", "KI", b"s" * 20)
    assert again == SerialTaken(SERIAL)


def test_operator_can_let_a_gateway_enrol_a_new_key_under_a_new_path(world):
    registry = world.carrier.registry
    line = registry.find_line(world.customer)
    old = registry.find_gateway(world.gateway_key.public)
    assert registry.forget_gateway_key(GatewaySerial.parse("GW00000001"))
    done = registry.enrol_gateway(line, world.claim("GW00000001", generate_key()))
    assert isinstance(done, GatewayEnrolled)
    assert done.director_path != old.director_path


@pytest.mark.parametrize("length", [15, 65])
def test_device_secret_of_another_length_is_our_mistake(world, length):
    with pytest.raises(ValueError, match="16 to 64"):
        world.carrier.registry.add_gateway_contract(world.customer, SERIAL, "PR-500", "KI", b"x" * length)
