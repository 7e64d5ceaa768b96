"""The real process over TLS on both sides: paired from the console, forwarding under load, within its memory (design §10)."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from relay_kit import STORAGE, make_pack

from runtime.http import HttpLimits, Response, Router, json_response, open_listener, serve_http
from runtime.http_client import HttpClient
from runtime.tls import client_context, make_self_signed, server_context
from wire.pairing import pair_commitment, pair_digits

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
FORWARDING_BYTES_MAX = 64 * MIB
PACKS, PACK_BYTES, SENDERS = 40, 4 * MIB, 4


class StorageStand:
    """Takes packs by hash over TLS, as the service does, and keeps only their names."""

    def __init__(self):
        self.packs = set()
        self.router = Router()
        self.router.route("POST", "/storage/v1/sessions", self.open)
        self.router.route("PUT", "/storage/v1/sessions/{session}/packs/{pack}", self.put)

    async def open(self, request):
        assert "hgw-gateway" in request.headers
        await request.body.read(4096)
        return json_response(
            201,
            {
                "session": secrets.token_hex(16),
                "token": "t" * 64,
                "lease_until": 0,
                "limit_bytes": 0,
                "used_bytes": 0,
                "reserved_bytes": 0,
                "head": None,
            },
        )

    async def put(self, request, session, pack):
        hasher = hashlib.sha256()
        async for chunk in request.body.chunks():
            hasher.update(chunk)
        if hasher.hexdigest() != pack:
            return Response(400, (), b'{"code":"bad-hash"}')
        self.packs.add(pack)
        return json_response(201, {"state": "stored"})


def write_config(directory, port):
    make = make_self_signed
    make(directory / "service.pem", directory / "service-key.pem", ["::1"], authority=True)
    (directory / "hgwd.toml").write_text(f"""
[gateway]
serial = "PR500KI000001"
model = "PR-500"
maker = "KI"
device_secret_file = "{directory}/device-secret"
state_dir = "{directory}/state"
[carrier]
host = "::1"
port = {port}
ca_file = "{directory}/service.pem"
image_root_file = "{directory}/image-root.json"
director_root_file = "{directory}/director-root.json"
[lan]
host = "::1"
port = 0
[admin]
host = "::1"
port = 0
password_file = "{directory}/password"
[spool]
directory = "{directory}/spool"
bytes_max = {24 * MIB}
pack_bytes_max = {4 * MIB}
[update]
enabled = false
[metrics]
port = 0
""")
    return str(directory / "hgwd.toml")


def hgwd(config, *arguments):
    return [sys.executable, "-m", "hgwd.cli", "--config", config, *arguments]


async def run_hgwd(config, *arguments, stdin=b""):
    done = await trio.run_process(
        hgwd(config, *arguments), stdin=stdin, capture_stdout=True, capture_stderr=True, cwd=ROOT
    )
    return done.stdout.decode()


async def start(config):
    process = await trio.lowlevel.open_process(hgwd(config, "run"), stdout=subprocess.PIPE, cwd=ROOT)
    log = b""
    with trio.fail_after(20):
        while b'"event":"ready"' not in log:
            piece = await process.stdout.receive_some(65536)
            assert piece, log
            log += piece
    ready = next(json.loads(line) for line in log.splitlines() if b'"event":"ready"' in line)
    return process, ready


async def drop_output(process):
    while await process.stdout.receive_some(65536):
        pass


async def pair(client, pin, config):
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
    begun = await client.request(
        "POST",
        "/lan/v1/pair",
        body=json.dumps({"v": 1, "name": "nas", "commitment": pair_commitment(key, nonce).hex()}).encode(),
    )
    shown = json.loads(begun.body)
    reveal = json.dumps({"device_key": key.hex(), "nonce_n": nonce.hex()}).encode()
    await client.request("POST", f"/lan/v1/pair/{shown['pair']}/reveal", body=reveal)
    digits = pair_digits(bytes.fromhex(pin), key, bytes.fromhex(shown["nonce_g"]), nonce)
    wrong = f"{(int(digits) + 1) % 10**6:06d}"
    with pytest.raises(subprocess.CalledProcessError):
        await run_hgwd(config, "pair", "--approve", wrong)
    assert digits in await run_hgwd(config, "pair")
    assert "approved nas" in await run_hgwd(config, "pair", "--approve", f"{digits[:3]} {digits[3:]}")
    return json.loads((await client.request("GET", f"/lan/v1/pair/{shown['pair']}")).body)["lan_token"]


def memory_bytes(pid, field):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.timeout(90)
async def test_forwarding_hundreds_of_megabytes_stays_within_64_mib(tmp_path):
    stand = StorageStand()
    (tmp_path / "device-secret").write_bytes(b"s" * 32)
    async with trio.open_nursery() as nursery:
        plain = open_listener("::1", 0)
        port = plain.port
        plain.close()
        config = write_config(tmp_path, port)
        tls = server_context(tmp_path / "service.pem", tmp_path / "service-key.pem")
        listener = open_listener("::1", port, tls)
        limits = HttpLimits()
        await nursery.start(
            lambda task_status: serve_http(stand.router, [listener], limits=limits, task_status=task_status)
        )
        await run_hgwd(config, "password", stdin=b"correct horse\n")
        process, ready = await start(config)
        nursery.start_soon(drop_output, process)
        idle_bytes = memory_bytes(process.pid, "VmRSS")
        status = json.loads(await run_hgwd(config, "status", "--json"))
        pin = status["certificate_sha256"]
        client = HttpClient("::1", ready["lan_port"], client_context(), pin_sha256=pin)
        token = await pair(client, pin, config)
        opened = await client.request(
            "POST", f"{STORAGE}/sessions", headers={"authorization": f"Bearer {token}"}, body=b"s"
        )
        session = json.loads(opened.body)["session"]
        await send_all(client, token, session)
        with trio.fail_after(30):
            while json.loads(await run_hgwd(config, "status", "--json"))["queue"]["spooled_packs"]:
                await trio.sleep(0.1)
        assert len(stand.packs) == PACKS
        peak_bytes = memory_bytes(process.pid, "VmHWM")
        print(f"idle {idle_bytes / MIB:.1f} MiB, peak while forwarding {peak_bytes / MIB:.1f} MiB")
        assert peak_bytes <= FORWARDING_BYTES_MAX
        await client.aclose()
        process.terminate()
        assert await process.wait() == 0
        nursery.cancel_scope.cancel()
    await process.stdout.aclose()


async def send_all(client, token, session):
    sent = iter(range(PACKS))

    async def send():
        for _ in sent:
            pack, data = make_pack(PACK_BYTES)
            while True:
                path = f"{STORAGE}/sessions/{session}/packs/{pack}"
                answer = await client.request(
                    "PUT", path, headers={"authorization": f"Bearer {token}"}, body=data
                )
                if answer.status == 202:
                    break
                assert answer.status == 429
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(SENDERS):
            nursery.start_soon(send)
