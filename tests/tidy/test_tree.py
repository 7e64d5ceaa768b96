"""The tree keeps its own rules: no leftovers, no addresses in locks, no paths of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("wire", "runtime", "hgwd", "nas_agent", "deliver", "carrier", "firmware_sim")
SELF = Path(__file__).relative_to(ROOT).as_posix()


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", *patterns],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def lines_matching(pattern: str, paths: list[Path]) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in paths
        if path.relative_to(ROOT).as_posix() != SELF
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if found.search(line)
    ]


def test_code_holds_no_unfinished_work_marks() -> None:
    assert lines_matching(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError", tracked("*.py", "*.sh")) == []


def test_lock_files_hold_versions_and_hashes_but_no_addresses() -> None:
    locks = tracked("requirements/*.txt")
    assert locks
    assert lines_matching(r"://|^-", locks) == []


def test_every_locked_package_is_pinned_and_hashed() -> None:
    for lock in tracked("requirements/*.txt"):
        entries = re.split(r"(?m)^(?=[a-z0-9])", text_of(lock))
        for entry in filter(None, (e.strip() for e in entries)):
            assert re.match(r"[a-z0-9.-]+==\S+ \\\n\s+--hash=sha256:[0-9a-f]{64}", entry), (
                lock.name,
                entry[:80],
            )


def test_no_tracked_file_names_a_path_of_a_machine_or_a_private_key() -> None:
    everything = [p for p in tracked() if p.stat().st_size < 1 << 20]
    assert lines_matching(r"(?<![\w.~$-])/(work|home|root)/[a-z]", everything) == []
    outside_vectors = [p for p in everything if "tests/vectors" not in p.as_posix()]
    assert lines_matching(r"BEGIN [A-Z ]*PRIVATE KEY", outside_vectors) == []


@pytest.mark.parametrize("package", CODE)
def test_every_module_opens_with_its_purpose(package: str) -> None:
    bare = []
    for path in tracked(f"{package}/*.py"):
        source = text_of(path)
        if source.strip() and not source.lstrip().startswith(('"""', 'r"""')):
            bare.append(path.relative_to(ROOT).as_posix())
    assert bare == []


def test_the_tail_of_long_files_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = sorted(((len(text_of(p).splitlines()), p) for p in tracked("*.py")), reverse=True)[:8]
    with capsys.disabled():
        print("\nlongest files: " + ", ".join(f"{p.relative_to(ROOT)} {n}" for n, p in sizes))
    assert sizes[0][0] < 1000
