"""A user number of its own for every software, remembered for ever: files of one never become readable to another.

The table is a small file that only root can write. Numbers are handed out once and not reused after a removal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from runtime.files import write_atomic
from wire.director import SoftwareName

FILE: Final = "users.json"
USERS_MAX: Final = 1000


class UsersExhaustedError(Exception):
    """The range of user numbers is used up."""


class PackageUsers:
    """The table in `directory`; numbers from `first_uid` to `first_uid + USERS_MAX - 1`."""

    def __init__(self, directory: Path, first_uid: int) -> None:
        self._path: Final = directory / FILE
        self._first: Final = first_uid
        self._uids: dict[str, int] = {}

    def open(self) -> None:
        """Read the table. Raises msgspec.MsgspecError for a damaged one: never start over with other numbers."""
        if self._path.exists():
            self._uids = msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])

    def uid_of(self, name: SoftwareName) -> int:
        """Return the number of a software, handing out and persisting the next one at first."""
        known = self._uids.get(name.text)
        if known is not None:
            return known
        if len(self._uids) >= USERS_MAX:
            raise UsersExhaustedError(f"{USERS_MAX} user numbers for packages are used up")
        uid = max(self._uids.values(), default=self._first - 1) + 1
        self._uids[name.text] = uid
        write_atomic(self._path, msgspec.json.encode(self._uids), mode=0o600)
        return uid
