"""The always-on process stays small: golden list of what it must never import (design §2, §10)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORBIDDEN = [
    "asyncio",
    "boto3",
    "botocore",
    "asyncssh",
    "sqlalchemy",
    "starlette",
    "hypercorn",
    "cryptography",
    "structlog",
    "carrier",
    "deliver",
    "nas_agent",
    "firmware_sim",
    "zstandard",
    "blake3",
    "pyfastcdc",
    "requests",
    "urllib3",
    "jinja2",
]


def test_the_daemon_imports_nothing_that_is_forbidden_to_it():
    code = "import sys, hgwd.cli, hgwd.daemon; print('\\n'.join(sorted(sys.modules)))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"hgwd", "trio", "h11", "nacl"} <= loaded
    assert loaded.isdisjoint(FORBIDDEN), sorted(loaded & set(FORBIDDEN))
