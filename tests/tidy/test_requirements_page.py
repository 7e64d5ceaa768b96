"""docs/requirements.md tells the truth about which requirement has a test."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "requirements_table.py"


def load():
    spec = importlib.util.spec_from_file_location("requirements_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_current() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_tests_cite_only_requirements_that_exist() -> None:
    table = load()
    known = set(table.requirements(table.CATALOGUE.read_text(encoding="utf-8")))
    families = {requirement.rstrip("abcdefghi") for requirement in known}
    unknown = {r: paths for r, paths in table.citations(ROOT / "tests").items() if r not in known | families}
    assert unknown == {}
