"""Run one emulated gateway: QEMU with the profile's cores and memory, a data flash, and a serial console.

Rules
- The data flash is a file that outlives the machine: booting again on it is a reboot, killing QEMU is a power cut.
- Nothing is timed by sleeping: the guest prints markers, the host waits for them with wide limits.
- WAN is QEMU's own user network, numbered statically from the kernel's command line; it leads nowhere but the host's
  loopback. LAN is 192.168.1.0/24, reached from the host by one forwarded port on 127.0.0.1. Line authentication needs
  real prefixes and is the lab's business.
"""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from firmware_sim.boot.image import Image
from firmware_sim.profile import Profile

BOOT_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
OUTPUT_LINES_MAX = 20_000
LAN_PORT_IN_GUEST = 8443
_WAN_NETWORK = "2001:db8:5::/64"
_WAN_GUEST, _WAN_HOST = "2001:db8:5::15/64", "2001:db8:5::2"


class MachineError(Exception):
    """The machine did not do what was expected in time; the text ends with the last lines of its console."""


@attrs.frozen
class GuestReport:
    """What the guest says about itself. Sizes in KiB, as the kernel counts them."""

    uptime_s: float
    rss_kib: int
    peak_kib: int
    available_kib: int
    total_kib: int
    flash_used_kib: int
    flash_free_kib: int


class Machine:
    """A running machine. `lan_url` is the backup listener of its hgwd, as the host reaches it."""

    def __init__(self, process: subprocess.Popen[bytes], lan_port: int) -> None:
        self.lan_port = lan_port
        self.lines: list[str] = []
        self._process = process
        self._unread: queue.Queue[str | None] = queue.Queue(OUTPUT_LINES_MAX)
        self._reader = threading.Thread(target=self._read, name="machine-console", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._unread.put(line.decode("utf-8", "replace").strip())
        self._unread.put(None)

    def wait_for(self, pattern: str, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Wait for a console line that matches a regular expression, after those already awaited; return it.

        Raises:
            MachineError: the machine ended or `timeout_s` passed first.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._unread.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._error(f"no line matched {pattern!r} within {timeout_s:.0f} s") from None
            if line is None:
                self._unread.put(None)
                raise self._error(f"ended before a line matched {pattern!r}")
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def report(self) -> GuestReport:
        """Ask the guest for its memory and flash."""
        self._command("report")
        words = self.wait_for(r"^hgw: report ", ANSWER_TIMEOUT_S).split()[2:]
        values = dict(word.split("=", 1) for word in words)
        try:
            uptime_s = float(values.pop("uptime_s"))
            return GuestReport(uptime_s, **{name: int(value) for name, value in values.items()})
        except (KeyError, ValueError, TypeError) as error:
            raise self._error(f"a report that cannot be read: {words}") from error

    def restart_hgwd(self) -> None:
        """Kill hgwd in the guest (SIGKILL) and start it again; its ready line comes again."""
        self._command("restart")

    def power_off(self) -> None:
        """End the machine in order: data flash written and unmounted."""
        self._command("poweroff")
        self.wait_for(r"^hgw: off", ANSWER_TIMEOUT_S)
        self._process.wait(ANSWER_TIMEOUT_S)

    def power_cut(self) -> None:
        """End the machine at once; what its kernel had not written to the data flash is lost."""
        self._process.kill()
        self._process.wait()

    def _command(self, word: str) -> None:
        if self._process.stdin is None:
            raise MachineError("machine: no console to write to")
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()

    def _error(self, what: str) -> MachineError:
        tail = "\n".join(self.lines[-20:])
        return MachineError(f"machine: {what}; the console's last lines:\n{tail}")


def make_data_flash(path: Path, profile: Profile, files: Mapping[str, bytes]) -> None:
    """Make the file of a data flash: ext4 of the profile's size, with `files` (relative names) on it.

    Raises:
        MachineError: mkfs.ext4 failed, for instance because the files do not fit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(0o600)  # secrets are among them
        size = f"{profile.data_flash_mib.value}M"
        done = subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-d", scratch, str(path), size],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise MachineError(f"machine: making the data flash failed: {done.stderr.strip()}")


@contextlib.contextmanager
def boot_machine(profile: Profile, image: Image, data_flash: Path) -> Iterator[Machine]:
    """Start a machine for as long as the context lasts; at its end it is cut off if it still runs.

    Raises:
        MachineError: QEMU is not installed.
    """
    if shutil.which("qemu-system-aarch64") is None:
        raise MachineError(
            "machine: qemu-system-aarch64 is not installed: see scripts/debian-packages-sim.txt"
        )
    lan_port = _free_port()
    process = subprocess.Popen(
        _qemu_command(profile, image, data_flash, lan_port),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    machine = Machine(process, lan_port)
    try:
        yield machine
    finally:
        process.kill()
        process.communicate()


def _qemu_command(profile: Profile, image: Image, data_flash: Path, lan_port: int) -> list[str]:
    now_s = int(time.time())
    kernel = f"console=ttyAMA0 panic=-1 quiet hgw.wan={_WAN_GUEST} hgw.via={_WAN_HOST} hgw.time={now_s}"
    machine = ["-M", "virt,gic-version=3", "-cpu", "cortex-a53", "-accel", "tcg,thread=multi"]
    size = ["-smp", str(profile.cores.value), "-m", str(profile.ram_mib.value)]
    plain = ["-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-serial", "stdio"]
    disks = [
        *(
            "-drive",
            f"id=slot,file={image.root},format=raw,if=none,readonly=on",
            "-device",
            "virtio-blk-pci,drive=slot",
        ),
        *("-drive", f"id=data,file={data_flash},format=raw,if=none,cache=writeback"),
        *("-device", "virtio-blk-pci,drive=data", "-device", "virtio-rng-pci"),
    ]
    forward = f"hostfwd=tcp:127.0.0.1:{lan_port}-192.168.1.1:{LAN_PORT_IN_GUEST}"
    network = [
        *("-netdev", f"user,id=wan,ipv4=off,ipv6=on,ipv6-net={_WAN_NETWORK},ipv6-host={_WAN_HOST}"),
        *("-device", "virtio-net-pci,netdev=wan,romfile="),
        *("-netdev", f"user,id=lan,ipv6=off,net=192.168.1.0/24,host=192.168.1.254,restrict=on,{forward}"),
        *("-device", "virtio-net-pci,netdev=lan,romfile="),
    ]
    start = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", kernel]
    return ["qemu-system-aarch64", *machine, *size, *plain, *start, *disks, *network]


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
