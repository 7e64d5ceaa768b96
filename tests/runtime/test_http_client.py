"""The HTTP client against our server and against servers that misbehave."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtime import tls
from runtime.client_types import ClientLimits
from runtime.errors import (
    CertificateRefusedError,
    LocalError,
    PinMismatchError,
    RemoteError,
    Unavailable,
)
from runtime.http import FileBody, HttpLimits, Response, Router, error_response, json_response
from runtime.http_client import HttpClient


@contextlib.asynccontextmanager
async def raw_server(answer):
    """Listens on [::1] and runs `answer(stream)` per connection; yields (port, list of streams)."""
    accepted: list[trio.SocketStream] = []

    async def handle(stream):
        accepted.append(stream)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await answer(stream)

    listeners = await trio.open_tcp_listeners(0, host="::1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1], accepted
        nursery.cancel_scope.cancel()


def says(*pieces: bytes, pause_s: float = 0.0, stay: bool = False):
    """A server that reads a header, sends `pieces`, then closes or stays silent."""

    async def answer(stream):
        received = b""
        while b"\r\n\r\n" not in received:
            part = await stream.receive_some(65536)
            if not part:
                return
            received += part
        for piece in pieces:
            await stream.send_all(piece)
            await trio.sleep(pause_s)
        if stay:
            await trio.sleep_forever()

    return answer


@pytest.fixture
def store_router():
    router = Router()
    seen: list[str] = []

    async def put(request):
        seen.append(request.path)
        content = await request.body.read(64 << 20)
        return Response(200, (), content)

    async def full(request):
        seen.append(request.path)
        return error_response(507, "quota-full", "no room for the pack")

    async def get(request):
        return json_response(200, {"port": request.peer.port, "host": request.host})

    router.route("PUT", "/put", put)
    router.route("POST", "/put", put)
    router.route("PUT", "/full", full)
    router.route("GET", "/", get)
    router.seen = seen
    return router


async def test_connection_is_kept_between_requests(running, store_router):
    async with running(store_router) as server, HttpClient("::1", server.port) as client:
        answers = [(await client.request("GET", "/")).body for _ in range(3)]
    assert len(set(answers)) == 1
    assert b'"host":"[::1]:%d"' % server.port in answers[0]


async def test_bodies_of_every_kind_arrive_byte_equal(running, store_router, tmp_path):
    content = bytes(range(256)) * 5000
    path = tmp_path / "content"
    path.write_bytes(b"head" + content + b"tail")

    async def pieces():
        for start in range(0, len(content), 7000):
            yield content[start : start + 7000]

    async with running(store_router) as server, HttpClient("::1", server.port) as client:
        limit = {"max_response_bytes": 2 << 20}
        assert (await client.request("PUT", "/put", body=content, **limit)).body == content
        assert (
            await client.request("PUT", "/put", body=FileBody(path, 4, len(content)), **limit)
        ).body == content
        given = await client.request("PUT", "/put", body=pieces(), content_length=len(content), **limit)
        assert given.body == content
        assert (await client.request("PUT", "/put", body=pieces(), **limit)).body == content
        assert (await client.request("POST", "/put")).body == b""


async def test_refused_upload_sends_no_byte_of_the_body(running, store_router):
    taken = []

    async def pieces():
        taken.append(True)
        yield b"x" * 1000

    async with running(store_router) as server, HttpClient("::1", server.port) as client:
        answer = await client.request("PUT", "/full", body=pieces(), content_length=1 << 20)
    assert answer.status == 507
    assert taken == []


@pytest.mark.parametrize("path", ["/full", "/put", "/none"])
async def test_iterator_body_is_closed_whatever_happens(path, running, store_router):
    closed = []

    async def pieces():
        try:
            for _ in range(5):
                yield b"x" * 100_000
        finally:
            closed.append(True)

    body = pieces()
    await body.__anext__()
    async with running(store_router) as server, HttpClient("::1", server.port) as client:
        with contextlib.suppress(Unavailable, LocalError):
            await client.request("PUT", path, body=body, content_length=400_000)
    assert closed == [True]


async def test_body_is_sent_when_the_server_never_says_continue():
    async def answer(stream):
        received = b""
        while not received.endswith(b"x" * 1000):
            received += await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    limits = ClientLimits(continue_s=0.1, expect_above_bytes=10)
    async with raw_server(answer) as (port, _), HttpClient("::1", port, timeouts=limits) as client:
        assert (await client.request("PUT", "/", body=b"x" * 1000)).status == 204


async def test_answer_in_the_middle_of_the_upload_is_returned():
    early = b"HTTP/1.1 507 x\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfull"
    async with raw_server(says(b"HTTP/1.1 100 Continue\r\n\r\n", early)) as (port, _):
        async with HttpClient("::1", port) as client:
            try:
                answer = await client.request("PUT", "/", body=b"x" * (32 << 20))
            except Unavailable:
                return  # the reset overtook the answer: lawful, and a retry finds out
    assert (answer.status, answer.body) == (507, b"full")


async def test_kept_connection_that_died_is_replaced(running, store_router):
    limits = HttpLimits(idle_s=0.05)
    async with running(store_router, limits=limits) as server, HttpClient("::1", server.port) as client:
        await client.request("POST", "/put", body=b"1")
        await trio.sleep(0.2)
        assert (await client.request("POST", "/put", body=b"2")).body == b"2"


async def test_repeatable_request_is_sent_once_more_when_the_kept_connection_breaks_unanswered():
    calls = []

    async def answer(stream):
        while part := await stream.receive_some(65536):
            calls.append(part)
            if len(calls) == 2:
                return
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_server(answer) as (port, _), HttpClient("::1", port) as client:
        assert (await client.request("GET", "/a")).status == 204
        assert (await client.request("GET", "/b")).status == 204
        assert len(calls) == 3
        assert calls[1] == calls[2]


async def test_post_is_never_sent_twice():
    calls = []

    async def answer(stream):
        while part := await stream.receive_some(65536):
            calls.append(part)
            if len(calls) == 2:
                return
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_server(answer) as (port, _), HttpClient("::1", port) as client:
        await client.request("POST", "/a", body=b"1")
        with pytest.raises(Unavailable):
            await client.request("POST", "/b", body=b"2")
    assert len(calls) == 2


BROKEN = {
    "no answer at all": ([], Unavailable),
    "half a header": ([b"HTTP/1.1 200 OK\r\nconte"], Unavailable),
    "half a body": ([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"], Unavailable),
    "half a chunked body": ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"], Unavailable),
    "only a continue": ([b"HTTP/1.1 100 Continue\r\n\r\n"], Unavailable),
    "not HTTP": ([b"SSH-2.0-OpenSSH\r\n\r\n"], RemoteError),
    "no declared length": ([b"HTTP/1.1 200 OK\r\n\r\nhello"], RemoteError),
    "two lengths": ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nhe"], RemoteError),
    "endless header": ([b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 9000], RemoteError),
    "declared too large": ([b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n"], RemoteError),
    "too large unannounced": (
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *[b"100\r\n" + b"x" * 256 + b"\r\n"] * 8],
        RemoteError,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answer_is_an_error_of_the_right_kind(name):
    pieces, kind = BROKEN[name]
    async with raw_server(says(*pieces)) as (port, _), HttpClient("::1", port) as client:
        with pytest.raises(kind):
            await client.request("GET", "/", max_response_bytes=1000)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"HTTP/1.1 200 OK\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n"],
    ],
)
async def test_silent_server_is_given_up(pieces):
    limits = ClientLimits(head_s=0.2, rate_grace_s=0.2)
    async with (
        raw_server(says(*pieces, stay=True)) as (port, _),
        HttpClient("::1", port, timeouts=limits) as client,
    ):
        with trio.fail_after(3), pytest.raises(Unavailable):
            await client.request("GET", "/")


async def test_one_byte_at_a_time_is_given_up_though_each_comes_in_time():
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n"
    limits = ClientLimits(rate_grace_s=0.3, rate_bytes_per_s=1000)
    server = raw_server(says(head, *[b"x"] * 500, pause_s=0.05))
    async with server as (port, _), HttpClient("::1", port, timeouts=limits) as client:
        with trio.fail_after(3), pytest.raises(Unavailable, match="below 1000 bytes per second"):
            await client.request("GET", "/")


async def test_total_time_ends_an_answer_that_is_fast_enough_but_endless():
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    limits = ClientLimits(total_s=0.3)
    server = raw_server(says(head, *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 1000, pause_s=0.01))
    async with server as (port, _), HttpClient("::1", port, timeouts=limits) as client:
        with trio.fail_after(3), pytest.raises(Unavailable, match=r"within 0\.3 s"):
            await client.request("GET", "/", max_response_bytes=1 << 30)


async def test_server_that_takes_nothing_of_an_upload_is_given_up():
    limits = ClientLimits(rate_grace_s=0.2, continue_s=0.05)
    async with raw_server(says(stay=True)) as (port, _), HttpClient("::1", port, timeouts=limits) as client:
        with trio.fail_after(5), pytest.raises(Unavailable):
            await client.request("PUT", "/", body=b"x" * (64 << 20))


async def test_one_task_may_run_a_request_inside_another(running, store_router):
    async with running(store_router) as server, HttpClient("::1", server.port) as client:
        async with client.stream("GET", "/") as outer:
            inner = await client.request("GET", "/")
            chunks = [chunk async for chunk in outer.chunks()]
    assert b"".join(chunks) != inner.body, "two connections have two ports"


async def test_connections_are_limited_and_waiters_served(running):
    running_now, most = 0, 0

    async def handler(_request):
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await trio.sleep(0.01)
        running_now -= 1
        return Response(204)

    limits = ClientLimits(connections_max=3)
    async with running(handler) as server, HttpClient("::1", server.port, timeouts=limits) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(client.request, "GET", "/")
    assert most == 3


async def test_nobody_listening_is_unavailable(running, store_router):
    async with running(store_router) as server:
        port = server.port
    with pytest.raises(Unavailable, match="cannot connect"):
        await HttpClient("::1", port).request("GET", "/")


async def test_source_address_is_used(running):
    async def who(request):
        return json_response(200, request.peer.host)

    async with running(who) as server:
        async with HttpClient("::1", server.port, source_address="::1") as client:
            assert (await client.request("GET", "/")).body == b'"::1"'
        wrong = HttpClient("::1", server.port, source_address="2001:db8::1")
        with pytest.raises(Unavailable):
            await wrong.request("GET", "/")


def test_malformed_request_is_our_own_fault():
    async def main():
        async with raw_server(says()) as (port, _):
            async with HttpClient("::1", port) as client:
                with pytest.raises(LocalError):
                    await client.request("GET", "/a b")
                with pytest.raises(LocalError):
                    await client.request("GET", "/回線")
                with pytest.raises(LocalError):
                    await client.request("GET", "/", headers={"x": "a\r\nb: c"})

    trio.run(main)


# TLS


@pytest.fixture
def secure(running, store_router, certificate):
    return running(store_router, context=tls.server_context(certificate.cert, certificate.key))


async def test_pinned_peer_is_accepted_and_sessions_are_resumed(secure, certificate):
    async with secure as server:
        client = HttpClient("::1", server.port, tls.client_context(), pin_sha256=certificate.sha256.upper())
        async with client:
            assert (await client.request("GET", "/")).status == 200
            assert client._idle[0].stream.session_reused is False
            await client.aclose()
            assert (await client.request("GET", "/")).status == 200
            assert client._idle[0].stream.session_reused is True


async def test_pin_mismatch_sends_no_application_byte(certificate):
    """The server's side of the handshake is finished by hand; what the client sent in it must be nothing."""
    context = tls.server_context(certificate.cert, certificate.key)
    plaintext = []

    async def answer(stream):
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await secured.do_handshake()
        with contextlib.suppress(trio.BrokenResourceError):
            plaintext.append(await secured.receive_some(1000))

    async with raw_server(answer) as (port, accepted):
        client = HttpClient("::1", port, tls.client_context(), pin_sha256="0" * 64)
        with pytest.raises(PinMismatchError, match=certificate.sha256):
            await client.request("PUT", "/secret", body=b"secret")
        await trio.sleep(0.05)
    assert len(accepted) == 1
    assert plaintext in ([], [b""])


async def test_authority_is_checked_by_name_and_by_signature(secure, certificate, tmp_path):
    tls.make_self_signed(tmp_path / "other.pem", tmp_path / "other.key", ["localhost"])
    async with secure as server:
        good = tls.client_context(certificate.cert)
        async with HttpClient("::1", server.port, good) as client:
            assert (await client.request("GET", "/")).status == 200
        async with HttpClient("::1", server.port, good, server_name="localhost") as client:
            assert b'"host":"localhost:' in (await client.request("GET", "/")).body
        for context, name in (
            (good, "evil.example"),
            (tls.client_context(tmp_path / "other.pem"), "localhost"),
        ):
            client = HttpClient("::1", server.port, context, server_name=name)
            with pytest.raises(CertificateRefusedError) as caught:
                await client.request("GET", "/")
            assert not caught.value.dates_only


async def test_expired_certificate_is_told_from_every_other_fault(running, store_router, tmp_path):
    """Design §5.6: only a fault of dates may open the way to the time endpoint, which ignores dates."""
    _make_expired(tmp_path)
    context = tls.server_context(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with running(store_router, context=context) as server:
        client = HttpClient(
            "::1", server.port, tls.client_context(tmp_path / "cert.pem"), server_name="localhost"
        )
        with pytest.raises(CertificateRefusedError) as caught:
            await client.request("GET", "/")
        assert caught.value.dates_only
        lenient = tls.client_context(tmp_path / "cert.pem", ignore_dates=True)
        async with HttpClient("::1", server.port, lenient, server_name="localhost") as client:
            assert (await client.request("GET", "/")).status == 200
        wrong_name = HttpClient("::1", server.port, lenient, server_name="evil.example")
        with pytest.raises(CertificateRefusedError) as caught:
            await wrong_name.request("GET", "/")
        assert not caught.value.dates_only


def _make_expired(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2021, 1, 1, tzinfo=dt.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


async def test_plain_server_behind_a_tls_client_is_an_error_of_the_peer(running, store_router, certificate):
    async with running(store_router) as server:
        client = HttpClient("::1", server.port, tls.client_context(certificate.cert))
        with pytest.raises((RemoteError, Unavailable)):
            await client.request("GET", "/")


@pytest.mark.parametrize("pin", [None, "", "12", "g" * 64])
def test_context_that_checks_nothing_demands_a_proper_pin(pin):
    with pytest.raises(LocalError):
        HttpClient("::1", 443, tls.client_context(), pin_sha256=pin)


async def test_old_tls_versions_are_refused(secure, certificate):
    old = tls.client_context(certificate.cert)
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with secure as server:
        with pytest.raises((RemoteError, Unavailable)):
            await HttpClient("::1", server.port, old).request("GET", "/")


async def test_server_offers_no_early_data(secure, certificate):
    """Design §5, L2: nothing is decided on a first flight that can be replayed."""
    async with secure as server:
        command = [
            "openssl",
            "s_client",
            "-connect",
            f"[::1]:{server.port}",
            "-CAfile",
            str(certificate.cert),
        ]
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        done = await trio.run_process(
            [*command, "-ign_eof"], stdin=request, capture_stdout=True, capture_stderr=True
        )
    assert b"Max Early Data: 0" in done.stdout
    assert b"HTTP/1.1 200" in done.stdout
