"""Gives a restored object its attributes, in the order in which none undoes another (AZK-83).

Owner, then plain xattrs, then permission bits, then ACLs and capabilities, times last. What this user may not set is
reported in words, never raised: the content is there, and the person decides.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from typing import Final

from wire.vault.entry import Entry, Kind

_AFTER_MODE: Final = (b"system.posix_acl_", b"security.capability")
_OF_THE_MACHINE: Final = ("security.selinux", "security.ima", "security.evm", "security.SMACK")
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class AttributeSetter:
    """Sets attributes; maps owner names as rsync does: by name where this machine has it, else by number."""

    def __init__(self) -> None:
        """Remember looked-up names for one restore."""
        self._uids: dict[tuple[int, bytes], int] = {}
        self._gids: dict[tuple[int, bytes], int] = {}

    def set(self, entry: Entry, name: bytes, directory_fd: int) -> list[str]:
        """Set all attributes of `name` (`b"."`: the open directory itself); return what could not be set.

        The object is held by descriptor, so that a symlink put in its place meanwhile is not followed.
        Raises `OSError` when it is gone.
        """
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            return self._set_held(entry, fd)
        finally:
            os.close(fd)

    def _set_held(self, entry: Entry, fd: int) -> list[str]:
        lost: list[str] = []
        path = b"/proc/self/fd/%d" % fd
        is_link = entry.kind is Kind.SYMLINK
        mode = entry.mode
        if not self._set_owner(entry, fd, path, lost) and mode & _SET_ID and not is_link:
            mode &= ~_SET_ID
            lost.append("setuid and setgid dropped, for the owner is another")
        _drop_inherited(path, entry, lost)
        late = tuple(pair for pair in entry.xattrs if pair[0].startswith(_AFTER_MODE))
        _set_xattrs(path, tuple(pair for pair in entry.xattrs if pair not in late), lost)
        if not is_link:
            with _listed(f"mode {mode:04o}", lost):
                os.chmod(path, mode)  # noqa: PTH101 - bytes, and held by descriptor
        _set_xattrs(path, late, lost)
        with _listed("times", lost):
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        return lost

    def _set_owner(self, entry: Entry, fd: int, path: bytes, lost: list[str]) -> bool:
        uid, gid = self._uid(entry), self._gid(entry)
        status = os.fstat(fd)
        if (status.st_uid, status.st_gid) == (uid, gid):
            return True
        try:
            os.chown(path, uid, gid)
        except OSError as error:
            lost.append(f"owner {uid}:{gid} ({error.strerror}; restore as root to keep it)")
            return False
        return True

    def _uid(self, entry: Entry) -> int:
        key = (entry.uid, entry.user)
        if key not in self._uids:
            self._uids[key] = _lookup_user(entry)
        return self._uids[key]

    def _gid(self, entry: Entry) -> int:
        key = (entry.gid, entry.group)
        if key not in self._gids:
            self._gids[key] = _lookup_group(entry)
        return self._gids[key]


def _set_xattrs(path: bytes, xattrs: tuple[tuple[bytes, bytes], ...], lost: list[str]) -> None:
    for key, value in xattrs:
        with _listed(f"attribute {key.decode('utf-8', 'backslashreplace')}", lost):
            os.setxattr(path, key, value)


def _drop_inherited(path: bytes, entry: Entry, lost: list[str]) -> None:
    """Take away what the object did not have: a default ACL of the target's directory is inherited at creation."""
    kept = {os.fsdecode(key) for key, _ in entry.xattrs}
    with contextlib.suppress(OSError):  # a file system without attributes has none to drop
        for name in os.listxattr(path):
            if name not in kept and not name.startswith(_OF_THE_MACHINE):
                with _listed(f"inherited attribute {name}", lost):
                    os.removexattr(path, name)


@contextlib.contextmanager
def _listed(what: str, lost: list[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        lost.append(f"{what} ({error.strerror})")


def _lookup_user(entry: Entry) -> int:
    try:
        return pwd.getpwnam(os.fsdecode(entry.user)).pw_uid if entry.user else entry.uid
    except KeyError:
        return entry.uid


def _lookup_group(entry: Entry) -> int:
    try:
        return grp.getgrnam(os.fsdecode(entry.group)).gr_gid if entry.group else entry.gid
    except KeyError:
        return entry.gid
