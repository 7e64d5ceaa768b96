"""What the always-on process may import (design §2), found out in a fresh process; and the call filter's numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hgwd.sandbox.seccomp import DENIED, MACHINES, UnsupportedMachineError, build_filter

FORBIDDEN = {
    "boto3", "botocore", "asyncssh", "sqlalchemy", "starlette", "hypercorn", "cryptography", "asyncio", "structlog",
    "urllib3", "requests", "deliver", "carrier", "nas_agent", "firmware_sim",
}  # fmt: skip
REPOSITORY = Path(__file__).parents[3]
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def imported_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["hgwd.update_service", "hgwd.update_wiring", "hgwd.launcher_main"])
def test_imports_none_of_the_heavy_libraries(module: str) -> None:
    assert imported_by(module) & FORBIDDEN == set()


def test_the_root_launcher_is_small() -> None:
    assert (
        imported_by("hgwd.launcher_main") & {"trio", "tuf", "securesystemslib", "nacl", "ssl", "h11"} == set()
    )


@pytest.mark.parametrize("machine", list(HEADERS))
def test_call_numbers_are_the_kernels(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    column = MACHINES[machine].column
    wanted = {name: numbers[column] for name, numbers in DENIED.items() if numbers[column] is not None}
    wanted |= {name: getattr(MACHINES[machine], name) for name in ("clone", "clone3", "socket", "ioctl")}
    assert {name: int(found[name]) for name in wanted if name in found} == {
        n: wanted[n] for n in wanted if n in found
    }
    assert len(found.keys() & wanted.keys()) >= len(wanted) - 2


def test_no_table_means_no_filter() -> None:
    with pytest.raises(UnsupportedMachineError):
        build_filter("mips")


@pytest.mark.parametrize("machine", list(MACHINES))
def test_filter_is_whole_instructions_and_short_enough_for_the_kernel(machine: str) -> None:
    code = build_filter(machine)
    assert len(code) % 8 == 0
    assert len(code) // 8 <= 4096


ALONE = """
import ctypes, errno, json, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
code = sys.stdin.buffer.read()
def refusal(number, *arguments):
    ctypes.set_errno(0)
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else "allowed"
def open_socket(*kind):
    try:
        socket.socket(*kind).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
def found():
    return {
        "ptrace": refusal(101, 0, 0, 0, 0), "unshare": refusal(272, 0x00020000), "clone3": refusal(435, None, 0),
        "raw": open_socket(socket.AF_INET, socket.SOCK_RAW, 1), "packet": open_socket(17, socket.SOCK_RAW),
        "stream": open_socket(socket.AF_INET6, socket.SOCK_STREAM), "unix": open_socket(socket.AF_UNIX),
    }
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0):
    sys.exit("filter refused")
print(json.dumps(found()))
"""


@pytest.mark.skipif(os.geteuid() != 0 or os.uname().machine != "x86_64", reason="needs root on x86-64")
def test_the_call_filter_alone_refuses_root_itself() -> None:
    """With every capability left, only the filter can say no."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], input=build_filter("x86_64"), capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {
        "ptrace": "EPERM", "unshare": "EPERM", "clone3": "ENOSYS", "raw": "EPERM", "packet": "EPERM",
        "stream": "allowed", "unix": "allowed",
    }  # fmt: skip
