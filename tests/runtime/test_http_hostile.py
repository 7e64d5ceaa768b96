"""Hostile requests as raw bytes on a real socket: each is refused with the right status and the connection ends."""

from __future__ import annotations

import pytest

HOST = b"Host: gw.home\r\n"


def head(line: bytes = b"GET / HTTP/1.1", headers: bytes = HOST) -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def put(headers: bytes, body: bytes = b"", path: bytes = b"/echo") -> bytes:
    return head(b"PUT " + path + b" HTTP/1.1", HOST + headers) + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"
SECOND = head(b"GET /page HTTP/1.1")

REFUSED = {
    "length and chunked together": (put(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + SECOND), 400),
    "chunked and length together": (put(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + SECOND), 400),
    "two lengths": (put(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"), 400),
    "two equal lengths": (put(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400),
    "length as a list": (put(b"Content-Length: 5, 5\r\n", b"hello"), 400),
    "length with a sign": (put(b"Content-Length: +5\r\n", b"hello"), 400),
    "negative length": (put(b"Content-Length: -5\r\n", b"hello"), 400),
    "hexadecimal length": (put(b"Content-Length: 0x5\r\n", b"hello"), 400),
    "empty length": (put(b"Content-Length:\r\n", b"hello"), 400),
    "length of 19 digits": (put(b"Content-Length: 1000000000000000000\r\n"), 400),
    "length over the limit": (put(b"Content-Length: 99999999999\r\n"), 413),
    "length over the server's limit, never read": (
        put(b"Content-Length: 99999999999\r\n", path=b"/deaf"),
        413,
    ),
    "two codings": (put(CHUNKED + CHUNKED, b"0\r\n\r\n"), 400),
    "coding list": (put(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "chunked twice in a list": (put(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 501),
    "unknown coding": (put(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 501),
    "identity coding": (put(b"Transfer-Encoding: identity\r\n", b"hello"), 501),
    "chunk size is no number": (put(CHUNKED, b"zz\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size with a sign": (put(CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk longer than its size": (put(CHUNKED, b"5\r\nhelloX\r\n0\r\n\r\n"), 400),
    "chunk line ended by LF": (put(CHUNKED, b"5\nhello\r\n0\r\n\r\n" + b" " * 20000), 400),
    "endless chunk line": (put(CHUNKED, b"5;" + b"x" * 20000), 400),
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: gw.home\n\n", 400),
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: gw.home\r\n\r\n", 400),
    "bare LF inside the headers": (head(headers=HOST + b"A: b\nC: d\r\n"), 400),
    "bare CR inside a value": (head(headers=HOST + b"A: b\rC: d\r\n"), 400),
    "folded header": (head(headers=HOST + b"A: b\r\n c\r\n"), 400),
    "header folded by a tab": (head(headers=HOST + b"A: b\r\n\tc\r\n"), 400),
    "folding in the first header": (head(headers=b" A: b\r\n" + HOST), 400),
    "space before the colon": (head(headers=b"Host : gw.home\r\n"), 400),
    "length with a space before the colon": (put(b"Content-Length : 5\r\n", b"hello"), 400),
    "header without a colon": (head(headers=HOST + b"nonsense\r\n"), 400),
    "header without a name": (head(headers=HOST + b": x\r\n"), 400),
    "blank line in front": (b"\r\n" + head(), 400),
    "two hosts": (head(headers=HOST + HOST), 400),
    "two different hosts": (head(headers=HOST + b"Host: evil\r\n"), 400),
    "no host": (head(headers=b"A: b\r\n"), 400),
    "empty host": (head(headers=b"Host:\r\n"), 400),
    "host with user": (head(headers=b"Host: a@b\r\n"), 400),
    "host with path": (head(headers=b"Host: a/b\r\n"), 400),
    "host with a list": (head(headers=b"Host: a, b\r\n"), 400),
    "non-ASCII in the path": (head("GET /ö HTTP/1.1".encode()), 400),
    "non-ASCII in a value": (head(headers=HOST + "A: ö\r\n".encode()), 400),
    "NUL in a value": (head(headers=HOST + b"A: \x00\r\n"), 400),
    "encoded NUL in the path": (head(b"GET /page/%00 HTTP/1.1"), 400),
    "encoded line end in the path": (head(b"GET /page/%0d%0a HTTP/1.1"), 400),
    "encoded slash": (head(b"GET /page%2fx HTTP/1.1"), 400),
    "encoded slash in capitals": (head(b"GET /page%2Fx HTTP/1.1"), 400),
    "encoded backslash": (head(b"GET /page%5cx HTTP/1.1"), 400),
    "backslash": (head(b"GET /page\\x HTTP/1.1"), 400),
    "dot segment": (head(b"GET /page/./x HTTP/1.1"), 400),
    "dot at the end": (head(b"GET /page/. HTTP/1.1"), 400),
    "parent segment": (head(b"GET /page/../x HTTP/1.1"), 400),
    "encoded parent segment": (head(b"GET /page/%2e%2E/x HTTP/1.1"), 400),
    "half encoded parent segment": (head(b"GET /page/.%2e HTTP/1.1"), 400),
    "double slash": (head(b"GET //page HTTP/1.1"), 400),
    "double slash inside": (head(b"GET /page//x HTTP/1.1"), 400),
    "fragment": (head(b"GET /page#x HTTP/1.1"), 400),
    "fragment after the query": (head(b"GET /page?a=b#x HTTP/1.1"), 400),
    "broken percent": (head(b"GET /page/%2 HTTP/1.1"), 400),
    "percent without hex": (head(b"GET /page/%zz HTTP/1.1"), 400),
    "path not UTF-8": (head(b"GET /page/%ff HTTP/1.1"), 400),
    "overlong UTF-8 slash": (head(b"GET /page/%c0%af HTTP/1.1"), 400),
    "query not UTF-8": (head(b"GET /page?a=%ff HTTP/1.1"), 400),
    "query name twice": (head(b"GET /page?a=1&a=2 HTTP/1.1"), 400),
    "33 query names": (head(b"GET /page?" + b"&".join(b"n%d=1" % n for n in range(33)) + b" HTTP/1.1"), 400),
    "absolute target for another host": (head(b"GET http://evil/page HTTP/1.1"), 400),
    "absolute target for another scheme": (head(b"GET https://gw.home/page HTTP/1.1"), 400),
    "absolute target with user": (head(b"GET http://a@gw.home/page HTTP/1.1"), 400),
    "connect": (head(b"CONNECT gw.home:443 HTTP/1.1"), 400),
    "asterisk": (head(b"OPTIONS * HTTP/1.1"), 400),
    "relative target": (head(b"GET page HTTP/1.1"), 400),
    "no target": (head(b"GET HTTP/1.1"), 400),
    "two spaces": (head(b"GET  / HTTP/1.1"), 400),
    "tab between method and target": (head(b"GET\t/ HTTP/1.1"), 400),
    "space after the version": (head(b"GET / HTTP/1.1 "), 400),
    "small letters in the version": (head(b"GET / http/1.1"), 400),
    "method with a colon": (head(b"GE:T / HTTP/1.1"), 400),
    "HTTP/1.0": (head(b"GET / HTTP/1.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "header of more than 16 KiB": (head(headers=HOST + b"A: " + b"x" * (16 * 1024) + b"\r\n"), 431),
    "endless header": (b"GET / HTTP/1.1\r\n" + b"A: bbbbbb\r\n" * 2000, 431),
    "65 header lines": (head(headers=HOST + b"".join(b"A%d: b\r\n" % n for n in range(64))), 431),
    "other expectation": (put(b"Expect: money\r\nContent-Length: 1\r\n", b"x"), 417),
    "two expectations": (put(b"Expect: 100-continue\r\n" * 2 + b"Content-Length: 1\r\n", b"x"), 400),
    "two ranges in two headers": (head(headers=HOST + b"Range: bytes=0-1\r\n" * 2), 400),
    "two authorizations": (head(headers=HOST + b"Authorization: a\r\n" * 2), 400),
    "TLS hello on a plain port": (bytes.fromhex("16030100c8010000c40303"), 400),
    "binary noise": (bytes(range(256)), 400),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_hostile_request_is_refused_and_the_connection_closed(name, running, demo_router, exchange):
    data, status = REFUSED[name]
    async with running(demo_router) as server:
        answer = await exchange(server.port, data)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1, "a second request on the connection was served"
        assert b"\r\nconnection: close\r\n" in answer.lower()
        good = head(headers=HOST + b"Connection: close\r\n")
        assert (await exchange(server.port, good)).startswith(b"HTTP/1.1 200 ")


ACCEPTED = {
    "plain": (head(b"GET /page HTTP/1.1"), "/page"),
    "absolute target that agrees": (head(b"GET http://gw.home/page HTTP/1.1"), "/page"),
    "encoded name": (head(b"GET /page/a%20b HTTP/1.1"), "/page/a b"),
    "Japanese name": (head(b"GET /page/%E5%9B%9E%E7%B7%9A HTTP/1.1"), "/page/回線"),
    "percent that stays data": (head(b"GET /page/%252e%252e HTTP/1.1"), "/page/%2e%2e"),
    "three dots": (head(b"GET /page/... HTTP/1.1"), "/page/..."),
    "64 header lines": (head(headers=HOST + b"".join(b"A%d: b\r\n" % n for n in range(62))), "/"),
    "value with tab and spaces": (head(headers=HOST + b"A: \t b \t c \t\r\n"), "/"),
    "host in brackets": (head(headers=b"Host: [::1]:8443\r\n"), "/"),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_unusual_but_lawful_request_is_served(name, running, demo_router, exchange):
    data, path = ACCEPTED[name]
    async with running(demo_router) as server:
        answer = await exchange(server.port, data[:-2] + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.endswith(('{"path":"' + path + '"}').encode())


async def test_pipelined_requests_are_answered_in_order(running, demo_router, exchange):
    data = put(b"Content-Length: 5\r\n", b"hello") + head(
        b"GET /page HTTP/1.1", HOST + b"Connection: close\r\n"
    )
    async with running(demo_router) as server:
        answer = await exchange(server.port, data)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.index(b'{"bytes":5}') < answer.index(b'{"path":"/page"}')


async def test_nothing_is_served_after_a_chunked_request(running, demo_router, exchange):
    async with running(demo_router) as server:
        answer = await exchange(server.port, put(CHUNKED, b"5\r\nhello\r\n0\r\n\r\n") + SECOND)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b'{"bytes":5}')


async def test_forwarded_addresses_are_ignored(running, exchange):
    """X-03, threat L1: the line is decided from the socket's peer, so nothing a client writes may change it."""
    seen = []

    async def handler(request):
        from runtime.http import Response

        seen.append(request.peer)
        return Response(204, close=True)

    forged = b"X-Forwarded-For: 2001:db8::1\r\nForwarded: for=2001:db8::1\r\nX-Real-IP: 2001:db8::1\r\n"
    async with running(handler) as server:
        await exchange(server.port, head(headers=HOST + forged))
        assert await exchange(server.port, b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n" + head())
    assert [peer.host for peer in seen] == ["::1"]
    assert seen[0].zone == ""
