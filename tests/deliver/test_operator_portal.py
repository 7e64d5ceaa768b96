"""The operator listener: who may order, and what a bad package is told (protocols.md §4, JNT-05, JNT-50)."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import secrets
import tarfile

import msgspec
import pytest

from runtime.clock import SystemClock
from runtime.http_client import HttpClient
from runtime.tls import client_context
from wire.joint import OperatorSubmit
from wire.package import encode_manifest
from wire.signing import generate_key
from wire.statement import Audience, Kind, make_statement, to_header


@pytest.fixture
def clock():
    return SystemClock()


class Portal:
    def __init__(self, client, key):
        self.client, self.key = client, key

    def statement(self, body, **changes):
        order = {
            "operator": "acme-home",
            "software": "lights",
            "version": "1.0",
            "change": "new",
            "body_sha256": hashlib.sha256(body).hexdigest(),
        }
        now_s = changes.pop("now_s", SystemClock().now_s())
        return make_statement(
            changes.pop("key", self.key),
            Kind.OPERATOR_SUBMIT,
            Audience.JOINT,
            now_s=now_s,
            nonce=secrets.token_bytes(16),
            body=OperatorSubmit(**{**order, **changes}),
        )

    async def post(self, path, body, *, statement=None, **changes):
        blob = statement or self.statement(body, **changes)
        answer = await self.client.request(
            "POST", path, headers={"hgw-statement": to_header(blob)}, body=body
        )
        return answer.status, json.loads(answer.body)

    async def quote(self, body, **changes):
        return await self.post("/operator/v1/quotes", body, **changes)


def portal_client(home, ready):
    return HttpClient("::1", ready["operator_port"], client_context(home.directory / "trust" / "tls-ca.pem"))


async def test_quote_accept_and_rollout_over_http(home, program, acme, kit):
    data, package = acme.measure()
    async with kit.serving(home) as ready, portal_client(home, ready) as client:
        portal = Portal(client, acme.api_key)
        status, quote = await portal.quote(data)
        assert (status, quote["one_off_yen"]) == (201, 29_480)
        metadata = acme.metadata([package])
        accept = f"/operator/v1/quotes/{quote['quote_id']}/accept"
        status, answer = await portal.post(accept, metadata, quote_id=quote["quote_id"])
        assert (status, answer["target_path"]) == (201, package.target_path)
        assert (await portal.quote(data))[0] == 200
        body = msgspec.json.encode({"customers": [kit.CUSTOMER.text]})
        status, answer = await portal.post("/operator/v1/rollouts", body, change="rollout")
        assert (status, answer["targets"][0]["rule"]) == (200, "JNT-20")


async def test_only_the_operators_own_fresh_signature_counts_and_once(home, program, acme, kit):
    data, _ = acme.measure()
    async with kit.serving(home) as ready, portal_client(home, ready) as client:
        portal = Portal(client, acme.api_key)
        assert (await portal.quote(data, key=generate_key()))[0] == 403
        assert (await portal.quote(data, key=acme.keys[0]))[0] == 403
        status, body = await portal.quote(data, now_s=SystemClock().now_s() - 3600)
        assert (status, body["code"]) == (401, "clock")
        statement = portal.statement(data)
        assert (await portal.quote(data, statement=statement))[0] == 201
        assert (await portal.quote(data, statement=statement))[0] == 403
        answer = await client.request("POST", "/operator/v1/quotes", body=data)
        assert answer.status == 403
        status, body = await portal.quote(data, body_sha256="0" * 64)
        assert (status, body["code"]) == (400, "bad-hash")
        other = kit.add_operator_kit(program, "other-co")
        status, body = await portal.quote(data, key=other.api_key)
        assert (status, body["code"]) == (403, "wrong-operator")


async def test_other_bytes_than_the_order_names_are_not_accepted(home, program, acme, kit):
    data, package = acme.measure()
    async with kit.serving(home) as ready, portal_client(home, ready) as client:
        portal = Portal(client, acme.api_key)
        _, quote = await portal.quote(data)
        accept = f"/operator/v1/quotes/{quote['quote_id']}/accept"
        metadata = acme.metadata([package])
        status, body = await portal.post(accept, metadata, quote_id="0" * 32)
        assert (status, body["code"]) == (400, "bad-hash")
        statement = portal.statement(b"other", quote_id=quote["quote_id"])
        status, body = await portal.post(accept, metadata, statement=statement)
        assert (status, body["code"]) == (400, "bad-hash")
        status, body = await portal.post(accept.replace(quote["quote_id"], "x"), metadata, quote_id="x")
        assert status == 404
        assert "operator-acme-home" not in program.image.published()


def archive(kit, *entries):
    encoded = encode_manifest(kit.manifest())
    head = tarfile.TarInfo("manifest.json")
    parts = []
    for info, data in ((head, encoded), *entries):
        info.size = len(data)
        parts += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % 512)]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 2**20}]
    return lzma.compress(b"".join(parts) + bytes(1024), filters=filters)


def entry(name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


BAD_PACKAGES = {
    "symlink": lambda kit: archive(
        kit, entry("files/app.pyz", b"", type=tarfile.SYMTYPE, linkname="/etc/shadow")
    ),
    "device": lambda kit: archive(kit, entry("files/app.pyz", b"", type=tarfile.CHRTYPE)),
    "setuid": lambda kit: archive(kit, entry("files/app.pyz", mode=0o4755)),
    "traversal": lambda kit: archive(kit, entry("files/../../app.pyz")),
    "absolute": lambda kit: archive(kit, entry("/app.pyz")),
    "no entry point": lambda kit: archive(kit, entry("files/other")),
    "truncated": lambda kit: kit.package_bytes()[:-20],
    "not an archive": lambda kit: b"PK\x03\x04" * 100,
    "plain tar": lambda kit: plain_tar(),
}


def plain_tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("manifest.json"))
    return stream.getvalue()


async def test_JNT_50_a_bad_package_is_refused_with_the_rule_and_leaves_nothing(home, program, acme, kit):
    before = kit.dump(program)
    async with kit.serving(home) as ready, portal_client(home, ready) as client:
        portal = Portal(client, acme.api_key)
        for name, make in BAD_PACKAGES.items():
            status, body = await portal.quote(make(kit))
            assert (status, body["code"], body["rule"]) == (422, "bad-package", "JNT-50"), (name, body)
        assert kit.staged(program) == []
    assert kit.dump(program) == before


async def test_JNT_05_size_0_and_size_25_M_are_refused_with_the_rule(home, program, acme, kit):
    async with kit.serving(home) as ready, portal_client(home, ready) as client:
        portal = Portal(client, acme.api_key)
        status, body = await portal.quote(b"")
        assert (status, body["code"], body["rule"]) == (422, "size-stored", "JNT-05")
        status, body = await portal.quote(bytes(26_214_400))
        assert (status, body["code"], body["rule"]) == (422, "size-stored", "JNT-05")
        assert "26214399" in body["message"]

        async def endless():
            yield secrets.token_bytes(1000)

        statement = to_header(portal.statement(b"x"))
        answer = await client.request(
            "POST", "/operator/v1/quotes", headers={"hgw-statement": statement}, body=endless()
        )
        assert answer.status == 422
        assert kit.staged(program) == []


async def test_a_manifest_of_a_newer_version_says_upgrade_needed(home, program, acme, kit):
    async with kit.serving(home) as ready, portal_client(home, ready) as client:
        portal = Portal(client, acme.api_key)
        status, body = await portal.quote(kit.package_bytes(v=2))
        assert (status, body["code"]) == (422, "upgrade-needed")
