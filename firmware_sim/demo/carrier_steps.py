"""Carrier and line: what exists before anybody delivers or backs up anything."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from firmware_sim.demo.report import Step
from firmware_sim.demo.world import START_TIMEOUT_S, DemoError, World, wait_until
from firmware_sim.lab import LAN_GATEWAY_IPV4, Process
from firmware_sim.profile import Profile

CUSTOMERS = {1: "CAF1234567890", 2: "CAF0000012573", 3: "CAF0000099999"}
SERIALS = {1: "SIM50000001", 2: "SIM50000002"}
CONTRACT = "AZK0000000001"
PLAN = "100gb"
MAKER = "KI"
GATEWAY_PORT = 8443
OPERATOR_PORT = 8444
LAN_PORT = 8443
ADMIN_PORT = 8444
POLL_S = 5


def make_carrier(world: World, step: Step) -> None:
    """`deliver init`, then lines, gateways and prefixes, as the provisioning of real lines would."""
    address = world.lab.carrier_address
    world.deliver(
        "init",
        world.carrier,
        *("--name", address, "--name", "::1"),
        *("--gateway-listen", f"[{address}]:{GATEWAY_PORT}"),
        *("--operator-listen", f"[::1]:{OPERATOR_PORT}"),
        *("--poll-s", str(POLL_S)),
    )
    step.note("keys made: image root 2 of 3 and 256 shards offline, director, time and receipt roots")
    for line, customer in CUSTOMERS.items():
        world.admin("line", "add", customer)
        world.admin("prefix", "add", customer, str(world.lab.addresses(line).prefix))
    for line, serial in SERIALS.items():
        secret = world.root / f"device-secret-{line}"
        secret.write_text(secrets.token_hex(32), encoding="ascii")
        secret.chmod(0o600)
        world.admin(
            *("gateway", "add", CUSTOMERS[line], serial, "--model", "PR-500", "--maker", MAKER),
            *("--secret", secret),
        )
    step.note(f"{len(CUSTOMERS)} lines with a /56 each, {len(SERIALS)} gateway contracts")


def serve_carrier(world: World) -> Process:
    """Start `deliver serve` and wait until it answers."""
    serve = world.start(
        world.lab.carrier, "deliver.cli", "serve", "--config", world.carrier / "deliver.toml", name="deliver"
    )
    serve.wait_for_line(r'"event": ?"ready"', START_TIMEOUT_S)
    world.services.append(serve)
    return serve


def write_gateway(world: World, line: int, profile: Profile, *, secret_of: int | None = None) -> None:
    """Write the configuration a gateway of this profile leaves the factory with.

    `secret_of` takes serial and device secret of another line's gateway: a stolen identity.
    """
    owner = secret_of or line
    directory = world.gateway(line)
    directory.mkdir(mode=0o700)
    trust = world.carrier / "trust"
    settings: dict[str, dict[str, object]] = {
        "gateway": {
            "serial": SERIALS[owner],
            "model": profile.series,
            "maker": MAKER,
            "device_secret_file": str(world.root / f"device-secret-{owner}"),
            "state_dir": str(directory / "state"),
            "wan_interface": "wan",
        },
        "carrier": {
            "host": world.lab.carrier_address,
            "port": GATEWAY_PORT,
            "ca_file": str(trust / "tls-ca.pem"),
            "image_root_file": str(trust / "image-root.json"),
            "director_root_file": str(trust / "director-root.json"),
        },
        "lan": {"host": LAN_GATEWAY_IPV4, "port": LAN_PORT},
        "admin": {
            "host": LAN_GATEWAY_IPV4,
            "port": ADMIN_PORT,
            "password_file": str(directory / "admin-password"),
            "host_names": ["127.0.0.1"],  # the page published on this machine's loopback (`make up`)
        },
        "spool": {"directory": str(directory / "spool"), "bytes_max": profile.spool_limit_bytes},
        "update": {
            "poll_s": POLL_S,
            "software_dir": str(directory / "software"),
            "launcher_socket": str(directory / "launcher.sock"),
        },
    }
    (directory / "hgwd.toml").write_text(_toml(settings), encoding="utf-8")
    world.hgwd(line, "password", stdin=world.admin_password.encode() + b"\n")


def start_gateway(world: World, line: int) -> Process:
    """Start the launcher and `hgwd run`, and wait until hgwd serves."""
    directory = world.gateway(line)
    launcher = world.start(
        world.lab.gateway(line),
        "hgwd.launcher_main",
        *("--socket", directory / "launcher.sock", "--software-dir", directory / "software"),
        *("--state-dir", directory / "launcher"),
        name="launcher",
    )
    world.services.append(launcher)
    wait_until("launcher", (directory / "launcher.sock").exists, START_TIMEOUT_S)
    daemon = world.start(
        world.lab.gateway(line), "hgwd.cli", "--config", directory / "hgwd.toml", "run", name="hgwd"
    )
    daemon.wait_for_line(r'"event": ?"ready"', START_TIMEOUT_S)
    world.services.append(daemon)
    return daemon


def enrol_gateway(world: World, step: Step) -> None:
    """Wait until the gateway of line 1 is enrolled by serial, device secret and line."""

    def enrolled() -> bool:
        rows = json.loads(world.admin("gateway", "list", "--json"))
        return any(row["serial"] == SERIALS[1] for row in rows)

    wait_until("enrolment of the gateway", enrolled, START_TIMEOUT_S)
    if not world.gateway_status(1).get("enrolled"):
        wait_until("hgwd status", lambda: bool(world.gateway_status(1).get("enrolled")), START_TIMEOUT_S)
    step.note(f"{SERIALS[1]} enrolled from its own line with the proof of its device secret")


def refuse_intruders(world: World, step: Step, profile: Profile) -> None:
    """The neighbour's gateway with a stolen serial and secret, and packets with a forged source."""
    write_gateway(world, 2, profile, secret_of=1)
    thief = start_gateway(world, 2)

    def alarmed() -> bool:
        return SERIALS[1] in world.admin("gateway", "alarms")

    wait_until("alarm about the stolen serial", alarmed, START_TIMEOUT_S)
    if world.gateway_status(2).get("enrolled"):
        raise DemoError("a stolen serial was enrolled from another line")
    rows = json.loads(world.admin("gateway", "list", "--json"))
    if len(rows) != 1:
        raise DemoError(f"expected one enrolled gateway, got {rows}")
    thief.terminate()
    world.lab.gateway(2).power_off()
    step.note("stolen serial and secret on the neighbour's line: refused, alarm raised, nothing changed")
    before = world.lab.forged_packets()
    world.lab.forge(2, str(world.lab.addresses(1).wan), port=GATEWAY_PORT)
    wait_until("forged packets counted", lambda: world.lab.forged_packets() == before + 2, START_TIMEOUT_S)
    step.note("packets from line 2 under line 1's address: dropped at the edge, counted")


def _toml(settings: dict[str, dict[str, object]]) -> str:
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items())
    return "\n".join(lines) + "\n"


def opening_notice(world: World) -> dict[str, str]:
    """Open the storage contract and return what its opening notice says."""
    text = world.admin(
        *("storage-contract", "add", CONTRACT, "--customer", CUSTOMERS[1], "--plan", PLAN, "--json")
    )
    return dict(json.loads(text))


def service_root_file(world: World) -> Path:
    """Where the carrier keeps the public half of the service root."""
    return world.carrier / "trust" / "service-root.pub"
