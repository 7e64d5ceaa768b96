"""The carrier's own programs, a real launcher and the update service on loopback (issue 2, item 6; JNT-50, JNT-51).

One gateway lives through: enrol, install, start, report; update; a bad update that falls back; removal. In order,
because each step starts from what the one before left, as on a real gateway.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sample_package as sample
import trio
from carrier_kit import REPOSITORY, SECRET, SERIAL, Carrier

from hgwd.adapters.enrol import EnrolRequest
from hgwd.adapters.state import open_state
from hgwd.update_service import UpdateService, UpdateSettings
from runtime.clock import SystemClock
from runtime.http_client import HttpClient
from runtime.logs import get_logger
from runtime.tls import client_context
from wire.ids import GatewaySerial


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
