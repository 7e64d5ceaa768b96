"""A real server on [::1] for the tests of the HTTP edge, and raw peers for it."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import attrs
import pytest
import trio

from runtime import tls
from runtime.http import HttpLimits, Router, file_response, json_response, open_listener, serve_http
from runtime.logs import Logger


@attrs.frozen
class Running:
    """A served router with its port and its log lines."""

    port: int
    stopping: trio.Event
    stream: io.BytesIO

    def log_lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@contextlib.asynccontextmanager
async def _running(handler, *, limits=None, context=None):
    stream, stopping = io.BytesIO(), trio.Event()
    listener = open_listener("::1", 0, context)
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            log = Logger("test", stream)
            await serve_http(
                handler, [listener], limits=limits, log=log, stopping=stopping, task_status=task_status
            )

        await nursery.start(serve)
        yield Running(listener.port, stopping, stream)
        stopping.set()


@pytest.fixture
def running():
    """`async with running(handler, limits=…, context=…) as server`."""
    return _running


@attrs.frozen
class Certificate:
    cert: Path
    key: Path
    sha256: str


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Certificate:
    folder = tmp_path_factory.mktemp("tls")
    digest = tls.make_self_signed(folder / "cert.pem", folder / "key.pem", ["localhost", "::1"])
    return Certificate(folder / "cert.pem", folder / "key.pem", digest)


@pytest.fixture
def demo_router():
    """Routes that the hostile requests aim at: a page, an echo that counts bytes, one that never reads."""
    router = Router()

    async def page(request, rest=""):
        return json_response(200, {"path": request.path})

    async def echo(request):
        return json_response(200, {"bytes": len(await request.body.read(1 << 20))})

    router.route("GET", "/", page)
    router.route("GET", "/page", page)
    router.route("GET", "/page/{rest...}", page)
    router.route("PUT", "/echo", echo)
    router.route("PUT", "/deaf", page)
    return router


async def _exchange(port: int, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """Send `data`, then read until the server closes; fails when it does not close within `wait_s`."""
    stream = await trio.open_tcp_stream("::1", port)
    received = b""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        with trio.fail_after(wait_s), contextlib.suppress(trio.BrokenResourceError):
            while part := await stream.receive_some(65536):
                received += part
    return received


@pytest.fixture
def exchange():
    return _exchange


@pytest.fixture
def small_limits() -> HttpLimits:
    """Limits small enough to be met in a test that sleeps for real."""
    return HttpLimits(header_s=0.3, idle_s=0.3, rate_grace_s=0.3, linger_s=0.3, stop_grace_s=0.3)


@pytest.fixture(scope="session")
def file_router(tmp_path_factory):
    """Serves one file of 3 MB of changing bytes under /file; returns (router, content)."""
    content = random.Random(0).randbytes(3_000_000)
    path = tmp_path_factory.mktemp("file") / "content"
    path.write_bytes(content)
    router = Router()

    async def get(request):
        return file_response(request, path, len(content), etag='"v1"')

    router.route("GET", "/file", get)
    return router, content
