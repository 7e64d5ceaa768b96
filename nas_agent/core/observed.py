"""What a walk found at one path."""

from __future__ import annotations

import msgspec

from wire.vault.entry import Entry


class Observed(msgspec.Struct, frozen=True, gc=False):
    """An entry as the walk found it (`content` and `holes` empty), with what the change check compares.

    `ctime_ns` in nanoseconds since 1970; `inode` as st_ino; `nlink` as st_nlink.
    """

    entry: Entry
    ctime_ns: int
    inode: int
    nlink: int = 1
