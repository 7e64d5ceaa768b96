"""A machine between NAS and gateway, which speaks to both with its own certificate, changes the six digits (design §4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from nas_agent.adapters.pairing import PairingRefusedError, PairingUi, pair
from nas_agent.core.targets import parse_host_port
from runtime.errors import RemoteError, Unavailable
from runtime.http import Request, Response, open_listener, serve_http
from runtime.http_client import HttpClient
from runtime.tls import client_context, make_self_signed, server_context
from tests.carrier.conftest import make_world
from tests.nas_agent.gateway_kit import GatewayRig, open_gateway
from wire.signing import generate_key


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    (tmp_path / "carrier").mkdir()
    world = make_world(tmp_path / "carrier")
    async with open_gateway(tmp_path / "gateway", world) as rig:
        yield rig
    world.carrier.close()


async def serve_tls(directory: Path, nursery: trio.Nursery, handler) -> str:
    make_self_signed(directory / "other.pem", directory / "other.key", ["::1"])
    listener = open_listener("::1", 0, server_context(directory / "other.pem", directory / "other.key"))
    await nursery.start(serve_http, handler, [listener])
    return f"[::1]:{listener.port}"


async def test_a_man_in_the_middle_changes_the_digits(
    gateway: GatewayRig, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with HttpClient(
        "::1", gateway.port, client_context(), pin_sha256=gateway.certificate_sha256
    ) as onward:

        async def relay(request: Request) -> Response:
            body = await request.body.read(1 << 16)
            answer = await onward.request(request.method, request.path, body=body)
            return Response(answer.status, (("content-type", "application/json"),), answer.body)

        address = await serve_tls(tmp_path, nursery, relay)
        shown: list[str] = []
        ui = PairingUi(show_digits=shown.append, waiting=lambda left_s: None)
        with pytest.raises(PairingRefusedError, match="somebody is between the two"):
            async with trio.open_nursery() as waiting:

                async def compare() -> None:
                    while (attempt := gateway.desk.waiting()) is None or attempt.digits is None or not shown:
                        await trio.sleep(0.02)
                    assert attempt.digits != shown[0]
                    assert gateway.desk.refuse(attempt.pair)  # the human sees that they differ

                waiting.start_soon(compare)
                try:
                    await pair(parse_host_port(address), name="nas", device_key=generate_key(), ui=ui)
                except PairingRefusedError as error:
                    refused = error
            raise refused
    assert not gateway.devices.is_full()


async def test_something_that_is_no_gateway_is_not_paired_with(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def other(request: Request) -> Response:
        return Response(200, (("content-type", "application/json"),), b'{"product":"printer","v":1}')

    address = await serve_tls(tmp_path, nursery, other)
    ui = PairingUi(show_digits=lambda digits: None, waiting=lambda left_s: None)
    with pytest.raises(RemoteError, match="printer"):
        await pair(parse_host_port(address), name="nas", device_key=generate_key(), ui=ui)


async def test_a_gateway_that_is_not_there_is_said(tmp_path: Path) -> None:
    listener = trio.socket.socket(trio.socket.AF_INET6)
    await listener.bind(("::1", 0))
    port = listener.getsockname()[1]
    listener.close()
    ui = PairingUi(show_digits=lambda digits: None, waiting=lambda left_s: None)
    with pytest.raises(Unavailable, match="check the gateway's address"):
        await pair(parse_host_port(f"[::1]:{port}"), name="nas", device_key=generate_key(), ui=ui)
