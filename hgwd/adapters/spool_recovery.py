"""What the spool does at a start, whatever the stop was: bring files and rows together.

- Parts were never acknowledged: removed.
- A file without a row that needs it was never acknowledged, or is stored already: removed.
- A row without its file, or with a file of another size, is a *lost* pack: the row says so (an alarm on the page), and
  the pack is answered as unknown, so that the NAS sends it again from its journal.
Contents are not hashed here (a start must be quick): the service checks every pack's hash before it is stored, and a
pack it finds wrong is hashed again on this side.
"""

from __future__ import annotations

import sqlite3

import attrs

from hgwd.adapters import spool_rows as rows
from hgwd.core.spool import PackState
from hgwd.ports import SpoolFiles

LOST_REASON = "lost-on-gateway"


@attrs.frozen
class Recovered:
    """What was found: packs waiting, packs lost, parts and needless files removed."""

    spooled_packs: int
    lost_packs: int
    removed_parts: int
    removed_files: int


def recover(db: sqlite3.Connection, files: SpoolFiles, now_s: float) -> Recovered:
    """Do it. Blocking; idempotent, also when cut in the middle."""
    removed_parts = files.clear_parts()
    sizes_bytes = files.sizes_bytes()
    here = rows.packs_here(db)
    lost = [row for row in here if sizes_bytes.get(row.pack) != row.size_bytes]
    for row in lost:
        rows.set_state(db, row.number, PackState.UNKNOWN, LOST_REASON, now_s)
    needed = {row.pack for row in here} - {row.pack for row in lost}
    needless = sizes_bytes.keys() - needed
    for pack in needless:
        files.remove(pack)
    return Recovered(len(here) - len(lost), len(lost), removed_parts, len(needless))
