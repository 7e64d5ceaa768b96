"""Sample packages for the launcher and install tests: real zipapps that behave, misbehave, or try to break out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import msgspec

from wire.package import Health, Manifest, Resources, encode_manifest
from wire.package_archive import PackageFile, build_package

HEALTH_PORT = 8080

SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
    def log_message(self, *arguments):
        pass
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""

BREAK_OUT = """
import ctypes, errno, json, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def os_error(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "allowed"
def syscall(number, *arguments):
    ctypes.set_errno(0)
    return "allowed" if libc.syscall(number, *arguments) >= 0 else errno.errorcode[ctypes.get_errno()]
def execute_from_tmp():
    with open("/tmp/x", "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod("/tmp/x", 0o755)
    subprocess.run(["/tmp/x"])
found = {
    "shadow": os_error(lambda: open("/etc/shadow")),
    "outside": os_error(lambda: os.listdir(sys.argv[1])),
    "root": sorted(os.listdir("/")),
    "ptrace": syscall(101, 0, 0, 0, 0),
    "unshare": syscall(272, 0x10000000),
    "mount": os_error(lambda: None) if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else "EPERM",
    "bpf": syscall(321, 0, None, 0),
    "keyctl": syscall(250, 0, -1, 0),
    "io_uring": syscall(425, 1, None),
    "raw socket": os_error(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "packet socket": os_error(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)),
    "netlink socket": os_error(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "outer loopback": os_error(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), 2)),
    "write app": os_error(lambda: open("/app/new", "w")),
    "write root": os_error(lambda: open("/new", "w")),
    "write tmp": os_error(lambda: open("/tmp/new", "w")),
    "write data": os_error(lambda: open("/data/new", "w")),
    "execute tmp": os_error(execute_from_tmp),
    "setuid": os_error(lambda: os.setuid(0)),
    "uid": os.getuid(),
    "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[-1] < 100,
    "environment": sorted(os.environ),
}
print("FOUND " + json.dumps(found), flush=True)
import time
time.sleep(60)
"""

FORK_BOMB = """
import os, time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError as error:
    print(f"FORKS {count} {error.errno}", flush=True)
time.sleep(60)
"""

MEMORY_HOG = """
hold = []
print("hogging", flush=True)
while True:
    hold.append(bytes([1]) * (1 << 20))
"""

CRASH = 'import sys; print("crashing", flush=True); sys.exit(3)'
SLEEP = "import time; print('sleeping', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(60)"
CHATTY = "import sys, time\nfor n in range(40): sys.stdout.write('x' * 10000 + chr(10))\nsys.stdout.flush(); time.sleep(60)"
HTTP_HEALTH = Health(kind="http", port=HEALTH_PORT, path="/healthz", timeout_s=10, soak_s=1)
ALIVE_HEALTH = Health(kind="exit", timeout_s=5, soak_s=1)


def zipapp(code: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), code)
    return buffer.getvalue()


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "v": 1, "operator": "mimamori", "software": "sensor", "version": "1.0.0", "release": 1, "floor": 0,
        "series": ("PR-500",), "makers": ("KI", "MI", "NE"), "runtime": "python-zipapp", "entry": "app.pyz",
        "resources": Resources(memory_bytes=48 << 20, pids=8, cpu_percent=100), "health": ALIVE_HEALTH,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def package(code: str, **changes: Any) -> bytes:
    return build_package(manifest(**changes), {"app.pyz": PackageFile(zipapp(code))})


def put_in_slot(software_dir: Path, code: str, slot: str = "a", **changes: Any) -> Manifest:
    """Lay a package out as adapters/slots.py does, without the archive."""
    made = manifest(**changes)
    directory = software_dir / "slots" / f"{made.operator}+{made.software}" / slot
    (directory / "files").mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_bytes(encode_manifest(made))
    (directory / "files" / "app.pyz").write_bytes(zipapp(code))
    for path in (directory, directory / "files"):
        path.chmod(0o755)
    (directory / "files" / "app.pyz").chmod(0o644)
    return made


__all__ = ["msgspec"]
