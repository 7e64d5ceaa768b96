"""The command line through a real gateway front and a real storage service: pair, enrol, back up, cut, resume, restore."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio

from hgwd.adapters.lan_devices import new_token
from nas_agent.adapters.state import Gateway, StateDirectory
from nas_agent.cli import main
from nas_agent.core.change import RACY_NS
from nas_agent.events import AnyEvent
from tests.carrier.conftest import make_world
from tests.nas_agent.gateway_kit import GatewayRig, open_gateway
from tests.nas_agent.nas_tree import rsync_differences


@attrs.define
class Nas:
    """A NAS whose commands run as in a process of their own: another thread, another event loop."""

    home: Path
    capture: Any
    gateway: GatewayRig

    async def run(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        command = [*arguments, "--state", str(self.home / "state"), "--json"]
        code = await trio.to_thread.run_sync(main, command)
        lines = self.capture().out.splitlines()
        for line in lines:
            msgspec.json.decode(line, type=AnyEvent)
        return code, [json.loads(line) for line in lines]

    async def init(self) -> None:
        (self.home / "pass").touch(mode=0o600)
        (self.home / "pass").write_text("correct horse battery\n")
        code, _ = await self.run("init", *self.passphrase, "--kdf-memory-mib", "8")
        assert code == 0

    @property
    def passphrase(self) -> tuple[str, str]:
        return "--passphrase-file", str(self.home / "pass")

    @property
    def notice(self) -> tuple[str, ...]:
        world = self.gateway.world
        return (
            *("--contract", world.contract.text, "--enrolment-code", world.notice.enrolment_code),
            *("--service-root", world.root_key.public.hex()),
        )

    async def pair(self, *more: str) -> tuple[int, list[dict[str, Any]], list[str]]:
        seen: list[str] = []
        result: list[Any] = []

        async def approve() -> None:
            seen.append(await self.gateway.approve())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(approve)
            result.append(await self.run("pair", "--gateway", self.gateway.address, *self.passphrase, *more))
            nursery.cancel_scope.cancel()
        code, events = result[0]
        return code, events, seen


def configure(nas: Nas, keep_trying_s: int) -> None:
    (nas.home / "state/nas-agent.toml").write_text(f"keep_trying_s = {keep_trying_s}\n")


@pytest.fixture
async def nas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Nas]:
    (tmp_path / "carrier").mkdir()
    world = make_world(tmp_path / "carrier")
    async with open_gateway(tmp_path / "gateway", world) as gateway:
        made = Nas(tmp_path, capsys.readouterr, gateway)
        await made.init()
        yield made
    world.carrier.close()


@pytest.fixture
async def paired(nas: Nas) -> Nas:
    """Paired as after an approval, without its waiting; enrolled by the command."""
    gateway, token = nas.gateway, new_token()
    state = StateDirectory(nas.home / "state")
    await gateway.devices.add(name="nas", device_key=state.load_device().device.public, token=token)
    state.save_gateway(
        Gateway(host="::1", port=gateway.port, certificate_sha256=gateway.certificate_sha256, lan_token=token)
    )
    code, events = await nas.run("pair", "--gateway", gateway.address, *nas.passphrase, *nas.notice)
    assert code == 0, events
    return nas


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    top.mkdir()
    generator = random.Random(11)
    for number in range(5):
        (top / f"file-{number}").write_bytes(generator.randbytes(3_000_000))
    time.sleep(2 * RACY_NS / 1e9)  # files written in the instant they are read are read again, rightly
    return top


async def test_both_sides_show_the_same_digits_and_the_nas_is_enrolled(nas: Nas) -> None:
    """AZK-18b, AZK-22: the single-use code of the notice enrols the NAS's own key, which is its credential from then on."""
    code, events, at_the_gateway = await nas.pair(*nas.notice)
    assert code == 0, events
    assert [event["digits"] for event in events if event["event"] == "digits"] == at_the_gateway
    (gateway,) = [event for event in events if event["event"] == "gateway"]
    assert gateway["enrolled"]
    assert gateway["certificate_sha256"] == nas.gateway.certificate_sha256
    code, events = await nas.run("status")
    assert (code, events[0]["contract"]) == (0, nas.gateway.world.contract.text)


async def test_pairing_and_enrolment_can_be_two_runs(nas: Nas) -> None:
    code, events, _ = await nas.pair()
    assert code == 0, events
    assert "--enrolment-code" in events[-1]["message"]
    code, events = await nas.run("backup", "/proc/self")
    assert code == 1
    assert "not enrolled" in events[-1]["message"]
    code, events = await nas.run("pair", "--gateway", nas.gateway.address, *nas.passphrase, *nas.notice)
    assert code == 0, events


async def test_pairing_again_keeps_the_enrolment(paired: Nas, source: Path) -> None:
    before = json.loads((paired.home / "state/gateway.json").read_text())
    code, events, _ = await paired.pair()
    assert code == 0, events
    after = json.loads((paired.home / "state/gateway.json").read_text())
    assert after["lan_token"] != before["lan_token"]
    assert {**after, "lan_token": ""} == {**before, "lan_token": ""}
    code, events = await paired.run("backup", str(source))
    assert (code, events[-1]["state"]) == (0, "durable")


async def test_a_refused_pairing_leaves_no_credential(nas: Nas) -> None:
    async def refuse() -> None:
        while (waiting := nas.gateway.desk.waiting()) is None or waiting.digits is None:
            await trio.sleep(0.02)
        assert nas.gateway.desk.refuse(waiting.pair)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        code, events = await nas.run("pair", "--gateway", nas.gateway.address, *nas.passphrase)
    assert (code, events[-1]["code"]) == (4, "pairing-refused")
    assert "if the digits differed" in events[-1]["message"]
    assert not (nas.home / "state/gateway.json").exists()


async def test_a_service_root_other_than_the_notices_is_refused(nas: Nas) -> None:
    notice = list(nas.notice)
    notice[-1] = "00" * 32
    code, events, _ = await nas.pair(*notice)
    assert code == 1
    assert "do not go on" in events[-1]["message"]


async def test_a_wrong_enrolment_code_is_refused(nas: Nas) -> None:
    notice = list(nas.notice)
    notice[3] = "WRONG-CODE"
    code, events, _ = await nas.pair(*notice)
    assert (code, events[-1]["event"], events[-1]["code"]) == (4, "failure", "refused")


async def test_a_backup_is_said_to_be_done_only_with_a_verified_receipt(
    paired: Nas, source: Path, tmp_path: Path
) -> None:
    code, events = await paired.run("backup", str(source))
    assert code == 0, events
    assert events[-1]["state"] == "durable"
    assert "receipt verified" in events[-1]["message"]
    (used,) = {paired.gateway.world.carrier.admin.read_usage(paired.gateway.world.contract).used_bytes}
    assert used == events[-1]["sent_bytes"]
    code, _ = await paired.run("restore", "latest", "--to", str(tmp_path / "out"), *paired.passphrase)
    assert code == 0
    assert rsync_differences(source, tmp_path / "out") == ""
    code, events = await paired.run("list", *paired.passphrase)
    assert [event["sequence"] for event in events if event["event"] == "generation"] == [1]
    code, events = await paired.run("backup", str(source))
    assert (events[-1]["sequence"], events[-1]["files_unchanged"], events[-1]["state"]) == (2, 5, "durable")


async def test_with_the_line_cut_detach_says_spooled_and_the_next_run_makes_it_durable(
    paired: Nas, source: Path, tmp_path: Path
) -> None:
    paired.gateway.line.packs_until_cut = 1
    code, events = await paired.run("backup", str(source), "--detach")
    assert (code, events[-1]["state"], events[-1]["generation"]) == (0, "spooled", None)
    assert "not backed up yet" in events[-1]["message"]
    first_bytes = events[-1]["sent_bytes"]
    _, events = await paired.run("status")
    (status,) = [event for event in events if event["event"] == "status"]
    assert status["state"] == "unfinished"
    assert status["spooled_packs"] > 0
    paired.gateway.line.packs_until_cut = None
    paired.gateway.line.down = False
    code, events = await paired.run("backup", str(source))
    assert (code, events[-1]["state"]) == (0, "durable")
    assert first_bytes > 14_000_000
    assert events[-1]["sent_bytes"] < 4_400_000
    await paired.run("restore", "latest", "--to", str(tmp_path / "out"), *paired.passphrase)
    assert rsync_differences(source, tmp_path / "out") == ""


async def test_a_line_that_is_cut_in_the_middle_is_waited_for(paired: Nas, source: Path) -> None:
    paired.gateway.line.packs_until_cut = 1

    async def mend() -> None:
        while not paired.gateway.line.down:
            await trio.sleep(0.02)
        await trio.sleep(0.5)
        paired.gateway.line.packs_until_cut = None
        paired.gateway.line.down = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        code, events = await paired.run("backup", str(source))
    assert (code, events[-1]["state"]) == (0, "durable")


async def test_with_the_line_down_from_the_start_the_cause_is_said(paired: Nas, source: Path) -> None:
    configure(paired, 1)
    paired.gateway.line.down = True
    code, events = await paired.run("backup", str(source))
    assert (code, events[-1]["event"]) == (4, "backup")
    assert "line" in events[-1]["message"]
    assert "[line-down]" in events[-1]["message"]
    assert {event["code"] for event in events if event["event"] == "waiting"} == {"line-down"}


async def test_a_line_that_is_down_for_a_second_costs_three_at_most(paired: Nas, source: Path) -> None:
    paired.gateway.line.down = True

    async def mend() -> None:
        while not paired.gateway.line.failures:
            await trio.sleep(0.01)
        await trio.sleep(1)
        paired.gateway.line.down = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        code, events = await paired.run("backup", str(source))
    waits = [
        event["wait_s"] for event in events if event["event"] == "waiting" and event["code"] == "line-down"
    ]
    assert (code, events[-1]["state"]) == (0, "durable")
    assert 1 <= sum(waits) <= 3


async def test_a_gateway_at_another_address_is_the_same_vault(paired: Nas, source: Path) -> None:
    await paired.run("backup", str(source))
    state = StateDirectory(paired.home / "state")
    before = state.load_gateway()
    assert before is not None
    async with trio.open_nursery() as nursery:
        listener = trio.socket.socket(trio.socket.AF_INET6)
        await listener.bind(("::1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        nursery.start_soon(forward_connections, listener, before.port)
        state.save_gateway(msgspec.structs.replace(before, port=port))
        code, events = await paired.run("backup", str(source))
        nursery.cancel_scope.cancel()
    listener.close()
    assert (code, events[-1]["files_unchanged"], events[-1]["sequence"]) == (0, 5, 2)


async def forward_connections(listener: trio.socket.SocketType, port: int) -> None:
    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()

    async def both_ways(near: trio.SocketStream, far: trio.SocketStream) -> None:
        async with near, far, trio.open_nursery() as pumps:
            pumps.start_soon(pump, near, far)
            pumps.start_soon(pump, far, near)

    async with trio.open_nursery() as nursery:
        while True:
            connection, _ = await listener.accept()
            near, far = trio.SocketStream(connection), await trio.open_tcp_stream("::1", port)
            nursery.start_soon(both_ways, near, far)


async def test_a_revoked_nas_is_told_so(paired: Nas, source: Path) -> None:
    """AZK-15, the gateway's half: its credential is worth nothing any more, and the person is told what to do."""
    (device,) = (
        [each.device for each in await paired.gateway.devices.list_all()]
        if hasattr(paired.gateway.devices, "list_all")
        else [next(iter(paired.gateway.devices._live.values())).device]
    )
    await paired.gateway.devices.revoke(device)
    code, events = await paired.run("backup", str(source))
    assert code == 4
    assert "nas-agent pair" in events[-1]["message"]


async def test_a_gateway_with_another_certificate_gets_nothing(paired: Nas, source: Path) -> None:
    state = paired.home / "state/gateway.json"
    gateway = json.loads(state.read_text())
    state.write_text(json.dumps({**gateway, "certificate_sha256": "00" * 32}))
    configure(paired, 1)
    code, events = await paired.run("backup", str(source))
    assert (code, events[-1]["code"]) == (1, "pin-mismatch")
