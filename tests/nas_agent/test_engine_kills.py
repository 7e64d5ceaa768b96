"""kill -9 at writes of a running backup, then resume: nothing acknowledged is lost or sent twice, no nonce is reused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import trio

from nas_agent.adapters.tree_writer import TreeWriter
from nas_agent.engine import restore
from tests.nas_agent.engine_rig import OWNER, EngineRig, frames_of, make_rig

CHILD = Path(__file__).with_name("engine_child.py")
KILLS = 12
SOAK_KILLS = 400
TIMED_KILLS = 4
FRAMES_PER_PACK_HERE = 40


def make_source(root: Path, rng: random.Random) -> None:
    for number in range(40):
        path = root / f"d{number % 4}" / f"small{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1, 20_000)))
    for number in range(6):
        (root / f"large{number}").write_bytes(rng.randbytes(3 << 20))
    stamp = time.time() - 3600
    for path in root.rglob("*"):
        os.utime(path, (stamp, stamp))


def run_child(rig: EngineRig, source: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, str(CHILD), str(rig.base), str(source), str(kill_at)]
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)


def all_frames(vault: Path) -> dict[str, list[tuple[bytes, bytes, int, bytes]]]:
    """Frames of every pack file, also of half-written ones."""
    return {path.name: frames_of(path) for path in (vault / "packs").glob("*/*")}


def check_frames(history: list[dict[str, list[tuple[bytes, bytes, int, bytes]]]]) -> int:
    """Assert that no (session, salt, counter) was ever used for two frames; return how many chunks are in two packs."""
    files: dict[str, list[tuple[bytes, bytes, int, bytes]]] = {}
    for snapshot in history:
        files.update(snapshot)
    nonces = Counter(frame[:3] for frames in files.values() for frame in frames)
    assert all(count == 1 for count in nonces.values())
    kept = Counter(
        frame[3] for name, frames in files.items() if not name.endswith(".tmp") for frame in frames
    )
    return sum(count - 1 for count in kept.values())


def check_restored(rig: EngineRig, source: Path) -> None:
    target = rig.base / "restored"
    shutil.rmtree(target, ignore_errors=True)

    async def run() -> None:
        result = await restore(rig.store(), OWNER, "set", "latest", TreeWriter(str(target)))
        assert result.complete, result.problems

    trio.run(run)
    judge = ["rsync", "-aHAXSn", "--checksum", "--delete", "-i", f"{source}/", f"{target}/"]
    assert subprocess.run(judge, capture_output=True, text=True, check=True).stdout == ""


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    (tmp_path / "nas").mkdir()
    return make_rig(tmp_path / "nas")


def kill_at_writes(rig: EngineRig, tmp_path: Path, rng: random.Random, kills: int) -> None:
    """Back up `kills` times, each killed at a random write or, if it came through, followed by a change; then judge."""
    source = tmp_path / "source"
    make_source(source, rng)
    (tmp_path / "count").mkdir()
    whole = run_child(make_rig(tmp_path / "count"), source, 0)
    writes = int(whole.stdout)
    assert writes > 12, whole
    history = []
    for number in range(kills):
        killed = run_child(rig, source, rng.randrange(1, writes + 1))
        history.append(all_frames(rig.vault))
        if killed.returncode == 0:  # resuming needs fewer writes than that
            (source / f"large{number % 6}").write_bytes(rng.randbytes(3 << 20))
            continue
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if number % 3 == 0:
            (source / f"d0/changed{number}").write_bytes(b"changed between the kills" * number)
    done = run_child(rig, source, 0)
    assert done.returncode == 0, done.stderr
    history.append(all_frames(rig.vault))
    assert check_frames(history) == 0
    check_restored(rig, source)


def test_killed_at_any_write_a_backup_resumes_without_loss(
    rig: EngineRig, tmp_path: Path, seeded_random: random.Random
) -> None:
    kill_at_writes(rig, tmp_path, seeded_random, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_hundreds_of_times_a_backup_still_resumes_without_loss(
    rig: EngineRig, tmp_path: Path, seeded_random: random.Random
) -> None:
    kill_at_writes(rig, tmp_path, seeded_random, SOAK_KILLS)


def test_killed_at_any_moment_a_backup_resumes_without_loss(
    rig: EngineRig, tmp_path: Path, seeded_random: random.Random
) -> None:
    source = tmp_path / "source"
    make_source(source, seeded_random)
    history = []
    for _ in range(TIMED_KILLS):
        arguments = [sys.executable, str(CHILD), str(rig.base), str(source), "0"]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(0.3 + seeded_random.random() * 0.3)
            child.kill()
        history.append(all_frames(rig.vault))
    done = run_child(rig, source, 0)
    assert done.returncode == 0, done.stderr
    history.append(all_frames(rig.vault))
    assert check_frames(history) <= FRAMES_PER_PACK_HERE
    check_restored(rig, source)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(rig: EngineRig, tmp_path: Path) -> None:
    """Killed after `.root` was linked, before the catalogue heard of it: the next run finds its own generation."""
    source = tmp_path / "source"
    make_source(source, random.Random(1))
    writes = int(run_child(rig, source, 0).stdout)
    roots = sorted(path.name for path in rig.vault.glob("generations/*/*/*.root"))
    assert roots == ["0000000001.root"]
    (source / "new").write_bytes(b"second generation")
    second = make_count(rig, source, tmp_path)
    killed_at_root = None
    for kill_at in range(second, 0, -1):  # from the last write backwards: the root's link is near the end
        trial = tmp_path / f"trial{kill_at}"
        shutil.copytree(rig.base, trial)
        trial_rig = EngineRig(trial)
        killed = run_child(trial_rig, source, kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        roots = sorted(path.name for path in trial_rig.vault.glob("generations/*/*/*.root"))
        if roots == ["0000000001.root", "0000000002.root"]:
            killed_at_root = trial_rig
        if len(roots) == 1:
            break
    assert killed_at_root is not None
    assert writes > 0
    done = run_child(killed_at_root, source, 0)
    assert done.returncode == 0, done.stderr
    check_restored(killed_at_root, source)
    catalogue = killed_at_root.catalogue()
    durable = catalogue.durable
    catalogue.close()
    assert durable is not None
    assert durable.sequence == 3  # the second was accepted as durable, then this run made the third


def make_count(rig: EngineRig, source: Path, tmp_path: Path) -> int:
    """How many writes the next backup makes, tried on a copy."""
    trial = tmp_path / "trial"
    shutil.copytree(rig.base, trial)
    return int(run_child(EngineRig(trial), source, 0).stdout)
