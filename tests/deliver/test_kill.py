"""kill -9 of `deliver serve` while packages are accepted: clients always see a whole repository, nothing is charged twice."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time

import pytest
import trio

from carrier.ledger.store import read_events
from deliver.signing.tuf import Metadata
from runtime.clock import SystemClock
from runtime.errors import EdgeError
from runtime.http_client import HttpClient
from runtime.tls import client_context
from wire.joint import OperatorSubmit
from wire.statement import Audience, Kind, make_statement, to_header

KILLS = 6


@pytest.fixture
def clock():
    return SystemClock()


class ServerProcess:
    """`deliver serve` as a process of its own, killed at will."""

    def __init__(self, home):
        command = [sys.executable, "-m", "deliver.cli", "serve", "--config", str(home.directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        for line in self.process.stdout:
            fields = json.loads(line)
            if fields["event"] == "ready":
                self.port = fields["operator_port"]
                break
        self._drain = threading.Thread(target=self.process.stdout.read, daemon=True)
        self._drain.start()

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._drain.join()
        self.process.stdout.close()


def order_for(acme, package, body, **changes):
    values = {
        "operator": "acme-home",
        "software": "lights",
        "version": package.manifest.version,
        "change": "new",
    }
    order = OperatorSubmit(**{**values, "body_sha256": hashlib.sha256(body).hexdigest(), **changes})
    return to_header(
        make_statement(
            acme.api_key,
            Kind.OPERATOR_SUBMIT,
            Audience.JOINT,
            now_s=SystemClock().now_s(),
            nonce=secrets.token_bytes(16),
            body=order,
        )
    )


async def submit(home, port, acme, data, package, change, metadata, quote=None):
    """Quote and accept; returns (quote ID, accepted). A dying server ends it early."""
    client = HttpClient("::1", port, client_context(home.directory / "trust" / "tls-ca.pem"))
    async with client:
        try:
            if quote is None:
                header = order_for(acme, package, data, change=change)
                answer = await client.request(
                    "POST", "/operator/v1/quotes", headers={"hgw-statement": header}, body=data
                )
                if answer.status == 200:
                    return None, True
                assert answer.status == 201, answer.body
                quote = json.loads(answer.body)["quote_id"]
            header = order_for(acme, package, metadata, change=change, quote_id=quote)
            url = f"/operator/v1/quotes/{quote}/accept"
            answer = await client.request("POST", url, headers={"hgw-statement": header}, body=metadata)
        except EdgeError:
            return quote, False
        assert answer.status == 201, answer.body
        return quote, True


def check_repository(home):
    """Follow timestamp → snapshot → every role → every target; all there, all whole, nothing names what is missing."""
    metadata_dir = home.image_dir / "metadata"
    timestamp = Metadata.from_bytes((metadata_dir / "timestamp.json").read_bytes()).signed
    snapshot = Metadata.from_bytes(
        (metadata_dir / f"{timestamp.snapshot_meta.version}.snapshot.json").read_bytes()
    ).signed
    for name, meta in snapshot.meta.items():
        role = Metadata.from_bytes((metadata_dir / f"{meta.version}.{name}").read_bytes()).signed
        assert role.version == meta.version
        for path, target in role.targets.items():
            folder, _, base = path.rpartition("/")
            data = (home.image_dir / "targets" / folder / f"{target.hashes['sha256']}.{base}").read_bytes()
            assert hashlib.sha256(data).hexdigest() == target.hashes["sha256"]
    return {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}


def kill_while_submitting(home, server, delay_s, *arguments):
    """Submit, and kill the server `delay_s` after the accept may have begun."""
    result = {}

    def run():
        result["outcome"] = trio.run(submit, home, server.port, *arguments)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(delay_s)
    server.kill()
    thread.join()
    return result["outcome"]


def test_killed_at_any_moment_the_repository_is_whole_and_each_version_is_charged_once(
    home, program, acme, kit, seeded_random
):
    packages = []
    killed_before_the_answer = 0
    server = ServerProcess(home)
    for number in range(1, KILLS + 1):
        change = "new" if number == 1 else "change"
        data, package = acme.measure(b"x" * number, version=f"{number}.0", release=number)
        metadata = acme.metadata([*packages, package], version=number)
        delay_s = 0.0 if number == 1 else seeded_random.uniform(0.02, 0.12)
        quote, accepted = kill_while_submitting(home, server, delay_s, acme, data, package, change, metadata)
        killed_before_the_answer += not accepted
        assert check_repository(home).get("operator-acme-home", 0) in {number - 1, number}
        server = ServerProcess(home)
        seen = check_repository(home).get("operator-acme-home", 0)
        assert seen == number if accepted else seen in {number - 1, number}
        _, accepted = trio.run(submit, home, server.port, acme, data, package, change, metadata, quote)
        assert accepted
        assert check_repository(home)["operator-acme-home"] == number
        packages.append(package)
    server.kill()
    with program.database.read() as connection:
        events = read_events(connection, "acme-home")
    assert len(events) == KILLS
    assert killed_before_the_answer > 0
