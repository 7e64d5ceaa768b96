"""hgwd as a process: configuration faults, the WAN side, lock, status, console pairing, metrics, memory, stop."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trio

from deliver.signing.director import make_director_root
from deliver.signing.tuf import encode
from hgwd.adapters.control import serve_control
from hgwd.cli import main
from hgwd.config import load_hgwd_config
from hgwd.daemon import carrier_client
from runtime.errors import Unavailable
from runtime.tls import make_self_signed
from wire.signing import generate_key

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
IDLE_BYTES_MAX = 44 * MIB


def write_config(directory, *, changes=()):
    """Write a whole configuration; `changes` are (section, line) pairs that come first in their section."""
    sections = {
        "gateway": [
            'serial = "PR500KI000001"',
            'model = "PR-500"',
            'maker = "KI"',
            f'device_secret_file = "{directory}/device-secret"',
            f'state_dir = "{directory}/state"',
        ],
        "carrier": [
            'host = "::1"',
            "port = 9",
            f'ca_file = "{directory}/ca.pem"',
            f'image_root_file = "{directory}/image-root.json"',
            f'director_root_file = "{directory}/director-root.json"',
        ],
        "lan": ['host = "::1"', "port = 0"],
        "admin": ['host = "::1"', "port = 0", f'password_file = "{directory}/password"'],
        "spool": [f'directory = "{directory}/spool"'],
        "update": ["enabled = false"],
        "metrics": ["port = 0"],
    }
    for section, line in changes:
        key = line.partition("=")[0].strip()
        sections[section] = [
            line,
            *(old for old in sections[section] if old.partition("=")[0].strip() != key),
        ]
    path = directory / "hgwd.toml"
    path.write_text("".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items()))
    return path


def run_hgwd(config, *arguments, stdin=None):
    command = [sys.executable, "-m", "hgwd.cli", "--config", str(config), *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, input=stdin, cwd=ROOT, timeout=30
    )


@pytest.fixture
def config(tmp_path):
    (tmp_path / "device-secret").write_bytes(b"s" * 32)
    make_self_signed(tmp_path / "ca.pem", tmp_path / "ca-key.pem", ["::1"], authority=True)
    path = write_config(tmp_path)
    assert run_hgwd(path, "password", stdin="correct horse\n").returncode == 0
    return path


@contextlib.contextmanager
def running(config):
    command = [sys.executable, "-m", "hgwd.cli", "--config", str(config), "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                break
        else:
            pytest.fail("hgwd ended before it was ready")
        yield process, event
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.stdout.close()
        process.wait(timeout=20)


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("lan", "colour = 1", "lan.colour"),
        ("spool", "bytes_max = 1", "spool.bytes_max"),
        ("spool", "high_water_percent = 100", "spool.high_water_percent"),
        ("gateway", 'model = "RV-400"', "gateway.model"),
        ("gateway", 'serial = "x"', "gateway.serial"),
        ("lan", 'prefixes = ["2001:db8::1/64"]', "lan.prefixes"),
        ("lan", 'host = "::"', "lan.host"),
        ("lan", 'host = "0.0.0.0"', "lan.host"),
        ("admin", 'host = "2001:db8::1"', "admin.host"),
        ("metrics", 'host = "203.0.113.1"', "metrics.host"),
        ("gateway", 'wan_interface = "../../x"', "gateway.wan_interface"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path, capsys, section, line, expected):
    path = write_config(tmp_path, changes=[(section, line)])
    for command in ("check-config", "run"):
        assert main(["--config", str(path), command]) == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert expected in shown.err
        assert shown.out == ""
    assert not (tmp_path / "state").exists()


def test_the_process_ends_with_code_2_too(tmp_path):
    done = run_hgwd(write_config(tmp_path, changes=[("lan", "colour = 1")]), "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"hgwd: {tmp_path}/hgwd.toml: lan.colour: unknown key")


def test_check_config_prints_what_counts_and_no_secret(config, tmp_path):
    done = run_hgwd(config, "check-config")
    assert done.returncode == 0
    assert json.loads(done.stdout)["spool"]["high_water_percent"] == 80


def test_the_password_is_hashed_and_short_ones_are_refused(config, tmp_path):
    assert "correct" not in (tmp_path / "password").read_text()
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert run_hgwd(config, "password", stdin="short\n").returncode == 2


def test_commands_say_so_when_no_daemon_runs(config):
    done = run_hgwd(config, "status")
    assert (done.returncode, done.stdout) == (3, "")
    assert "running hgwd" in done.stderr


def test_a_daemon_at_work(config, tmp_path):
    with running(config) as (process, ready):
        status = json.loads(run_hgwd(config, "status", "--json").stdout)
        assert status["pid"] == process.pid
        assert status["line"]["state"] == "unknown"
        assert [condition["code"] for condition in status["conditions"]] == ["not-enrolled"]
        assert status["rss_bytes"] <= IDLE_BYTES_MAX, status["rss_bytes"]
        print("idle MiB", status["rss_bytes"] / MIB)
        text = run_hgwd(config, "status").stdout
        assert status["certificate_sha256"] in text
        assert run_hgwd(config, "pair").returncode == 3
        assert run_hgwd(config, "revoke", "a" * 32).returncode == 3
        assert run_hgwd(config, "poll").returncode == 3  # switched off in this configuration
        check_lan(ready["lan_port"], status["certificate_sha256"])
        check_metrics(ready["metrics_port"])
        second = run_hgwd(config, "run")
        assert second.returncode != 0
        assert "another hgwd" in second.stdout + second.stderr
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
        assert {modes[name] for name in ("device.key", "lan-key.pem", "control.sock", "relay.sqlite")} == {
            0o600
        }
    assert process.returncode == 0
    with running(config) as (_, ready):  # the certificate stays, or every NAS would have to pair again
        check_lan(ready["lan_port"], status["certificate_sha256"])


def test_both_halves_together_start_without_a_carrier_within_the_memory_budget(config, tmp_path):
    (tmp_path / "device-secret").write_text("ab" * 32)
    (tmp_path / "device-secret").chmod(0o600)
    key = generate_key()
    root = make_director_root([key, generate_key()], key.public, [key.public], now_s=time.time())
    for name in ("image-root.json", "director-root.json"):
        (tmp_path / name).write_bytes(encode(root))
    path = write_config(
        tmp_path, changes=[("update", "enabled = true"), ("update", f'software_dir = "{tmp_path}/software"')]
    )
    with running(path) as (process, ready):
        check_lan(
            ready["lan_port"], json.loads(run_hgwd(path, "status", "--json").stdout)["certificate_sha256"]
        )
        assert run_hgwd(path, "poll").returncode == 0
        status = json.loads(run_hgwd(path, "status", "--json").stdout)
        assert "carrier-unavailable" in [condition["code"] for condition in status["conditions"]]
        assert status["update"]["software"] == []
        assert "carrier-unavailable" in run_hgwd(path, "status").stdout
        print("idle with both halves, MiB", status["rss_bytes"] / MIB)
        assert status["rss_bytes"] <= IDLE_BYTES_MAX, status["rss_bytes"]
    assert process.returncode == 0


def check_lan(port, certificate_sha256):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("::1", port, context=context, timeout=10)
    connection.request("GET", "/lan/v1/hello")
    assert json.loads(connection.getresponse().read()) == {"product": "hgwd", "v": 1}
    assert hashlib.sha256(connection.sock.getpeercert(binary_form=True)).hexdigest() == certificate_sha256
    connection.close()


def check_metrics(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    for name in (
        "hgwd_spool_bytes 0.0",
        "hgwd_spool_oldest_age_seconds 0.0",
        "hgwd_forwarded_bytes_total 0.0",
        "hgwd_last_stored_timestamp_seconds 0.0",
        "# TYPE hgwd_refusals_total counter",
        "hgwd_line_up 0.0",
    ):
        assert name in text


def test_a_damaged_device_key_is_an_alarm_and_never_replaced(config, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/device.key").write_bytes(b"short")
    done = run_hgwd(config, "run")
    assert done.returncode == 1
    assert "device.key: expected 32 bytes" in done.stdout + done.stderr
    assert (tmp_path / "state/device.key").read_bytes() == b"short"


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: asks the kernel about an interface")
def test_the_prefix_of_the_wan_interface_is_read_from_the_kernel():
    from hgwd.adapters.wan import read_wan_prefixes

    prefixes = [str(prefix) for prefix in read_wan_prefixes("lo")]
    assert "127.0.0.0/8" in prefixes
    assert read_wan_prefixes("no-such-if") == ()
    assert read_wan_prefixes(None) == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_service_is_never_asked_over_ipv4(config, tmp_path, host):
    """X-03: over IPv4 the service could not know the line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        path = write_config(
            tmp_path, changes=[("carrier", f'host = "{host}"'), ("carrier", f"port = {port}")]
        )
        async with carrier_client(load_hgwd_config(path)) as client:
            with pytest.raises(Unavailable):
                await client.request("GET", "/")
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: asks as another user")
async def test_another_user_gets_no_answer_from_the_control_socket():
    async def handle(request):
        raise AssertionError("nobody asked for this")

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "control.sock")
        Path(directory).chmod(0o755)
        ask = ["curl", "--silent", "--http0.9", "--unix-socket", str(path), "http://hgwd/"]
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, handle)
            path.chmod(0o666)  # as if the mode had not held: the kernel's word for the caller remains
            answered = [
                (await trio.run_process(ask, capture_stdout=True, check=False, **options)).stdout
                for options in ({}, {"user": 65534, "extra_groups": []})
            ]
            nursery.cancel_scope.cancel()
        assert b'"error"' in answered[0]  # root is answered, if only that it spoke no JSON
        assert answered[1] == b""
