"""Give a line a rate (tbf) and a delay (netem, or a delay line of our own where the kernel has no netem)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from firmware_sim.lab import delayline
from firmware_sim.lab.commands import run_tool
from firmware_sim.lab.errors import LabError

BURST_BYTES = 32_768
QUEUE_MS = 100
END_TIMEOUT_S = 10


def has_netem(namespace: str) -> bool:
    """Tell whether this kernel can delay packets by itself; tried on the namespace's loopback, and undone."""
    tc = ["tc", "-n", namespace, "qdisc"]
    try:
        run_tool([*tc, "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    except LabError:
        return False
    run_tool([*tc, "del", "dev", "lo", "root"])
    return True


def shape(namespace: str, device: str, *, rate_bits_per_s: int, netem_delay_ms: int) -> None:
    """Make a device send at a rate and, by netem, with a delay; unshaped when both are 0."""
    tc = ["tc", "-n", namespace, "qdisc"]
    root = ["dev", device, "root"]
    shown = run_tool([*tc, "show", "dev", device])
    if "netem" in shown or "tbf" in shown:
        run_tool([*tc, "del", *root])
    if netem_delay_ms:
        rate = ["rate", f"{rate_bits_per_s}bit"] if rate_bits_per_s else []
        run_tool([*tc, "add", *root, "netem", "delay", f"{netem_delay_ms}ms", *rate])
    elif rate_bits_per_s:
        limit = ["rate", f"{rate_bits_per_s}bit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms"]
        run_tool([*tc, "add", *root, "tbf", *limit])


class DelayLine:
    """A running delay line between two devices that it makes itself; they are gone after `end`."""

    def __init__(self, ends: tuple[tuple[str, str], tuple[str, str]], delay_ms: int) -> None:
        words = [word for end in ends for word in end]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(delayline.__file__)), *words, str(delay_ms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if self._process.stdout is None or self._process.stdout.readline() != b"ready\n":
            error = self._process.communicate()[1].decode("utf-8", "replace").strip().splitlines()
            raise LabError(
                f"lab: no netem in this kernel, and no delay line either: {error[-1] if error else ''}"
            )

    def end(self) -> None:
        """End it; its devices vanish."""
        self._process.communicate(timeout=END_TIMEOUT_S)
