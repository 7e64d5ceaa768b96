"""kill -9 of the storing process at random moments: what was acknowledged is there, nothing is half done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carrier.compose import CarrierUrls, open_carrier
from carrier.storage.receipts import ReceiptSigner
from runtime.clock import SystemClock
from wire.ids import BackupSetName, ContractId
from wire.signing import SigningKey
from wire.storage import unverified_receipt

KILLS = 20

WORKER = '''
"""For each line on stdin: a child that stores and commits for ever, printing what was acknowledged, until it is killed.

The children are forked before anything is opened, so each is a process of its own that starts in milliseconds.
"""
import hashlib, importlib.util, os, sys
from pathlib import Path
import trio

spec = importlib.util.spec_from_file_location("carrier_world", sys.argv[1])
support = importlib.util.module_from_spec(spec)
sys.modules["carrier_world"] = support
spec.loader.exec_module(support)
from carrier.compose import CarrierUrls, open_carrier
from carrier.storage.receipts import ReceiptSigner
from runtime.clock import SystemClock
from wire.ids import ContractId, CustomerId
from wire.signing import SigningKey
from wire.storage import sign_receipt_key

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())


async def live(world):
    carrier, nas, directory = world.carrier, world.nas, world.directory
    if not (directory / "enrolled").exists():
        world.add_customer(1, support.HOME_PREFIX)
        world.gateway_key = world.add_gateway(world.customer, "GW00000001")
        (directory / "gateway").write_bytes(world.gateway_key.seed)
        world.notice = carrier.admin.add_contract(world.contract, "10gb", world.customer)
        await world.enrol()
        (directory / "enrolled").touch()
    world.gateway_key = SigningKey((directory / "gateway").read_bytes())
    carrier.directory.refresh()
    say("ready", str(os.getpid()))
    while True:
        opened = await world.open()
        given = await world.session(opened)
        head = opened.head
        sequence, parent = (head.sequence, head.root_sha256) if head else (0, None)
        for _ in range(4):
            chunks = [os.urandom(32) for _ in range(3)]
            name = await world.store(given, chunks, frame_bytes=20_000)
            say("stored", name.hex())
            body = nas.commit_body(given.session.text, chunks, sequence=sequence + 1, parent=parent)
            root_blob = body[4 : 4 + int.from_bytes(body[:4], "big")]
            say("committing", hashlib.sha256(root_blob).hexdigest())
            done = await world.storage.commit(given, body)
            sequence, parent = sequence + 1, hashlib.sha256(root_blob).hexdigest()
            say("committed", done.receipt.hex())
        carrier.admin.gc()


def child():
    directory = Path(sys.argv[2])
    clock = SystemClock()
    root, receipt_key = SigningKey(b"r" * 32), SigningKey(b"k" * 32)
    cert = sign_receipt_key(root, receipt_key.public, not_after=int(clock.now_s()) + 10**6)
    urls = CarrierUrls(f"sqlite:///{directory}/carrier.db", f"file://{directory}/blobs")
    carrier = open_carrier(urls, clock, ReceiptSigner(receipt_key, cert, root.public))
    customer, contract = CustomerId.parse("CAF0000000001"), ContractId.parse("AZK0000000001")
    nas = support.Nas(contract, SigningKey(b"c" * 32), epoch="ee" * 16, key=SigningKey(b"n" * 32))
    world = support.World(
        directory, clock, root, carrier, SigningKey(b"g" * 32), customer, contract, None, nas
    )
    trio.run(live, world)


for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child()
    os.waitpid(pid, 0)
    say("dead")
'''


@pytest.fixture
def mother(tmp_path):
    """The process that forks the children."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent / "conftest.py"), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    yield process
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def run_and_kill(mother, after_lines, after_s, acknowledged):
    """Let a child tell so many lines and live `after_s` longer, kill it, and note all it had been told."""
    mother.stdin.write("go\n")
    mother.stdin.flush()
    kind, pid = mother.stdout.readline().split()
    assert kind == "ready"
    lines = [mother.stdout.readline() for _ in range(after_lines)]
    time.sleep(after_s)
    os.kill(int(pid), signal.SIGKILL)
    while (line := mother.stdout.readline()) != "dead\n":
        lines.append(line)
    for line in lines:
        kind, _, value = line.strip().partition(" ")
        acknowledged.setdefault(kind, []).append(value)


@pytest.fixture
def carrier_after(tmp_path):
    """Open the carrier side again, as the next start would."""
    from wire.storage import sign_receipt_key

    opened = []

    def open_again():
        clock = SystemClock()
        root, key = SigningKey(b"r" * 32), SigningKey(b"k" * 32)
        cert = sign_receipt_key(root, key.public, not_after=int(clock.now_s()) + 10**6)
        urls = CarrierUrls(f"sqlite:///{tmp_path}/carrier.db", f"file://{tmp_path}/blobs")
        carrier = open_carrier(urls, clock, ReceiptSigner(key, cert, root.public))
        opened.append(carrier)
        return carrier

    yield open_again
    for carrier in opened:
        carrier.close()


def test_kill_at_random_moments_loses_nothing_acknowledged(mother, carrier_after):
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    acknowledged: dict[str, list[str]] = {}
    for _ in range(KILLS):
        run_and_kill(mother, moments.randrange(12), moments.uniform(0.0, 0.05), acknowledged)
    carrier = carrier_after()
    contract = ContractId.parse("AZK0000000001")
    stores = carrier.storage.stores
    assert acknowledged["committed"], f"seed {seed}: too little happened"

    for name in acknowledged["stored"]:
        pack = stores.packs.find_pack(contract, bytes.fromhex(name))
        assert pack is not None, f"seed {seed}: stored pack {name} is gone"
    assert carrier.admin.scrub() == (), f"seed {seed}"

    kept = {row.root_sha256.hex(): row for row in all_generations(carrier, contract)}
    for text in acknowledged["committed"]:
        receipt = unverified_receipt(bytes.fromhex(text))
        assert kept[receipt.root_sha256].receipt.hex() == text, f"seed {seed}: receipt changed"
    begun = set(acknowledged["committing"])
    assert set(kept) <= begun, f"seed {seed}: a generation nobody committed"
    assert len(begun - set(kept)) <= KILLS, "at most the one running at each kill"

    usage = carrier.admin.read_usage(contract)
    live = stores.gc.live_packs()
    assert usage.used_bytes == sum(pack.size_bytes for pack in live), f"seed {seed}"
    assert usage.generations <= 10


def all_generations(carrier, contract):
    return carrier.storage.stores.generations.list_generations(contract, BackupSetName.parse("home"))
