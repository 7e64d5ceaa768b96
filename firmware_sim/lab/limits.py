"""Hold a host to its profile's memory and CPU share by whatever this kernel offers, and say which.

Probed in this order: cgroup v2, cgroup v1, resource limits. cgroups bound the whole host (every process together);
resource limits only bound each process, by RLIMIT_DATA, and no CPU share. The lab reports which one holds.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Protocol

import attrs

from firmware_sim.profile import Profile

CGROUPS = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
REMOVE_TIMEOUT_S = 5.0


class Limiter(Protocol):
    """What holds the processes of one host."""

    @property
    def description(self) -> str:
        """Return in a few words what holds the host."""
        ...

    def prefix(self) -> list[str]:
        """Return the words to put before a command so that it runs inside the limits."""
        ...

    def oom_kills(self) -> int | None:
        """Return how many processes the memory limit has killed so far; None when this kind cannot tell."""
        ...


@attrs.frozen
class NoLimiter:
    """A host without a profile: carrier, router, NAS."""

    description: str = "no limits"

    def prefix(self) -> list[str]:
        """Return nothing: the command runs as it is."""
        return []

    def oom_kills(self) -> int | None:
        """Return 0: there is no limit to hit."""
        return 0


@attrs.frozen
class GroupLimiter:
    """cgroups made for one host; `procs` are the files a process joins by."""

    description: str
    procs: tuple[Path, ...]
    events: Path

    def prefix(self) -> list[str]:
        """Return a shell line that joins the groups and becomes the command."""
        joins = " && ".join(f"echo $$ > {path}" for path in self.procs)
        return ["sh", "-c", f'{joins} && exec "$@"', "sh"]

    def oom_kills(self) -> int | None:
        """Return the kernel's count for the group."""
        found = re.search(r"^oom_kill (\d+)$", self.events.read_text("ascii"), re.MULTILINE)
        return int(found[1]) if found else None


@attrs.frozen
class ResourceLimiter:
    """RLIMIT_DATA for each process, where no cgroup can be made."""

    data_bytes: int
    description: str = "memory per process by RLIMIT_DATA, no CPU share (no writable cgroup here)"

    def prefix(self) -> list[str]:
        """Return the prlimit words."""
        return ["prlimit", f"--data={self.data_bytes}", "--"]

    def oom_kills(self) -> int | None:
        """Return None: a process over RLIMIT_DATA sees a failed allocation and nobody counts it."""
        return None


def make_limiter(group: str, profile: Profile | None) -> Limiter:
    """Make the limits of one host; `group` is a name unique on this machine. Undone by `remove_groups`."""
    if profile is None:
        return NoLimiter()
    for make in (_make_v2, _make_v1):
        with contextlib.suppress(OSError):
            limiter = make(group, profile)
            if limiter is not None:
                return limiter
    return ResourceLimiter(profile.memory_limit_bytes)


def remove_groups(stem: str) -> None:
    """Remove every cgroup whose name starts with `stem`; waits up to 5 s for the last process to leave."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    for parent in (CGROUPS, CGROUPS / "memory", CGROUPS / "cpu"):
        for path in parent.glob(f"{stem}*") if parent.is_dir() else ():
            _remove_group(path, deadline)


def _remove_group(path: Path, deadline: float) -> None:
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _quota_us(profile: Profile) -> int:
    return CPU_PERIOD_US * profile.cpu_percent.value // 100


def _make_v2(group: str, profile: Profile) -> GroupLimiter | None:
    controllers = CGROUPS / "cgroup.controllers"
    if not controllers.is_file() or not {"memory", "cpu"} <= set(controllers.read_text("ascii").split()):
        return None
    (CGROUPS / "cgroup.subtree_control").write_text("+memory +cpu", "ascii")
    path = CGROUPS / group
    path.mkdir()
    (path / "memory.max").write_text(str(profile.memory_limit_bytes), "ascii")
    (path / "cpu.max").write_text(f"{_quota_us(profile)} {CPU_PERIOD_US}", "ascii")
    return GroupLimiter("memory and CPU share by cgroup v2", (path / "cgroup.procs",), path / "memory.events")


def _make_v1(group: str, profile: Profile) -> GroupLimiter | None:
    memory, cpu = CGROUPS / "memory", CGROUPS / "cpu"
    if not all(os.access(path, os.W_OK) for path in (memory, cpu)):
        return None
    for path in (memory / group, cpu / group):
        path.mkdir()
    (memory / group / "memory.limit_in_bytes").write_text(str(profile.memory_limit_bytes), "ascii")
    (cpu / group / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US), "ascii")
    (cpu / group / "cpu.cfs_quota_us").write_text(str(_quota_us(profile)), "ascii")
    procs = (memory / group / "cgroup.procs", cpu / group / "cgroup.procs")
    return GroupLimiter("memory and CPU share by cgroup v1", procs, memory / group / "memory.oom_control")
