"""Shape one end of a line: rate by tbf, delay by netem where the kernel has it."""

from __future__ import annotations

from firmware_sim.faults import LineFaults
from firmware_sim.lab.commands import run_tool
from firmware_sim.lab.errors import LabError

BURST_BYTES = 32_768
QUEUE_MS = 100


def shape(namespace: str, device: str, faults: LineFaults) -> None:
    """Make a device send at the rate and with the delay of `faults`, or unshaped when both are 0.

    Raises:
        LabError: a delay was asked and this kernel has no netem.
    """
    tc = ["tc", "-n", namespace, "qdisc"]
    root = ["dev", device, "root"]
    if "noqueue" not in run_tool([*tc, "show", "dev", device]):
        run_tool([*tc, "del", *root])
    if faults.delay_ms:
        try:
            rate = ["rate", f"{faults.rate_bits_per_s}bit"] if faults.rate_bits_per_s else []
            run_tool([*tc, "add", *root, "netem", "delay", f"{faults.delay_ms}ms", *rate])
        except LabError as error:
            raise LabError("lab: this kernel has no netem, so a line cannot be delayed here") from error
    elif faults.rate_bits_per_s:
        limit = [
            "rate",
            f"{faults.rate_bits_per_s}bit",
            "burst",
            str(BURST_BYTES),
            "latency",
            f"{QUEUE_MS}ms",
        ]
        run_tool([*tc, "add", *root, "tbf", *limit])
