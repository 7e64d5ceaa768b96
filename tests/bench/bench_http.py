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
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from runtime.tls import make_self_signed

ROUNDS = 3
ROUND_S = 2.0
CONNECTIONS = 64
TLS_THREADS = 8
DOCUMENT = "/director/00112233445566778899aabbccddeeff/director.json"
DOWNLOAD_BYTES = 5 << 20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

SERVER = """
import sys, trio
from pathlib import Path
from runtime.http import HttpLimits, Router, file_response, open_listener, serve_http
from runtime.tls import server_context
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
    secure = server_context(folder / "cert.pem", folder / "key.pem")
    listeners = [open_listener("::1", 0), open_listener("::1", 0, secure)]
    print(*(listener.port for listener in listeners), flush=True)
    await serve_http(router, listeners, limits=HttpLimits(peer_connections_max=1000, connections_max=1000))
trio.run(main)
"""

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_requests 100000000; client_body_temp_path {folder};
  proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
  ssl_session_cache shared:s:1m; ssl_session_tickets on;
  server {{ listen [::1]:{port}; listen [::1]:{secure_port} ssl; location /director/ {{ alias {folder}/; try_files /director.json =404; }}
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


def poll_anew(port: int, etag: str, seconds: float, folder: Path, *, resume: bool) -> int:
    """Ask on a new TLS connection each time, from several threads; returns the number of answers."""
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    request = (
        f"GET {DOCUMENT} HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {etag}\r\nConnection: close\r\n\r\n"
    ).encode()
    end = time.perf_counter() + seconds

    def ask_until_end(_thread: int) -> int:
        session, answers = None, 0
        while time.perf_counter() < end:
            with socket.create_connection(("::1", port)) as tcp:
                tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with context.wrap_socket(tcp, server_hostname="localhost", session=session) as sock:
                    sock.sendall(request)
                    if not sock.recv(4096).startswith(b"HTTP/1.1 304"):
                        raise SystemExit("expected a 304")
                    session = sock.session if resume else None
            answers += 1
        return answers

    with ThreadPoolExecutor(TLS_THREADS) as threads:
        return sum(threads.map(ask_until_end, range(TLS_THREADS)))


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
def ours(folder: Path) -> Iterator[tuple[int, int, int]]:
    """Start our server; yields (pid, port, TLS port)."""
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
            port, secure_port = server.stdout.readline().split()
            yield server.pid, int(port), int(secure_port)
        finally:
            server.kill()


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int, int]]:
    """Start nginx with one worker; yields (pid, port, TLS port)."""
    port, secure_port = free_port(), free_port()
    (folder / "nginx.conf").write_text(
        NGINX.format(folder=folder, port=port, secure_port=secure_port), encoding="utf-8"
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(0)) as server:  # noqa: PLW1509
        try:
            time.sleep(0.5)
            yield server.pid, port, secure_port
        finally:
            server.terminate()


def measure(start, folder: Path) -> dict[str, float]:
    """Median over the rounds of each figure."""
    rounds: list[dict[str, float]] = []
    with start(folder) as (pid, port, secure_port):
        etag = fetch_etag(port)
        for _ in range(ROUNDS):
            before, began = cpu_s(pid), time.perf_counter()
            answers = poll(port, etag, ROUND_S)
            after = cpu_s(pid)
            figures = {
                "rate": answers / (time.perf_counter() - began),
                "cost_us": (after - before) / answers * 1e6,
            }
            for name, resume in (("new_us", False), ("resumed_us", True)):
                before = cpu_s(pid)
                answers = poll_anew(secure_port, etag, ROUND_S, folder, resume=resume)
                figures[name] = (cpu_s(pid) - before) / answers * 1e6
            figures["download"] = download(port, ROUND_S / 3) / 1e6
            rounds.append(figures)
        statm = [Path(f"/proc/{each}/statm").read_text(encoding="ascii") for each in [pid, *children(pid)]]
    figures = {name: median(each[name] for each in rounds) for name in rounds[0]}
    return figures | {"resident_mib": sum(int(text.split()[1]) for text in statm) * 4 / 1024}


def main() -> int:
    """Print the table."""
    pin(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "director.json").write_bytes(b"x" * 863)
        (folder / "package").write_bytes(os.urandom(DOWNLOAD_BYTES))
        make_self_signed(folder / "cert.pem", folder / "key.pem", ["localhost"])
        rows = [("ours (trio, strict, sendfile)", measure(ours, folder))]
        if shutil.which("nginx"):
            rows.append(("nginx, 1 worker", measure(nginx, folder)))
    print(
        f"## HTTP edge\n\n304 polls of a document of 863 bytes on {CONNECTIONS} kept connections; on a new TLS connection "
        f"each, {TLS_THREADS} at a time; downloads of 5 MiB on one plain connection. Median of {ROUNDS} rounds; one core.\n"
    )
    print(
        "| server | polls/s, kept | CPU µs, kept | CPU µs, new TLS | CPU µs, TLS resumed | download MB/s | RSS MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for label, row in rows:
        print(
            f"| {label} | {row['rate']:,.0f} | {row['cost_us']:.0f} | {row['new_us']:.0f} | {row['resumed_us']:.0f} "
            f"| {row['download']:,.0f} | {row['resident_mib']:.0f} |"
        )
    if len(rows) == 1:
        print(
            "| nginx | - | - | - | - | - | - |\n\nnginx: not installed here (Debian package nginx-light), row skipped."
        )
    else:
        print(
            f"\nRatio of kept polls/s to nginx: {rows[0][1]['rate'] / rows[1][1]['rate']:.2f} (bar ≥ 0.08)."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
