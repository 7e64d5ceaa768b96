"""Boot a gateway profile as a machine: Debian's arm64 kernel and Python under QEMU, our real code, a data flash.

`image` builds kernel, initrd and a read-only root from Debian packages, locked wheels and this checkout's sources;
`machine` starts them within the profile's memory and cores, and talks to the guest over its serial console. What it
shows: the image fits a slot, hgwd starts on that memory, and what it then uses. It proves nothing about a maker's real
hardware. QEMU interprets every instruction (TCG): about 12 to 20 times slower than the host, so time limits are wide.
"""

from __future__ import annotations

from firmware_sim.boot.image import Image, ImageError, build_image
from firmware_sim.boot.machine import GuestReport, Machine, MachineError, boot_machine
from firmware_sim.boot.show import BootResult, show_boot

__all__ = [
    "BootResult",
    "GuestReport",
    "Image",
    "ImageError",
    "Machine",
    "MachineError",
    "boot_machine",
    "build_image",
    "show_boot",
]
