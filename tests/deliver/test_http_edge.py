"""The listeners of `deliver serve`: gateways' requests and the static repositories (protocols.md §4)."""

from __future__ import annotations

import hmac
import json
import secrets

import msgspec
import pytest
import trio

from carrier.lines.tables import MAP_REFRESH_S
from runtime.clock import SystemClock
from runtime.http_client import HttpClient
from runtime.tls import client_context
from wire.errors import SignatureError
from wire.joint import GatewayEnrol, GatewayReport, SignedTime
from wire.signing import Context, generate_key, verify_blob
from wire.statement import Audience, Kind, make_statement


@pytest.fixture
def clock():
    return SystemClock()


def gateway_client(home, ready):
    ca = client_context(home.directory / "trust" / "tls-ca.pem")
    return HttpClient("::1", ready["gateway_port"], ca, server_name="joint.test")


def enrol_statement(key, kit, *, secret=None, serial=None, at_s=None, nonce=None):
    nonce = nonce or secrets.token_bytes(16)
    proof = hmac.digest(secret or kit.SECRET, key.public + nonce, "sha256")
    body = GatewayEnrol(serial=serial or kit.SERIAL.text, model="PR-500", maker="KI", proof=proof.hex())
    now_s = SystemClock().now_s() if at_s is None else at_s
    return make_statement(key, Kind.GATEWAY_ENROL, Audience.JOINT, now_s=now_s, nonce=nonce, body=body)


@pytest.fixture
def contracted(program, kit):
    kit.add_line(program)
    program.carrier.registry.add_gateway_contract(kit.CUSTOMER, kit.SERIAL, "PR-500", "KI", kit.SECRET)


async def test_a_gateway_enrols_polls_and_reports(home, program, contracted, kit):
    key = generate_key()
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        answer = await client.request("POST", "/joint/v1/enrol", body=enrol_statement(key, kit))
        assert answer.status == 201, answer.body
        enrolled = json.loads(answer.body)
        again = await client.request("POST", "/joint/v1/enrol", body=enrol_statement(key, kit))
        assert json.loads(again.body) == enrolled
        url = f"/director/{enrolled['director_path']}/director.json"
        first = await client.request("GET", url)
        assert json.loads(first.body)["signed"]["hgw"]["gateway"] == enrolled["gateway"]
        poll = await client.request("GET", url, headers={"if-none-match": first.headers["etag"]})
        assert (poll.status, poll.body) == (304, b"")
        report = GatewayReport(counter=1, director_version=1, bytes_down=0)
        blob = make_statement(
            key,
            Kind.GATEWAY_REPORT,
            Audience.JOINT,
            now_s=program.clock.now_s(),
            nonce=secrets.token_bytes(16),
            body=report,
        )
        assert (await client.request("POST", "/joint/v1/reports", body=blob)).status == 204
        replay = await client.request("POST", "/joint/v1/reports", body=blob)
        assert (replay.status, json.loads(replay.body)["code"]) == (403, "refused")


def other_secret(key, kit):
    return enrol_statement(key, kit, secret=b"another secret!!")


def other_serial(key, kit):
    return enrol_statement(key, kit, serial="PR500KI99999")


def odd_serial(key, kit):
    return enrol_statement(key, kit, serial="no serial")


def damaged(key, kit):
    blob = bytearray(enrol_statement(key, kit))
    blob[0] ^= 1
    return bytes(blob)


def report_instead(key, kit):
    body = GatewayReport(counter=1, director_version=1, bytes_down=0)
    now_s = SystemClock().now_s()
    return make_statement(key, Kind.GATEWAY_REPORT, Audience.JOINT, now_s=now_s, nonce=bytes(16), body=body)


async def test_every_bad_enrolment_gets_the_same_answer_and_binds_nothing(home, program, contracted, kit):
    answers = set()
    before = kit.dump(program)
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        for make in (other_secret, other_serial, odd_serial, damaged, report_instead):
            answer = await client.request("POST", "/joint/v1/enrol", body=make(generate_key(), kit))
            answers.add((answer.status, answer.body))
        for url in ("/joint/v1/enrol", "/joint/v1/reports"):
            answer = await client.request("POST", url, body=b"")
            answers.add((answer.status, answer.body))
    assert len(answers) == 1
    assert answers.pop()[0] == 403
    assert kit.dump(program)[0] == before[0]
    assert program.carrier.registry.list_gateways() == ()


async def test_a_statement_out_of_its_minute_is_answered_with_the_time(home, program, contracted, kit):
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        late = enrol_statement(generate_key(), kit, at_s=SystemClock().now_s() - 3600)
        answer = await client.request("POST", "/joint/v1/enrol", body=late)
        body = json.loads(answer.body)
        assert (answer.status, body["code"]) == (401, "clock")
        assert abs(body["server_time"] - SystemClock().now_s()) < 60


async def test_a_caller_without_a_line_is_refused_everywhere_but_for_public_files(home, program, kit):
    kit.add_line(program, prefix="2001:db8::/64")
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        enrol = await client.request("POST", "/joint/v1/enrol", body=enrol_statement(generate_key(), kit))
        time = await client.request("POST", "/joint/v1/time", body=bytes(32))
        assert (enrol.status, time.status) == (403, 403)
        assert (
            json.loads(enrol.body) == json.loads(time.body) == {"code": "refused", "message": "not allowed"}
        )
        forwarded = {"x-forwarded-for": "2001:db8::1", "forwarded": "for=[2001:db8::1]"}
        time = await client.request("POST", "/joint/v1/time", headers=forwarded, body=bytes(32))
        assert time.status == 403
        assert (await client.request("GET", "/image/metadata/timestamp.json")).status == 200


async def test_an_enrolled_gateway_learns_that_its_line_is_unknown_and_a_stranger_does_not(
    home, program, contracted, kit
):
    def report(key):
        return make_statement(
            key,
            Kind.GATEWAY_REPORT,
            Audience.JOINT,
            now_s=SystemClock().now_s(),
            nonce=secrets.token_bytes(16),
            body=GatewayReport(counter=1, director_version=1, bytes_down=0),
        )

    key, url = generate_key(), "/joint/v1/reports"
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        enrolled = await client.request("POST", "/joint/v1/enrol", body=enrol_statement(key, kit))
        assert enrolled.status == 201, enrolled.body
        stranger_here = await client.request("POST", url, body=report(generate_key()))
        program.carrier.registry.end_prefix(kit.CUSTOMER, kit.Prefix.parse("::/64"))
        await trio.sleep(2 * MAP_REFRESH_S)
        used = report(key)
        answer = await client.request("POST", url, body=used)
        assert (answer.status, json.loads(answer.body)["code"]) == (403, "line-unknown")
        before = kit.nonces(program)
        stranger = await client.request("POST", url, body=report(generate_key()))
        assert kit.nonces(program) == before, "a stranger without a line fills no table"
        replayed = await client.request("POST", url, body=used)
        assert stranger.body == replayed.body == stranger_here.body
        assert (stranger.status, json.loads(stranger.body)["code"]) == (403, "refused")


async def test_the_time_is_signed_for_the_nonce(home, program, kit):
    kit.add_line(program)
    key = kit.KeyStore(home.directory / "online").load("time")
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        nonce = secrets.token_bytes(32)
        answer = await client.request("POST", "/joint/v1/time", body=nonce)
        signed = msgspec.json.decode(verify_blob(answer.body, Context.TIME, key.public), type=SignedTime)
        assert signed.nonce == nonce.hex()
        assert abs(signed.time - SystemClock().now_s()) < 60
        with pytest.raises(SignatureError):
            verify_blob(answer.body, Context.STATEMENT, key.public)
        assert (await client.request("POST", "/joint/v1/time", body=nonce[:31])).status == 400


async def test_only_repository_names_are_served(home, program, acme, kit):
    package, _ = acme.publish()
    (home.image_dir / "targets" / "secret.txt").write_text("x")
    (home.image_dir / "metadata" / "1.link.json").symlink_to(home.directory / "online" / "director.key")
    folder, _, name = package.target_path.rpartition("/")
    good = f"/image/targets/{folder}/{package.sha256}.{name}"
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        whole = await client.request("GET", good)
        assert (whole.status, len(whole.body)) == (200, package.stored_bytes)
        part = await client.request("GET", good, headers={"range": "bytes=10-19"})
        assert (part.status, part.body) == (206, whole.body[10:20])
        known = await client.request("GET", good, headers={"if-none-match": whole.headers["etag"]})
        assert known.status == 304
        for path in (
            "/image/targets/secret.txt",
            f"/image/targets/{package.target_path}",
            "/image/metadata/1.link.json",
            "/image/metadata/.publish.lock",
            "/image/metadata/9.snapshot.json",
            "/image/targets/..%2f..%2fonline%2fdirector.key",
            "/director/1.root.json/x",
            "/director/" + "0" * 32 + "/director.json",
            "/operator/v1/quotes",
        ):
            assert (await client.request("GET", path)).status in {400, 404}, path
        root = await client.request("GET", "/director/1.root.json")
        assert root.body == (home.directory / "trust" / "director-root.json").read_bytes()


async def test_a_process_without_the_joint_role_serves_no_joint_path(home, program, kit):
    async with kit.serving(home, frozenset({"storage"})) as ready, gateway_client(home, ready) as client:
        assert "operator_port" not in ready
        assert (await client.request("POST", "/joint/v1/enrol", body=b"")).status == 404
        assert (await client.request("POST", "/storage/v1/sessions", body=b"")).status == 403


async def test_metrics_count_requests_by_kind_and_status(home, program, kit):
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        await client.request("POST", "/joint/v1/time", body=bytes(32))
        async with HttpClient("::1", ready["metrics_port"]) as metrics:
            text = (await metrics.request("GET", "/metrics")).body.decode()
    assert 'deliver_requests_total{kind="time",status="403"} 1.0' in text


async def test_offline_keys_are_not_needed_to_serve(home, program, kit):
    (home.directory / "offline").rename(home.directory.parent / "elsewhere")
    async with kit.serving(home) as ready, gateway_client(home, ready) as client:
        assert (await client.request("GET", "/image/metadata/timestamp.json")).status == 200
