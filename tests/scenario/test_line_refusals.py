"""Two lines of the lab and the real carrier: what comes from the wrong line, or pretends another, is refused (X-03, AZK-12).

A gateway's own key, and a whole gateway and NAS carried off with all their secrets, are worth nothing elsewhere; without
a valid device signature every cause has one and the same answer (docs/faults.md, Line).
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterator

import attrs
import pytest

from firmware_sim.lab import LabSpec, has_rights, open_lab
from tests.scenario.kill_world import (
    CUSTOMER,
    PORT,
    RUN_TIMEOUT_S,
    World,
    environment,
    last_event,
    make_carrier_side,
    make_gateway_side,
    module,
    pair_nas,
    run_here,
    start_deliver,
    start_hgwd,
    started,
)
from wire.joint import GatewayReport
from wire.signing import SigningKey, generate_key
from wire.statement import Audience, Kind, make_statement

pytestmark = [
    pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root"),
    pytest.mark.timeout(300),
]

NEIGHBOUR = "CAF0000000002"
# A program of its own: it runs on a host of the lab, and prints the answer or the error's name.
ASK = """
import base64, http.client, json, ssl, sys
host, port, ca, path, headers, body = sys.argv[1:]
connection = http.client.HTTPSConnection(host, int(port), context=ssl.create_default_context(cafile=ca), timeout=5)
try:
    connection.request("POST", path, body=base64.b64decode(body), headers=json.loads(headers))
    answer = connection.getresponse()
    print(json.dumps([answer.status, answer.read().decode()]))
except OSError as error:
    print(json.dumps([0, type(error).__name__]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Line 1 has a gateway and a NAS at work; line 2 is a neighbour's, known to the carrier."""
    root = tmp_path_factory.mktemp("lines")
    with open_lab(LabSpec(lines=2, directory=root)) as lab:
        notice = make_carrier_side(lab, root)
        admin = ["admin", "--config", root / "carrier"]
        run_here("deliver.cli", *admin, "line", "add", NEIGHBOUR)
        run_here("deliver.cli", *admin, "prefix", "add", NEIGHBOUR, str(lab.addresses(2).prefix))
        deliver = start_deliver(lab, root)
        make_gateway_side(lab, root)
        made = World(lab, root, deliver, start_hgwd(lab, root))
        pair_nas(made, notice)
        made.source.mkdir()
        (made.source / "file").write_bytes(secrets.token_bytes(100_000))
        yield made


@attrs.frozen
class Asker:
    """Sends signed reports from any host of the lab."""

    world: World

    @property
    def gateway_key(self) -> SigningKey:
        return SigningKey((self.world.root / "gateway" / "state" / "device.key").read_bytes())

    def report(
        self, host: str, key: SigningKey, headers: dict[str, str] | None = None, target: str | None = None
    ) -> tuple[int, str]:
        now_s = time.time()
        body = GatewayReport(counter=int(now_s * 1000), director_version=0, bytes_down=0)
        nonce = secrets.token_bytes(16)
        blob = make_statement(key, Kind.GATEWAY_REPORT, Audience.JOINT, now_s=now_s, nonce=nonce, body=body)
        lab, ca = self.world.lab, self.world.root / "carrier" / "trust" / "tls-ca.pem"
        argv = [sys.executable, "-I", "-S", "-c", ASK, target or lab.carrier_address, str(PORT), str(ca)]
        argv += ["/joint/v1/reports", json.dumps(headers or {}), base64.b64encode(blob).decode()]
        done = lab.host(host).run(argv, timeout_s=30)
        status, text = json.loads(done.stdout)
        return status, text

    def code(self, host: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        status, text = self.report(host, self.gateway_key, headers)
        return status, json.loads(text)["code"] if text else ""


@pytest.fixture
def ask(world: World) -> Asker:
    return Asker(world)


def forwarded(address: str) -> dict[str, str]:
    return {
        "x-forwarded-for": address,
        "forwarded": f'for="[{address}]"',
        "x-real-ip": address,
        "true-client-ip": address,
    }


@pytest.fixture
def moved(world: World) -> Iterator[None]:
    """The carrier has taken the prefix of line 1 away."""
    admin = ["admin", "--config", world.root / "carrier", "prefix"]
    prefix = str(world.lab.addresses(1).prefix)
    run_here("deliver.cli", *admin, "end", CUSTOMER, prefix)
    time.sleep(1.5)
    yield
    run_here("deliver.cli", *admin, "add", CUSTOMER, prefix)
    time.sleep(1.5)


def test_the_gateway_is_heard_from_its_own_line(ask: Asker) -> None:
    """The other half of every test here: what is refused elsewhere is right in itself."""
    assert ask.code("gw1") == (204, "")


def test_its_key_is_refused_on_another_line(ask: Asker) -> None:
    assert ask.code("gw2") == (403, "line-not-contract")


def test_a_header_names_no_line(world: World, ask: Asker) -> None:
    assert ask.code("gw2", forwarded(world.lab.addresses(1).wan)) == (403, "line-not-contract")
    assert ask.code("gw1", forwarded(world.lab.addresses(2).wan)) == (204, "")


def test_the_old_prefix_is_no_line_after_the_prefix_moved(ask: Asker, moved: None) -> None:
    assert ask.code("gw1") == (403, "line-unknown")
    assert ask.code("gw1", forwarded("2001:db8:1:200::1")) == (403, "line-unknown")


def test_a_forged_source_never_reaches_the_carrier(world: World) -> None:
    before = world.lab.forged_packets()
    world.lab.forge(2, source=world.lab.addresses(1).wan, port=PORT)
    deadline = time.monotonic() + 5
    while world.lab.forged_packets() != before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_carrier_does_not_answer_over_ipv4(world: World, ask: Asker) -> None:
    assert ask.report("gw1", ask.gateway_key, target="192.0.2.10")[0] == 0
    assert ask.report("carrier", ask.gateway_key, target="127.0.0.1") == (0, "ConnectionRefusedError")


def test_without_a_valid_device_signature_there_is_one_answer_for_every_cause(
    world: World, ask: Asker, request: pytest.FixtureRequest
) -> None:
    stranger = generate_key()
    spoofed = forwarded(world.lab.addresses(1).wan)
    answers = {
        ask.report("gw1", stranger),
        ask.report("gw2", stranger),
        ask.report("nas2", stranger),
        ask.report("gw2", stranger, spoofed),
    }
    request.getfixturevalue("moved")
    answers |= {ask.report("gw1", stranger), ask.report("gw1", stranger, spoofed)}
    assert answers == {(403, '{"code":"refused","message":"not allowed"}')}


def test_a_gateway_and_nas_carried_to_a_neighbour_back_up_and_read_nothing(world: World) -> None:
    """All their secrets are in the thief's hands; the line is not (X-03, AZK-12)."""
    lab, stolen = world.lab, world.root / "stolen"
    world.finish_backup()
    shutil.copytree(world.root / "gateway", stolen / "gateway", ignore=shutil.ignore_patterns("*.sock"))
    shutil.copytree(world.root / "nas", stolen / "nas")
    config = stolen / "gateway" / "hgwd.toml"
    text = config.read_text().replace(str(world.root / "gateway"), str(stolen / "gateway"))
    here, there = lab.addresses(1).ula_gateway, lab.addresses(2).ula_gateway
    config.write_text(text.replace(here, there))
    pairing = stolen / "nas" / "gateway.json"
    pairing.write_text(pairing.read_text().replace(here, there))
    pairing.chmod(0o600)
    hgwd = started(
        lab.gateway(2).spawn(module("hgwd.cli", "--config", config, "run"), name="stolen", env=environment())
    )
    passphrase = ["--passphrase-file", world.root / "passphrase"]
    try:
        for command in (["backup", world.source], ["list", *passphrase]):
            argv = module("nas_agent.cli", *command, "--state", stolen / "nas", "--json", "--quiet")
            done = lab.nas(2).run(argv, timeout_s=RUN_TIMEOUT_S, check=False, env=environment())
            assert done.returncode == 4, done.stdout.decode()
            assert "line-not-contract" in json.dumps(last_event(done.stdout))
    finally:
        hgwd.kill()
    world.finish_backup()
