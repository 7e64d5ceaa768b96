"""`firmware-sim boot`: build, boot, ask the guest what it uses, cut it off, boot again, and print it.

Each step is checked, not assumed: hgwd says ready on the console, answers a stranger on the LAN side, stays within the
profile's budget, and does so again after a power cut.
"""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import attrs

from firmware_sim.boot.image import Image, build_image
from firmware_sim.boot.machine import GuestReport, Machine, MachineError, boot_machine, make_data_flash
from firmware_sim.boot.site import first_boot_files
from firmware_sim.profile import Profile

CARRIER_ADDRESS = "2001:db8:5::2"
SERIAL = "PR500SIM0001"
HELLO_TIMEOUT_S = 30.0
_READY_OR_NOT = r'"event":\s*"(ready|crashed|refused)"|^hgwd: '


@attrs.frozen
class BootResult:
    """What one boot showed. `up_s` and `ready_s` are wall seconds from power-on on this host."""

    up_s: float
    ready_s: float
    hello: bytes
    report: GuestReport


def boot_once(profile: Profile, image: Image, data_flash: Path, *, cut: bool) -> BootResult:
    """Boot, wait until hgwd serves its LAN, report, and end the machine: in order, or by a power cut.

    Raises:
        MachineError: a marker did not come, or hgwd does not answer on the LAN.
    """
    started_s = time.monotonic()
    with boot_machine(profile, image, data_flash) as machine:
        machine.wait_for(r"^hgw: up")
        up_s = time.monotonic() - started_s
        if '"ready"' not in machine.wait_for(_READY_OR_NOT):
            raise MachineError(f"machine: hgwd did not get ready: {machine.lines[-1]}")
        ready_s = time.monotonic() - started_s
        result = BootResult(up_s, ready_s, say_hello(machine), machine.report())
        if cut:
            machine.power_cut()
        else:
            machine.power_off()
    return result


def say_hello(machine: Machine) -> bytes:
    """Return what hgwd tells a stranger on the LAN (protocols §5).

    Raises:
        MachineError: no answer.
    """
    anybody = ssl.create_default_context()
    anybody.check_hostname = False  # a stranger has pinned nothing yet
    anybody.verify_mode = ssl.CERT_NONE
    url = f"https://127.0.0.1:{machine.lan_port}/lan/v1/hello"
    try:
        with urllib.request.urlopen(url, timeout=HELLO_TIMEOUT_S, context=anybody) as answer:
            return bytes(answer.read(1000))
    except OSError as error:
        raise MachineError(f"machine: hgwd is ready but does not answer on the LAN: {error}") from error


def show_boot(profile: Profile, scratch: Path, say: Callable[[str], None] = print) -> list[BootResult]:
    """Build, boot, cut the power, boot again, and say what each step showed; return the two results.

    Raises:
        ImageError: the image could not be built or does not fit.
        MachineError: a boot failed, or hgwd used more than the profile's budget.
    """
    started_s = time.monotonic()
    image = build_image(profile)
    share = 100 * image.root_bytes // (profile.slot_mib.value << 20)
    say(f"{profile.title} (hardware assumed; see `firmware-sim profiles`)")
    say(f"image: {image.root_bytes:,} bytes, {share} % of a slot, {time.monotonic() - started_s:.1f} s")
    flash = scratch / "data.img"
    files = first_boot_files(profile, scratch, carrier=CARRIER_ADDRESS, serial=SERIAL)
    make_data_flash(flash, profile, files)
    results = []
    for what, cut in (("first boot", True), ("boot after a power cut", False)):
        result = boot_once(profile, image, flash, cut=cut)
        results.append(result)
        report = result.report
        say(
            f"{what}: up after {result.up_s:.1f} s, hgwd ready after {result.ready_s:.1f} s; hgwd {report.rss_kib} KiB"
            f" resident, {report.peak_kib} KiB peak; {report.available_kib} of {report.total_kib} KiB RAM available;"
            f" data flash {report.flash_used_kib} KiB used, {report.flash_free_kib} KiB free"
        )
        if report.peak_kib > profile.memory_budget_mib.value << 10:
            raise MachineError(
                f"machine: hgwd peaked at {report.peak_kib} KiB, over the {profile.memory_budget_mib.value} MiB budget"
            )
    return results
