"""Remember which labs exist, so that two never collide and a crashed one can be cleaned up.

Each run has a file under /run/hgwlab; its owner holds an exclusive lock on it for as long as it lives. A file whose
lock is free belongs to an owner that is gone: its namespaces and cgroups are removed. The kernel ends the lock with
the process, so no crash can leave a run that looks alive. (The processes inside ended already: see `host`.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from firmware_sim.lab.commands import run_tool
from firmware_sim.lab.errors import LabError
from firmware_sim.lab.limits import remove_groups
from firmware_sim.lab.topology import Names

RUNS = Path("/run/hgwlab")
NETNS = Path("/run/netns")
RUN_ID_BYTES = 3
RUN_ID_TRIES = 16


@contextlib.contextmanager
def claim_run() -> Iterator[Names]:
    """Claim a new run id for as long as the context lasts; at the end everything named after it is removed."""
    RUNS.mkdir(mode=0o755, exist_ok=True)
    names, lock = _claim()
    try:
        yield names
    finally:
        remove_run(names)
        os.close(lock)


def _claim() -> tuple[Names, int]:
    for _ in range(RUN_ID_TRIES):
        names = Names(secrets.token_hex(RUN_ID_BYTES))
        draft = RUNS / f".{names.run}"
        lock = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, f"{os.getpid()}\n".encode())
        # Linked to its name only when locked: nobody may see a run that looks as if its owner were gone.
        try:
            os.link(draft, RUNS / names.run)
        except FileExistsError:
            os.close(lock)
        else:
            return names, lock
        finally:
            draft.unlink()
    raise LabError(f"lab: no free run id within {RUN_ID_TRIES} tries")


def live_runs() -> dict[str, int]:
    """Return run id → process id of the owner, of every lab whose owner lives."""
    return {run: owner for run, owner in _runs().items() if owner is not None}


def remove_stale_runs() -> list[str]:
    """Remove what crashed owners left behind; return their run ids. May be called at any time, by anybody."""
    stale = [run for run, owner in _runs().items() if owner is None]
    for run in stale:
        remove_run(Names(run))
    return stale


def remove_run(names: Names) -> None:
    """Remove the namespaces, cgroups and the file of a run. Safe to call twice."""
    for namespace in namespaces(names):
        try:
            run_tool(["ip", "netns", "delete", namespace])
        except LabError:
            if (NETNS / namespace).exists():  # else somebody else cleaned up at the same moment
                raise
    remove_groups(names.stem)
    with contextlib.suppress(FileNotFoundError):
        (RUNS / names.run).unlink()


def add_namespace(name: str) -> None:
    """Make a network namespace that `ip -n NAME` finds.

    `ip netns add` itself would return to the network it came from, which an ordinary user in a user namespace may not.
    """
    NETNS.mkdir(mode=0o755, exist_ok=True)
    (NETNS / name).touch(mode=0o444, exist_ok=False)
    run_tool(["unshare", f"--net={NETNS / name}", "true"])


def namespaces(names: Names) -> list[str]:
    """List the network namespaces of a run that exist now."""
    if not NETNS.is_dir():
        return []
    return sorted(entry.name for entry in NETNS.iterdir() if entry.name.startswith(names.stem))


def _runs() -> dict[str, int | None]:
    if not RUNS.is_dir():
        return {}
    return {path.name: _owner(path) for path in sorted(RUNS.iterdir()) if path.name[0] != "."}


def _owner(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or b"0")
    return None
