"""Decide with which rights the lab can run: as it is, inside a user namespace, or not at all.

The lab makes network, PID and mount namespaces. Root with the usual capabilities may. Anybody may inside a user
namespace where the kernel allows it; `/run` is then a private tmpfs, so that `ip netns` finds a place for its names,
and the lab vanishes with its process. Nothing is changed on the machine in either case.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from firmware_sim.lab.errors import LabUnavailableError

TOOLS = ("ip", "ss", "nft", "nsenter", "unshare", "prlimit", "setpriv")
_INSIDE = 'mount -t tmpfs tmpfs /run && exec "$@"'
_PLACES = "/usr/sbin:/sbin"


def missing_tools() -> list[str]:
    """List the system tools of the lab that are not installed (Debian: iproute2, nftables, util-linux)."""
    path = os.environ.get("PATH", os.defpath) + ":" + _PLACES
    return [tool for tool in TOOLS if shutil.which(tool, path=path) is None]


def has_rights() -> bool:
    """Tell whether this process may make the namespaces itself and name them under /run."""
    return _succeeds(["unshare", "--net", "--mount", "--pid", "--fork", "true"]) and os.access(
        "/run", os.W_OK
    )


def can_use_user_namespace() -> bool:
    """Tell whether an ordinary user may make the namespaces inside a user namespace here."""
    return _succeeds(["unshare", "-Urm", "--", "sh", "-c", _INSIDE, "sh", "unshare", "--net", "true"])


def ensure_rights(module: str, arguments: Sequence[str]) -> None:
    """Return when this process has the rights; else start `python -m module arguments` again with them.

    Does not return in the second case: the process is replaced by one inside a user namespace.

    Raises:
        LabUnavailableError: neither way is open here, or a tool is missing.
    """
    missing = missing_tools()
    if missing:
        raise LabUnavailableError(
            f"the lab needs {', '.join(missing)}: apt-get install iproute2 nftables util-linux"
        )
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":" + _PLACES
    if has_rights():
        return
    if not can_use_user_namespace():
        raise LabUnavailableError(
            "the lab makes network namespaces: run it as root, or allow user namespaces (kernel.unprivileged_userns_clone)"
        )
    command = [sys.executable, "-m", module, *arguments]
    os.execvp("unshare", ["unshare", "-Urm", "--", "sh", "-c", _INSIDE, "sh", *command])  # noqa: S606 - fixed program


def _succeeds(argv: Sequence[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
