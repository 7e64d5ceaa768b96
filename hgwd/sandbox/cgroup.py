"""Memory, process and CPU caps of one software: cgroup v2 where it has the controllers, else v1, chosen by a probe.

Rules
- One group per software below a group of our own; a group is made before the process starts and the process joins
  before it executes anything.
- `kill` ends every member, also those that detached from their parent.
- Swap is capped with memory: a cap that can be swapped around is none.
- Neither hierarchy usable: no group, so the barrier is missing and nothing is started. `prlimit` is no stand-in
  (it counts addresses, not memory); the launcher sets it besides.

Blocking calls on cgroupfs: microseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Final, Protocol

import attrs

CPU_PERIOD_US: Final = 100_000
SANDBOX_PIDS: Final = 2
"""bubblewrap's own processes inside the group."""
SANDBOX_MEMORY_BYTES: Final = 2 << 20
KILL_ROUNDS_MAX: Final = 200
_CONTROLLERS: Final = ("memory", "pids", "cpu")


@attrs.frozen
class Caps:
    """Caps of one software; `cpu_percent` of one processor."""

    memory_bytes: int
    pids: int
    cpu_percent: int


class Group(Protocol):
    """One software's group."""

    @property
    def member_files(self) -> tuple[Path, ...]:
        """Files into which a process writes its number to join; root only."""
        ...

    def members(self) -> list[int]:
        """Return the process numbers of all members."""
        ...

    def memory_bytes(self) -> int | None:
        """Memory in use, None if unknown."""
        ...

    def out_of_memory_count(self) -> int:
        """How often the kernel ended a member for passing the memory cap."""
        ...

    def kill(self) -> None:
        """End every member and wait until none is left. Idempotent."""
        ...

    def remove(self) -> None:
        """Remove the empty group. Idempotent."""
        ...


class CgroupError(Exception):
    """The kernel refused a cap: the barrier is missing."""


def base_name(state_dir: Path) -> str:
    """Return the name of a launcher's own group: several launchers on one machine must not meet."""
    return f"hgwd-{hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]}"


def open_group(root: Path, base: str, name: str, caps: Caps) -> Group:
    """Make (or empty and reuse) the group `name` below `base` with `caps`. Raises `CgroupError`."""
    kind = detect(root)
    try:
        group: V1Group | V2Group
        group = V2Group(root / base / name) if kind == "v2" else V1Group(root, base, name)
        group.create(caps)
    except OSError as error:
        raise CgroupError(f"cgroup {kind} {name}: {error.strerror} ({error.filename})") from error
    return group


def detect(root: Path) -> str:
    """Return "v2" or "v1", whichever has memory, pids and cpu here. Raises `CgroupError` with the reason."""
    with contextlib.suppress(OSError):
        available = (root / "cgroup.controllers").read_text().split()
        if set(_CONTROLLERS) <= set(available):
            return "v2"
    if all((root / name / "cgroup.procs").exists() for name in _CONTROLLERS):
        return "v1"
    raise CgroupError(f"{root}: neither v2 nor v1 offers {', '.join(_CONTROLLERS)}")


def clear_base(root: Path, base: str) -> None:
    """End and remove every group below `base`: at start (leftovers of a kill) and at the end. Idempotent."""
    for controller in ("", *_CONTROLLERS):
        directory = root / controller / base
        if not directory.is_dir():
            continue
        for group in directory.iterdir():
            if group.is_dir():
                _kill_members(group / "cgroup.procs")
                _remove(group)
        _remove(directory)


@attrs.frozen
class V2Group:
    """A group of the unified hierarchy."""

    path: Path

    def create(self, caps: Caps) -> None:
        """Enable the controllers down to the group and set the caps."""
        wanted = " ".join(f"+{name}" for name in _CONTROLLERS)
        (self.path.parent.parent / "cgroup.subtree_control").write_text(wanted)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path.parent / "cgroup.subtree_control").write_text(wanted)
        self.kill()
        (self.path / "memory.max").write_text(str(caps.memory_bytes + SANDBOX_MEMORY_BYTES))
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap
            (self.path / "memory.swap.max").write_text("0")
        (self.path / "pids.max").write_text(str(caps.pids + SANDBOX_PIDS))
        (self.path / "cpu.max").write_text(f"{caps.cpu_percent * CPU_PERIOD_US // 100} {CPU_PERIOD_US}")

    @property
    def member_files(self) -> tuple[Path, ...]:
        """See Group."""
        return (self.path / "cgroup.procs",)

    def members(self) -> list[int]:
        """See Group."""
        return _members(self.path / "cgroup.procs")

    def memory_bytes(self) -> int | None:
        """See Group."""
        return _read_int(self.path / "memory.current")

    def out_of_memory_count(self) -> int:
        """See Group."""
        return _counter(self.path / "memory.events", "oom_kill")

    def kill(self) -> None:
        """See Group."""
        _kill_members(self.path / "cgroup.procs")

    def remove(self) -> None:
        """See Group."""
        _remove(self.path)


@attrs.frozen
class V1Group:
    """The same group in three v1 hierarchies."""

    root: Path
    base: str
    name: str

    def create(self, caps: Caps) -> None:
        """Make the three groups and set the caps."""
        for controller in _CONTROLLERS:
            self._path(controller).mkdir(parents=True, exist_ok=True)
        self.kill()
        memory = str(caps.memory_bytes + SANDBOX_MEMORY_BYTES)
        # The combined cap may never be below the plain one, so it is opened first when a group is reused.
        combined = self._path("memory") / "memory.memsw.limit_in_bytes"
        if combined.exists():
            combined.write_text("-1")
        (self._path("memory") / "memory.limit_in_bytes").write_text(memory)
        if combined.exists():
            combined.write_text(memory)
        (self._path("pids") / "pids.max").write_text(str(caps.pids + SANDBOX_PIDS))
        (self._path("cpu") / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
        (self._path("cpu") / "cpu.cfs_quota_us").write_text(str(caps.cpu_percent * CPU_PERIOD_US // 100))

    @property
    def member_files(self) -> tuple[Path, ...]:
        """See Group."""
        return tuple(self._path(controller) / "cgroup.procs" for controller in _CONTROLLERS)

    def members(self) -> list[int]:
        """See Group."""
        return _members(self._path("pids") / "cgroup.procs")

    def memory_bytes(self) -> int | None:
        """See Group."""
        return _read_int(self._path("memory") / "memory.usage_in_bytes")

    def out_of_memory_count(self) -> int:
        """See Group."""
        return _counter(self._path("memory") / "memory.oom_control", "oom_kill")

    def kill(self) -> None:
        """See Group."""
        _kill_members(self._path("pids") / "cgroup.procs")

    def remove(self) -> None:
        """See Group."""
        for controller in _CONTROLLERS:
            _remove(self._path(controller))

    def _path(self, controller: str) -> Path:
        return self.root / controller / self.base / self.name


def _members(procs: Path) -> list[int]:
    try:
        return [int(line) for line in procs.read_text().split()]
    except FileNotFoundError:
        return []


def _kill_members(procs: Path) -> None:
    for _ in range(KILL_ROUNDS_MAX):
        members = _members(procs)
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Our own children stay members until they are waited for; the caller's Popen still gets its status.
        time.sleep(0.005)
        if all(_is_zombie(pid) for pid in members):
            return


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except (OSError, IndexError):
        return True


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _counter(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _remove(path: Path) -> None:
    for _ in range(KILL_ROUNDS_MAX):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # EBUSY while the last member is being reaped
            time.sleep(0.005)
        else:
            return
