"""The carrier's own programs, a real launcher and the update service on loopback (issue 2, item 6; JNT-50, JNT-51).

One gateway lives through: enrol, install, start, report; update; a bad update that falls back; removal. In order,
because each step starts from what the one before left, as on a real gateway.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_package as sample
import trio

from hgwd.adapters.enrol import EnrolRequest
from hgwd.adapters.state import open_state
from hgwd.update_service import UpdateService, UpdateSettings
from runtime.clock import SystemClock
from runtime.http_client import HttpClient
from runtime.logs import get_logger
from runtime.tls import client_context
from wire.ids import GatewaySerial
from wire.package import Health, Resources

REPOSITORY = Path(__file__).parents[3]
CUSTOMER = "CAF0000000001"
SERIAL = "PR500KI00001"
SECRET = b"per-device secret from manufacture"
HEALTH = Health(kind="http", port=sample.HEALTH_PORT, path="/healthz", timeout_s=15, soak_s=1)
NEVER_HEALTHY = "import time; print('up, but deaf', flush=True); time.sleep(600)"


class Carrier:
    """`deliver` in processes of its own, driven by its command line."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "carrier"
        self.operator = directory / "operator"
        self.operator.mkdir()
        ports = ("--gateway-listen", "[::1]:0", "--operator-listen", "[::1]:0", "--metrics-listen", "[::1]:0")
        self.run("init", self.home, *ports, "--poll-s", 60, "--name", "::1")
        self.log = directory / "deliver.log"
        command = [sys.executable, "-m", "deliver.cli", "serve", "--config", str(self.home)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log)
        ready = self._wait_ready()
        self.port, self.operator_port = ready["gateway_port"], ready["operator_port"]

    def _wait_ready(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            for line in self.log.read_text().splitlines():
                if '"ready"' in line:
                    return json.loads(line)  # type: ignore[no-any-return]
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def run(self, *arguments: object) -> str:
        command = [sys.executable, "-m", "deliver.cli", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout} {done.stderr}"
        return done.stdout

    def admin(self, *arguments: object) -> str:
        return self.run("admin", "--config", self.home, *arguments)

    def set_up(self, directory: Path) -> None:
        secret = directory / "secret.hex"
        secret.write_text(SECRET.hex())
        secret.chmod(0o600)
        self.admin("line", "add", CUSTOMER)
        self.admin("prefix", "add", CUSTOMER, "::/64")
        self.admin(
            "gateway", "add", CUSTOMER, SERIAL, "--model", "PR-500", "--maker", "KI", "--secret", secret
        )
        for name in ("api", "sign"):
            self.run("key", self.operator / name)
        keys = ("--api-key", self.operator / "api.pub", "--key", self.operator / "sign.pub")
        self.admin("operator", "add", "mimamori", *keys)
        self.admin("ceremony", "shard")

    def publish(self, code: str, version: str, release: int, **changes: Any) -> None:
        source = self.operator / f"source-{version}"
        source.mkdir()
        resources = Resources(memory_bytes=48 << 20, pids=8, cpu_percent=100)
        texts = {"description": "見守りセンサー", "price_text": "無料"}  # JNT-32
        made = sample.manifest(
            version=version, release=release, health=HEALTH, resources=resources, **texts, **changes
        )
        (source / "manifest.json").write_bytes(msgspec.json.encode(made))
        (source / "app.pyz").write_bytes(sample.zipapp(code))
        package = self.operator / f"{version}.hgwpkg"
        self.run("pack", source, "-o", package)
        self.run("sign", package, "--key", self.operator / "sign", "--state", self.operator)
        change = "new" if version == "1.0.0" else "change"
        self.run("submit", package, "--change", change, "--state", self.operator, "--yes", *self._server())

    def roll_out(self, version: str, *options: str) -> None:
        self.run("rollout", "mimamori/sensor", version, CUSTOMER, *options, *self._server())

    def target_state(self) -> str:
        return json.dumps(json.loads(self.admin("targets", "--json")))

    def _server(self) -> tuple[object, ...]:
        server = f"https://[::1]:{self.operator_port}"
        ca = self.home / "trust" / "tls-ca.pem"
        return ("--server", server, "--ca", ca, "--api-key", self.operator / "api")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@pytest.fixture
def carrier(tmp_path: Path) -> Iterator[Carrier]:
    made = Carrier(tmp_path)
    try:
        made.set_up(tmp_path)
        yield made
    finally:
        made.close()


@pytest.fixture
def launcher_socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "launcher.sock"
    command = [sys.executable, "-m", "hgwd.launcher_main", "--socket", str(path)]
    command += ["--software-dir", str(tmp_path / "software"), "--state-dir", str(tmp_path / "launcher")]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while not path.exists():
        time.sleep(0.02)
    yield path
    process.terminate()
    process.wait(30)


@asynccontextmanager
async def gateway(directory: Path, carrier: Carrier, launcher_socket: Path) -> AsyncIterator[UpdateService]:
    trust = carrier.home / "trust"
    settings = UpdateSettings(
        software_dir=directory / "software",
        launcher_socket=launcher_socket,
        image_root=(trust / "image-root.json").read_bytes(),
        director_root=(trust / "director-root.json").read_bytes(),
        claim=EnrolRequest(GatewaySerial.parse(SERIAL), "PR-500", "KI", SECRET),
        poll_s=60,
    )
    strict = HttpClient("::1", carrier.port, client_context(trust / "tls-ca.pem"))
    dateless = HttpClient("::1", carrier.port, client_context(trust / "tls-ca.pem", ignore_dates=True))
    state = open_state(directory / "state")
    service = UpdateService(settings, state, strict, dateless, SystemClock(), get_logger("hgwd"))
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        yield service
        nursery.cancel_scope.cancel()


async def wait_for(service: UpdateService, timeout_s: float = 40, **wanted: object) -> dict[str, Any]:
    """Poll until the one software shows `wanted`."""
    with trio.move_on_after(timeout_s):
        while True:
            software = service.status()["software"]
            for item in software:  # type: ignore[attr-defined]
                if all(item.get(key) == value for key, value in wanted.items()):
                    return item  # type: ignore[no-any-return]
            await trio.sleep(0.1)
    raise AssertionError(f"expected {wanted}, have {json.dumps(service.status(), indent=1, default=str)}")


async def wait_target(carrier: Carrier, word: str) -> None:
    with trio.move_on_after(20):
        while True:
            text = await trio.to_thread.run_sync(carrier.target_state)
            if word in text:
                return
            await trio.sleep(0.3)
    raise AssertionError(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packages get users of their own")
async def test_a_package_lives_its_life_on_a_gateway(
    tmp_path: Path, carrier: Carrier, launcher_socket: Path
) -> None:
    carrier.publish(sample.SERVE, "1.0.0", 1)
    async with gateway(tmp_path, carrier, launcher_socket) as service:
        with trio.fail_after(20):
            while service.status()["gateway"] is None:
                await trio.sleep(0.05)
        carrier.roll_out("1.0.0")
        service.poll_now()
        item = await wait_for(service, version="1.0.0", state="Active")
        assert item["fault"] is None
        await wait_target(carrier, '"active"')

        carrier.publish(sample.SERVE + "\n# two\n", "2.0.0", 2, floor=2)
        carrier.roll_out("2.0.0")
        service.poll_now()
        item = await wait_for(service, version="2.0.0", state="Active")
        assert item["floor"] == 2
        await wait_target(carrier, '"2.0.0"')

        carrier.publish(sample.CRASH, "3.0.0", 3)
        carrier.roll_out("3.0.0")
        service.poll_now()
        item = await wait_for(service, version="2.0.0", state="Active", fault=7802)
        assert "ended with 3" in str(item["cause"])
        await wait_target(carrier, '"failed"')

    # hgwd goes away and comes back: what was committed goes on running, nothing is fetched again.
    async with gateway(tmp_path, carrier, launcher_socket) as service:
        await wait_for(service, version="2.0.0", state="Active")
        carrier.roll_out("1.0.0")  # below the floor of release 2: a director may ask, the gateway refuses
        service.poll_now()
        item = await wait_for(service, version="2.0.0", fault=7230)
        assert "below the floor 2" in str(item["cause"])
        assert any(condition.code == "software-7230" for condition in service.conditions())

        carrier.roll_out("2.0.0", "--remove")
        service.poll_now()
        await wait_for(service, version=None, state="Uninstalled")
        await wait_target(carrier, '"ended"')
    left = [
        path for path in (tmp_path / "software").rglob("*") if path.is_file() and "metadata" not in path.parts
    ]
    assert [path.name for path in left] == ["mimamori+sensor.json"]
    assert list((tmp_path / "launcher" / "data").iterdir()) == []
