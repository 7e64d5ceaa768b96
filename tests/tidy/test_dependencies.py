"""Each program imports what its machine can carry, and not a package more (design §2, golden list)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("dependencies")
PROGRAMS = {
    "hgwd": "hgwd.cli, hgwd.daemon, hgwd.update_service",
    "nas-agent": "nas_agent.cli, nas_agent.adapters.https_store, nas_agent.commands.setup, nas_agent.commands.backup, nas_agent.commands.restore",
    "deliver": "deliver.cli, deliver.app",
}
BY_ACCIDENT = {"pygments"}  # mako takes it where a developer's tools have installed it
NEVER_ON_THE_GATEWAY = {
    "boto3",
    "botocore",
    "asyncssh",
    "sqlalchemy",
    "starlette",
    "hypercorn",
    "cryptography",
}

_LIST_THIRD_PARTY = """
import sys
before = set(sys.modules)
import {modules}
found = set()
for name, module in list(sys.modules.items()):
    path = getattr(module, "__file__", None) or ""
    if "site-packages" in path and name not in before:
        found.add(name.partition(".")[0])
print("\\n".join(sorted(n for n in found if not n.startswith("_"))))
"""


def third_party_imports(modules: str) -> list[str]:
    code = _LIST_THIRD_PARTY.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [name for name in done.stdout.split() if name not in BY_ACCIDENT]


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_imports_exactly_its_golden_list(program: str) -> None:
    golden = (GOLDEN / f"{program}.txt").read_text(encoding="utf-8").split()
    assert third_party_imports(PROGRAMS[program]) == golden


def test_the_always_on_gateway_process_stays_free_of_the_carriers_libraries() -> None:
    assert NEVER_ON_THE_GATEWAY.isdisjoint(third_party_imports(PROGRAMS["hgwd"]))


def test_imports_point_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=GOLDEN.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
