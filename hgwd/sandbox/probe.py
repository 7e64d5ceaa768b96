"""Which barriers this machine has: found out by running through them, not by asking what should be there.

A real sandbox is started with everything a package would get, and its shim checks from inside. What fails is named;
a package is then not started at all (design §5.9: never run weaker).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from hgwd.sandbox.cgroup import Caps, CgroupError, open_group
from hgwd.sandbox.confine import Confinement, Interpreter, start
from hgwd.sandbox.seccomp import UnsupportedMachineError, build_filter

PROBE_TIMEOUT_S: Final = 20.0
_OK: Final = "ok"
_CAPS: Final = Caps(memory_bytes=32 << 20, pids=8, cpu_percent=100)


def probe_barriers(cgroup_root: Path, cgroup_base: str, interpreter: Interpreter, uid: int) -> dict[str, str]:
    """Return each barrier with "ok" or why it is missing. Blocking, about 0.1 s; `uid` is a package user's number."""
    found = {
        "own-user": _OK if os.geteuid() == 0 else "the launcher is not root, so it cannot change user",
        "bubblewrap": _OK if shutil.which("bwrap") else "bwrap is not installed",
        "seccomp": _OK,
        "cgroup": _OK,
    }
    try:
        call_filter = build_filter(os.uname().machine)
    except UnsupportedMachineError as error:
        found["seccomp"] = str(error)
    try:
        group = open_group(cgroup_root, cgroup_base, "probe", _CAPS)
    except CgroupError as error:
        found["cgroup"] = str(error)
    if any(state != _OK for state in found.values()):
        return found
    confinement = Confinement(
        uid=uid, mounts=(), member_files=group.member_files, file_bytes_max=1 << 20, call_filter=call_filter
    )
    found["sandbox-self-check"] = _self_check(confinement, interpreter)
    group.kill()
    group.remove()
    return found


def _self_check(confinement: Confinement, interpreter: Interpreter) -> str:
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as output:
        try:
            process = start(["-"], confinement, interpreter, output=write_fd, mode="self-check")
        except (OSError, subprocess.SubprocessError) as error:
            return f"cannot prepare a sandbox: {error}"
        finally:
            os.close(write_fd)
        try:
            code = process.wait(PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"no answer from inside within {PROBE_TIMEOUT_S:.0f} s"
        if code == 0:
            return _OK
        return output.read(400).decode(errors="replace").strip() or f"ended with {code}"
