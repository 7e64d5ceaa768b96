"""Start a program behind every barrier: own user, own namespaces, capped group, call filter, Landlock.

Order, in the forked child, each step needing what the next one gives up:
1. join the control group (needs root);
2. own mount namespace, with what the sandbox may see bound to `/run/s0`, `/run/s1` … (the package's user could not
   walk to a private state directory, and bubblewrap resolves its sources as that user);
3. resource limits, no supplementary groups, the package's user and group;
4. bubblewrap: all namespaces new, no capability, ends with the launcher, loads the call filter;
5. `landlock_shim.py` closes the file system, checks the rest from inside, and executes the software.

The environment is empty but for `PATH`, `HOME` and `LANG`. Standard input is /dev/null.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import attrs

SHIM_FILE: Final = Path(__file__).with_name("landlock_shim.py")
SHIM_INSIDE: Final = "/hgw/landlock_shim.py"
APP_INSIDE: Final = "/app"
DATA_INSIDE: Final = "/data"
TMP_BYTES: Final = 4 << 20
OPEN_FILES_MAX: Final = 256
_STAGE: Final = "/run"
_CLONE_NEWNS: Final = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 18, 2, 4
_libc: Final = ctypes.CDLL(None, use_errno=True)


@attrs.frozen
class Mount:
    """One thing the sandbox sees under a path of its own.

    `base` is a path of the launcher's own choosing; `below` leads on from there through directories that hgwd can
    write, so each step refuses symbolic links.
    """

    base: Path
    inside: str
    below: tuple[str, ...] = ()
    directory: bool = True
    writable: bool = False


@attrs.frozen
class Confinement:
    """All limits of one start."""

    uid: int
    mounts: tuple[Mount, ...]
    member_files: tuple[Path, ...]
    file_bytes_max: int
    call_filter: bytes
    writable: tuple[str, ...] = ("/tmp",)  # noqa: S108 - a tmpfs of the sandbox's own


@attrs.frozen
class Interpreter:
    """The gateway's Python and the paths it needs, which are the same inside and outside."""

    executable: Path
    paths: tuple[Path, ...]
    links: tuple[tuple[str, str], ...]


def find_interpreter(executable: str = sys.executable) -> Interpreter:
    """Return what a sandbox must see to run this very interpreter: program, standard library, shared libraries."""
    real = Path(executable).resolve()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    library = real.parent.parent / "lib"
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    candidates = [real, library / f"python{version}", library / f"libpython{version}.so.1.0"]
    candidates += [Path("/usr/lib") / triplet, Path("/usr/lib64")]
    links = []
    for name in ("lib", "lib64"):
        top = Path("/") / name
        if top.is_symlink():
            links.append((os.readlink(top), str(top)))  # noqa: PTH115 - the text of the link
        elif name == "lib64":
            candidates.append(top)
        else:
            candidates.append(top / triplet)
    return Interpreter(real, tuple(path for path in candidates if path.exists()), tuple(links))


def start(
    command: Sequence[str],
    confinement: Confinement,
    interpreter: Interpreter,
    *,
    output: int | IO[bytes],
    info_fd: int | None = None,
    mode: str = "run",
) -> subprocess.Popen[bytes]:
    """Start `command` (paths as seen inside) and return bubblewrap's process.

    Args:
        command: the program and its arguments, nothing that came over a socket.
        confinement: see there.
        interpreter: see `find_interpreter`.
        output: descriptor that gets stdout and stderr.
        info_fd: descriptor that bubblewrap writes `{"child-pid": n}` to.
        mode: "run", or "self-check" to end with 0 once every barrier was felt.

    Raises:
        OSError, subprocess.SubprocessError: the child could not be prepared; nothing runs.
    """
    filter_fd = _memory_file(confinement.call_filter)
    try:
        mounts = (*confinement.mounts, *_interpreter_mounts(interpreter))
        argv = _bubblewrap(mounts, interpreter, filter_fd, info_fd)
        argv += [
            str(interpreter.executable),
            "-I",
            "-S",
            SHIM_INSIDE,
            mode,
            ",".join(confinement.writable),
            "--",
        ]
        staged = attrs.evolve(confinement, mounts=mounts)
        return subprocess.Popen(
            [*argv, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={},
            pass_fds=[fd for fd in (filter_fd, info_fd) if fd is not None],
            preexec_fn=lambda: _prepare(staged),  # noqa: PLW1509 - the launcher has one thread
            cwd="/",
        )
    finally:
        os.close(filter_fd)


def open_below(base: Path, below: Sequence[str], flags: int = os.O_PATH) -> int:
    """Open `base`, then each name of `below` in turn, never through a symbolic link; the caller closes.

    Raises OSError.
    """
    fd = os.open(base, os.O_PATH | os.O_CLOEXEC)
    for index, name in enumerate(below):
        last = index == len(below) - 1
        step = flags if last else os.O_PATH | os.O_DIRECTORY
        try:
            deeper = os.open(name, step | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _interpreter_mounts(interpreter: Interpreter) -> tuple[Mount, ...]:
    mounts = [Mount(path, str(path), directory=path.is_dir()) for path in interpreter.paths]
    return (*mounts, Mount(SHIM_FILE, SHIM_INSIDE, directory=False))


def _bubblewrap(
    mounts: Sequence[Mount], interpreter: Interpreter, filter_fd: int, info_fd: int | None
) -> list[str]:
    argv = [
        "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    argv += [
        "--hostname",
        "package",
        "--clearenv",
        "--setenv",
        "PATH",
        "/usr/bin",
        "--setenv",
        "LANG",
        "C.UTF-8",
    ]
    argv += ["--setenv", "HOME", "/tmp", "--proc", "/proc", "--dev", "/dev"]  # noqa: S108 - inside
    argv += ["--size", str(TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108 - inside
    for index, mount in enumerate(mounts):
        argv += ["--bind" if mount.writable else "--ro-bind", f"{_STAGE}/s{index}", mount.inside]
    for target, link in interpreter.links:
        argv += ["--symlink", target, link]
    argv += ["--remount-ro", "/", "--chdir", "/", "--seccomp", str(filter_fd)]
    if info_fd is not None:
        argv += ["--info-fd", str(info_fd)]
    return [*argv, "--"]


def _prepare(confinement: Confinement) -> None:
    """Run in the forked child; an exception here reaches the parent as SubprocessError and nothing is executed."""
    for file in confinement.member_files:
        file.write_text("0")
    _stage(confinement.mounts)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_MAX, OPEN_FILES_MAX))
    resource.setrlimit(resource.RLIMIT_FSIZE, (confinement.file_bytes_max, confinement.file_bytes_max))
    os.umask(0o077)
    os.setgroups([])
    os.setresgid(confinement.uid, confinement.uid, confinement.uid)
    os.setresuid(confinement.uid, confinement.uid, confinement.uid)


def _stage(mounts: Sequence[Mount]) -> None:
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", _STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=64k")
    for index, mount in enumerate(mounts):
        point = f"{_STAGE}/s{index}"
        if mount.directory:
            os.mkdir(point, 0o755)  # noqa: PTH102 - between fork and exec, no pathlib
        else:
            os.close(os.open(point, os.O_CREAT | os.O_WRONLY, 0o644))
        # Opened here, not in the parent: a bind mount may not cross mount namespaces.
        fd = open_below(mount.base, mount.below)
        if os.path.isdir(f"/proc/self/fd/{fd}") != mount.directory:  # noqa: PTH112 - as above
            raise OSError(f"{mount.inside}: a symbolic link or of the wrong kind")
        _mount(f"/proc/self/fd/{fd}", point, None, _MS_BIND | _MS_REC)
        os.close(fd)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    options = None if data is None else data.encode()
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), options), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
