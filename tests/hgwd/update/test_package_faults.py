"""Every bad package of the fault list through real processes: the old software goes on, the cause stands in status and report.

`deliver serve`, the launcher and `hgwd run` are processes of their own; between gateway and carrier stands a mirror
that holds the carrier's TLS key (issue 2, fault list; JNT-50, JNT-51; docs/faults.md).
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import sample_package as sample
import trio
from carrier_kit import REPOSITORY, SECRET, SERIAL, Carrier
from hostile_mirror import Answer, HostileMirror, Rule, Wire

from deliver.cli import main as deliver_command
from deliver.signing.director import make_document
from deliver.signing.keystore import KeyStore, load_key_file
from deliver.signing.tuf import Metadata, encode, sign
from hgwd.adapters.control import SOCKET_FILE, ControlRequest, ask_control
from hgwd.adapters.launcher import Launcher
from hgwd.core.launch import Process
from wire.director import SoftwareName, parse_director_body
from wire.signing import SigningKey

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packages get users of their own"),
    pytest.mark.timeout(300),
]

NAME = SoftwareName.parse("mimamori/sensor")
ROLE_FILE = r"/image/metadata/\d+\.operator-mimamori\.json"
TIMESTAMP_FILE = r"/image/metadata/timestamp\.json"
DOCUMENT = r"/director/[0-9a-f]{32}/director\.json"
PACKAGE = r"/image/targets/.*\.hgwpkg"


class NearCarrier(Carrier):
    """Its server is a process as ever; the commands of people run here, which saves their start each time."""

    def run(self, *arguments: object) -> str:
        said = io.StringIO()
        with redirect_stdout(said):
            code = deliver_command([str(argument) for argument in arguments])
        assert code == 0, f"{arguments}: {said.getvalue()}"
        return said.getvalue()


@attrs.define
class World:
    """The three programs, the mirror between two of them, and what a person at either end can see."""

    carrier: Carrier
    mirror: HostileMirror
    state_dir: Path
    launcher_socket: Path
    releases: int = 0

    # -- the gateway's owner ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        answer = ask_control(self.state_dir / SOCKET_FILE, ControlRequest(command="status"))
        return msgspec.json.decode(answer.result)  # type: ignore[no-any-return]

    def poll(self) -> None:
        ask_control(self.state_dir / SOCKET_FILE, ControlRequest(command="poll"))

    def software(self) -> dict[str, Any]:
        listed = self.status()["update"].get("software", [])
        return next((item for item in listed if item["software"] == NAME.text), {})

    def running(self) -> tuple[Process, bool]:
        """Ask the launcher itself what runs, and whether it answers its health probe."""

        async def ask() -> tuple[Process, bool]:
            launcher = Launcher(self.launcher_socket)
            try:
                return await launcher.inspect(NAME), (await launcher.health(NAME)).healthy
            finally:
                launcher.close()

        return trio.run(ask)

    # -- the carrier -----------------------------------------------------------------------------------------

    def publish(self, **changes: Any) -> str:
        """An operator publishes its next release; returns the version."""
        self.releases += 1
        version = f"{self.releases}.0.0"
        code = f"{sample.SERVE}\n# release {self.releases}\n"
        self.carrier.publish(code, version, self.releases, **changes)
        return version

    def installed(self) -> dict[str, Any]:
        """What the carrier knows of the software from the gateway's signed reports."""
        rows = json.loads(self.carrier.admin("targets", "--json"))["installed"]
        return next((row for row in rows if row["software"] == NAME.text), {})

    def last_report(self) -> dict[str, Any]:
        """The gateway's newest report, as the carrier's administrator sees it."""
        (row,) = json.loads(self.carrier.admin("gateway", "reports", "--json"))
        return row  # type: ignore[no-any-return]


def until(look: Callable[[], Any], holds: Callable[[Any], object], timeout_s: float = 60) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = look()
        if holds(found):
            return found
        assert time.monotonic() < deadline_s, json.dumps(found, indent=1, default=str)
        time.sleep(0.2)


@contextmanager
def program(log: Path, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)], cwd=REPOSITORY, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def write_config(directory: Path, trust: Path, port: int) -> Path:
    secret = directory / "device-secret"
    secret.write_text(SECRET.hex())
    secret.chmod(0o600)
    path = directory / "hgwd.toml"
    path.write_text(f"""
[gateway]
serial = "{SERIAL}"
model = "PR-500"
maker = "KI"
device_secret_file = "{secret}"
state_dir = "{directory}/state"
[carrier]
host = "::1"
port = {port}
ca_file = "{trust}/tls-ca.pem"
image_root_file = "{trust}/image-root.json"
director_root_file = "{trust}/director-root.json"
[lan]
host = "127.0.0.1"
port = 0
[admin]
host = "127.0.0.1"
port = 0
password_file = "{directory}/password"
[spool]
directory = "{directory}/spool"
[update]
software_dir = "{directory}/software"
launcher_socket = "{directory}/launcher.sock"
[metrics]
enabled = false
""")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway on which release 2 (floor 2) of one software runs."""
    directory = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        carrier = NearCarrier(directory)
        stack.callback(carrier.close)
        carrier.set_up(directory)
        trust = carrier.home / "trust"
        mirror = HostileMirror(carrier.port, carrier.home / "tls", trust / "tls-ca.pem")
        stack.callback(mirror.close)
        made = World(carrier, mirror, directory / "state", directory / "launcher.sock")
        launcher = ["hgwd.launcher_main", "--socket", made.launcher_socket]
        launcher += ["--software-dir", directory / "software", "--state-dir", directory / "launcher"]
        stack.enter_context(program(directory / "launcher.log", *launcher))
        until(made.launcher_socket.exists, bool)
        config = write_config(directory, trust, mirror.port)
        password = [sys.executable, "-m", "hgwd.cli", "--config", str(config), "password"]
        subprocess.run(password, input=b"a long enough password\n", cwd=REPOSITORY, check=True)
        stack.enter_context(program(directory / "hgwd.log", "hgwd.cli", "--config", config, "run"))
        until((made.state_dir / SOCKET_FILE).exists, bool)
        until(made.status, lambda status: status["enrolled"])
        for release in (1, 2):
            carrier.roll_out(made.publish(floor=release))
            made.poll()
            until(
                made.software, lambda item, n=release: item.get("release") == n and item["state"] == "Active"
            )
        yield made


# -- what a mirror or a thief does ---------------------------------------------------------------------------


def changed(change: Callable[[bytes], bytes]) -> Rule:
    return lambda _wire, answer: answer.sent(change(answer.body))


def resigned(change: Callable[[Any], None], *keys: SigningKey) -> Rule:
    """The metadata changed by `change` and signed by `keys`; none: unsigned."""

    def apply(_wire: Wire, answer: Answer) -> bytes:
        metadata: Metadata[Any] = Metadata.from_bytes(answer.body)
        change(metadata.signed)
        return answer.sent(encode(sign(metadata, keys)))

    return apply


def nothing(_signed: Any) -> None:
    """Change nothing but the signatures."""


def expire(signed: Any) -> None:
    signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)


def flip_one_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def drip(wire: Wire, answer: Answer) -> None:
    """One byte a second."""
    wire.sendall(answer.sent()[: -len(answer.body)])
    for byte in answer.body:
        wire.sendall(bytes([byte]))
        time.sleep(1)


def flood(wire: Wire, _answer: Answer) -> None:
    """Chunks without end."""
    wire.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        wire.sendall(b"4000\r\n" + bytes(0x4000) + b"\r\n")


def cut_short(wire: Wire, answer: Answer) -> None:
    """Half of what was announced, then the end of the connection."""
    data = answer.sent()
    wire.sendall(data[: -len(answer.body) // 2])


@attrs.frozen
class Fault:
    """`where` the mirror lies and how; the fault code and words that must stand in status and report."""

    where: str
    rule: Callable[[World], Rule]
    fault: int
    words: str
    attack: bool = True


def operator_key(world: World) -> SigningKey:
    return load_key_file(world.carrier.operator / "sign")


def another_operators_key(world: World) -> SigningKey:
    path = world.carrier.operator / "yubin-box"
    if not path.exists():
        for name in ("yubin-api", "yubin-box"):
            world.carrier.run("key", world.carrier.operator / name)
        keys = ("--api-key", path.with_name("yubin-api.pub"), "--key", path.with_suffix(".pub"))
        world.carrier.admin("operator", "add", "yubin-box", *keys)
        world.carrier.admin("ceremony", "shard")
    return load_key_file(path)


def online_key(world: World, role: str) -> SigningKey:
    return KeyStore(world.carrier.home / "online").load(role)


METADATA_FAULTS = {
    "unsigned": Fault(ROLE_FILE, lambda _: resigned(nothing), 7805, "unsigned"),
    "signed by another operator's key": Fault(
        ROLE_FILE, lambda world: resigned(nothing, another_operators_key(world)), 7805, "unsigned"
    ),
    "changed after signing": Fault(ROLE_FILE, lambda _: changed(flip_one_bit), 7805, "unsigned"),
    "expired operator metadata": Fault(
        ROLE_FILE, lambda world: resigned(expire, operator_key(world)), 7805, "expired"
    ),
    "expired timestamp": Fault(
        TIMESTAMP_FILE, lambda world: resigned(expire, online_key(world, "timestamp")), 7805, "expired"
    ),
    "truncated metadata": Fault(
        ROLE_FILE, lambda _: changed(lambda data: data[:-9]), 7806, "bad-format", attack=False
    ),
    "endless metadata": Fault(TIMESTAMP_FILE, lambda _: flood, 7227, "too-large"),
}

PACKAGE_FAULTS = {
    "truncated": Fault(PACKAGE, lambda _: changed(lambda data: data[:-9]), 7807, "ended after", attack=False),
    "cut off": Fault(PACKAGE, lambda _: cut_short, 7807, "", attack=False),
    "one bit flipped": Fault(PACKAGE, lambda _: changed(flip_one_bit), 7806, "bad-hash"),
    "too large": Fault(PACKAGE, lambda _: changed(lambda data: data + b"\0"), 7227, "too-large"),
    "1 byte per second": Fault(PACKAGE, lambda _: drip, 7807, "slow"),
    "endless data": Fault(PACKAGE, lambda _: flood, 7227, "too-large"),
}


def refused_while_the_old_one_runs(world: World, version: str, fault: Fault) -> None:
    """Roll `version` out through the lying mirror; prove the refusal, both telling ends, and the running software."""
    before = world.software()
    counter = world.last_report()["counter"]
    process, healthy = world.running()
    assert (process.state, healthy) == ("running", True)
    with world.mirror.lying(fault.where, fault.rule(world)):
        world.carrier.roll_out(version)
        world.poll()
        item = until(
            world.software, lambda item: item["fault"] == fault.fault and fault.words in item["cause"]
        )
        code = f"software-{fault.fault}"
        assert any(
            found["code"] == code and item["cause"] in found["en"] for found in world.status()["conditions"]
        )
        report = until(world.installed, lambda row: (row["fault"] or "").startswith(str(fault.fault)))
        assert report["fault"].partition(" ")[2] == item["cause"][: len(report["fault"]) - 5]
        if fault.attack:
            until(
                world.last_report,
                lambda row: row["counter"] > counter and (row["attack"] or "").startswith(fault.words),
            )
        assert (item["version"], item["state"]) == (before["version"], "Active")
        assert (report["version"], report["state"]) == (before["version"], "Active")
        still, healthy = world.running()
        assert (still.state, still.pid, healthy) == ("running", process.pid, True)


def installs(world: World, version: str) -> None:
    """What is true again brings the release in, without anybody's help, and no fault is left."""
    world.poll()
    until(
        world.software,
        lambda item: (item["version"], item["state"], item["fault"]) == (version, "Active", None),
    )


@pytest.mark.parametrize("case", METADATA_FAULTS)
def test_metadata_that_is_not_right_brings_nothing_in(world: World, case: str) -> None:
    version = world.publish()
    refused_while_the_old_one_runs(world, version, METADATA_FAULTS[case])
    installs(world, version)


@pytest.mark.parametrize("case", PACKAGE_FAULTS)
def test_a_package_that_does_not_arrive_as_signed_is_not_installed(world: World, case: str) -> None:
    version = world.publish()
    refused_while_the_old_one_runs(world, version, PACKAGE_FAULTS[case])
    installs(world, version)


def test_a_release_below_the_floor_is_refused(world: World) -> None:
    newest = world.software()["version"]
    below = Fault("never asked", lambda _: changed(bytes), 7230, "below the floor 2", attack=False)
    refused_while_the_old_one_runs(world, "1.0.0", below)
    world.carrier.roll_out(newest)
    installs(world, newest)


def test_metadata_rolled_back_is_refused(world: World) -> None:
    """The mirror serves the timestamp of an earlier day, validly signed and not expired."""
    old = world.mirror.seen["/image/metadata/timestamp.json"]
    old_version = Metadata.from_bytes(old.body).signed.version
    version = world.publish()
    world.carrier.roll_out(version)
    installs(world, version)
    assert (
        Metadata.from_bytes(world.mirror.seen["/image/metadata/timestamp.json"].body).signed.version
        > old_version
    )
    replayed = Fault(TIMESTAMP_FILE, lambda _: lambda _wire, _answer: old.sent(), 7805, "rollback")
    version = world.publish()
    refused_while_the_old_one_runs(world, version, replayed)
    installs(world, version)


def test_a_document_rolled_back_or_forged_changes_nothing(world: World) -> None:
    path = next(path for path in world.mirror.seen if path.endswith("/director.json"))
    old = world.mirror.seen[path]
    while old.status != 200:  # the last answer was 304
        world.carrier.roll_out(world.publish())
        world.poll()
        old = until(lambda: world.mirror.seen[path], lambda answer: answer.status == 200)
    newest = world.publish()
    world.carrier.roll_out(newest)
    world.poll()
    fresh = until(
        lambda: world.mirror.seen[path], lambda answer: answer.status == 200 and answer.body != old.body
    )
    version = Metadata.from_bytes(fresh.body).signed.version
    until(world.status, lambda status: status["update"]["director_version"] == version)
    installs(world, newest)
    process, _ = world.running()
    for rule, words in (
        (lambda _wire, _answer: old.sent(), "rollback"),
        (lambda _wire, _answer: fresh.sent(flip_one_bit(fresh.body)), "unsigned"),
    ):
        with world.mirror.lying(DOCUMENT, rule):
            world.poll()
            until(
                world.status,
                lambda status, words=words: any(
                    found["code"] == "attack-suspected" and found["en"].startswith(words)
                    for found in status["conditions"]
                ),
            )
            until(world.last_report, lambda row, words=words: (row["attack"] or "").startswith(words))
        assert world.status()["update"]["director_version"] == version
    still, healthy = world.running()
    assert (still.pid, healthy) == (process.pid, True)


def test_a_package_for_another_model_is_refused_whoever_asks_for_it(world: World) -> None:
    """The carrier does not offer it (JNT-21); a thief of the director's key asks for it all the same."""
    version = world.publish(series=("RS-500",))
    path = next(path for path in world.mirror.seen if path.endswith("/director.json"))
    world.poll()
    signed = Metadata.from_bytes((world.carrier.home / "public" / path.lstrip("/")).read_bytes()).signed
    body = parse_director_body(signed.unrecognized_fields["hgw"])
    role = max(
        (world.carrier.home / "public" / "image" / "metadata").glob("*.operator-mimamori.json"),
        key=lambda file: int(file.name.partition(".")[0]),
    )
    listed = Metadata.from_bytes(role.read_bytes()).signed.targets
    target = next(item for name, item in listed.items() if f"/{version}/" in name)
    del target.unrecognized_fields["custom"]
    entries = tuple(msgspec.structs.replace(item, target=target.path) for item in body.software)
    forged = make_document(
        online_key(world, "director"),
        msgspec.structs.replace(body, software=entries),
        [target],
        version=signed.version + 1,
        now_s=time.time(),
    )
    process, _ = world.running()
    with world.mirror.lying(
        DOCUMENT, lambda _wire, _answer: Answer(200, {"etag": '"forged"'}, forged).sent()
    ):
        world.poll()
        item = until(world.software, lambda item: item["fault"] == 7225)
        assert "wrong-model" in item["cause"]
        assert "RS-500" in item["cause"]
        until(world.installed, lambda row: (row["fault"] or "").startswith("7225 wrong-model"))
    still, healthy = world.running()
    assert (item["state"], still.pid, healthy) == ("Active", process.pid, True)
    for _ in range(2):  # the true carrier has to pass the number that the thief used up
        version = world.publish()
        world.carrier.roll_out(version)
    installs(world, version)
