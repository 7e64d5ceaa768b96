"""A system call filter, assembled here as classic BPF and handed to bubblewrap as bytes.

Rules
- A deny list over what namespaces and capabilities already forbid: calls that widen the kernel's attack surface or
  look into other processes answer EPERM; `clone3` answers ENOSYS so that libc falls back to `clone`, whose
  namespace flags can be seen by the filter.
- Sockets: UNIX, IPv4 and IPv6, stream and datagram. No raw, packet or netlink socket.
- A process of another architecture (or x32) is killed: the numbers below would mean other calls.

Numbers: Linux `unistd.h`, x86-64 and the generic table (aarch64); a test compares them with the installed headers.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

import attrs

_RET: Final = 0x06
_LD: Final = 0x20
_AND: Final = 0x54
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_NR: Final = 0
_ARCH: Final = 4
_ARG0: Final = 16
_ARG1: Final = 24
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_X32_BIT: Final = 0x40000000
_NEW_NAMESPACES: Final = 0x7E020080
"""CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET and NEWTIME."""
_FAMILIES: Final = (1, 2, 10)
_TYPES: Final = (1, 2)
_TTY_COMMANDS: Final = (0x5412, 0x541C, 0x5423)

DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # name: (x86-64, aarch64); None where the architecture has no such call
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "personality": (135, 92),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "fanotify_init": (300, 262),
    "move_pages": (279, 239),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
}


@attrs.frozen
class _Machine:
    column: int
    audit_arch: int
    clone: int
    clone3: int
    socket: int
    ioctl: int


MACHINES: Final[dict[str, _Machine]] = {
    "x86_64": _Machine(0, 0xC000003E, clone=56, clone3=435, socket=41, ioctl=16),
    "aarch64": _Machine(1, 0xC00000B7, clone=220, clone3=435, socket=198, ioctl=29),
}


class UnsupportedMachineError(Exception):
    """No filter is known for this architecture: the barrier counts as missing."""


def build_filter(machine: str) -> bytes:
    """Return the filter for `machine` (`os.uname().machine`) as an array of `struct sock_filter`.

    Raises `UnsupportedMachineError` for an architecture that has no table here.
    """
    known = MACHINES.get(machine)
    if known is None:
        raise UnsupportedMachineError(f"no system call table for {machine}")
    code = [_op(_LD, _ARCH), _op(_JEQ, known.audit_arch, 1, 0), _op(_RET, _KILL), _op(_LD, _NR)]
    if machine == "x86_64":
        code += [_op(_JGE, _X32_BIT, 0, 1), _op(_RET, _KILL)]
    for numbers in DENIED.values():
        number = numbers[known.column]
        if number is not None:
            code += [_op(_JEQ, number, 0, 1), _deny(errno.EPERM)]
    code += [_op(_JEQ, known.clone3, 0, 1), _deny(errno.ENOSYS)]
    code += _for_call(known.clone, _forbid_flags(_ARG0, _NEW_NAMESPACES))
    code += _for_call(known.socket, _only(_ARG0, _FAMILIES) + _only(_ARG1, _TYPES, mask=0xF))
    code += _for_call(known.ioctl, _none_of(_ARG1, _TTY_COMMANDS))
    code.append(_op(_RET, _ALLOW))
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _deny(number: int) -> bytes:
    return _op(_RET, _ERRNO | number)


def _for_call(number: int, body: list[bytes]) -> list[bytes]:
    """Run `body` for one call; the call number is loaded again after it."""
    return [_op(_JEQ, number, 0, len(body) + 1), *body, _op(_LD, _NR)]


def _forbid_flags(argument: int, flags: int) -> list[bytes]:
    return [_op(_LD, argument), _op(_JSET, flags, 0, 1), _deny(errno.EPERM)]


def _only(argument: int, allowed: tuple[int, ...], *, mask: int | None = None) -> list[bytes]:
    code = [_op(_LD, argument)]
    if mask is not None:
        code.append(_op(_AND, mask))
    for index, value in enumerate(allowed):
        code.append(_op(_JEQ, value, len(allowed) - index, 0))
    return [*code, _deny(errno.EPERM)]


def _none_of(argument: int, denied: tuple[int, ...]) -> list[bytes]:
    code = [_op(_LD, argument)]
    for value in denied:
        code += [_op(_JEQ, value, 0, 1), _deny(errno.EPERM)]
    return code
