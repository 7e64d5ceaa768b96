"""Read what processes use from /proc: resident memory, its peak, CPU time, and who descends from whom."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import attrs

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Usage:
    """What one process uses at one moment; `peak_bytes` is the kernel's own high-water mark of its resident set."""

    pid: int
    command: str
    rss_bytes: int
    peak_bytes: int
    cpu_s: float


def read_usage(pid: int) -> Usage | None:
    """Return what a process uses now; None when it is gone or a zombie."""
    try:
        status = (PROC / str(pid) / "status").read_text("utf-8", "replace")
        stat = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in fields:
        return None
    after_name = stat.rpartition(")")[2].split()
    return Usage(
        pid=pid,
        command=fields["Name"].strip(),
        rss_bytes=_kib(fields["VmRSS"]),
        peak_bytes=_kib(fields["VmHWM"]),
        cpu_s=(int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S,
    )


def read_footprint_bytes(pid: int) -> int:
    """Return what a process adds to its host's memory; 0 when it is gone.

    Its anonymous pages, each shared one (after a fork) divided among its owners, and all its file pages: libraries
    that several processes map are counted in each, so that a sum is never too low.
    """
    try:
        rollup = (PROC / str(pid) / "smaps_rollup").read_text("ascii")
        status = (PROC / str(pid) / "status").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    anonymous = [line for line in rollup.splitlines() if line.startswith("Pss_Anon:")]
    file = [line for line in status.splitlines() if line.startswith("RssFile:")]
    return sum(_kib(line.partition(":")[2]) for line in (*anonymous, *file))


def descendants(roots: Iterable[int]) -> set[int]:
    """Return the processes that descend from `roots`, these included, as far as they live now."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text("utf-8", "replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process, oldest first; empty when it is gone."""
    try:
        return [
            int(word)
            for word in (PROC / str(pid) / "task" / str(pid) / "children").read_text("ascii").split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _kib(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024
