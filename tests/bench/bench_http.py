"""Polls per second of the HTTP edge (design §5.5, §10), against nginx where it is installed.

One server process on one core, one plain client process on another, 64 kept connections, each asking again as
soon as it is answered: `GET` with If-None-Match, answered 304. Also the server's CPU time per answer, which a
busy machine disturbs less than the rate. Never fails on time; prints markdown.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROUNDS = 3
ROUND_S = 3.0
CONNECTIONS = 64
DOCUMENT = "/director/00112233445566778899aabbccddeeff/director.json"
DOWNLOAD_BYTES = 5 << 20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

SERVER = """
import sys, trio
from pathlib import Path
from runtime.http import HttpLimits, Router, file_response, open_listener, serve_http
folder = Path(sys.argv[1])
def serve(path):
    size = path.stat().st_size
    async def handler(request, **_parameters):
        return file_response(request, path, size, etag='"v1"')
    return handler
async def main():
    router = Router()
    router.route("GET", "/director/{gateway}/director.json", serve(folder / "director.json"))
    router.route("GET", "/package", serve(folder / "package"))
    listener = open_listener("::1", 0)
    print(listener.port, flush=True)
    await serve_http(router, [listener], limits=HttpLimits(peer_connections_max=1000, connections_max=1000))
trio.run(main)
"""

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_requests 100000000; client_body_temp_path {folder};
  proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen [::1]:{port}; location /director/ {{ alias {folder}/; try_files /director.json =404; }}
    root {folder}; }} }}
"""


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children that still run."""
    total = 0.0
    for each in [pid, *children(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return total


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in listed.split()]


def pin(core: int) -> None:
    """Keep this process on one core, if there are several."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def poll(port: int, etag: str, seconds: float) -> int:
    """Ask on 64 kept connections for `seconds`; returns the number of 304 answers."""
    request = f"GET {DOCUMENT} HTTP/1.1\r\nHost: [::1]:{port}\r\nIf-None-Match: {etag}\r\n\r\n".encode()
    sockets, poller, answers = {}, select.epoll(), 0
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("::1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[sock.fileno()] = sock
        poller.register(sock, select.EPOLLIN)
        sock.sendall(request)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for fd, _ in poller.poll(1):
            answer = sockets[fd].recv(4096)
            if not answer.startswith(b"HTTP/1.1 304"):
                raise SystemExit(f"expected a 304, got {answer[:80]!r}")
            answers += 1
            sockets[fd].sendall(request)
    for sock in sockets.values():
        sock.close()
    return answers


def fetch_etag(port: int) -> str:
    """The ETag of the document."""
    with socket.create_connection(("::1", port)) as sock:
        sock.sendall(f"GET {DOCUMENT} HTTP/1.1\r\nHost: [::1]:{port}\r\n\r\n".encode())
        head = sock.recv(4096).decode("latin-1")
    return next(
        line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith("etag:")
    )


def download(port: int, seconds: float) -> float:
    """Fetch the 5 MiB package again and again on one kept connection; returns bytes per second."""
    request = f"GET /package HTTP/1.1\r\nHost: [::1]:{port}\r\n\r\n".encode()
    buffer, received, start = bytearray(1 << 20), 0, time.perf_counter()
    with socket.create_connection(("::1", port)) as sock:
        while time.perf_counter() < start + seconds:
            sock.sendall(request)
            got, total = 0, None
            while total is None or got < total:
                size = sock.recv_into(buffer)
                if total is None:
                    total = DOWNLOAD_BYTES + buffer.index(b"\r\n\r\n") + 4
                got += size
            received += DOWNLOAD_BYTES
    return received / (time.perf_counter() - start)


@contextmanager
def ours(folder: Path) -> Iterator[tuple[int, int]]:
    """Start our server; yields (pid, port)."""
    command = [sys.executable, "-c", SERVER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: pin(0),  # noqa: PLW1509
    ) as server:
        try:
            assert server.stdout is not None
            yield server.pid, int(server.stdout.readline())
        finally:
            server.kill()


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """Start nginx with one worker; yields (pid, port)."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port), encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(0)) as server:  # noqa: PLW1509
        try:
            time.sleep(0.5)
            yield server.pid, port
        finally:
            server.terminate()


def measure(start, folder: Path) -> tuple[float, float, float, int]:
    """Median over the rounds: polls/s, CPU µs per poll, MB/s of downloads; and resident KiB."""
    rates, costs, speeds = [], [], []
    with start(folder) as (pid, port):
        etag = fetch_etag(port)
        for _ in range(ROUNDS):
            before, began = cpu_s(pid), time.perf_counter()
            answers = poll(port, etag, ROUND_S)
            rates.append(answers / (time.perf_counter() - began))
            costs.append((cpu_s(pid) - before) / answers * 1e6)
            speeds.append(download(port, ROUND_S / 3) / 1e6)
        resident = sum(
            int(Path(f"/proc/{each}/statm").read_text(encoding="ascii").split()[1]) * 4
            for each in [pid, *children(pid)]
        )
    return median(rates), median(costs), median(speeds), resident


def main() -> int:
    """Print the table."""
    pin(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "director.json").write_bytes(b"x" * 863)
        (folder / "package").write_bytes(os.urandom(DOWNLOAD_BYTES))
        rows = [("ours (trio, strict, sendfile)", measure(ours, folder))]
        if shutil.which("nginx"):
            rows.append(("nginx, 1 worker", measure(nginx, folder)))
    print(
        f"## HTTP edge\n\n304 polls on {CONNECTIONS} kept connections, 5 MiB downloads on one; median of {ROUNDS}.\n"
    )
    print("| server | polls/s | CPU µs per poll | polls per CPU second | download MB/s | RSS MiB |")
    print("|---|---|---|---|---|---|")
    for label, (rate, cost, speed, resident) in rows:
        print(
            f"| {label} | {rate:,.0f} | {cost:.0f} | {1e6 / cost:,.0f} | {speed:,.0f} | {resident / 1024:.0f} |"
        )
    if len(rows) == 1:
        print(
            "| nginx | - | - | - | - | - |\n\nnginx: not installed here (Debian package nginx-light), row skipped."
        )
    else:
        print(f"\nRatio of polls/s to nginx: {rows[0][1][0] / rows[1][1][0]:.2f} (bar ≥ 0.08).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
