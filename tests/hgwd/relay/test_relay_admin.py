"""The admin page over real sockets: password, Host, Origin, CSRF, escaping, pairing and revoking (X-34, L13)."""

from __future__ import annotations

import contextlib
import re
import secrets
import urllib.parse

import attrs
import pytest
import trio
from relay_kit import open_rig

from hgwd.adapters.admin_page import AdminPage, own_authorities
from hgwd.core import admin_login
from hgwd.core.admin_login import LoginGate
from hgwd.core.status import (
    DeviceStatus,
    GatewayStatus,
    LineDocument,
    LineStatus,
    QueueStatus,
    find_conditions,
)
from hgwd.passwords import hash_password, parse_password_hash
from runtime.http import Peer, Request, open_listener, serve_http
from runtime.http_client import HttpClient
from wire.pairing import pair_commitment

PASSWORD = "correct horse"
PASSWORD_HASH = parse_password_hash(hash_password(PASSWORD))


@attrs.define
class Browser:
    client: HttpClient
    authority: str
    rig: object
    page: AdminPage
    cookie: str = ""

    async def get(self, path="/", **headers):
        return await self.send("GET", path, None, **headers)

    async def post(self, path, fields, **headers):
        return await self.send("POST", path, urllib.parse.urlencode(fields).encode(), **headers)

    async def send(self, method, path, body, **changes):
        headers = {"cookie": self.cookie} if self.cookie else {}
        if body is not None:
            headers |= {
                "content-type": "application/x-www-form-urlencoded",
                "origin": f"http://{self.authority}",
            }
        headers |= changes
        headers = {name: value for name, value in headers.items() if value is not None}
        return await self.client.request(method, path, headers=headers, body=body or b"")

    async def log_in(self, password=PASSWORD):
        answer = await self.post("/login", {"password": password})
        if answer.status == 303:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    async def csrf(self):
        return re.search(r'name="csrf" value="([0-9a-f]+)"', (await self.get()).body.decode())[1]


@contextlib.asynccontextmanager
async def open_admin(tmp_path):
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:

        async def collect():
            queue = QueueStatus(
                spooled_packs=1,
                spooled_bytes=4096,
                rejected_packs=0,
                rejected_bytes=0,
                lost_packs=0,
                limit_bytes=1 << 20,
                oldest_age_s=61.0,
                forwarded_packs=2,
                forwarded_bytes=8192,
                last_stored_at_s=1_700_000_000.0,
                last_problem=None,
                held={},
            )
            line = LineStatus("refused", "line-not-contract", 1_700_000_000.0)
            return GatewayStatus(
                serial="PR500KI000001",
                model="PR-500",
                pid=1,
                rss_bytes=1,
                started_at_s=0.0,
                lan="https://[::1]:1",
                admin="http://[::1]:2",
                metrics=None,
                certificate_sha256="ab" * 32,
                enrolled=True,
                line=LineDocument(state=line.state, reason=line.reason, since_s=line.since_s),
                queue=queue,
                devices=[
                    DeviceStatus(
                        device=found.device,
                        name=found.name,
                        paired_at_s=found.paired_at_s,
                        revoked_at_s=found.revoked_at_s,
                        last_stored_at_s=found.last_stored_at_s,
                        last_durable_at_s=found.last_durable_at_s,
                    )
                    for found in await rig.devices.list_all()
                ],
                update={
                    "software": [
                        {"software": "acme/meter", "version": "1.2", "state": "running", "fault": None}
                    ]
                },
                conditions=find_conditions(line=line, queue=queue, enrolled=True, spool_failure=None),
            )

        listener = open_listener("::1", 0)
        page = AdminPage(
            password=PASSWORD_HASH,
            gate=LoginGate(900),
            desk=rig.desk,
            devices=rig.devices,
            collect=collect,
            clock=rig.clock,
            authorities=own_authorities("::1", listener.port, ["gateway.lan"], default_port=80),
            scheme="http",
            lan_prefixes=(),
        )
        await nursery.start(lambda task_status: serve_http(page, [listener], task_status=task_status))
        client = HttpClient("::1", listener.port)
        yield Browser(client, f"[::1]:{listener.port}", rig, page)
        await client.aclose()
        nursery.cancel_scope.cancel()


async def start_pairing(rig, name="NAS"):
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
    begun = rig.desk._pairing.begin(
        name=name,
        commitment=pair_commitment(key, nonce),
        pair="c" * 32,
        nonce_g=secrets.token_bytes(32),
        now_s=rig.clock.monotonic_s(),
    )
    rig.desk._pairing.reveal(pair="c" * 32, device_key=key, nonce_n=nonce, now_s=rig.clock.monotonic_s())
    return begun.attempt.pair


async def test_nothing_but_the_log_in_form_is_shown_without_a_session(tmp_path):
    async with open_admin(tmp_path) as browser:
        for path in ("/", f"/devices/{'a' * 32}/revoke"):
            answer = await browser.get(path)
            assert (answer.status, answer.headers["location"], answer.body) == (303, "/login", b"")
        form = await browser.get("/login")
        assert form.status == 200
        assert b"PR500" not in form.body
        for path in ("/pair/approve", "/pair/refuse", "/devices/revoke", "/logout"):
            answer = await browser.post(path, {"csrf": "x"})
            assert (answer.status, answer.headers["location"]) == (303, "/login")


async def test_the_status_page_says_line_queue_devices_and_software_in_japanese_first(tmp_path):
    async with open_admin(tmp_path) as browser:
        await browser.rig.pair("書斎のNAS")
        assert (await browser.log_in()).status == 303
        answer = await browser.get()
        text = answer.body.decode()
        for expected in (
            "この回線は保管サービスの契約の回線ではありません",
            "line-not-contract",
            "書斎のNAS",
            "acme/meter",
            "4.0 KiB",
            "2023-11-15 07:13:20 JST",
            '<html lang="ja">',
            "PR500KI000001",
        ):
            assert expected in text
        assert "<script" not in text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


async def test_the_cookie_is_kept_from_scripts_and_other_sites(tmp_path):
    async with open_admin(tmp_path) as browser:
        cookie = (await browser.log_in()).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert len(cookie.partition("=")[2].partition(";")[0]) == 64


async def test_wrong_passwords_are_counted_and_then_not_even_looked_at(tmp_path):
    async with open_admin(tmp_path) as browser:
        for _ in range(admin_login.PEER_TRIES_MAX):
            assert (await browser.log_in("wrong password")).status == 403
        answer = await browser.log_in()
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) > 0
        browser.rig.clock.advance(admin_login.WINDOW_S)
        assert (await browser.log_in()).status == 303


@pytest.mark.parametrize(
    "host", ["attacker.example", "[::1]", "[::1]:1", "127.0.0.1", "gateway.lan.attacker.example"]
)
async def test_another_host_is_refused_so_dns_rebinding_gains_nothing(tmp_path, host):
    async with open_admin(tmp_path) as browser:
        request = Request("GET", "/login", {}, {"host": host}, Peer("::1", 1), None, None)
        assert (await browser.page(request)).status == 421


async def test_the_configured_name_and_localhost_are_ours(tmp_path):
    async with open_admin(tmp_path) as browser:
        port = browser.authority.rsplit(":", 1)[1]
        for host in (f"gateway.lan:{port}", f"LOCALHOST:{port}"):
            request = Request("GET", "/login", {}, {"host": host}, Peer("::1", 1), None, None)
            assert (await browser.page(request)).status == 200


async def test_a_peer_from_the_wan_side_gets_nothing(tmp_path):
    """CVE-2024-47044."""
    async with open_admin(tmp_path) as browser:
        request = Request(
            "GET", "/login", {}, {"host": browser.authority}, Peer("2001:db8::5", 1), None, None
        )
        answer = await browser.page(request)
        assert (answer.status, answer.close, answer.body) == (403, True, b"")


@pytest.mark.parametrize("origin", [None, "null", "http://attacker.example", "https://[::1]:1"])
async def test_a_form_of_another_page_is_refused(tmp_path, origin):
    async with open_admin(tmp_path) as browser:
        nas = await browser.rig.pair()
        await browser.log_in()
        csrf = await browser.csrf()
        for path in ("/devices/revoke", "/login"):
            answer = await browser.post(path, {"csrf": csrf, "device": nas.device}, origin=origin)
            assert answer.status == 403
        assert browser.rig.devices.is_live(nas.device)


async def test_a_form_without_the_sessions_own_token_changes_nothing(tmp_path):
    async with open_admin(tmp_path) as browser:
        nas = await browser.rig.pair()
        await browser.log_in()
        other = attrs.evolve(browser, cookie="")
        await other.log_in()
        for csrf in ("", "x", await other.csrf()):
            answer = await browser.post("/devices/revoke", {"csrf": csrf, "device": nas.device})
            assert answer.status == 403
        assert browser.rig.devices.is_live(nas.device)
        get = await browser.get(f"/devices/revoke?csrf={await browser.csrf()}&device={nas.device}")
        assert get.status in {404, 405}
        assert browser.rig.devices.is_live(nas.device)


async def test_a_nas_is_revoked_after_a_question(tmp_path):
    async with open_admin(tmp_path) as browser:
        nas = await browser.rig.pair("old NAS")
        await browser.log_in()
        question = await browser.get(f"/devices/{nas.device}/revoke")
        assert b"old NAS" in question.body
        answer = await browser.post("/devices/revoke", {"csrf": await browser.csrf(), "device": nas.device})
        assert (answer.status, answer.headers["location"]) == (303, "/")
        assert not browser.rig.devices.is_live(nas.device)
        assert (await browser.get(f"/devices/{nas.device}/revoke")).status == 404


async def test_a_pairing_is_approved_with_the_digits_that_were_shown(tmp_path):
    async with open_admin(tmp_path) as browser:
        await browser.log_in()
        pair = await start_pairing(browser.rig)
        digits = browser.rig.desk.waiting().digits
        assert f"{digits[:3]} {digits[3:]}" in (await browser.get()).body.decode()
        fields = {"csrf": await browser.csrf(), "pair": pair}
        assert (await browser.post("/pair/approve", {**fields, "digits": "000000x"})).status == 409
        assert (await browser.post("/pair/approve", {**fields, "digits": digits})).status == 303
        assert [device.name for device in await browser.rig.devices.list_all()] == ["NAS"]


async def test_a_pairing_is_refused(tmp_path):
    async with open_admin(tmp_path) as browser:
        await browser.log_in()
        pair = await start_pairing(browser.rig)
        assert (
            await browser.post("/pair/refuse", {"csrf": await browser.csrf(), "pair": pair})
        ).status == 303
        assert browser.rig.desk.waiting() is None
        assert await browser.rig.devices.list_all() == []


async def test_names_are_text_never_markup(tmp_path):
    async with open_admin(tmp_path) as browser:
        hostile = "<img src=x onerror=alert(1)>\"'&"
        nas = await browser.rig.pair(hostile)
        await browser.log_in()
        await start_pairing(browser.rig, hostile)
        for path in ("/", f"/devices/{nas.device}/revoke"):
            text = (await browser.get(path)).body.decode()
            assert "<img" not in text
            assert "&lt;img src=x" in text


async def test_log_out_and_idleness_end_the_session(tmp_path):
    async with open_admin(tmp_path) as browser:
        await browser.log_in()
        assert (await browser.post("/logout", {"csrf": await browser.csrf()})).status == 303
        assert (await browser.get()).status == 303
        await browser.log_in()
        browser.rig.clock.advance(901)
        assert (await browser.get()).status == 303


async def test_bodies_that_are_no_form_are_no_form(tmp_path):
    async with open_admin(tmp_path) as browser:
        await browser.log_in()
        csrf = await browser.csrf()
        big = await browser.post("/pair/refuse", {"csrf": csrf, "pair": "x" * 5000})
        assert big.status == 413
        many = await browser.send(
            "POST", "/pair/refuse", b"&".join([b"a=1"] * 20 + [b"csrf=" + csrf.encode()])
        )
        assert many.status == 403
        other = await browser.post("/pair/refuse", {"csrf": csrf}, **{"content-type": "text/plain"})
        assert other.status == 403
        assert (await browser.send("POST", "/pair/refuse", b"\xff\xfe")).status == 403
