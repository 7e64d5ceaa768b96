"""The last step inside the sandbox: close the file system by Landlock, check the other barriers, run the software.

Runs as the package's user, inside bubblewrap, under the system call filter: `python3 -I -S landlock_shim.py
<self-check | run> <writable dirs, comma separated> -- <program> [arguments]`.

Rules
- It stands alone: standard library only, nothing of ours, because nothing of ours exists inside the sandbox.
- A barrier that is not there ends it with `EXIT_BARRIER` and the reason on stderr; the software is then not run.
- Everything is read-only and executable except the writable directories, which are never executable.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

EXIT_BARRIER = 126
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
_ALL_RIGHTS_NOW = 0xFFFF
_SCOPES = 3
_MAKE_DEVICES = 0x0040 | 0x0800
_READ_ONLY = _EXECUTE | _READ_FILE | _READ_DIR
_NOT_EXECUTABLE = ("proc", "dev", "tmp", "data")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")

_libc = ctypes.CDLL(None, use_errno=True)


def fail(reason: str) -> None:
    """End with the reason: never weaker than promised."""
    sys.stderr.write(f"barrier: {reason}\n")
    sys.stderr.flush()
    os._exit(EXIT_BARRIER)


def call(number: int, *args: object) -> int:
    """Make a system call that libc has no name for; ends the process on an error."""
    result = int(_libc.syscall(number, *args))
    if result < 0:
        fail(f"landlock call {number}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_abi() -> int:
    """Return the kernel's Landlock version; ends the process if there is none."""
    return call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))


def restrict(writable: list[str]) -> None:
    """Allow reading and running everything mounted here, writing below `writable` only; for this process and all after it."""
    abi = landlock_abi()
    rights = _FILE_RIGHTS.get(abi, _ALL_RIGHTS_NOW)
    attributes = struct.pack("=Q", rights)
    if abi >= 6:
        attributes = struct.pack("=QQQ", rights, 0, _SCOPES)
    ruleset = call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    _allow(ruleset, "/", _READ_DIR & rights)
    for name in os.listdir("/"):  # noqa: PTH208 - pathlib would cost the sandbox 20 ms
        if f"/{name}" not in writable:
            _allow(ruleset, f"/{name}", (_READ_ONLY if name not in _NOT_EXECUTABLE else _READ_FILE) & rights)
    for device in _DEVICES:
        if os.path.exists(device):  # noqa: PTH110 - as above
            _allow(ruleset, device, (_READ_FILE | _WRITE_FILE) & rights)
    for directory in writable:
        _allow(ruleset, directory, rights & ~_EXECUTE & ~_MAKE_DEVICES)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        fail("no_new_privs refused")
    call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, fd)
    call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    os.close(fd)


def check_others() -> None:
    """End unless the barriers that bubblewrap set up are felt from inside."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - as above
        status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    if status["Seccomp"].strip() != "2":
        fail("no system call filter")
    if status["NoNewPrivs"].strip() != "1":
        fail("no_new_privs is not set")
    if int(status["CapEff"], 16) or int(status["CapPrm"], 16) or int(status["CapBnd"], 16):
        fail("capabilities are left")
    if os.getuid() == 0:
        fail("running as root")


def main() -> None:
    """See the module."""
    mode, writable = sys.argv[1], [path for path in sys.argv[2].split(",") if path]
    check_others()
    restrict(writable)
    if mode == "self-check":
        os._exit(0)
    command = sys.argv[4:]
    os.execv(command[0], command)  # noqa: S606 - this is the one thing the shim is for


if __name__ == "__main__":
    main()
