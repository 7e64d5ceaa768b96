"""Runs the benchmarks and prints their tables; --write puts them into docs/benchmarks.md with date and machine.

Each tests/bench/bench_NAME.py prints markdown on standard output. A benchmark never fails a run on time.
Usage: run.py [--write] [NAME …]
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench WRITE=1`: ratios against the named peer, interleaved in the same run, median of several. Absolute
figures belong to the machine named below; ratios carry over better. Nothing here fails a test run.
"""


def machine() -> str:
    """Describe the machine in one line: processor, cores, memory, kernel, Python."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next(
        (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")),
        platform.machine(),
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{cpu}, {os.cpu_count()} cores, {pages / 2**30:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def main() -> int:
    """Run what was asked for; exit 1 if a benchmark broke (not if it was slow)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", default=bool(os.environ.get("WRITE")))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    names = args.names or sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    sections, broken = [], []
    for name in names:
        done = subprocess.run(
            [sys.executable, HERE / f"bench_{name}.py"], stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, flush=True)
        sections.append(done.stdout)
        if done.returncode:
            broken.append(name)
    if args.write and not broken:
        today = dt.datetime.now(dt.UTC).date().isoformat()
        PAGE.write_text(f"{HEAD}\n**{today}**, {machine()}\n\n" + "\n".join(sections), encoding="utf-8")
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
