"""A backup in a process of its own that dies by SIGKILL at its n-th write to disk.

Usage: engine_child.py BASE SOURCE KILL_AT. A write is every creation, rename, link or removal of a file below BASE (seen
by an audit hook, so the code under test is the shipped one). Prints the number of writes when it was not killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from nas_agent.adapters.tree_reader import TreeReader, source_roots
from nas_agent.engine import BackupOptions, backup
from tests.nas_agent.engine_rig import EngineRig

_WATCHED = {"open", "os.rename", "os.link", "os.remove"}


class Killer:
    """Counts writes below a directory and ends this process at one of them."""

    def __init__(self, base: str, kill_at: int) -> None:
        self.base = base
        self.kill_at = kill_at
        self.count = 0

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event not in _WATCHED or not str(args[0]).startswith(self.base):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & os.O_CREAT):
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(base: str, source: str, kill_at: int) -> None:
    killer = Killer(base, kill_at)
    sys.addaudithook(killer)
    rig = EngineRig(Path(base))
    catalogue = rig.catalogue()
    result = await backup(
        TreeReader(source_roots([source])), rig.store(), catalogue, rig.device, BackupOptions("set")
    )
    catalogue.close()
    assert result.state == "durable", result
    print(killer.count)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
