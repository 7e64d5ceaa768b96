"""Fixtures of the NAS side: a NAS that was initialised, and a directory to back up."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from nas_agent.core.change import RACY_NS
from tests.nas_agent.nas_kit import Nas


@pytest.fixture
def nas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Nas:
    (tmp_path / "pass").touch(mode=0o600)
    (tmp_path / "pass").write_text("correct horse battery\n")
    made = Nas(tmp_path, capsys.readouterr)
    code, _ = made.run("init", "--passphrase-file", str(tmp_path / "pass"), "--kdf-memory-mib", "8")
    assert code == 0
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    top.mkdir()
    generator = random.Random(7)
    for number in range(20):
        (top / f"file-{number:02}").write_bytes(generator.randbytes(50_000))
    time.sleep(2 * RACY_NS / 1e9)  # files written in the instant they are read are read again, rightly
    return top
