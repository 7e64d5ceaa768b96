"""The command line on a directory target, whole: init, backup, list, restore, verify; faults of the fault list."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nas_agent.cli import main
from nas_agent.events import event_schema
from tests.nas_agent.nas_kit import Nas, checked
from tests.nas_agent.nas_tree import IS_ROOT, make_tree, rsync_differences

SCHEMA = Path(__file__).parents[2] / "docs/internals/nas-agent-events.schema.json"


def test_the_schema_in_the_documents_is_the_one_the_program_speaks() -> None:
    assert json.loads(SCHEMA.read_text()) == event_schema()


def test_every_kind_of_entry_comes_back_as_rsync_sees_it(nas: Nas, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    code, events = nas.backup(tmp_path / "tree")
    assert (code, events[-1]["state"], events[-1]["complete"]) == (0, "durable", True)
    code, _ = nas.restore(tmp_path / "restored")
    assert code == 0
    assert rsync_differences(tmp_path / "tree", tmp_path / "restored") == ""
    for name in ("sparse.img", "only-a-hole"):
        assert (tmp_path / "restored" / name).stat().st_blocks == (tmp_path / "tree" / name).stat().st_blocks


def test_an_unchanged_tree_is_not_read_again_and_a_changed_file_alone_is(nas: Nas, source: Path) -> None:
    nas.backup(source)
    _, events = nas.backup(source)
    assert (events[-1]["files_unchanged"], events[-1]["read_bytes"], events[-1]["sequence"]) == (20, 0, 2)
    (source / "file-07").write_bytes(b"new")
    _, events = nas.backup(source)
    assert (events[-1]["files_unchanged"], events[-1]["read_bytes"]) == (19, 3)


def test_the_words_say_where_the_bytes_are(nas: Nas, source: Path) -> None:
    assert nas.text("backup", str(source), "--to", nas.target) == 0
    assert f"backed up: generation 1 is durable in {nas.vault}" in nas.said
    assert nas.text("status") == 0
    assert f"default → {nas.target}: generation 1 is durable" in nas.said


def test_each_generation_is_listed_and_can_be_restored(nas: Nas, source: Path, tmp_path: Path) -> None:
    nas.backup(source)
    (source / "file-00").write_bytes(b"second")
    nas.backup(source)
    code, events = nas.run("list", *nas.reading)
    assert code == 0
    assert [event["sequence"] for event in events if event["event"] == "generation"] == [1, 2]
    nas.restore(tmp_path / "one", generation="1")
    nas.restore(tmp_path / "two", generation="2")
    assert len((tmp_path / "one/file-00").read_bytes()) == 50_000
    assert (tmp_path / "two/file-00").read_bytes() == b"second"


def test_a_time_chooses_the_newest_generation_up_to_it(nas: Nas, source: Path, tmp_path: Path) -> None:
    nas.backup(source)
    assert nas.restore(tmp_path / "now", "--as-of", "2999-01-01")[0] == 0
    code, events = nas.restore(tmp_path / "past", "--as-of", "2001-01-01T00:00")
    assert (code, events[-1]["event"]) == (1, "failure")
    assert "no generation is as old" in events[-1]["message"]


def test_single_paths_are_restored_and_a_wrong_one_is_named(nas: Nas, source: Path, tmp_path: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub/inner").write_bytes(b"inner")
    nas.backup(source)
    code, events = nas.restore(tmp_path / "out", "sub", "file-03", "nothing")
    assert code == 3
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["file-03", "inner", "sub"]
    problems = [(event["path"], event["reason"]) for event in events if event["event"] == "problem"]
    assert problems == [("nothing", "not-found")]


def test_a_wrong_passphrase_is_said_and_nothing_is_written(nas: Nas, source: Path, tmp_path: Path) -> None:
    nas.backup(source)
    (tmp_path / "pass").write_text("another passphrase\n")
    code, events = nas.restore(tmp_path / "out")
    assert (code, events[-1]["code"]) == (1, "wrong-passphrase")
    assert not (tmp_path / "out").exists()


def test_a_target_with_files_in_it_is_refused(nas: Nas, source: Path, tmp_path: Path) -> None:
    nas.backup(source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_bytes(b"mine")
    code, events = nas.restore(tmp_path / "out")
    assert (code, events[-1]["code"]) == (4, "target-not-empty")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert nas.restore(tmp_path / "out", "--overwrite")[0] == 0
    assert (tmp_path / "out/mine").exists()


def test_a_damaged_pack_costs_the_files_in_it_and_each_is_named(
    nas: Nas, source: Path, tmp_path: Path
) -> None:
    (source / "a-large").write_bytes(random.Random(1).randbytes(9_000_000))
    nas.backup(source)
    packs = sorted(
        (path for path in (nas.vault / "packs").rglob("*") if path.is_file()), key=os.path.getmtime
    )
    assert len(packs) >= 3
    packs[0].chmod(0o600)
    with packs[0].open("r+b") as pack:
        pack.seek(packs[0].stat().st_size // 2)
        byte = pack.read(1)
        pack.seek(-1, os.SEEK_CUR)
        pack.write(bytes([byte[0] ^ 1]))
    code, events = nas.restore(tmp_path / "out")
    damaged = {event["path"] for event in events if event["event"] == "problem"}
    assert code == 3
    assert damaged == {"a-large"}
    assert {event["reason"] for event in events if event["event"] == "problem"} == {"damaged-chunk"}
    restored = {path.name for path in (tmp_path / "out").iterdir()}
    assert restored == {path.name for path in source.iterdir()} - damaged
    code, events = nas.run("verify", *nas.reading)
    assert code == 3
    assert {event["path"] for event in events if event["event"] == "problem"} == damaged


def test_a_backup_does_not_contain_itself(nas: Nas, source: Path, tmp_path: Path) -> None:
    """The whole of `tmp_path`: the source, but neither the vault nor the state directory inside it."""
    for _ in range(2):
        code, events = nas.backup(tmp_path)
        assert (code, events[-1]["complete"]) == (0, True)
    assert nas.restore(tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"source", "pass"}


@pytest.mark.parametrize("spelling", ["{0}/", "{0}/.", "/.{0}"])
def test_a_target_is_the_same_however_it_is_spelt(nas: Nas, source: Path, spelling: str) -> None:
    nas.backup(source)
    code, events = nas.run("backup", str(source), "--to", "file://" + spelling.format(nas.vault))
    assert (code, events[-1]["files_unchanged"]) == (0, 20)


def test_a_directory_that_holds_other_things_is_not_made_a_vault(nas: Nas, source: Path) -> None:
    nas.vault.mkdir()
    (nas.vault / "photos").write_bytes(b"mine")
    code, events = nas.backup(source)
    assert (code, events[-1]["event"]) == (1, "failure")
    assert [path.name for path in nas.vault.iterdir()] == ["photos"]


def test_a_disk_that_is_not_there_is_said(nas: Nas, source: Path, tmp_path: Path) -> None:
    code, events = nas.run("backup", str(source), "--to", f"file://{tmp_path}/usb/vault")
    assert (code, events[-1]["event"]) == (1, "failure")
    assert "is the disk mounted?" in events[-1]["message"]


def test_the_second_of_two_runs_says_who_holds_the_lock(nas: Nas, source: Path, tmp_path: Path) -> None:
    holder = os.open(tmp_path / "state/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    os.write(holder, b"4242\n")
    code, events = nas.backup(source)
    os.close(holder)
    assert code == 1
    assert "pid 4242" in events[-1]["message"]
    assert nas.backup(source)[0] == 0


def test_a_vault_is_restored_on_a_machine_that_has_only_disk_and_passphrase(
    nas: Nas, source: Path, tmp_path: Path
) -> None:
    nas.backup(source)
    (tmp_path / "state").rename(tmp_path / "lost")
    code, _ = nas.restore(tmp_path / "out")
    assert code == 0
    assert rsync_differences(source, tmp_path / "out") == ""


def test_the_sheet_sets_a_new_passphrase(nas: Nas, source: Path, tmp_path: Path) -> None:
    nas.backup(source)
    sheet = tmp_path / "sheet.txt"
    assert nas.run("key", "sheet", str(sheet), "--passphrase-file", str(tmp_path / "pass"))[0] == 0
    (tmp_path / "pass").write_text("quite another passphrase\n")
    recover = ("key", "recover", "--sheet", str(sheet), "--kdf-memory-mib", "8")
    assert nas.run(*recover, "--passphrase-file", str(tmp_path / "pass"))[0] == 0
    assert nas.restore(tmp_path / "out")[0] == 0


def test_excludes_and_sets_of_the_configuration_are_used(nas: Nas, source: Path, tmp_path: Path) -> None:
    (tmp_path / "state/nas-agent.toml").write_text(
        f'target = "{nas.target}"\n[sets.photos]\nsources = ["{source}"]\nexcludes = ["file-0*"]\n'
    )
    code, events = nas.run("backup", "--set", "photos", "--exclude", "file-11")
    assert (code, events[-1]["files"], events[-1]["backup_set"]) == (0, 9, "photos")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unknown = 1\n", "unknown"),
        ("keep_trying_s = -5\n", "keep_trying_s"),
        ("[sets.a]\nsources = []\n", "sources"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(
    nas: Nas, tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "state/nas-agent.toml").write_text(text)
    assert nas.text("status") == 2
    assert expected in nas.said
    assert nas.said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("backup", "/nothing/here", "--to", "file:///tmp/x"), "/nothing/here"),
        (("backup", "/", "--to", "ftp://x"), "expected file:///directory"),
        (("backup", "--set", "none"), "nothing to back up"),
        (("backup", "/proc/self", "--set", "bad name", "--to", "file:///tmp/x"), "BackupSetName"),
        (("backup", "/proc/self"), "no target"),
        (("backup", "/proc/self", "--to", "https://[::1]:9"), "not the paired gateway"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_reason(
    nas: Nas, arguments: tuple[str, ...], expected: str
) -> None:
    assert nas.text(*arguments) == 1
    assert expected in nas.said


def test_commands_before_init_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backup", "/", "--to", "file:///tmp/x", "--state", str(tmp_path / "none")]) == 1
    assert "run `nas-agent init` first" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["backup"], ["restore"], ["pair"], ["init"], ["key"], ["verify"]])
def test_help_is_there_for_every_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "usage: nas-agent" in said
    assert command or "nas-agent backup /srv/data --to" in said


def test_an_unreadable_file_is_listed_and_everything_else_is_backed_up(
    nas: Nas, source: Path, tmp_path: Path
) -> None:
    """Without the capability that lets root read everything, a file of another user with mode 0 is unreadable."""
    (source / "file-05").chmod(0)
    without: list[str] = []
    if IS_ROOT:
        os.chown(source / "file-05", 65534, 65534)
        without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [sys.executable, "-m", "nas_agent.cli", "backup", str(source), "--to", nas.target, "--json"]
    command += ["--state", str(tmp_path / "state")]
    done = subprocess.run(
        [*without, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    events = [checked(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3, done.stderr
    assert [(e["path"], e["reason"]) for e in events if e["event"] == "problem"] == [
        ("file-05", "unreadable")
    ]
    assert (events[-1]["state"], events[-1]["complete"], events[-1]["files"]) == ("durable", False, 19)
