"""Status and body of refusals at the HTTP edge, path by path (protocols.md §2, §3)."""

from __future__ import annotations

import attrs
import msgspec
import pytest

from carrier.storage.http import STATUS, storage_routes
from carrier.storage.outcomes import Code
from runtime.http import Peer, Request, Router

PEER = "2001:db8:1:100::1"


@attrs.define
class Sent:
    """A body as the server hands it over."""

    data: bytes

    async def read(self, limit_bytes):
        assert len(self.data) <= limit_bytes
        return self.data

    async def chunks(self, limit_bytes=None):
        yield self.data


def ask(world, method, path, body=b"", headers=None, peer=PEER, zone=""):
    router = Router()
    storage_routes(router, world.storage)
    return router(
        Request(
            method=method,
            path=f"/storage/v1/{path}",
            query={},
            headers=headers or {},
            peer=Peer(peer, 1, zone),
            content_length=len(body),
            body=Sent(body),
        )
    )


def code_of(response):
    return response.status, msgspec.json.decode(response.body)["code"]


def test_every_refusal_has_its_status():
    assert set(STATUS) == set(Code)


LOCATE = "/generations/" + "ab" * 16 + "/locate"
SESSION_PATHS = [
    ("DELETE", "", "append"),
    ("POST", "/have", "append"),
    ("POST", "/state", "append"),
    ("POST", "/commit", "append"),
    ("PUT", "/packs/" + "ab" * 32, "append"),
    ("GET", "/packs/" + "ab" * 32, "read"),
    ("GET", "/generations", "read"),
    ("GET", "/generations/" + "ab" * 16 + "/root", "read"),
    ("GET", "/generations/" + "ab" * 16 + "/receipt", "read"),
    ("GET", "/header/" + "ab" * 16, "read"),
    ("POST", LOCATE, "read"),
]


@pytest.mark.parametrize(("method", "tail", "mode"), SESSION_PATHS)
async def test_every_path_of_a_session_checks_token_line_and_device(enrolled, method, tail, mode):
    """The same check stands in front of each: no token, another line, another mode, a locked device."""
    world = enrolled
    opened = await world.open(mode=mode)
    path, token = f"sessions/{opened.session}{tail}", {"hgw-session": opened.token}
    world.add_customer(2, "2001:db8:2::/56")
    assert code_of(await ask(world, method, path)) == (403, "refused")
    assert code_of(await ask(world, method, path, headers={"hgw-session": "ab" * 32})) == (403, "refused")
    foreign = await ask(world, method, path, headers=token, peer="2001:db8:2::1")
    assert code_of(foreign) == (403, "line-not-contract")
    unknown = await ask(world, method, path, headers=token, peer="192.0.2.1")
    assert code_of(unknown) == (403, "line-unknown")
    zoned = await ask(world, method, path, headers=token, zone="eth0")
    assert code_of(zoned) == (403, "line-unknown")
    if tail:
        other = await world.open(mode="read" if mode == "append" else "append")
        wrong = await ask(
            world, method, f"sessions/{other.session}{tail}", headers={"hgw-session": other.token}
        )
        assert code_of(wrong) == (403, "refused")
    world.carrier.admin.lock_device(world.nas.key.public)
    assert code_of(await ask(world, method, path, headers=token)) == (403, "device-revoked")


@pytest.mark.parametrize(("tail", "mode"), [("/have", "append"), ("/state", "append"), (LOCATE, "read")])
async def test_ids_that_are_not_whole_are_a_bad_format(enrolled, tail, mode):
    opened = await enrolled.open(mode=mode)
    path, token = f"sessions/{opened.session}{tail}", {"hgw-session": opened.token}
    assert code_of(await ask(enrolled, "POST", path, b"x" * 33, token)) == (400, "bad-format")


@pytest.mark.parametrize("generation", ["ab" * 16, "x"])
async def test_no_chunk_is_located_in_a_generation_that_is_not_there(enrolled, generation):
    opened = await enrolled.open(mode="read")
    path, token = f"sessions/{opened.session}", {"hgw-session": opened.token}
    answer = await ask(enrolled, "POST", f"{path}/generations/{generation}/locate", b"x" * 32, token)
    assert code_of(answer) == (404, "not-found")
    assert (await ask(enrolled, "POST", f"{path}/locate", b"x" * 32, token)).status == 404


@pytest.mark.parametrize(
    "tail",
    [
        "/packs/" + "ab" * 32,
        "/packs/zz",
        "/generations/" + "ab" * 16 + "/root",
        "/generations/x/receipt",
        "/header/" + "ab" * 16,
        "/header/x",
    ],
)
async def test_what_is_not_there_is_not_found(enrolled, tail):
    opened = await enrolled.open(mode="read")
    path, token = f"sessions/{opened.session}{tail}", {"hgw-session": opened.token}
    assert code_of(await ask(enrolled, "GET", path, b"", token)) == (404, "not-found")


async def test_commit_that_misses_chunks_names_them(enrolled):
    world = enrolled
    opened = await world.open()
    body = world.nas.commit_body(opened.session, [b"c" * 32])
    path, token = f"sessions/{opened.session}/commit", {"hgw-session": opened.token}
    response = await ask(world, "POST", path, body, token)
    assert response.status == 409
    assert msgspec.json.decode(response.body)["chunks"] == [(b"c" * 32).hex()]


async def test_wrong_clock_answers_with_the_servers_time(enrolled):
    world = enrolled
    blob = world.session_statement()
    world.clock.unix_s += 200
    response = await ask(world, "POST", "sessions", blob)
    assert response.status == 401
    body = msgspec.json.decode(response.body)
    assert (body["code"], body["server_time"]) == ("clock", int(world.clock.now_s()))


async def test_stale_map_says_when_to_try_again(enrolled):
    world = enrolled
    blob = world.session_statement()
    caller = world.caller("sessions", blob)
    world.clock.elapsed_s += 301
    response = await ask(world, "POST", "sessions", blob, {"hgw-gateway": caller.gateway_statement})
    assert response.status == 503
    assert dict(response.headers)["retry-after"] == "5"


async def test_enrolment_over_http(world):
    blob = world.enrol_statement()
    headers = {"hgw-gateway": world.caller("devices", blob).gateway_statement}
    response = await ask(world, "POST", "devices", blob, headers)
    assert response.status == 201
    assert msgspec.json.decode(response.body)["device"] == world.nas.key.public.hex()
    assert code_of(await ask(world, "POST", "devices", blob, headers)) == (403, "refused")
