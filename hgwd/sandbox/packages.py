"""The softwares that run: start, stop, inspect, forget. One object per launcher, no threads, no waiting.

Rules
- A software is named by its ID and its slot; the manifest in the slot says the rest and is read here, through no
  symbolic link, and capped by the format's own limits (`wire.package`).
- Not started at all: a missing barrier, a manifest of another software, network "lan" (nothing here confines a
  package to the LAN yet: its own loopback or nothing).
- Stopping is SIGTERM, then `STOP_GRACE_S` later SIGKILL for the whole group.
- The data volume (`disk_bytes` > 0) belongs to the software's user, mode 0700; past its size the software is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from hgwd.core.faults import Fault
from hgwd.core.install import SlotName
from hgwd.core.launch import Answer, Declined, Done, Healthy, LogTail, Process, directory_name
from hgwd.sandbox.cgroup import Caps, CgroupError, Group, clear_base, open_group
from hgwd.sandbox.confine import (
    APP_INSIDE,
    DATA_INSIDE,
    Confinement,
    Interpreter,
    Mount,
    open_below,
    start,
)
from hgwd.sandbox.health import probe_health
from hgwd.sandbox.logfile import PackageLog
from hgwd.sandbox.seccomp import build_filter
from hgwd.sandbox.users import PackageUsers, UsersExhaustedError
from runtime.files import make_dirs
from wire.director import SoftwareName
from wire.errors import WireError
from wire.package import MANIFEST_BYTES_MAX, Manifest, parse_manifest

STOP_GRACE_S: Final = 3.0
PACKAGES_MAX: Final = 32
LOG_READ_BYTES: Final = 16 * 1024
DATA_FILES_MAX: Final = 4096
INFO_BYTES_MAX: Final = 4096
FILE_BYTES_MIN: Final = 64 * 1024
_TMP_INSIDE: Final = "/tmp"  # noqa: S108 - inside the sandbox


@attrs.define
class _Running:
    slot: str
    manifest: Manifest
    uid: int
    group: Group
    process: subprocess.Popen[bytes]
    output_fd: int
    info_fd: int
    log: PackageLog
    started_s: float
    info: bytes = b""
    inside_pid: int | None = None
    kill_at_s: float | None = None
    exit_code: int | None = None
    out_of_memory: bool = False


@attrs.frozen
class Places:
    """Where things are: `software_dir` is written by hgwd, everything else by the launcher alone."""

    software_dir: Path
    state_dir: Path
    cgroup_root: Path
    cgroup_base: str


class Packages:
    """All softwares of this gateway. Call `tick` every second and `read_output` when a descriptor is readable."""

    def __init__(
        self, places: Places, users: PackageUsers, interpreter: Interpreter, barriers: Mapping[str, str]
    ) -> None:
        self._places: Final = places
        self._users: Final = users
        self._interpreter: Final = interpreter
        self._missing: Final = {name: state for name, state in barriers.items() if state != "ok"}
        self._running: dict[SoftwareName, _Running] = {}

    # -- requests --------------------------------------------------------------------------------------------

    def start(self, name: SoftwareName, slot: str, now_s: float) -> Answer:
        """Start what stands in `slot`; `now_s` is monotonic."""
        declined = self._why_not(name)
        if declined is not None:
            return declined
        try:
            manifest = self._read_manifest(name, slot)
        except (OSError, WireError) as error:
            return Declined(fault=Fault.CORRUPT, message=f"{name.text} slot {slot}: {error}")
        if manifest.permissions.network != "none":
            return Declined(fault=Fault.NETWORK_NOT_OFFERED, message=f"{name.text}: asks for network lan")
        try:
            self._running[name] = self._spawn(name, slot, manifest, now_s)
        except CgroupError as error:
            return Declined(fault=Fault.BARRIER_MISSING, message=str(error))
        except (OSError, subprocess.SubprocessError, UsersExhaustedError) as error:
            return Declined(fault=Fault.START_FAILED, message=f"{name.text}: {error}")
        return self.inspect(name, now_s)

    def _why_not(self, name: SoftwareName) -> Declined | None:
        running = self._running.get(name)
        if running is not None and running.exit_code is None:
            return Declined(fault=Fault.INVALID_DU_STATE, message=f"{name.text}: runs already")
        if self._missing:
            listed = "; ".join(f"{barrier}: {state}" for barrier, state in self._missing.items())
            return Declined(fault=Fault.BARRIER_MISSING, message=listed)
        if len(self._running) >= PACKAGES_MAX and running is None:
            return Declined(fault=Fault.RESOURCES_EXCEEDED, message=f"{PACKAGES_MAX} softwares run already")
        return None

    def stop(self, name: SoftwareName, now_s: float) -> Answer:
        """Ask a software to end; it is killed `STOP_GRACE_S` later."""
        running = self._running.get(name)
        if running is not None and running.exit_code is None and running.kill_at_s is None:
            running.kill_at_s = now_s + STOP_GRACE_S
            # bubblewrap's own two processes would not pass the signal on: it goes to the software itself.
            for pid in running.group.members():
                if pid not in {running.process.pid, running.inside_pid}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
        return Done()

    def inspect(self, name: SoftwareName, now_s: float) -> Answer:
        """Say what a software does now."""
        running = self._running.get(name)
        if running is None:
            return Process(state="none")
        self._reap(running)
        if running.exit_code is None:
            return Process(
                state="running" if running.kill_at_s is None else "stopping",
                slot=_slot(running.slot),
                pid=running.process.pid,
                uptime_s=now_s - running.started_s,
                memory_bytes=running.group.memory_bytes(),
            )
        return Process(
            state="exited",
            slot=_slot(running.slot),
            exit_code=running.exit_code,
            out_of_memory=running.out_of_memory,
        )

    def health(self, name: SoftwareName) -> Answer:
        """Run the health probe once."""
        running = self._running.get(name)
        if running is None:
            return Healthy(healthy=False, detail="not started")
        self._reap(running)
        if running.exit_code is not None:
            ended_well = running.manifest.health.kind == "exit" and running.exit_code == 0
            return Healthy(healthy=ended_well, detail=self._end_text(running))
        if running.inside_pid is None:
            return Healthy(healthy=False, detail="not started yet")
        try:
            healthy, detail = probe_health(running.inside_pid, running.uid, running.manifest.health)
        except OSError as error:
            return Healthy(healthy=False, detail=f"no way into the sandbox: {error}")
        return Healthy(healthy=healthy, detail=detail)

    def log(self, name: SoftwareName, max_bytes: int) -> Answer:
        """Return the newest log text."""
        return LogTail(text=self._log(name).tail(max_bytes))

    def forget(self, name: SoftwareName) -> Answer:
        """Remove data volume and log. The software must have ended."""
        running = self._running.get(name)
        if running is not None:
            self._reap(running)
            if running.exit_code is None:
                return Declined(fault=Fault.INVALID_DU_STATE, message=f"{name.text}: still runs")
            self._close(running)
            del self._running[name]
        self._log(name).remove()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._data_dir(name))
        return Done()

    # -- events ----------------------------------------------------------------------------------------------

    def descriptors(self) -> dict[int, SoftwareName]:
        """Return the descriptors to watch for input, each with its software."""
        found = {}
        for name, running in self._running.items():
            for fd in (running.output_fd, running.info_fd):
                if fd >= 0:
                    found[fd] = name
        return found

    def read(self, name: SoftwareName, fd: int, now_s: float) -> None:
        """Take what a descriptor of `descriptors` has."""
        running = self._running[name]
        data = os.read(fd, LOG_READ_BYTES)
        if fd == running.info_fd:
            # bubblewrap writes in pieces and dies of SIGPIPE if we close before its last one.
            running.info += data[: INFO_BYTES_MAX - len(running.info)]
            if not data:
                running.inside_pid = _child_pid(running.info)
                os.close(fd)
                running.info_fd = -1
        elif data:
            running.log.write(data, now_s)
        else:
            os.close(fd)
            running.output_fd = -1

    def tick(self, now_s: float) -> None:
        """Reap ends, end what overstays its stop, enforce data volumes."""
        for name, running in self._running.items():
            self._reap(running)
            if running.exit_code is not None:
                continue
            if running.kill_at_s is not None and now_s >= running.kill_at_s:
                running.group.kill()
            elif self._data_is_over(name, running.manifest.resources.disk_bytes):
                running.log.write(b"[ended: data volume is over its size]\n", now_s)
                running.group.kill()

    def close(self) -> None:
        """End everything: the launcher stops."""
        for running in self._running.values():
            running.group.kill()
            running.process.wait()
            self._close(running)
        self._running.clear()
        clear_base(self._places.cgroup_root, self._places.cgroup_base)

    # -- parts -----------------------------------------------------------------------------------------------

    def _read_manifest(self, name: SoftwareName, slot: str) -> Manifest:
        below = ("slots", directory_name(name), slot, "manifest.json")
        fd = open_below(
            self._places.software_dir, below, os.O_RDONLY | os.O_NONBLOCK
        )  # a pipe must not hold us
        with os.fdopen(fd, "rb") as file:
            manifest = parse_manifest(file.read(MANIFEST_BYTES_MAX + 1))
        found = f"{manifest.operator}/{manifest.software}"
        if found != name.text:
            raise OSError(f"the manifest is of {found}")
        return manifest

    def _spawn(self, name: SoftwareName, slot: str, manifest: Manifest, now_s: float) -> _Running:
        earlier = self._running.get(name)
        if earlier is not None:
            self._close(earlier)
        uid = self._users.uid_of(name)
        resources = manifest.resources
        caps = Caps(resources.memory_bytes, resources.pids, resources.cpu_percent)
        group = open_group(self._places.cgroup_root, self._places.cgroup_base, directory_name(name), caps)
        confinement = Confinement(
            uid=uid,
            mounts=self._mounts(name, slot, uid, resources.disk_bytes),
            member_files=group.member_files,
            file_bytes_max=max(resources.disk_bytes, FILE_BYTES_MIN),
            call_filter=build_filter(os.uname().machine),
            writable=(_TMP_INSIDE, DATA_INSIDE) if resources.disk_bytes else (_TMP_INSIDE,),
        )
        output_read, output_write = os.pipe2(os.O_CLOEXEC)
        info_read, info_write = os.pipe2(os.O_CLOEXEC)
        try:
            process = start(
                _command(manifest, self._interpreter),
                confinement,
                self._interpreter,
                output=output_write,
                info_fd=info_write,
            )
        except BaseException:
            os.close(output_read)
            os.close(info_read)
            raise
        finally:
            os.close(output_write)
            os.close(info_write)
        log = self._log(name)
        return _Running(slot, manifest, uid, group, process, output_read, info_read, log, now_s)

    def _mounts(self, name: SoftwareName, slot: str, uid: int, disk_bytes: int) -> tuple[Mount, ...]:
        app = Mount(self._places.software_dir, APP_INSIDE, ("slots", directory_name(name), slot, "files"))
        if not disk_bytes:
            return (app,)
        data_dir = self._data_dir(name)
        make_dirs(data_dir, mode=0o700)
        os.chown(data_dir, uid, uid)
        return (app, Mount(data_dir, DATA_INSIDE, writable=True))

    def _reap(self, running: _Running) -> None:
        if running.exit_code is not None:
            return
        code = running.process.poll()
        if code is None:
            return
        running.exit_code = code
        running.out_of_memory = running.group.out_of_memory_count() > 0
        running.group.kill()

    def _end_text(self, running: _Running) -> str:
        reason = " (memory cap)" if running.out_of_memory else ""
        return f"ended with {running.exit_code}{reason}"

    def _close(self, running: _Running) -> None:
        for fd in (running.output_fd, running.info_fd):
            if fd >= 0:
                os.close(fd)
        running.output_fd = running.info_fd = -1
        running.group.remove()

    def _data_dir(self, name: SoftwareName) -> Path:
        return self._places.state_dir / "data" / directory_name(name)

    def _data_is_over(self, name: SoftwareName, disk_bytes: int) -> bool:
        if not disk_bytes:
            return False
        total_bytes = count = 0
        for directory, directories, files in os.walk(self._data_dir(name)):
            count += len(directories) + len(files)
            for file in files[:DATA_FILES_MAX]:
                with contextlib.suppress(OSError):
                    total_bytes += os.lstat(os.path.join(directory, file)).st_size  # noqa: PTH118
            if total_bytes > disk_bytes or count > DATA_FILES_MAX:
                return True
        return False

    def _log(self, name: SoftwareName) -> PackageLog:
        running = self._running.get(name)
        if running is not None:
            return running.log
        return PackageLog(self._places.state_dir / "logs" / f"{directory_name(name)}.log")


def _command(manifest: Manifest, interpreter: Interpreter) -> list[str]:
    entry = f"{APP_INSIDE}/{manifest.entry}"
    if manifest.runtime == "static-elf":
        return [entry, *manifest.args]
    return [str(interpreter.executable), "-I", "-S", entry, *manifest.args]


def _slot(slot: str) -> SlotName:
    return "a" if slot == "a" else "b"


def _child_pid(info: bytes) -> int | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return int(json.loads(info)["child-pid"])
    return None
