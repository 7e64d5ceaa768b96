"""Memory does not grow with the size of what is backed up (budget of design §10, measured in a process of its own)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nas_agent.adapters.directory_files import create_vault
from tests.contract.vault_maker import CONTRACT

CHILD = """
import re, sys
sys.path.insert(0, {repository!r})
import runpy
sys.argv = ["engine_child.py", {base!r}, {source!r}, "0"]
runpy.run_path({child!r}, run_name="__main__")
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""
PEAK_MIB_MAX = 96
GROWTH_MIB_MAX = 16


def peak_mib(base: Path, source: Path) -> int:
    base.mkdir()
    create_vault(base / "vault", contract=CONTRACT, owner_copy=b"{}")
    here = Path(__file__)
    program = CHILD.format(
        repository=str(here.parents[2]),
        base=str(base),
        source=str(source),
        child=str(here.with_name("engine_child.py")),
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=100
    )
    return int(done.stdout.split()[-1])


def test_peak_memory_is_bounded_and_does_not_grow_with_the_data(tmp_path: Path) -> None:
    little, much = tmp_path / "little", tmp_path / "much"
    for directory, mebibytes, files in ((little, 24, 500), (much, 96, 6000)):
        directory.mkdir()
        with (directory / "large").open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(1 << 20))
        for number in range(files):
            (directory / f"small{number}").write_bytes(os.urandom(500) + b"text " * 200)
    first, second = peak_mib(tmp_path / "a", little), peak_mib(tmp_path / "b", much)
    print(f"peak RSS: {first} MiB for 24 MiB, {second} MiB for 96 MiB and 6,000 files")
    assert second < PEAK_MIB_MAX
    assert second - first < GROWTH_MIB_MAX
