"""`firmware-sim` as a user meets it: a lab that checks itself, with and without root, and plain sentences."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_sim.lab import has_rights

REPOSITORY = Path(__file__).resolve().parents[2]
CLI = ["-m", "firmware_sim.cli"]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *CLI, *arguments]
    return subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=60, cwd=REPOSITORY, **options
    )


@pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")
def test_up_check_shows_the_lines_and_that_a_forged_source_is_dropped() -> None:
    done = run(["up", "--check", "--lines", "3", "--profile", "PR-500"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "PR-500-class profile" in done.stdout
    assert "line 3: 2001:db8:1:300::/56" in done.stdout
    assert "a forged source is dropped and counted" in done.stdout


def test_up_works_without_root_inside_a_user_namespace() -> None:
    probe = ["unshare", "-Urm", "true"]
    if os.geteuid() != 0:
        prefix, python = [], sys.executable
    else:
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        # This interpreter may live where only its owner may look; any other 3.11 on the system does.
        # Asked through a shell, because setpriv itself starts its program with rights that this user does not have.
        candidates = (sys.executable, "/usr/bin/python3.11")
        runs = (path for path in candidates if can_run([*prefix, "sh", "-c", 'exec "$0" -V', path]))
        python = next(runs, "")
    if not python or not can_run([*prefix, *probe]):
        pytest.skip("no user namespaces, or no Python 3.11 that an ordinary user may run")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join([str(REPOSITORY), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if not can_run([*prefix, python, "-c", "import attrs, msgspec"], env=env):
        pytest.skip("this checkout cannot be read by an ordinary user")
    done = subprocess.run(
        [*prefix, python, *CLI, "up", "--check"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env=env,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "a forged source is dropped and counted" in done.stdout


def can_run(argv: list[str], **options) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=20, check=False, **options).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")
def test_up_runs_until_it_is_told_to_stop_and_leaves_nothing() -> None:
    command = [sys.executable, *CLI, "up", "--lines", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as lab:
        assert lab.stdout is not None
        run_id = lab.stdout.readline().split()[1].rstrip(":")
        for line in lab.stdout:
            if line.startswith("running"):
                break
        assert any(run_id in entry.name for entry in Path("/run/netns").iterdir())
        lab.send_signal(signal.SIGTERM)
        assert lab.wait(20) == 0
    assert not any(run_id in entry.name for entry in Path("/run/netns").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--profile", "PR-600"], "expected one of PR-400"),
        (["up", "--lines", "0"], "expected 1 to 200, got 0"),
    ],
)
def test_wrong_words_are_answered_in_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = run(arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_profiles_lists_what_is_assumed_and_why() -> None:
    done = run(["profiles"])
    assert done.returncode == 0
    assert "ram_mib = 256  (assumed): no teardown" in done.stdout


def test_a_machine_without_namespaces_is_told_so_in_one_sentence() -> None:
    # A capability-less root may map nobody into a user namespace either: both ways are closed.
    if os.geteuid() != 0:
        pytest.skip("needs root to drop every capability")
    closed = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--",
        sys.executable,
        *CLI,
        "up",
        "--check",
    ]
    done = subprocess.run(closed, capture_output=True, check=False, text=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.startswith("firmware-sim: the lab makes network namespaces: run it as root")
    assert done.stderr.count("\n") == 1
