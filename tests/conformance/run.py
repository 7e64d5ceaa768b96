"""Runs the public TUF conformance suite on hgwd's client. Usage: run.py SUITE, a checkout of the suite; fetches nothing.

The suite's clock tests need Debian's `faketime`; there is no file of expected failures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the suite; returns its exit code, 2 for a missing path."""
    suite = Path(sys.argv[1] if len(sys.argv) > 1 else "")
    if not (suite / "tuf_conformance").is_dir():
        print("conformance: expected SUITE=path of a checkout of theupdateframework/tuf-conformance")
        return 2
    if shutil.which("faketime") is None:
        print("conformance: the clock tests need faketime; on Debian: apt-get install faketime")
        return 2
    client = f"{sys.executable} {HERE / 'client.py'}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "tuf_conformance"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.run(
        [*command, "--entrypoint", client], cwd=suite, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
