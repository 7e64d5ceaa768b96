"""Downloads and polls over a real socket, from servers that are slow, endless, wrong, or cut (JNT-51, design §5.10)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from update_kit import NOW_S, Cause, RefusedError, Source, make_kit

from hgwd.adapters.fetch import JOURNAL_BYTES, CarrierFetch, Traffic
from hgwd.adapters.metadata import MetadataStore
from hgwd.core.update import Installable
from hgwd.core.update_images import ImageRepository
from hgwd.core.update_types import TIMESTAMP_BYTES_MAX, Need
from runtime.client_types import ClientLimits
from runtime.errors import RemoteError, Unavailable
from runtime.http_client import HttpClient
from wire.director import TargetCustom, TargetPath

BODY = bytes(range(256)) * 12_000  # 3 MB: three journal steps
LIMITS = ClientLimits(rate_grace_s=0.5, rate_bytes_per_s=1024.0, total_s=20.0, head_s=3.0)


@attrs.define
class Server:
    """Answers each connection by `answer(stream, request text)`; remembers what was asked."""

    answer: Callable[[trio.SocketStream, str], Awaitable[None]]
    requests: list[str] = attrs.field(factory=list)
    port: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        try:
            async with stream:
                while True:
                    while b"\r\n\r\n" not in data:
                        piece = await stream.receive_some(4096)
                        if not piece:
                            return
                        data += piece
                    head, _, data = data.partition(b"\r\n\r\n")
                    self.requests.append(head.decode())
                    await self.answer(stream, head.decode())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def serving(answer: Callable[[trio.SocketStream, str], Awaitable[None]]) -> AsyncIterator[Server]:
    server = Server(answer)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="::1")
        server.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


@attrs.define
class Rig:
    """A fetch against one server, with its flash."""

    fetch: CarrierFetch
    part: Path
    spent: list[int]


@asynccontextmanager
async def rig(directory: Path, server: Server, budget: int = 1 << 40) -> AsyncIterator[Rig]:
    spent: list[int] = []

    def spend(size: int, kind: Traffic) -> None:
        spent.append(size)
        if kind is Traffic.PACKAGE and sum(spent) > budget:
            raise RefusedError(Cause.BUDGET, "over")

    store = MetadataStore(directory / "metadata")
    store.open()
    async with HttpClient("::1", server.port, timeouts=LIMITS) as client:
        yield Rig(CarrierFetch(client, store, spend), directory / "x.part", spent)


def wanted(body: bytes = BODY, rate: int | None = None) -> Installable:
    from update_kit import listed

    path = TargetPath.parse(listed(body).path)
    custom = TargetCustom(release=1, floor=0, series=("PR-500",), makers=("KI",), footprint_bytes=1)
    return Installable(
        path.name, path, "x/y.hgwpkg", len(body), hashlib.sha256(body).hexdigest(), custom, rate
    )


def ok(body: bytes, extra: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def range_start(request: str) -> int:
    found = re.search(r"range: bytes=(\d+)-", request, re.IGNORECASE)
    return int(found[1]) if found else 0


def partial(request: str, body: bytes = BODY) -> bytes:
    start = range_start(request)
    if not start:
        return ok(body)
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body) - start}\r\n"
    return (head + f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}\r\n\r\n").encode() + body[
        start:
    ]


async def honest(stream: trio.SocketStream, request: str) -> None:
    await stream.send_all(partial(request))


async def test_downloads_a_package(tmp_path: Path) -> None:
    async with serving(honest) as server, rig(tmp_path, server) as it:
        await it.fetch.download(wanted(), it.part)
        assert it.part.read_bytes() == BODY
        assert sum(it.spent) == len(BODY)


async def test_a_cut_line_costs_nothing_that_arrived(tmp_path: Path) -> None:
    async def cut(stream: trio.SocketStream, request: str) -> None:
        data = partial(request)
        await stream.send_all(data[:1_500_000])
        await stream.aclose()

    async with serving(cut) as server, rig(tmp_path, server) as it:
        for _ in range(2):
            with pytest.raises((Unavailable, RemoteError)):
                await it.fetch.download(wanted(), it.part)
        await it.fetch.download(wanted(), it.part)
        starts = [range_start(request) for request in server.requests]
        assert starts[0] == 0
        assert 1_400_000 < starts[1] < 1_500_000
        assert sum(it.spent) == len(BODY)
        assert it.part.read_bytes() == BODY


async def test_resumes_only_what_the_journal_vouches_for_after_a_power_cut(tmp_path: Path) -> None:
    async def cut(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(partial(request)[:2_000_000])
        await stream.aclose()

    async with serving(cut) as server, rig(tmp_path, server) as it:
        with pytest.raises((Unavailable, RemoteError)):
            await it.fetch.download(wanted(), it.part)
    torn = bytearray(it.part.read_bytes())
    torn[1000] ^= 1
    it.part.write_bytes(torn)
    async with serving(honest) as server, rig(tmp_path, server) as it:
        await it.fetch.download(wanted(), it.part)
        assert range_start(server.requests[0]) == 0
        assert it.part.read_bytes() == BODY


async def test_bytes_behind_the_journal_are_dropped(tmp_path: Path) -> None:
    async def cut(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(partial(request)[:1_200_000])
        await stream.aclose()

    async with serving(cut) as server, rig(tmp_path, server) as it:
        with pytest.raises((Unavailable, RemoteError)):
            await it.fetch.download(wanted(), it.part)
    with it.part.open("ab") as file:
        file.write(b"torn page" * 300_000)
    async with serving(honest) as server, rig(tmp_path, server) as it:
        await it.fetch.download(wanted(), it.part)
        assert range_start(server.requests[0]) >= JOURNAL_BYTES
        assert it.part.read_bytes() == BODY


async def test_a_part_of_another_package_is_not_continued(tmp_path: Path) -> None:
    async def cut(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(partial(request)[:1_200_000])
        await stream.aclose()

    other = BODY[::-1]
    async with serving(cut) as server, rig(tmp_path, server) as it:
        with pytest.raises((Unavailable, RemoteError)):
            await it.fetch.download(wanted(other), it.part)
    async with serving(honest) as server, rig(tmp_path, server) as it:
        await it.fetch.download(wanted(), it.part)
        assert range_start(server.requests[0]) == 0


async def test_wrong_bytes_are_thrown_away(tmp_path: Path) -> None:
    async def wrong(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(ok(BODY[:-1] + b"!"))

    async with serving(wrong) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch.download(wanted(), it.part)
    assert caught.value.cause is Cause.BAD_HASH
    assert list(tmp_path.glob("x.*")) == []


async def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    async def longer(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(ok(BODY + b"more"))

    async with serving(longer) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch.download(wanted(), it.part)
    assert caught.value.cause is Cause.TOO_LARGE


async def endless(stream: trio.SocketStream, request: str) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"1000\r\n" + b"x" * 4096 + b"\r\n")


async def test_endless_package_is_refused_at_its_announced_length(tmp_path: Path) -> None:
    async with serving(endless) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch.download(wanted(), it.part)
    assert caught.value.cause is Cause.TOO_LARGE
    assert sum(it.spent) <= len(BODY)


async def test_endless_metadata_is_refused_at_its_limit(tmp_path: Path) -> None:
    async with serving(endless) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch._need(Need(Source.IMAGE, "timestamp.json", TIMESTAMP_BYTES_MAX))
    assert caught.value.cause is Cause.TOO_LARGE


@pytest.mark.parametrize("over_bytes", [0, 1])
async def test_metadata_may_be_as_long_as_asked_for_and_not_a_byte_longer(
    tmp_path: Path, over_bytes: int
) -> None:
    async def serve(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(ok(b"x" * (TIMESTAMP_BYTES_MAX + over_bytes)))

    async with serving(serve) as server, rig(tmp_path, server) as it:
        need = Need(Source.IMAGE, "timestamp.json", TIMESTAMP_BYTES_MAX)
        if not over_bytes:
            assert await it.fetch._need(need) == b"x" * TIMESTAMP_BYTES_MAX
            return
        with pytest.raises(RefusedError) as caught:
            await it.fetch._need(need)
    assert caught.value.cause is Cause.TOO_LARGE


async def trickle(stream: trio.SocketStream, request: str) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3072000\r\n\r\n")
    while True:
        await stream.send_all(b"x")
        await trio.sleep(0.2)


async def test_one_byte_at_a_time_is_too_slow(tmp_path: Path) -> None:
    async with serving(trickle) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch.download(wanted(), it.part)
    assert caught.value.cause is Cause.SLOW


async def test_slow_metadata_is_too_slow(tmp_path: Path) -> None:
    async with serving(trickle) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch._need(Need(Source.IMAGE, "2.snapshot.json", 4_000_000))
    assert caught.value.cause is Cause.SLOW


async def test_the_budget_ends_a_download(tmp_path: Path) -> None:
    async with serving(honest) as server, rig(tmp_path, server, budget=1_000_000) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch.download(wanted(), it.part)
    assert caught.value.cause is Cause.BUDGET
    assert it.part.stat().st_size <= 1_000_000


async def test_keeps_to_the_rate_that_the_document_asks_for(tmp_path: Path) -> None:
    small = BODY[:300_000]

    async def serve(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(ok(small))

    async with serving(serve) as server, rig(tmp_path, server) as it:
        started_s = trio.current_time()
        await it.fetch.download(wanted(small, rate=300_000), it.part)
        assert 0.7 < trio.current_time() - started_s < 2.5


async def test_a_poll_with_the_etag_is_answered_304(tmp_path: Path) -> None:
    async def conditional(stream: trio.SocketStream, request: str) -> None:
        if 'if-none-match: "v1"' in request.lower():
            await stream.send_all(b'HTTP/1.1 304 Not Modified\r\nETag: "v1"\r\n\r\n')
        else:
            await stream.send_all(ok(b"{}", 'ETag: "v1"\r\n'))

    async with serving(conditional) as server, rig(tmp_path, server) as it:
        fresh = await it.fetch.poll("ab" * 16, None)
        assert fresh is not None
        assert fresh.etag == '"v1"'
        assert await it.fetch.poll("ab" * 16, fresh.etag) is None
        assert len(server.requests) == 2
        assert sum(len(text) + 4 for text in server.requests) < 400


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden"])
async def test_a_document_that_is_gone_is_missing(tmp_path: Path, status: str) -> None:
    async def gone(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    async with serving(gone) as server, rig(tmp_path, server) as it:
        with pytest.raises(RefusedError) as caught:
            await it.fetch.poll("ab" * 16, None)
    assert caught.value.cause is Cause.MISSING


async def test_a_busy_server_says_when_to_come_back(tmp_path: Path) -> None:
    async def busy(stream: trio.SocketStream, request: str) -> None:
        await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n")

    async with serving(busy) as server, rig(tmp_path, server) as it:
        with pytest.raises(Unavailable) as caught:
            await it.fetch.poll("ab" * 16, None)
    assert caught.value.retry_after_s == 120


async def test_refreshes_the_image_repository_and_finds_it_on_flash_afterwards(tmp_path: Path) -> None:
    kit = make_kit()

    async def image(stream: trio.SocketStream, request: str) -> None:
        name = request.split()[1].removeprefix("/image/metadata/")
        data = kit.served.get((Source.IMAGE, name))
        gone = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        await stream.send_all(gone if data is None else ok(data))

    async with serving(image) as server, rig(tmp_path, server) as it:
        for count in (6, 8):
            repository = ImageRepository(kit.pinned[Source.IMAGE], NOW_S)
            await it.fetch.drive(repository.refresh())
            path = next(iter(kit.operator.targets))
            assert await it.fetch.drive(repository.find_target(path)) is not None
            assert len(server.requests) == count
