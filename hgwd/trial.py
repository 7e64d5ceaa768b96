"""A package on trial: start it, wait for its first good probe, watch it through its soak (design §5.11).

It does not write records and does not decide what follows: installer.py commits or falls back.
"""

from __future__ import annotations

from typing import Final

import trio

from hgwd.adapters.launcher import Launcher
from hgwd.core.faults import Fault
from hgwd.core.install import SlotName
from hgwd.core.launch import Declined
from wire.director import SoftwareName
from wire.package import Health

HEALTH_EVERY_S: Final = 0.25
SOAK_CHECK_S: Final = 0.5


class TrialFailedError(Exception):
    """A package on trial did not start, or did not become or stay healthy."""

    def __init__(self, fault: Fault, cause: str) -> None:
        super().__init__(cause)
        self.fault: Final = fault
        self.cause: Final = cause


async def start_slot(launcher: Launcher, name: SoftwareName, slot: SlotName) -> None:
    """Start a slot. Raises `TrialFailedError` if the launcher declines, `LauncherDownError`."""
    answer = await launcher.start(name, slot)
    if isinstance(answer, Declined):
        raise TrialFailedError(Fault(answer.fault), answer.message)


async def wait_healthy(launcher: Launcher, name: SoftwareName, health: Health) -> None:
    """Return at the first good probe within `health.timeout_s`. Raises as `start_slot`."""
    detail = "no probe yet"
    with trio.move_on_after(health.timeout_s):
        while True:
            probe = await launcher.health(name)
            if probe.healthy:
                return
            detail = probe.detail
            await _check_alive(launcher, name, health)
            await trio.sleep(HEALTH_EVERY_S)
    raise TrialFailedError(Fault.HEALTH_FAILED, f"not healthy within {health.timeout_s} s: {detail}")


async def soak(launcher: Launcher, name: SoftwareName, health: Health) -> None:
    """Return if the software lives through `health.soak_s` and probes well at its end. Raises as `start_slot`."""
    ends_s = trio.current_time() + health.soak_s
    while trio.current_time() < ends_s:
        await _check_alive(launcher, name, health)
        await trio.sleep(min(SOAK_CHECK_S, max(0.0, ends_s - trio.current_time())))
    probe = await launcher.health(name)
    if not probe.healthy:
        raise TrialFailedError(Fault.HEALTH_FAILED, f"not healthy after the soak: {probe.detail}")


async def _check_alive(launcher: Launcher, name: SoftwareName, health: Health) -> None:
    process = await launcher.inspect(name)
    if process.state == "running" or (health.kind == "exit" and process.exit_code == 0):
        return
    if process.out_of_memory:
        raise TrialFailedError(Fault.MEMORY_EXCEEDED, "ended by its memory cap")
    raise TrialFailedError(Fault.START_FAILED, f"ended with {process.exit_code}")
