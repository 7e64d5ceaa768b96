"""Verified metadata on flash: the `Load` and `Store` side of the update core.

One directory per repository, one file per role, the name percent-encoded; replaced atomically and fsynced, so that the
versions found after a power cut are versions that were verified before it. Blocking; files are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote

from hgwd.core.update_types import TARGETS_BYTES_MAX, Load, Source, Store
from runtime.files import make_dirs, write_atomic


class MetadataStore:
    """Files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root: Final = root

    def open(self) -> None:
        """Make the directories. Idempotent."""
        for source in Source:
            make_dirs(self._root / source, mode=0o700)

    def load(self, step: Load) -> bytes | None:
        """Return the stored bytes, None if there are none."""
        try:
            with self._path(step.source, step.name).open("rb") as file:
                return file.read(TARGETS_BYTES_MAX)
        except FileNotFoundError:
            return None

    def store(self, step: Store) -> None:
        """Keep verified bytes; durable when this returns."""
        write_atomic(self._path(step.source, step.name), step.data, mode=0o600)

    def _path(self, source: Source, name: str) -> Path:
        return self._root / source / f"{quote(name, safe='')}.json"
