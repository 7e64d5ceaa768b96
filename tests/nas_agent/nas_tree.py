"""A tree with every kind of entry (AZK-83), and rsync as the judge of two trees."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from pathlib import Path

IS_ROOT = os.geteuid() == 0
ACL_VERSION = 2


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Encode a POSIX ACL as the kernel stores it: (tag, permissions, id)."""
    return struct.pack("<I", ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


SAMPLE_ACL = acl(
    (1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (0x10, 4, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)
)


def make_tree(top: Path) -> list[str]:
    """Fill `top`; return what this user may not create, in words."""
    top.mkdir()
    root = os.fsencode(top)
    (top / "empty").write_bytes(b"")
    (top / "plain.txt").write_bytes(b"hello\n" * 1000)
    (top / "big.bin").write_bytes(os.urandom(3_000_000))
    (top / "a").mkdir()
    (top / "a" / "inner").write_bytes(b"inner")
    (top / "a.txt").write_bytes(b"sorts between a and a/inner in plain byte order")
    (top / "a\x01low").write_bytes(b"sorts after a's children")
    Path(os.fsdecode(root + b"/\xff\xfe not utf-8 \x80")).write_bytes(b"bytes")
    (top / "new\nline \\ \" ' *?<>|:").write_bytes(b"odd")
    (top / ("n" * 255)).write_bytes(b"255")
    (top / ".dot").mkdir()
    (top / "日本語 ファイル名").write_bytes("本文".encode())
    (top / "dangling").symlink_to(os.fsdecode(b"/nowhere/\xff/at all"))
    (top / "relative link").symlink_to("a/inner")
    os.link(top / "plain.txt", top / "a" / "hard link")
    os.link(top / "plain.txt", top / "zz hard link")
    os.link(root + b"/dangling", root + b"/hard-linked symlink", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(top, os.O_DIRECTORY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    _make_sparse(top / "sparse.img")
    (top / "only-a-hole").touch()
    os.truncate(top / "only-a-hole", 40 << 20)
    (top / "setuid").write_bytes(b"#!/bin/true\n")
    (top / "setuid").chmod(0o6755)
    (top / "read-only").write_bytes(b"r")
    (top / "closed").mkdir()
    (top / "closed" / "x").write_bytes(b"x")
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    os.setxattr(top / "read-only", "user.comment", b"\x00binary\xff")
    os.setxattr(top / "plain.txt", "system.posix_acl_access", SAMPLE_ACL)
    os.setxattr(top / "a", "system.posix_acl_default", SAMPLE_ACL)
    (top / "read-only").chmod(0o400)
    (top / "closed").chmod(0o555)
    left_out = _make_root_only(top)
    for number, path in enumerate(sorted(top.rglob("*"))):
        when = 1_000_000_000_123_456_789 + number * 1_000_000_007
        os.utime(path, ns=(when, when), follow_symlinks=False)
    os.utime(top / "empty", ns=(-1_000_000_001, -1_000_000_001))
    os.utime(top, ns=(5, 1_234_567_890_987_654_321))
    return left_out


def _make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"start" * 1000)
        file.seek(30 << 20)
        file.write(b"middle" * 1000)
        file.truncate(64 << 20)


def _make_root_only(top: Path) -> list[str]:
    if not IS_ROOT:
        return ["devices", "foreign owners", "trusted.* attributes"]
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mknod(top / "loop", 0o060660, os.makedev(7, 0))
    (top / "owned").write_bytes(b"o")
    os.chown(top / "owned", 12345, 54321)
    (top / "owned").chmod(0o4711)
    os.setxattr(top / "owned", "trusted.test", b"t")
    os.setxattr(top / "relative link", "trusted.link", b"l", follow_symlinks=False)
    os.chown(top / "dangling", 33, 33, follow_symlinks=False)
    os.setxattr(
        top / "setuid",
        "security.capability",
        struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0),
    )
    return []


def rsync_differences(source: Path, restored: Path) -> str:
    """Return what rsync would still do to make `restored` equal to `source`; empty means equal."""
    done = subprocess.run(
        ["rsync", "-aHAXSn", "--checksum", "--delete", "-i", f"{source}/", f"{restored}/"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
