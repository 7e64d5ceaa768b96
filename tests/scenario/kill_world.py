"""A whole world to kill programs in: carrier, gateway and NAS with the real programs, on one line of the lab.

Everything goes through the command lines that a person would use. What a run proves is in `test_kills.py`; here is
only how programs are started, killed, and started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from firmware_sim.lab import HEALTHY, Lab, LabSpec, LineFaults, Process, open_lab
from nas_agent.ports import PACK_UNKNOWN
from wire.vault.frame import parse_frame_header
from wire.vault.pack import verify_pack

REPOSITORY = Path(__file__).resolve().parents[2]
CUSTOMER, CONTRACT, SERIAL = "CAF0000000001", "AZK0000000001", "PR500SIM0001"
PORT = 8443
PASSPHRASE = "a passphrase only the owner knows"
PACK_BYTES_MAX = 5 << 20  # 4 MiB of frames and their trailer
START_TIMEOUT_S = 30.0
RUN_TIMEOUT_S = 90.0
WAIT_FOR_BACKUP_S = 1.5
SLOW_LINE_BITS_PER_S = 40_000_000
VICTIMS = ("agent", "hgwd", "gateway", "deliver")

HGWD_TOML = """\
[gateway]
serial = "{serial}"
model = "PR-500"
maker = "KI"
device_secret_file = "{directory}/device-secret"
state_dir = "{directory}/state"
wan_interface = "wan"
[carrier]
host = "{carrier}"
port = {port}
ca_file = "{home}/trust/tls-ca.pem"
image_root_file = "{home}/trust/image-root.json"
director_root_file = "{home}/trust/director-root.json"
[lan]
host = "{lan}"
[admin]
host = "{lan}"
password_file = "{directory}/admin-password"
[spool]
directory = "{directory}/spool"
pack_bytes_max = {pack_bytes}
[update]
software_dir = "{directory}/software"
"""


@attrs.define
class World:
    """The programs and where their files are. `deliver` and `hgwd` are running; the agent runs when asked to."""

    lab: Lab
    root: Path
    deliver: Process
    hgwd: Process
    kills: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(VICTIMS, 0))
    kills_under_way: int = 0

    @property
    def source(self) -> Path:
        """What is backed up."""
        return self.root / "source"

    def agent(self, *arguments: str | Path) -> list[str]:
        """Return an agent's command line."""
        return module("nas_agent.cli", *arguments, "--state", self.root / "nas", "--json", "--quiet")

    def start_backup(self) -> Process:
        """Start a backup of the source, as a process that can be killed."""
        return self.lab.nas(1).spawn(self.agent("backup", self.source), name="backup", env=environment())

    def finish_backup(self) -> dict[str, object]:
        """Run a backup to its end and return its result; it must be durable."""
        done = self.lab.nas(1).run(
            self.agent("backup", self.source), timeout_s=RUN_TIMEOUT_S, check=False, env=environment()
        )
        result = last_event(done.stdout)
        assert (done.returncode, result.get("state")) == (0, "durable"), (done.stdout + done.stderr).decode()
        return result

    def assert_restores(self) -> None:
        """Restore the latest generation and let rsync find no difference."""
        target = self.root / "restored"
        passphrase = self.root / "passphrase"
        self.lab.nas(1).run(
            self.agent("restore", "latest", "--to", target, "--passphrase-file", passphrase),
            timeout_s=RUN_TIMEOUT_S,
            env=environment(),
        )
        inside = target if (target / "file-000").exists() else next(target.rglob("file-000")).parent
        judge = ["rsync", "-aHAXSn", "--checksum", "--delete", "-i", f"{self.source}/", f"{inside}/"]
        assert subprocess.run(judge, capture_output=True, check=True).stdout == b""
        subprocess.run(["rm", "-rf", str(target)], check=True)

    def assert_generations_are_whole(self) -> None:
        """Let the agent read and check every byte of every generation that is kept, those in the trash left out."""
        passphrase = ["--passphrase-file", self.root / "passphrase"]
        nas = self.lab.nas(1)
        listed = nas.run(self.agent("list", *passphrase), timeout_s=RUN_TIMEOUT_S, env=environment())
        events = [json.loads(line) for line in listed.stdout.decode().splitlines()]
        generations = [event for event in events if event["event"] == "generation"]
        names = [event["generation"] for event in generations if not event["in_trash"]]
        assert names
        for name in names:
            verify = self.agent("verify", name, *passphrase)
            nas.run(verify, timeout_s=RUN_TIMEOUT_S, env=environment())

    def packs_are_under_way(self) -> bool:
        """Say whether a pack is just being received, waits in the spool or is on its way to the carrier."""
        places = ("gateway/spool/parts", "gateway/spool/packs", "carrier/state/blobs/incoming")
        return any(any((self.root / place).iterdir()) for place in places)

    def lost_packs(self) -> int:
        """Return how many packs the gateway acknowledged and then could not pass on."""
        database = self.root / "gateway" / "state" / "relay.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as rows:
            (count,) = rows.execute("SELECT count(*) FROM pack WHERE state = ?", (PACK_UNKNOWN,)).fetchone()
        return int(count)

    def acknowledged_bytes(self, program: str) -> int:
        """Return the pack bytes that all runs of `hgwd` or `deliver` took and acknowledged, by their request logs."""
        total = 0
        for log in (self.root / "logs").glob(f"*-{program}.log"):
            for line in log.read_text("utf-8", "replace").splitlines():
                if '"request"' in line and line.endswith("}"):
                    entry = json.loads(line)
                    taken = entry["method"] == "PUT" and entry["status"] in {200, 201, 202}
                    total += entry["received_bytes"] if taken else 0
        return total

    def kill_and_restart(self, victim: str, backup: Process) -> None:
        """Kill one program at once (`gateway`: cut the whole machine's power); a daemon starts again on what it left.

        An agent that had ended by itself is not counted.
        """
        if victim == "agent":
            if not backup.alive or backup.kill() != -signal.SIGKILL:
                return
        elif victim in {"hgwd", "gateway"}:
            if victim == "hgwd":
                self.hgwd.kill()
            else:
                self.lab.gateway(1).power_cut()
            self.hgwd = start_hgwd(self.lab, self.root)
        else:
            self.deliver.kill()
            self.deliver = start_deliver(self.lab, self.root)
        self.kills[victim] += 1


def environment() -> dict[str, str]:
    """Return the environment of every program: this checkout's code, and no colour or user settings."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"}


def module(name: str, *arguments: str | Path) -> list[str]:
    """Return the command line of one of our programs."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def last_event(output: bytes) -> dict[str, object]:
    """Return the last JSON line of a program's output, or an empty one."""
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


@contextlib.contextmanager
def open_world(root: Path) -> Iterator[World]:
    """Bring up the world with a paired, enrolled NAS, for as long as the context lasts."""
    with open_lab(LabSpec(lines=1, directory=root)) as lab:
        notice = make_carrier_side(lab, root)
        deliver = start_deliver(lab, root)
        make_gateway_side(lab, root)
        hgwd = start_hgwd(lab, root)
        world = World(lab, root, deliver, hgwd)
        pair_nas(world, notice)
        world.source.mkdir()
        yield world


def make_carrier_side(lab: Lab, root: Path) -> dict[str, str]:
    """Make keys, database and contracts; return the opening notice."""
    home = root / "carrier"
    run_here(
        "deliver.cli",
        "init",
        home,
        "--name",
        lab.carrier_address,
        "--gateway-listen",
        f"[{lab.carrier_address}]:{PORT}",
    )
    secret = root / "device-secret.carrier"
    write_secret(secret, secrets.token_hex(32))
    admin = ["admin", "--config", home]
    run_here("deliver.cli", *admin, "line", "add", CUSTOMER)
    run_here("deliver.cli", *admin, "prefix", "add", CUSTOMER, str(lab.addresses(1).prefix))
    gateway = ["--model", "PR-500", "--maker", "KI", "--secret", secret]
    run_here("deliver.cli", *admin, "gateway", "add", CUSTOMER, SERIAL, *gateway)
    contract = ["storage-contract", "add", CONTRACT, "--customer", CUSTOMER, "--plan", "10gb", "--json"]
    return json.loads(run_here("deliver.cli", *admin, *contract))


def make_gateway_side(lab: Lab, root: Path) -> None:
    """Write the gateway's configuration and secrets."""
    directory = root / "gateway"
    directory.mkdir()
    write_secret(directory / "device-secret", (root / "device-secret.carrier").read_text())
    config = HGWD_TOML.format(
        serial=SERIAL,
        directory=directory,
        carrier=lab.carrier_address,
        port=PORT,
        home=root / "carrier",
        lan=lab.addresses(1).ula_gateway,
        pack_bytes=PACK_BYTES_MAX,
    )
    (directory / "hgwd.toml").write_text(config)
    run_here("hgwd.cli", "--config", directory / "hgwd.toml", "password", stdin=b"correct horse battery\n")


def start_deliver(lab: Lab, root: Path) -> Process:
    """Start the carrier's server and wait until it serves."""
    argv = module("deliver.cli", "serve", "--config", root / "carrier")
    return started(lab.carrier.spawn(argv, name="deliver", env=environment()))


def start_hgwd(lab: Lab, root: Path) -> Process:
    """Start the gateway's daemon and wait until it serves its LAN."""
    argv = module("hgwd.cli", "--config", root / "gateway" / "hgwd.toml", "run")
    return started(lab.gateway(1).spawn(argv, name="hgwd", env=environment()))


def started(process: Process) -> Process:
    """Return the process when it has said `ready`."""
    process.wait_for_line(r'"event":\s*"ready"', START_TIMEOUT_S)
    return process


def pair_nas(world: World, notice: dict[str, str]) -> None:
    """Make the NAS's keys, pair it with the gateway by six digits, and enrol it at the service."""
    passphrase = world.root / "passphrase"
    write_secret(passphrase, PASSPHRASE)
    nas = world.lab.nas(1)
    quick = ["--kdf-memory-mib", "8", "--passphrase-file", passphrase]
    nas.run(world.agent("init", "--contract", CONTRACT, *quick), timeout_s=RUN_TIMEOUT_S, env=environment())
    gateway = ["pair", "--gateway", f"[{world.lab.addresses(1).ula_gateway}]:{PORT}"]
    pairing = nas.spawn(world.agent(*gateway), name="pair", env=environment())
    shown = json.loads(pairing.wait_for_line('"digits"', START_TIMEOUT_S))["digits"]
    approve = module("hgwd.cli", "--config", world.root / "gateway" / "hgwd.toml", "pair", "--approve", shown)
    world.lab.gateway(1).run(approve, timeout_s=RUN_TIMEOUT_S, env=environment())
    assert pairing.wait(RUN_TIMEOUT_S) == 0, pairing.output()
    code = ["--enrolment-code", notice["enrolment_code"], "--service-root", notice["service_root"]]
    enrol = world.agent(*gateway, *code)
    deadline = time.monotonic() + START_TIMEOUT_S
    # Refused until the gateway itself has enrolled, which it does on its own after its start.
    while (done := nas.run(enrol, timeout_s=RUN_TIMEOUT_S, check=False, env=environment())).returncode != 0:
        assert time.monotonic() < deadline, done.stdout.decode()
        time.sleep(0.2)


def run_here(name: str, *arguments: str | Path, stdin: bytes = b"") -> str:
    """Run one of our programs outside the lab (set-up on the carrier's own machine) and return its output."""
    done = subprocess.run(
        module(name, *arguments),
        input=stdin,
        capture_output=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text)


def change_source(source: Path, dice: random.Random, *, files: int, size_bytes: int) -> None:
    """Write, rewrite, append to and delete some files: what a day on a NAS does."""
    for _ in range(files):
        path = source / f"file-{dice.randrange(1, 40):03d}"
        match dice.randrange(5):
            case 0 if path.exists():
                path.unlink()
            case 1 if path.exists():
                with path.open("ab") as file:
                    file.write(dice.randbytes(dice.randrange(size_bytes)))
            case 2:
                path.write_text("a line that compresses well\n" * dice.randrange(size_bytes // 20))
            case _:
                path.write_bytes(dice.randbytes(dice.randrange(size_bytes)))
    # Always there and always new, so that each cycle has something to send.
    (source / "file-000").write_bytes(dice.randbytes(size_bytes))


def kill_during_backup(world: World, dice: random.Random, *, within_s: float) -> int:
    """Start a backup, kill one program at a random moment of it, and start it again; return how many kills that were.

    A backup that only waits then (the gateway tells it to come back in up to 15 s) is the second victim.
    """
    victim = dice.choice(VICTIMS)
    # A slow line stretches the transfer, so that many kills fall into it.
    world.lab.set_faults(1, LineFaults(rate_bits_per_s=SLOW_LINE_BITS_PER_S))
    backup = world.start_backup()
    deadline = time.monotonic() + dice.uniform(0, within_s)
    while time.monotonic() < deadline and backup.alive:
        time.sleep(0.002)
    before = sum(world.kills.values())
    world.kills_under_way += world.packs_are_under_way()
    world.kill_and_restart(victim, backup)
    world.lab.set_faults(1, HEALTHY)
    grace = time.monotonic() + WAIT_FOR_BACKUP_S
    while time.monotonic() < grace and backup.alive:
        time.sleep(0.005)
    if backup.alive:
        world.kill_and_restart("agent", backup)
    return sum(world.kills.values()) - before


@attrs.define
class PackAudit:
    """Looks once at every pack the carrier ever held, and knows what must not occur twice in them."""

    root: Path
    frames: int = 0
    stored_bytes: int = 0
    again_bytes: int = 0
    _packs: set[str] = attrs.field(factory=set)
    _chunks: set[bytes] = attrs.field(factory=set)
    _nonces: dict[tuple[bytes, bytes, int], str] = attrs.field(factory=dict)

    def look(self) -> int:
        """Verify the packs that came since the last look; return how many bytes of them had been sent before.

        No two frames may share key and nonce: the key follows from session and salt, the nonce is the counter.
        """
        before = self.again_bytes
        folder = self.root / "carrier" / "state" / "blobs" / CONTRACT
        for path in sorted(folder.glob("*/*")):
            name = path.name.partition("-")[0]
            if name not in self._packs:
                self._packs.add(name)
                self.stored_bytes += path.stat().st_size
                self._look_into(name, path.read_bytes())
        return self.again_bytes - before

    def _look_into(self, name: str, data: bytes) -> None:
        for item in verify_pack(data, name=name).items:
            header = parse_frame_header(data[item.offset : item.offset + item.length])
            used = (header.session, header.salt, header.counter)
            assert used not in self._nonces, f"packs {self._nonces[used]} and {name} share a key and a nonce"
            self._nonces[used] = name
            self.again_bytes += item.length if header.chunk in self._chunks else 0
            self._chunks.add(header.chunk)
            self.frames += 1
