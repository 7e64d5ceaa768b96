"""`deliver` as processes of their own, with one line, one gateway contract and one operator: a carrier for tests.

It runs the programs' command lines and reads what they print; nothing of `deliver` is imported here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import sample_package as sample

from wire.package import Health, Resources

REPOSITORY = Path(__file__).parents[3]
CUSTOMER = "CAF0000000001"
SERIAL = "PR500KI00001"
SECRET = b"per-device secret from manufacture"
HEALTH = Health(kind="http", port=sample.HEALTH_PORT, path="/healthz", timeout_s=15, soak_s=1)


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
