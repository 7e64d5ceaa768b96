"""The LAN listener: strangers, tokens, revocation, what travels upstream, and pairing over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets

import attrs
import pytest
import trio
from relay_kit import CERTIFICATE_SHA256, KIB, FakeService, Nas, code_of, make_pack, open_rig, refusal

from hgwd.adapters.lan import LanFront
from hgwd.core.pairing import TRIES_MAX, WINDOW_S
from runtime.errors import Unavailable
from runtime.http import Peer, Request
from wire.pairing import pair_commitment, pair_digits
from wire.statement import Audience, Kind, from_header, open_statement
from wire.storage import GatewayRelay

SESSION = "a" * 32


async def test_hello_tells_the_product_and_nothing_else(tmp_path):
    async with open_rig(tmp_path) as rig:
        answer = await rig.client.request("GET", "/lan/v1/hello")
        assert (answer.status, json.loads(answer.body)) == (200, {"product": "hgwd", "v": 1})


async def test_strangers_get_one_answer_for_every_path_and_every_cause(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        revoked = await rig.pair("revoked")
        await rig.devices.revoke(revoked.device)
        await nas.open()
        asked = len(rig.service.asked)
        tokens = [
            None,
            "",
            "Bearer",
            "Bearer x",
            f"Basic {nas.token}",
            f"bearer {nas.token}",
            nas.token,
            f"Bearer {nas.token} x",
            f"Bearer {revoked.token}",
        ]
        requests = [
            ("GET", "/lan/v1/storage/v1/sessions"),
            ("POST", "/lan/v1/storage/v1/sessions"),
            ("PUT", f"/lan/v1/storage/v1/sessions/{nas.session}/packs/{'b' * 64}"),
            ("DELETE", f"/lan/v1/storage/v1/sessions/{nas.session}"),
            ("GET", "/"),
            ("GET", "/admin"),
            ("GET", "/lan/v1/devices"),
            ("POST", "/storage/v1/sessions"),
        ]
        answers = set()
        for method, path in requests:
            for token in tokens:
                headers = {"authorization": token} if token is not None else {}
                answer = await rig.client.request(method, path, headers=headers, body=b"x")
                shown = tuple(sorted((k, v) for k, v in answer.headers.items() if k != "date"))
                answers.add((answer.status, shown, answer.body))
        assert len(answers) == 1
        assert next(iter(answers))[0] == 403
        assert len(rig.service.asked) == asked


async def test_a_peer_that_is_not_on_the_lan_side_learns_not_even_hello(tmp_path):
    async with open_rig(tmp_path) as rig:
        front = LanFront(rig.devices, rig.desk, None, ())
        for host in ("2001:db8::5", "203.0.113.7", "::ffff:192.168.1.5"):
            request = Request("GET", "/lan/v1/hello", {}, {"host": "x"}, Peer(host, 1), None, None)
            answer = await front(request)
            assert (answer.status, answer.close) == (403, True)


async def test_tokens_are_hashed_at_rest(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await rig.database.run(lambda db: db.execute("PRAGMA user_version").fetchone())
    data = b"".join(path.read_bytes() for path in tmp_path.glob("relay.sqlite*"))
    assert nas.token.encode() not in data
    assert bytes.fromhex(nas.token) not in data
    assert hashlib.sha256(nas.token.encode()).digest() in data


async def test_pairing_the_same_device_key_again_kills_the_older_token(tmp_path):
    async with open_rig(tmp_path) as rig:
        key = secrets.token_bytes(32)
        await rig.devices.add(name="nas", device_key=key, token="old")
        await rig.devices.add(name="nas", device_key=key, token="new")
        assert rig.devices.authenticate("old") is None
        assert rig.devices.authenticate("new") is not None


async def test_a_revoked_device_is_cut_off_in_the_middle_of_a_body(tmp_path):
    """AZK-73: revocation reaches open sockets."""
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, data = make_pack(900 * KIB)
        async with await trio.open_tcp_stream("::1", rig.port) as stream:
            head = (
                f"PUT /lan/v1/storage/v1/sessions/{nas.session}/packs/{pack} HTTP/1.1\r\nhost: x\r\n"
                f"authorization: Bearer {nas.token}\r\ncontent-length: {len(data)}\r\n\r\n"
            )
            await stream.send_all(head.encode() + data[: 200 * KIB])
            with trio.fail_after(5):
                while "write" not in rig.files.calls:
                    await trio.sleep(0.01)
                await rig.devices.revoke(nas.device)
                await stream.send_all(data[200 * KIB : 500 * KIB])  # and no more: the rest is not waited for
                answer = await stream.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert (await rig.spool.totals()).spooled_packs == 0
        assert (await nas.state(pack)).status == 403


async def test_what_a_revoked_device_left_here_is_still_stored(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack = make_pack()
        await nas.put(*pack)
        await rig.devices.revoke(nas.device)
        rig.forward()
        await rig.settled()
        assert pack[0] in rig.service.packs


async def test_a_session_serves_only_the_device_that_opened_it(tmp_path):
    async with open_rig(tmp_path) as rig:
        owner, other = await rig.pair("owner"), await rig.pair("other")
        await owner.open()
        other.session = owner.session
        pack = make_pack()
        before = len(rig.service.asked)
        for answer in (
            await other.put(*pack),
            await other.state(pack[0]),
            await other.commit(),
            await other.ask("GET", f"/sessions/{owner.session}/generations"),
            await other.ask("DELETE", f"/sessions/{owner.session}"),
        ):
            assert (answer.status, code_of(answer)) == (403, "refused")
        assert len(rig.service.asked) == before


async def test_a_pack_needs_a_session_that_was_opened_here(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        nas.session = SESSION
        answer = await nas.put(*make_pack())
        assert (answer.status, code_of(answer)) == (410, "session-over")


async def test_sessions_and_devices_carry_the_gateways_statement_and_no_spoofed_header(tmp_path):
    """X-03, X-04: what the NAS writes about lines and gateways stops here."""
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        for path in ("/sessions", "/devices"):
            rig.service.answers["POST", "/storage/v1/devices"] = refusal(403, "refused")
            await nas.ask(
                "POST",
                path,
                b"statement of the NAS",
                hgw_gateway="forged",
                x_forwarded_for="2001:db8::1",
                forwarded="for=2001:db8::1",
                x_real_ip="2001:db8::1",
            )
            method, upstream_path, headers, body = rig.service.asked[-1]
            assert (method, upstream_path, body) == ("POST", f"/storage/v1{path}", b"statement of the NAS")
            assert set(headers) == {"hgw-gateway"}
            statement = open_statement(
                from_header(headers["hgw-gateway"]),
                kind=Kind.GATEWAY_RELAY,
                audience=Audience.STORAGE,
                now_s=rig.clock.now_s(),
                body_type=GatewayRelay,
            )
            assert statement.body == GatewayRelay(
                method="POST", path=f"/storage/v1{path}", body_sha256=hashlib.sha256(body).hexdigest()
            )


async def test_statements_of_the_gateway_never_repeat(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        await nas.open()
        first, second = [request[2]["hgw-gateway"] for request in rig.service.asked]
        assert first != second


async def test_other_control_requests_pass_as_they_are(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        path = f"/storage/v1/sessions/{nas.session}/have"
        rig.service.answers["POST", path] = attrs.evolve(refusal(409, "stale-epoch"))
        answer = await nas.ask("POST", f"/sessions/{nas.session}/have", b"\1" * 64, hgw_session="token")
        assert (answer.status, code_of(answer)) == (409, "stale-epoch")
        assert rig.service.asked[-1] == ("POST", path, {"hgw-session": "token"}, b"\1" * 64)


async def test_requests_outside_the_protocol_do_not_pass(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        for method, path in (
            ("GET", "/sessions"),
            ("POST", "/admin"),
            ("DELETE", f"/sessions/{SESSION}/packs/{'b' * 64}"),
        ):
            answer = await nas.ask(method, path)
            assert (answer.status, code_of(answer)) == (404, "not-found")
        big = await nas.ask("POST", f"/sessions/{SESSION}/have", b"x" * (4096 * 32 + 1))
        assert (big.status, code_of(big)) == (413, "too-large")
        assert rig.service.asked == []


async def test_a_cut_line_is_said_as_line_down_with_a_time_to_come_back(tmp_path):
    async with open_rig(tmp_path, service=FakeService(down=True)) as rig:
        nas = await rig.pair()
        for request in (
            ("POST", "/sessions", b"statement"),
            ("GET", f"/sessions/{SESSION}/packs/{'b' * 64}"),
        ):
            answer = await nas.ask(*request)
            assert (answer.status, code_of(answer)) == (503, "line-down")
            assert int(answer.headers["retry-after"]) > 0


async def test_the_time_to_come_back_follows_the_age_of_the_outage(tmp_path):
    """A line that blinked for a second must not make a NAS sleep for half a minute."""
    async with open_rig(tmp_path, service=FakeService(down=True)) as rig:
        nas = await rig.pair()

        async def told(after_s=0.0):
            rig.clock.advance(after_s)
            answer = await nas.ask("POST", "/sessions", b"statement")
            return int(answer.headers.get("retry-after", 0))

        assert [await told(), await told(1), await told(1), await told(2), await told(4)] == [1, 1, 2, 4, 8]
        assert [await told(8), await told(15), await told(20)] == [15, 15, 15]
        rig.service.down = False
        assert await told(15) == 0
        rig.service.down = True
        assert await told(1) == 1
        assert await told(3600) == 1, "nobody asked for an hour: this is another outage as far as we know"


async def test_states_of_spool_and_service_are_merged_in_order(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        here, there, nowhere = make_pack(), make_pack(), make_pack()
        rig.service.packs[there[0]] = there[1]
        await nas.put(*here)
        answer = await nas.state(there[0], here[0], nowhere[0], there[0])
        assert answer.body == bytes([2, 1, 0, 2])
        asked = rig.service.asked[-1][3]
        assert asked == bytes.fromhex(there[0] + nowhere[0] + there[0])
        answer = await nas.ask("POST", f"/sessions/{nas.session}/state", b"odd")
        assert (answer.status, code_of(answer)) == (400, "bad-request")


async def test_packs_are_read_through_the_gateway_in_pieces_with_their_range(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        pack, data = make_pack(900 * KIB)
        rig.service.packs[pack] = data
        answer = await nas.ask("GET", f"/sessions/{SESSION}/packs/{pack}", range="bytes=0-")
        assert answer.body == data
        assert rig.service.asked[-1][2]["range"] == "bytes=0-"


async def test_a_refused_read_passes_whole(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        path = f"/storage/v1/sessions/{SESSION}/packs/{'b' * 64}"
        rig.service.answers["GET", path] = refusal(403, "refused")
        answer = await nas.ask("GET", f"/sessions/{SESSION}/packs/{'b' * 64}")
        assert (answer.status, code_of(answer)) == (403, "refused")


async def test_a_fault_at_the_very_end_of_a_read_leaves_the_relay_alive(tmp_path):
    class LateService(FakeService):
        @contextlib.asynccontextmanager
        async def ask(self, method, path, **options):
            async with FakeService.ask(self, method, path, **options) as answer:
                yield answer
            if "/packs/" in path:
                raise Unavailable("the connection broke after the last byte")

    async with open_rig(tmp_path, service=LateService()) as rig:
        nas = await rig.pair()
        pack, data = make_pack()
        rig.service.packs[pack] = data
        assert (await nas.ask("GET", f"/sessions/{SESSION}/packs/{pack}")).body == data
        await nas.open()
        assert (await nas.put(*make_pack())).status == 202


async def test_a_read_that_breaks_off_upstream_breaks_off_on_the_lan(tmp_path):
    class CutService(FakeService):
        def answer(self, method, path, data):
            whole = FakeService.answer(self, method, path, data)
            return CutAnswer(whole.status, whole.headers, whole.body) if "/packs/" in path else whole

    class CutAnswer:
        def __init__(self, status, headers, body):
            self.status, self.headers, self.body = status, headers, body

        async def chunks(self):
            yield self.body[: 100 * KIB]
            raise Unavailable("cut")

    async with open_rig(tmp_path, service=CutService()) as rig:
        nas = await rig.pair()
        pack, data = make_pack(900 * KIB)
        rig.service.packs[pack] = data
        with pytest.raises(Unavailable):
            await nas.ask("GET", f"/sessions/{SESSION}/packs/{pack}")


async def test_revocation_ends_a_read_under_way(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        pack, data = make_pack(32 << 20)
        rig.service.packs[pack] = data
        headers = {"authorization": f"Bearer {nas.token}"}
        path = f"/lan/v1/storage/v1/sessions/{SESSION}/packs/{pack}"
        read_bytes = 0
        with pytest.raises(Unavailable):
            async with rig.client.stream("GET", path, headers=headers, max_response_bytes=64 << 20) as answer:
                async for chunk in answer.chunks():
                    if not read_bytes:
                        await rig.devices.revoke(nas.device)
                    read_bytes += len(chunk)
        assert read_bytes < len(data)


async def test_refusals_are_counted_by_cause(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        await nas.put("b" * 64, b"x")
        await nas.ask("GET", "/other")
        await attrs.evolve(nas, token="x").ask("GET", "/other")
        assert rig.refusals == ["bad-hash", "not-found", "refused"]


@attrs.define
class PairingNas:
    """The NAS side of a pairing."""

    rig: object
    key: bytes = attrs.field(factory=lambda: secrets.token_bytes(32))
    nonce: bytes = attrs.field(factory=lambda: secrets.token_bytes(32))
    pair: str = ""
    nonce_g: bytes = b""

    async def begin(self, name="nas", **changes):
        body = {"v": 1, "name": name, "commitment": pair_commitment(self.key, self.nonce).hex(), **changes}
        answer = await self.rig.client.request("POST", "/lan/v1/pair", body=json.dumps(body).encode())
        if answer.status == 201:
            shown = json.loads(answer.body)
            self.pair, self.nonce_g = shown["pair"], bytes.fromhex(shown["nonce_g"])
        return answer

    async def reveal(self, key=None):
        body = {"device_key": (key or self.key).hex(), "nonce_n": self.nonce.hex()}
        return await self.rig.client.request(
            "POST", f"/lan/v1/pair/{self.pair}/reveal", body=json.dumps(body).encode()
        )

    async def poll(self):
        return await self.rig.client.request("GET", f"/lan/v1/pair/{self.pair}")

    def digits(self, certificate=CERTIFICATE_SHA256):
        return pair_digits(certificate, self.key, self.nonce_g, self.nonce)


async def test_pairing_ends_with_a_token_that_works(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = PairingNas(rig)
        assert (await nas.begin("書斎のNAS")).status == 201
        assert rig.desk.waiting() is None
        assert (await nas.reveal()).status == 200
        assert (await nas.poll()).status == 202
        waiting = rig.desk.waiting()
        assert (waiting.digits, waiting.name) == (nas.digits(), "書斎のNAS")
        device = await rig.desk.approve(waiting.pair, waiting.digits)
        answer = await nas.poll()
        assert answer.status == 200
        paired = Nas(rig, device, json.loads(answer.body)["lan_token"])
        assert await paired.open()
        assert rig.devices.authenticate(paired.token).device_key == nas.key


async def test_a_man_in_the_middle_shows_other_digits(tmp_path):
    async with open_rig(tmp_path) as rig:
        middle = PairingNas(rig)  # the attacker pairs with the gateway under his own key …
        await middle.begin()
        await middle.reveal()
        victim = PairingNas(rig)  # … and plays the gateway, with his certificate, towards the NAS
        victim.nonce_g = middle.nonce_g
        assert rig.desk.waiting().digits != victim.digits(certificate=hashlib.sha256(b"attacker").digest())
        assert await rig.desk.approve(middle.pair, victim.digits()) is None
        assert rig.desk.refuse(middle.pair)
        assert (await middle.poll()).status == 403
        assert await rig.devices.list_all() == []


async def test_pairing_refusals_over_http(tmp_path):
    async with open_rig(tmp_path) as rig:
        for changes, status in (
            ({"v": 2}, 426),
            ({"commitment": "00"}, 400),
            ({"name": ""}, 400),
            ({"name": "x" * 65}, 400),
            ({"name": "a\u202eb"}, 400),
            ({"extra": 1}, 400),
        ):
            assert (await PairingNas(rig).begin(**changes)).status == status
        first, second = PairingNas(rig), PairingNas(rig)
        await first.begin()
        busy = await second.begin()
        assert (busy.status, code_of(busy)) == (409, "conflict")
        assert (await first.reveal(key=b"x" * 32)).status == 403
        assert (await first.poll()).status == 403
        for _ in range(TRIES_MAX - 1):
            await second.begin()
            await second.reveal(key=b"x" * 32)
        late = await PairingNas(rig).begin()
        assert (late.status, code_of(late)) == (429, "too-many-tries")
        assert 0 < int(late.headers["retry-after"]) <= WINDOW_S
        stranger = PairingNas(rig, pair="0" * 32)
        assert (await stranger.poll()).status == 404


async def test_five_minutes_end_a_pairing_over_http(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = PairingNas(rig)
        await nas.begin()
        await nas.reveal()
        rig.clock.advance(WINDOW_S)
        answer = await nas.poll()
        assert (answer.status, code_of(answer)) == (410, "session-over")
        assert await rig.desk.approve(nas.pair, nas.digits()) is None
