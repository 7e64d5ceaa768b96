"""The stand-alone reader restores what the engine wrote and refuses what it must, knowing only format and passphrase."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nas_agent.adapters.directory_files import create_vault
from nas_agent.adapters.tree_reader import TreeReader, source_roots
from nas_agent.engine import BackupOptions, backup
from nas_agent.keys.contract import KdfCost, wrap_secret
from tests.contract.vault_maker import CONTRACT
from tests.nas_agent.engine_rig import SECRET, EngineRig

READER = Path(__file__).parents[2] / "docs" / "internals" / "vault_reader.py"
PASSPHRASE = "correct horse battery"


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "text").write_text("some text\n" * 50_000)
    (source / "dir" / "random").write_bytes(os.urandom(2_000_000))
    (source / "dir" / "empty").touch()
    (source / "link").symlink_to("dir/random")
    (source / "hard").hardlink_to(source / "text")
    os.mkfifo(source / "fifo")
    (source / "dir" / "run").write_bytes(b"#!/bin/sh\n")
    (source / "dir" / "run").chmod(0o4755)
    with (source / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
        file.truncate(9 << 20)
    copy = wrap_secret(SECRET, PASSPHRASE, cost=KdfCost(passes=1, memory_bytes=8 << 20))
    (tmp_path / "nas").mkdir()
    create_vault(tmp_path / "nas" / "vault", contract=CONTRACT, owner_copy=copy)
    rig = EngineRig(tmp_path / "nas")
    run_backup(rig, source)
    return rig


def run_backup(rig: EngineRig, source: Path) -> None:
    async def run() -> None:
        catalogue = rig.catalogue()
        result = await backup(
            TreeReader(source_roots([str(source)])), rig.store(), catalogue, rig.device, BackupOptions("set")
        )
        catalogue.close()
        assert result.complete, result

    trio.run(run)


def read(
    rig: EngineRig, target: Path, *more: str, passphrase: str = PASSPHRASE
) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-I", str(READER), str(rig.vault), str(target), *more]
    return subprocess.run(
        arguments, check=False, input=passphrase + "\n", capture_output=True, text=True, timeout=60
    )


def differences(source: Path, target: Path) -> str:
    judge = ["rsync", "-aHAXSn", "--checksum", "--delete", "-i", f"{source}/", f"{target}/"]
    return subprocess.run(judge, check=True, capture_output=True, text=True).stdout


def test_it_imports_nothing_of_ours_and_is_short() -> None:
    text = READER.read_text()
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    roots = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert roots == {"nacl", "cryptography", "zstandard", "blake3"}
    assert len(text.splitlines()) < 300


def test_it_restores_every_kind_of_entry(rig: EngineRig, tmp_path: Path) -> None:
    done = read(rig, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "source", tmp_path / "out") == ""


def test_it_restores_an_older_generation(rig: EngineRig, tmp_path: Path) -> None:
    (tmp_path / "source" / "new").write_bytes(b"second")
    run_backup(rig, tmp_path / "source")
    assert read(rig, tmp_path / "two").returncode == 0
    assert (tmp_path / "two" / "new").read_bytes() == b"second"
    assert read(rig, tmp_path / "one", "set", "1").returncode == 0
    assert not (tmp_path / "one" / "new").exists()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("pattern", "position", "reason"),
    [
        ("generations/*/*/*.root", 5, "root-signature"),
        ("generations/*/*/*.root", -3, "root-"),
        ("sessions/*.header", 5, "header-signature"),
        ("packs/*/*", -20, "damaged-chunk"),
    ],
)
def test_it_refuses_what_was_altered_and_writes_nothing(
    rig: EngineRig, tmp_path: Path, pattern: str, position: int, reason: str
) -> None:
    for path in rig.vault.glob(pattern):
        flip(path, position)
    refused = read(rig, tmp_path / "out")
    assert refused.returncode == 1
    assert f"refused: {reason}" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named_and_the_others_are_restored(rig: EngineRig, tmp_path: Path) -> None:
    (first,) = [path for path in rig.vault.glob("packs/*/*") if path.stat().st_size > 1_000_000]
    flip(first, 24 + 96 + 1000)
    done = read(rig, tmp_path / "out")
    assert done.returncode == 1
    assert "damaged-chunk" in done.stderr
    left_out = [
        line for line in differences(tmp_path / "source", tmp_path / "out").splitlines() if ">f" in line
    ]
    assert 1 <= len(left_out) <= 3


def test_a_wrong_passphrase_is_one_sentence(rig: EngineRig, tmp_path: Path) -> None:
    refused = read(rig, tmp_path / "out", passphrase="another one")
    assert refused.returncode == 1
    assert "wrong passphrase" in refused.stderr
    assert not (tmp_path / "out").exists()
