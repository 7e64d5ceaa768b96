"""Run the fixed system tools the lab is made of (`ip`, `nft`, `tc`), each with a time limit and a clear error."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence

from firmware_sim.lab.errors import LabError

COMMAND_TIMEOUT_S = 30
CARRIER_TIMEOUT_S = 10.0


def run_tool(argv: Sequence[str], *, text: str | None = None) -> str:
    """Run a tool to its end and return its output.

    Raises:
        LabError: not installed, failed, or not finished within 30 s; the text holds its error output.
    """
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise LabError(f"lab: {argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"lab: {' '.join(argv)} did not finish within {COMMAND_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise LabError(f"lab: {' '.join(argv)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def ip_batch(namespace: str, lines: Sequence[str]) -> None:
    """Run `ip` commands inside a namespace, in order, stopping at the first that fails."""
    run_tool(["ip", "-n", namespace, "-batch", "-"], text="\n".join(lines) + "\n")


def nft(namespace: str, rules: str) -> None:
    """Apply an nft script inside a namespace as one transaction."""
    run_tool(["nsenter", f"--net=/run/netns/{namespace}", "--", "nft", "-f", "-"], text=rules)


def wait_for_carrier(namespace: str, device: str) -> None:
    """Wait until a device that was set up can send, and forget what it believed about its neighbours.

    The kernel announces a new carrier up to a second late and keeps failed neighbours for a while: without this a
    connection made right after `Lab.restore` would fail by chance.

    Raises:
        LabError: no carrier within 10 s.
    """
    deadline = time.monotonic() + CARRIER_TIMEOUT_S
    # A TAP (delay line) has no idea of a carrier: the kernel says UNKNOWN once it is up.
    while _state(namespace, device) not in {"UP", "UNKNOWN"}:
        if time.monotonic() > deadline:
            raise LabError(f"lab: {device} in {namespace} has no carrier after {CARRIER_TIMEOUT_S:.0f} s")
        time.sleep(0.02)
    run_tool(["ip", "-n", namespace, "neigh", "flush", "dev", device])


def _state(namespace: str, device: str) -> str:
    shown = json.loads(run_tool(["ip", "-n", namespace, "-j", "link", "show", "dev", device]))
    return str(shown[0]["operstate"])
