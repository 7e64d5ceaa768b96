"""L1–L6 through the real HTTP server: only the socket's peer says which line a request is on."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import trio

from carrier.events import EventDone
from carrier.lines import outcomes as line_out
from carrier.lines.addresses import Prefix
from carrier.lines.tables import QUARANTINE_S
from carrier.storage.http import storage_routes
from runtime.http import Router, open_listener, serve_http
from runtime.http_client import HttpClient
from wire.ids import GatewaySerial

LOOPBACK_PREFIX = Prefix.parse("::/64")
HOME_LITERAL = "2001:db8:1:100:0:5e00:53ff:1"


@pytest.fixture
async def edge(enrolled, nursery):
    """The storage protocol on [::1] and 127.0.0.1; the customer's line holds the loopback prefix."""
    world = enrolled
    world.carrier.registry.add_prefix(world.customer, LOOPBACK_PREFIX)
    world.carrier.directory.refresh()
    router = Router()
    storage_routes(router, world.storage)
    listeners = [open_listener("::1", 0), open_listener("127.0.0.1", 0)]
    await nursery.start(serve_http, router, listeners)
    world.ports = [listener.port for listener in listeners]
    yield world
    for client in world.clients:
        await client.aclose()


class Edge:
    def __init__(self, world, *, ipv4=False):
        host = "127.0.0.1" if ipv4 else "::1"
        self.world = world
        self.client = HttpClient(host, world.ports[1 if ipv4 else 0])
        world.clients.append(self.client)

    async def ask(self, method, path, body=b"", headers=None, **options):
        answer = await self.client.request(
            method, f"/storage/v1/{path}", body=body, headers=headers or {}, **options
        )
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.status, msgspec.json.decode(answer.body) if is_json else answer.body

    async def open(self, headers=None, **options):
        blob = self.world.session_statement(**options)
        gateway = self.world.caller("sessions", blob).gateway_statement
        return await self.ask("POST", "sessions", blob, {"hgw-gateway": gateway, **(headers or {})})


async def test_whole_protocol_over_http(edge):
    nas, http = edge.nas, Edge(edge)
    status, opened = await http.open()
    assert status == 201
    token = {"hgw-session": opened["token"]}
    base = f"sessions/{opened['session']}"
    chunks = [bytes([number]) * 32 for number in range(3)]
    pack = nas.pack(opened["session"], chunks)
    name = hashlib.sha256(pack).hexdigest()
    assert await http.ask("POST", f"{base}/have", chunks[0], token) == (200, b"\0")
    for expected in (201, 200):
        status, state = await http.ask("PUT", f"{base}/packs/{name}", pack, token)
        assert (status, state["state"]) == (expected, "stored")
    assert await http.ask("POST", f"{base}/state", bytes.fromhex(name) + b"x" * 32, token) == (200, b"\2\0")
    body = nas.commit_body(opened["session"], chunks)
    status, receipt = await http.ask("POST", f"{base}/commit", body, token)
    assert status == 201
    assert await http.ask("POST", f"{base}/commit", body, token) == (201, receipt)
    assert (await http.ask("GET", f"{base}/packs/{name}", b"", token))[0] == 403

    _, reading = await http.open(mode="read")
    token, base = {"hgw-session": reading["token"]}, f"sessions/{reading['session']}"
    status, (item,) = await http.ask("GET", f"{base}/generations", b"", token)
    assert (status, item["sequence"]) == (200, 1)
    assert await http.ask("GET", f"{base}/generations/{item['generation']}/receipt", b"", token) == (
        200,
        receipt,
    )
    assert (await http.ask("GET", f"{base}/generations/{item['generation']}/root", b"", token))[1] in body
    locate = f"{base}/generations/{item['generation']}/locate"
    status, places = await http.ask("POST", locate, chunks[1] + b"x" * 32, token)
    assert places[:32].hex() == name
    assert places[48:] == bytes(48)
    offset, length = int.from_bytes(places[32:40], "big"), int.from_bytes(places[40:48], "big")
    ranged = {**token, "range": f"bytes={offset}-{offset + length - 1}"}
    assert await http.ask("GET", f"{base}/packs/{name}", b"", ranged) == (206, pack[offset : offset + length])
    assert await http.ask("GET", f"{base}/packs/{name}", b"", token) == (200, pack)
    outside = {**token, "range": f"bytes={len(pack)}-"}
    assert (await http.ask("GET", f"{base}/packs/{name}", b"", outside))[0] == 416
    header_path = f"{base}/header/{opened['session']}"
    assert (await http.ask("GET", header_path, b"", token))[0] == 200
    assert (await http.ask("POST", f"{base}/have", chunks[0], token))[0] == 403
    assert (await http.ask("DELETE", base, b"", token))[0] == 204
    status, over = await http.ask("GET", header_path, b"", token)
    assert (status, over["code"]) == (410, "session-over")


FORWARDED = [
    {"x-forwarded-for": HOME_LITERAL},
    {"forwarded": f'for="[{HOME_LITERAL}]"'},
    {"x-real-ip": HOME_LITERAL},
    {"x-client-ip": HOME_LITERAL, "true-client-ip": HOME_LITERAL},
    {"x-original-forwarded-for": HOME_LITERAL, "cf-connecting-ip": HOME_LITERAL},
]


@pytest.mark.parametrize("headers", FORWARDED)
async def test_L1_forwarded_headers_give_no_line(edge, headers):
    """Loopback is nobody's line now; naming the customer's own address in a header changes nothing."""
    edge.carrier.registry.end_prefix(edge.customer, LOOPBACK_PREFIX)
    edge.carrier.directory.refresh()
    status, body = await Edge(edge).open(headers)
    assert (status, body["code"]) == (403, "line-unknown")


@pytest.mark.parametrize("headers", FORWARDED)
async def test_L1_forwarded_headers_take_no_line_away(edge, headers):
    foreign = {name: value.replace(HOME_LITERAL, "2001:db8:ffff::1") for name, value in headers.items()}
    status, _ = await Edge(edge).open(foreign)
    assert status == 201


async def test_L1_proxy_protocol_line_is_no_request(edge):
    stream = await trio.open_tcp_stream("::1", edge.ports[0])
    async with stream:
        await stream.send_all(f"PROXY TCP6 {HOME_LITERAL} ::1 1 2\r\nGET / HTTP/1.1\r\n\r\n".encode())
        answer = await stream.receive_some(100)
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""


async def test_L2_ipv4_peer_is_no_line(edge):
    """AZK-12: over IPv4 it fails even with the right device signature."""
    status, body = await Edge(edge, ipv4=True).open()
    assert (status, body["code"]) == (403, "line-unknown")


async def test_L3_prefix_given_to_another_customer_ends_the_old_binding(edge):
    http = Edge(edge)
    _, opened = await http.open()
    other = edge.add_customer(2, "2001:db8:2::/56")
    done = edge.carrier.events.reassign_prefix(LOOPBACK_PREFIX, edge.customer, other)
    assert isinstance(done, line_out.PrefixAdded)
    edge.carrier.directory.refresh()
    token = {"hgw-session": opened["token"]}
    base = f"sessions/{opened['session']}"
    status, body = await http.ask("POST", f"{base}/have", b"", token)
    assert (status, body["code"]) == (403, "line-unknown")
    edge.clock.advance(QUARANTINE_S)
    edge.carrier.directory.refresh()
    status, body = await http.ask("POST", f"{base}/have", b"", token)
    assert (status, body["code"]) == (403, "line-not-contract")


async def test_L4_renumbered_line_works_from_the_new_prefix_only(edge):
    http = Edge(edge)
    new = Prefix.parse("2001:db8:7::/56")
    edge.carrier.events.renumber(edge.customer, LOOPBACK_PREFIX, new)
    edge.carrier.directory.refresh()
    status, body = await http.open()
    assert (status, body["code"]) == (403, "line-unknown")
    back = edge.carrier.events.renumber(edge.customer, new, LOOPBACK_PREFIX)
    assert isinstance(back, line_out.PrefixAdded)
    edge.carrier.directory.refresh()
    assert (await http.open())[0] == 201


async def test_L5_overlapping_row_cannot_be_added_over_a_line(edge):
    other = edge.add_customer(2, "2001:db8:2::/56")
    answer = edge.carrier.registry.add_prefix(other, Prefix.parse("::/56"))
    assert isinstance(answer, line_out.PrefixOverlaps)
    assert (await Edge(edge).open())[0] == 201


async def test_line_terminated_refuses_at_once_and_keeps_the_data(edge):
    """X table, "Line terminated"."""
    http = Edge(edge)
    _, opened = await http.open()
    done = edge.carrier.events.terminate_line(edge.customer)
    assert done == EventDone(prefixes=2, gateway_contracts=1, storage_lines=1)
    edge.carrier.directory.refresh()
    token = {"hgw-session": opened["token"]}
    status, body = await http.ask("POST", f"sessions/{opened['session']}/have", b"", token)
    assert (status, body["code"]) == (403, "line-unknown")
    assert edge.carrier.events.terminate_line(edge.customer) == EventDone()
    assert edge.carrier.admin.read_usage(edge.contract) is not None


async def test_line_transferred_keeps_the_new_owner_from_the_old_data(edge):
    """X table, "Transfer/succession": the line goes on, the old contract is not reachable from it."""
    http = Edge(edge)
    done = edge.carrier.events.transfer_line(edge.customer, (GatewaySerial.parse("GW00000001"),))
    assert done == EventDone(gateway_contracts=1, storage_lines=1)
    edge.carrier.directory.refresh()
    status, body = await http.open()
    assert (status, body["code"]) == (403, "line-not-contract")


async def test_gateway_contract_ended_stops_forwarding_and_keeps_the_data(edge):
    """X table, "Gateway contract ended"."""
    http = Edge(edge)
    _, opened = await http.open()
    edge.carrier.registry.end_gateway_contract(GatewaySerial.parse("GW00000001"))
    edge.carrier.directory.refresh()
    token = {"hgw-session": opened["token"]}
    status, body = await http.ask("POST", f"sessions/{opened['session']}/have", b"", token)
    assert (status, body["code"]) == (403, "gateway-ended")
    status, body = await http.open()
    assert (status, body["code"]) == (403, "gateway-ended")


async def test_stale_map_answers_try_again(edge):
    edge.clock.advance(301)
    status, body = await Edge(edge).open()
    assert (status, body["code"]) == (503, "unavailable")


async def test_full_quota_is_answered_before_the_first_byte_of_the_pack(edge):
    """507 comes while the client has sent headers only."""
    from carrier.engines.sql.schema import storage_contract

    _, opened = await Edge(edge).open()
    with edge.carrier.database.write() as connection:
        connection.execute(storage_contract.update().values(used_bytes=10 * 2**30))
    head = (
        f"PUT /storage/v1/sessions/{opened['session']}/packs/{'ab' * 32} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Length: 1000\r\nHgw-Session: {opened['token']}\r\n\r\n"
    )
    async with await trio.open_tcp_stream("::1", edge.ports[0]) as stream:
        await stream.send_all(head.encode())
        with trio.fail_after(5):
            answer = await stream.receive_some(4096)
    assert b" 507 " in answer
    assert b'"needed_bytes":1000' in answer
