"""A real launcher, real sandboxes: what a delivered software cannot do (design §5.9, JNT-02, L-threats of packages).

Needs root, bubblewrap and a writable cgroup; without them the launcher itself says what is missing, and the one test
of that runs everywhere.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sample_package as sample

from hgwd.core.faults import Fault
from hgwd.core.launch import (
    MESSAGE_BYTES_MAX,
    Answer,
    Barriers,
    Declined,
    Done,
    ForgetSoftware,
    Healthy,
    InspectSoftware,
    LogTail,
    ProbeBarriers,
    ProbeHealth,
    Process,
    ReadLog,
    Request,
    StartSoftware,
    StopSoftware,
    encode,
    parse_answer,
)
from hgwd.sandbox.cgroup import base_name, clear_base
from wire.package import Permissions, Resources

NAME = "mimamori/sensor"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packages get users of their own")


class Client:
    """Speaks the launcher's protocol, as hgwd does."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.software_dir = directory / "software"
        self.state_dir = directory / "launcher"
        self.software_dir.mkdir()
        path = directory / "launcher.sock"
        command = [sys.executable, "-m", "hgwd.launcher_main", "--socket", str(path)]
        command += ["--software-dir", str(self.software_dir), "--state-dir", str(self.state_dir), *options]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
        deadline_s = time.monotonic() + 20
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)

    def ask(self, request: Request) -> Answer:
        self.socket.send(encode(request))
        return parse_answer(self.socket.recv(MESSAGE_BYTES_MAX + 1))

    def start(self, name: str = NAME, slot: Any = "a") -> Answer:
        return self.ask(StartSoftware(software=name, slot=slot))

    def log(self, name: str = NAME) -> str:
        answer = self.ask(ReadLog(software=name))
        assert isinstance(answer, LogTail)
        return answer.text

    def wait_log(self, word: str, name: str = NAME) -> str:
        return self.wait(lambda: text if word in (text := self.log(name)) else None)

    def wait_process(self, state: str, name: str = NAME) -> Process:
        def look() -> Process | None:
            answer = self.ask(InspectSoftware(software=name))
            assert isinstance(answer, Process)
            return answer if answer.state == state else None

        return self.wait(look)

    def wait(self, look: Any, timeout_s: float = 15.0) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while (found := look()) is None:
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self.socket.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(20) == 0
        else:  # a test killed it: its groups would be cleared by its next start, which never comes
            clear_base(Path("/sys/fs/cgroup"), base_name(self.state_dir))


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(*options: str) -> Client:
        made.append(Client(tmp_path, *options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


@needs_root
def test_this_machine_has_every_barrier(client: Client) -> None:
    answer = client.ask(ProbeBarriers())
    assert isinstance(answer, Barriers)
    assert answer.missing == {}


@needs_root
def test_starts_a_package_and_finds_it_healthy_in_its_own_network(client: Client) -> None:
    sample.put_in_slot(client.software_dir, sample.SERVE, health=sample.HTTP_HEALTH)
    assert isinstance(client.start(), Process)
    client.wait_log("serving")

    def healthy() -> Healthy | None:
        answer = client.ask(ProbeHealth(software=NAME))
        assert isinstance(answer, Healthy)
        print(answer.detail)
        return answer if answer.healthy else None

    assert "200" in client.wait(healthy).detail
    with pytest.raises(OSError):  # the port is in the package's namespace, not in ours
        socket.create_connection(("127.0.0.1", sample.HEALTH_PORT), 1)


@needs_root
def test_an_attempt_to_break_out_is_refused_at_every_door(client: Client, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outer:
        port = str(outer.getsockname()[1])
        sample.put_in_slot(client.software_dir, sample.BREAK_OUT, args=(str(tmp_path), port))
        client.start()
        found = json.loads(client.wait_log("FOUND").partition("FOUND ")[2].splitlines()[0])
    assert found.pop("uid") >= 61_000
    assert found.pop("pids")
    assert found.pop("environment") == ["HOME", "LANG", "PATH", "PWD"]
    roots = set(found.pop("root"))
    assert not roots & {"etc", "home", "var", "sys", "boot", "opt", "srv", "mnt", "media"}
    assert found == {
        "shadow": "ENOENT", "outside": "ENOENT", "ptrace": "EPERM", "unshare": "EPERM", "mount": "EPERM",
        "bpf": "EPERM", "keyctl": "EPERM", "io_uring": "EPERM", "raw socket": "EPERM", "packet socket": "EPERM",
        "netlink socket": "EPERM", "outer loopback": "ECONNREFUSED", "write app": "EROFS", "write root": "EROFS",
        "write tmp": "allowed", "write data": "ENOENT", "execute tmp": "EACCES", "setuid": "EINVAL",
    }  # fmt: skip


@needs_root
def test_a_fork_bomb_ends_at_its_process_cap_and_the_launcher_goes_on(client: Client) -> None:
    sample.put_in_slot(client.software_dir, sample.FORK_BOMB)
    client.start()
    text = client.wait_log("FORKS").partition("FORKS ")[2].split()
    assert int(text[0]) == 7  # eight processes, itself included
    client.ask(StopSoftware(software=NAME))
    assert client.wait_process("exited").exit_code is not None


@needs_root
def test_a_package_over_its_memory_cap_is_ended_and_the_reason_is_known(client: Client) -> None:
    resources = Resources(memory_bytes=24 << 20, pids=4, cpu_percent=100)
    sample.put_in_slot(client.software_dir, sample.MEMORY_HOG, resources=resources)
    client.start()
    ended = client.wait_process("exited")
    assert ended.out_of_memory
    assert ended.exit_code != 0


@needs_root
def test_stop_kills_what_ignores_the_polite_signal(client: Client) -> None:
    sample.put_in_slot(client.software_dir, sample.STUBBORN)
    client.start()
    client.wait_log("stubborn")
    assert isinstance(client.ask(StopSoftware(software=NAME)), Done)
    assert client.wait_process("exited", NAME).exit_code is not None


@needs_root
def test_data_volume_is_its_own_survives_a_restart_and_goes_with_forget(client: Client) -> None:
    code = "import os, time; open('/data/kept', 'a').write('x'); print(len(open('/data/kept').read()), 'times', flush=True); time.sleep(60)"
    resources = Resources(memory_bytes=32 << 20, pids=4, cpu_percent=100, disk_bytes=1 << 20)
    sample.put_in_slot(client.software_dir, code, resources=resources)
    for times in ("1 times", "2 times"):
        client.start()
        client.wait_log(times)
        client.ask(StopSoftware(software=NAME))
        client.wait_process("exited")
    volume = client.state_dir / "data" / "mimamori+sensor"
    assert volume.stat().st_uid >= 61_000
    assert volume.stat().st_mode & 0o077 == 0
    assert isinstance(client.ask(ForgetSoftware(software=NAME)), Done)
    assert not volume.exists()
    assert client.log() == ""


@needs_root
def test_a_data_volume_over_its_size_ends_the_package(client: Client) -> None:
    code = "import time\nfor n in range(8): open(f'/data/{n}', 'wb').write(b'x' * 200_000)\nprint('wrote', flush=True); time.sleep(60)"
    resources = Resources(memory_bytes=32 << 20, pids=4, cpu_percent=100, disk_bytes=1 << 20)
    sample.put_in_slot(client.software_dir, code, resources=resources)
    client.start()
    client.wait_process("exited")
    assert "data volume is over its size" in client.log()


@needs_root
def test_two_operators_packages_have_different_users(client: Client) -> None:
    code = "import os, time; print('UID', os.getuid(), flush=True); time.sleep(60)"
    sample.put_in_slot(client.software_dir, code)
    sample.put_in_slot(client.software_dir, code, operator="yubin-box")
    client.start()
    client.start("yubin-box/sensor")
    first, second = client.wait_log("UID"), client.wait_log("UID", "yubin-box/sensor")
    assert first != second


@needs_root
def test_log_output_over_the_quota_is_dropped(client: Client) -> None:
    sample.put_in_slot(client.software_dir, sample.CHATTY)
    client.start()
    client.wait_log("x")
    time.sleep(0.5)
    files = list((client.state_dir / "logs").iterdir())
    assert sum(file.stat().st_size for file in files) <= 2 * 64 * 1024


@needs_root
def test_ends_every_package_when_it_ends(client: Client) -> None:
    sample.put_in_slot(client.software_dir, sample.SLEEP)
    started = client.start()
    assert isinstance(started, Process)
    client.wait_log("sleeping")
    client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid or 0, 0)


@needs_root
def test_a_killed_launcher_takes_its_packages_with_it(client: Client) -> None:
    sample.put_in_slot(client.software_dir, sample.SLEEP)
    started = client.start()
    assert isinstance(started, Process)
    client.wait_log("sleeping")
    client.process.kill()
    client.process.wait()
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{started.pid}").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@needs_root
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"permissions": Permissions(network="lan")}, Fault.NETWORK_NOT_OFFERED),
        ({"operator": "yubin-box"}, Fault.CORRUPT),
    ],
    ids=["network that cannot be confined", "manifest of another software"],
)
def test_declines_what_it_cannot_confine_or_believe(
    client: Client, change: dict[str, Any], fault: Fault
) -> None:
    made = sample.put_in_slot(client.software_dir, sample.SLEEP, **change)
    if made.operator != "mimamori":
        slots = client.software_dir / "slots"
        (slots / "yubin-box+sensor").rename(slots / "mimamori+sensor")
    answer = client.start()
    assert isinstance(answer, Declined)
    assert answer.fault == fault


@needs_root
def test_declines_a_slot_behind_a_symbolic_link(client: Client, tmp_path: Path) -> None:
    sample.put_in_slot(client.software_dir, sample.SLEEP)
    slot = client.software_dir / "slots" / "mimamori+sensor" / "a"
    slot.rename(tmp_path / "elsewhere")
    slot.symlink_to(tmp_path / "elsewhere")
    answer = client.start()
    assert isinstance(answer, Declined)
    assert answer.fault == Fault.CORRUPT


@needs_root
def test_declines_files_behind_a_symbolic_link(client: Client, tmp_path: Path) -> None:
    sample.put_in_slot(client.software_dir, sample.SLEEP)
    files = client.software_dir / "slots" / "mimamori+sensor" / "a" / "files"
    files.rename(tmp_path / "elsewhere")
    files.symlink_to("/etc")
    answer = client.start()
    assert isinstance(answer, Declined)
    assert answer.fault == Fault.START_FAILED


def test_a_missing_barrier_starts_nothing_and_says_which(
    make_client: Callable[..., Client], tmp_path: Path
) -> None:
    client = make_client("--cgroup-root", str(tmp_path))
    sample.put_in_slot(client.software_dir, sample.SLEEP)
    barriers = client.ask(ProbeBarriers())
    assert isinstance(barriers, Barriers)
    assert "cgroup" in barriers.missing
    answer = client.start()
    assert isinstance(answer, Declined)
    assert answer.fault == Fault.BARRIER_MISSING
    assert "cgroup" in answer.message


@pytest.mark.parametrize(
    "datagram",
    [
        b"", b"{", b"[]", b'{"do":"start","v":1,"software":"../etc","slot":"a"}',
        b'{"do":"start","v":1,"software":"mimamori/sensor","slot":"../b"}',
        b'{"do":"start","v":1,"software":"mimamori/sensor","slot":"a","command":"/bin/sh"}',
        b'{"do":"exec","v":1,"software":"mimamori/sensor"}', b"x" * 16_500,
    ],
    ids=["empty", "cut", "no object", "path as ID", "path as slot", "a command", "unknown request", "too large"],
)  # fmt: skip
def test_declines_every_other_request(
    make_client: Callable[..., Client], tmp_path: Path, datagram: bytes
) -> None:
    client = make_client("--cgroup-root", str(tmp_path))
    if datagram:
        client.socket.send(datagram)
        assert isinstance(parse_answer(client.socket.recv(MESSAGE_BYTES_MAX)), Declined)
    else:
        assert isinstance(client.start("no/such"), Declined)


@needs_root
@pytest.mark.parametrize("loose", ["owned by hgwd's user", "writable by all"])
def test_the_launcher_listens_only_where_root_alone_can_put_things(tmp_path: Path, loose: str) -> None:
    """It gives its socket to hgwd's user: in that user's directory a symbolic link could take the socket's place."""
    place = tmp_path / "run"
    place.mkdir()
    if loose == "writable by all":
        place.chmod(0o777)
    else:
        os.chown(place, 65_534, -1)
    command = [
        sys.executable,
        "-m",
        "hgwd.launcher_main",
        "--socket",
        str(place / "s"),
        "--client-uid",
        "65534",
    ]
    command += ["--software-dir", str(tmp_path / "software"), "--state-dir", str(tmp_path / "launcher")]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hgwd-launcher: --socket: expected a directory that only root can write to")
    assert done.stderr.count("\n") == 1
    assert list(place.iterdir()) == []


@needs_root
def test_a_pipe_in_place_of_a_manifest_does_not_hold_the_launcher(tmp_path: Path) -> None:
    client = Client(tmp_path)
    try:
        slot = client.software_dir / "slots" / "mimamori+sensor" / "a"
        slot.mkdir(parents=True)
        os.mkfifo(slot / "manifest.json")
        client.socket.settimeout(5)
        answer = client.start()
        assert isinstance(answer, Declined)
        assert answer.fault in {Fault.CORRUPT, Fault.BARRIER_MISSING}
    finally:
        client.close()
