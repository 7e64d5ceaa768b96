"""What the kernel says about one object, as an `Entry` (AZK-83): mode, owner and names, times, xattrs and ACLs.

Nothing is opened: a FIFO or a device is described by `lstat` alone. ACLs are the raw `system.posix_acl_*` values.
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import stat
from typing import Final

from nas_agent.adapters.directories import proc_path
from wire.vault.entry import Entry, Kind

_NOT_SUPPORTED: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODATA})
_NOT_READABLE: Final = frozenset({errno.EACCES, errno.EPERM})
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}


def describe(path: bytes, name: bytes, directory_fd: int, status: os.stat_result, link_group: int) -> Entry:
    """Return the entry of `name` in an open directory, without content and holes.

    Args:
        path: relative to the root of the backup.
        name: the last component, as the kernel gave it; `b"."` for the directory itself.
        directory_fd: the directory that holds it.
        status: its `lstat`.
        link_group: 0 unless it has several names.

    Raises `OSError` when it vanished or is of a kind that Linux does not know.
    """
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise OSError(errno.ENOTSUP, f"unknown kind of object, st_mode {status.st_mode:#o}")
    device = kind in {Kind.CHARACTER, Kind.BLOCK}
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=_user_name(status.st_uid),
        group=_group_name(status.st_gid),
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind is Kind.FILE else 0,
        xattrs=_read_xattrs(proc_path(directory_fd, name)),
        link_group=link_group,
        target=os.readlink(name, dir_fd=directory_fd) if kind is Kind.SYMLINK else b"",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0),
    )


def _read_xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return all attributes sorted by name.

    One that this user may not read is left out: the object's content cannot be read either then, and that is listed.
    """
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return ()
        raise
    found: list[tuple[bytes, bytes]] = []
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)))
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED | _NOT_READABLE:
                raise
    found.sort()
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _user_name(uid: int) -> bytes:
    try:
        return os.fsencode(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return b""


@functools.lru_cache(maxsize=4096)
def _group_name(gid: int) -> bytes:
    try:
        return os.fsencode(grp.getgrgid(gid).gr_name)
    except KeyError:
        return b""
