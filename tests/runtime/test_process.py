"""Whole processes: signals, readiness, exit codes, what they import, what memory they take."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.http import Router, open_listener
from runtime.metrics import Metrics, resident_memory_bytes

FORBIDDEN = (
    "asyncio",
    "boto3",
    "asyncssh",
    "sqlalchemy",
    "starlette",
    "hypercorn",
    "cryptography",
    "requests",
)


def python(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_no_part_of_runtime_imports_asyncio_or_a_heavy_library():
    """The always-on process of a gateway stands on this (design §3: golden dependency list)."""
    program = (
        "import pkgutil, importlib, sys, runtime\n"
        "for module in pkgutil.walk_packages(runtime.__path__, 'runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])\n"
    )
    assert python(program).strip() == "[]"


def test_server_and_client_fit_in_the_gateways_memory():
    """Design §10: the whole daemon has 44 MiB idle; the edge alone may take 34."""
    program = (
        "import runtime.http, runtime.http_client, runtime.sqlite, runtime.metrics\n"
        "print(runtime.metrics.resident_memory_bytes())"
    )
    assert int(python(program)) < 36 * 1024 * 1024


FEW_DESCRIPTORS = """
import resource, sys, trio
from runtime.http import HttpLimits, Response, open_listener, serve_http
async def handler(request):
    return Response(204, close=True)
async def main():
    listener = open_listener("::1", 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    print(listener.port, flush=True)
    await serve_http(handler, [listener], limits=HttpLimits(header_s=60, peer_connections_max=1000))
trio.run(main)
"""


def test_server_without_free_descriptors_serves_again_when_there_are_some():
    with subprocess.Popen([sys.executable, "-c", FEW_DESCRIPTORS], stdout=subprocess.PIPE) as process:
        try:
            port = int(process.stdout.readline())
            crowd = [socket.create_connection(("::1", port)) for _ in range(40)]
            with socket.create_connection(("::1", port), timeout=20) as good:
                good.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert good.recv(100).startswith(b"HTTP/1.1 204 ")
            for sock in crowd:
                sock.close()
            assert process.poll() is None
        finally:
            process.kill()


SERVICE = """
import sys, trio
from runtime.supervise import run_service
from runtime.errors import ConfigError
mode = sys.argv[1]
async def main(service):
    if mode == "config":
        raise ConfigError("c.toml: colour: unknown key")
    if mode == "crash":
        raise KeyError("lost")
    if mode == "return":
        return
    service.ready(port=1)
    await service.stopping.wait()
    if mode == "stuck":
        await trio.sleep_forever()
    service.log.info("tidied")
sys.exit(run_service(main, name="test", stop_grace_s=float(sys.argv[2])))
"""


@contextlib.contextmanager
def service(mode, grace_s=5.0):
    command = [sys.executable, "-c", SERVICE, mode, str(grace_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process):
    output, errors = process.communicate(timeout=20)
    return [json.loads(line)["event"] for line in output.splitlines()], errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_gracefully(number):
    with service("good") as process:
        ready = json.loads(process.stdout.readline())
        assert (ready["event"], ready["port"]) == ("ready", 1)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
        process.send_signal(number)
        events, _ = finish(process)
        assert events == ["stopping", "tidied", "stopped"]
        assert process.returncode == 0


def test_stuck_service_is_cancelled_after_the_grace_time():
    with service("stuck", grace_s=0.3) as process:
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        events, _ = finish(process)
        assert 0.2 < time.monotonic() - start < 5
        assert events == ["stopping", "stopped"]


def test_second_signal_forces():
    with service("stuck", grace_s=60) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.readline())["event"] == "stopping"
        process.send_signal(signal.SIGTERM)
        events, _ = finish(process)
        assert events == ["stop_forced", "stopped"]
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("mode", "code", "events", "said"),
    [
        ("return", 0, ["stopped"], ""),
        ("crash", 1, ["crashed"], ""),
        ("config", 2, [], "c.toml: colour: unknown key\n"),
    ],
)
def test_exit_code_tells_what_happened(mode, code, events, said):
    with service(mode) as process:
        seen, errors = finish(process)
        assert (process.returncode, seen, errors) == (code, events, said)


async def test_metrics_page_parses_and_is_fast(running, exchange):
    metrics = Metrics("hgwd")
    packs = metrics.counter("packs", "Packs spooled", ("outcome",))
    packs.labels(outcome="stored").inc(3)
    metrics.gauge("spool_bytes", "Bytes in the spool").set(7)
    metrics.histogram("request_seconds", "Duration").observe(0.2)
    router = Router()
    router.route("GET", "/metrics", metrics.handle)
    async with running(router) as server:
        start = time.perf_counter()
        answer = await exchange(server.port, b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert time.perf_counter() - start < 0.5
    text = answer.partition(b"\r\n\r\n")[2].decode()
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["hgwd_packs_total"] == 3
    assert samples["hgwd_spool_bytes"] == 7
    assert samples["process_resident_memory_bytes"] > 10_000_000


def test_resident_memory_agrees_with_the_kernels_status():
    status = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident_memory_bytes() == pytest.approx(kib * 1024, rel=0.1)


def test_two_listeners_cannot_share_a_port():
    from runtime.errors import LocalError

    first = open_listener("::1", 0)
    try:
        with pytest.raises(LocalError, match=str(first.port)):
            open_listener("::1", first.port)
    finally:
        first.close()
