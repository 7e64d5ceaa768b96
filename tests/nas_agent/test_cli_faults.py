"""Faults of a run on a directory, each with a clear message while everything else goes on (fault list of the main job)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nas_agent.nas_kit import Nas
from tests.nas_agent.nas_tree import IS_ROOT, rsync_differences

GIB = 1 << 30
KILLS = 12


def problems(events: list[dict]) -> list[tuple[str, str]]:
    return [(event["path"], event["reason"]) for event in events if event["event"] == "problem"]


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    if not IS_ROOT:
        pytest.skip("needs root, to mount a small file system")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True, timeout=10)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=10)


def test_a_file_above_30_gb_is_listed_and_one_of_exactly_30_gb_is_kept(nas: Nas, source: Path) -> None:
    """AZK-80; both files are holes, which are recorded and never read."""
    for name, size_bytes in (("at-the-limit", 30 * GIB), ("above", 30 * GIB + 1)):
        (source / name).touch()
        os.truncate(source / name, size_bytes)
    code, events = nas.backup(source)
    assert code == 3
    assert problems(events) == [("above", "too-large")]
    assert (events[-1]["state"], events[-1]["complete"], events[-1]["files"]) == ("durable", False, 21)


def test_a_file_that_changes_while_it_is_read_is_listed(nas: Nas, source: Path) -> None:
    changing = source / "changing"
    changing.write_bytes(random.Random(3).randbytes(40_000_000))
    stop = threading.Event()

    def append() -> None:
        with changing.open("ab", buffering=0) as file:
            while not stop.wait(0.001):
                file.write(b"x")

    writer = threading.Thread(target=append)
    writer.start()
    try:
        code, events = nas.backup(source)
    finally:
        stop.set()
        writer.join()
    assert code == 3
    assert problems(events) == [("changing", "changed-while-reading")]
    code, events = nas.backup(source)
    assert (code, events[-1]["files_unchanged"], problems(events)) == (0, 20, [])


def test_a_full_backup_disk_is_said_and_the_older_generation_stays_whole(
    nas: Nas, source: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "usb", "6m") as disk:
        target = ("--to", f"file://{disk}/vault")
        assert nas.run("backup", str(source), *target)[0] == 0
        (source / "too-much").write_bytes(random.Random(5).randbytes(9_000_000))
        code, events = nas.run("backup", str(source), *target)
        assert code in {1, 4}
        assert "No space left" in events[-1]["message"] or "full" in events[-1]["message"], events[-1]
        (source / "too-much").unlink()
        reading = ("--from", f"file://{disk}/vault", "--passphrase-file", str(tmp_path / "pass"))
        code, _ = nas.run("restore", "latest", "--to", str(tmp_path / "out"), *reading)
        assert code == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            path.name for path in source.iterdir()
        }


def test_a_full_restore_disk_costs_the_files_that_do_not_fit(nas: Nas, source: Path, tmp_path: Path) -> None:
    (source / "file-10").write_bytes(random.Random(5).randbytes(3_000_000))
    nas.backup(source)
    with small_disk(tmp_path / "small", "2m") as disk:
        code, events = nas.restore(disk / "out")
        assert code == 3
        assert problems(events) == [("file-10", "write-failed")]
        assert (disk / "out/file-19").read_bytes() == (source / "file-19").read_bytes()


def test_killed_at_any_moment_the_next_run_goes_on_and_the_restore_is_whole(
    nas: Nas, source: Path, tmp_path: Path
) -> None:
    """kill -9 at random moments of a run that changes something each time; nothing acknowledged is lost."""
    seed = int(os.environ.get("HGW_SEED", "0")) or random.SystemRandom().getrandbits(32)
    replay = f"replay with HGW_SEED={seed}"
    generator = random.Random(seed)
    (source / "large").write_bytes(generator.randbytes(24_000_000))
    command = [sys.executable, "-m", "nas_agent.cli", "backup", str(source), "--to", nas.target, "--quiet"]
    command += ["--state", str(tmp_path / "state")]
    killed = 0
    for number in range(KILLS):
        (source / f"file-{number:02}").write_bytes(generator.randbytes(200_000))
        run = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while run.poll() is None and time.monotonic() < deadline and not _has_begun(nas):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.4))
        run.send_signal(signal.SIGKILL)
        killed += run.wait() == -signal.SIGKILL
    assert killed >= KILLS // 3, replay
    code, events = nas.backup(source)
    assert (code, events[-1]["state"]) == (0, "durable"), replay
    assert nas.restore(tmp_path / "out")[0] == 0, replay
    assert rsync_differences(source, tmp_path / "out") == "", replay
    assert nas.run("verify", *nas.reading)[0] == 0, replay


def _has_begun(nas: Nas) -> bool:
    return any((nas.home / "state/catalogues").glob("*/entries-*.cache"))


def test_what_was_sent_before_a_kill_is_not_sent_again(nas: Nas, source: Path, tmp_path: Path) -> None:
    """At most one pack (4 MiB) is sent twice, whenever the run is killed."""
    (source / "large").write_bytes(random.Random(9).randbytes(40_000_000))
    command = [sys.executable, "-m", "nas_agent.cli", "backup", str(source), "--to", nas.target, "--quiet"]
    run = subprocess.Popen([*command, "--state", str(tmp_path / "state")], cwd=Path(__file__).parents[2])
    while run.poll() is None and _stored_bytes(nas) < 16_000_000:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    before = _stored_bytes(nas)
    code, events = nas.backup(source)
    assert code == 0
    assert before + events[-1]["sent_bytes"] <= 41_000_000 + 1_000_000 + (5 << 20)


def test_interrupted_by_hand_it_says_so_and_ends_at_once(nas: Nas, source: Path, tmp_path: Path) -> None:
    (source / "large").write_bytes(random.Random(9).randbytes(60_000_000))
    # Tests that run in the background have SIGINT ignored, and their children inherit that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "nas_agent.cli"]
    words = ["backup", str(source), "--to", nas.target, "--quiet", "--state", str(tmp_path / "state")]
    run = subprocess.Popen([*command, *words], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
    while run.poll() is None and _stored_bytes(nas) < 8_000_000:
        time.sleep(0.002)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=20)
    assert run.returncode == 1
    assert said.decode().startswith("nas-agent: interrupted; run the same again")
    assert nas.backup(source)[0] == 0


def _stored_bytes(nas: Nas) -> int:
    return sum(path.stat().st_size for path in (nas.vault / "packs").glob("*/" + "?" * 64))
