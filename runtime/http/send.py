"""Write one Response to the peer: bytes in one piece, files by sendfile or in steps, iterators chunked.

Rules: header names and values are checked before the first byte goes out, so no value can add a line; a
source that gives fewer or more bytes than declared breaks the connection instead of lying about the length;
the peer must take bytes at a minimum rate. HEAD, 204 and 304 carry no body.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus

import attrs
import trio

from runtime.errors import LocalError, PeerGoneError
from runtime.http.limits import FILE_STEP_BYTES, HttpLimits
from runtime.http.rate import RateWatch, TooSlowError
from runtime.http.types import FileBody, Response, ResponseBody

SEND_STEP_BYTES = 256 * 1024
JOINED_FILE_BYTES_MAX = 64 * 1024
"""A file up to this size leaves together with its header; above it sendfile starts at once."""
CLOSE_BODY_S = 5.0
_BODILESS = frozenset({204, 304})
_FINAL_STATUS_MIN = 200
_FAULTS = (trio.BrokenResourceError, trio.ClosedResourceError)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_HEADER_BLOCK = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e]*\r\n)*")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_OWN_HEADERS = frozenset({"connection", "transfer-encoding", "date"})


@attrs.define
class Outgoing:
    """Sends answers over one connection; `begin` before each, then `send`."""

    stream: trio.abc.Stream
    limits: HttpLimits
    sent_body_bytes: int = 0
    head_sent: bool = False

    def begin(self) -> None:
        """Reset the counters for the next answer."""
        self.sent_body_bytes, self.head_sent = 0, False

    async def send(self, response: Response, *, method: str, now_s: float, close: bool) -> None:
        """Send `response`.

        After an error or cancellation with `head_sent` the connection must be dropped.

        Raises:
            PeerGoneError: the peer left or was too slow.
            LocalError: malformed header, before the first byte.
            OSError: the file cannot be read, or is shorter than said.
        """
        body = response.body
        bare = method == "HEAD" or response.status in _BODILESS
        watch = RateWatch(self.limits.rate_grace_s, self.limits.send_rate_bytes_per_s)
        if isinstance(body, bytes):
            head = encode_head(response, len(body), now_s=now_s, close=close)
            await self._write(head if bare else head + body, watch)
            self.sent_body_bytes += 0 if bare else len(body)
        elif isinstance(body, FileBody):
            with open_range(body) as fd:
                head = encode_head(response, body.length_bytes, now_s=now_s, close=close)
                await (self._write(head, watch) if bare else self._send_file(body, fd, watch, head))
        else:
            async with _closing(body):
                head = encode_head(response, None, now_s=now_s, close=close)
                await (self._write(head, watch) if bare else self._send_iterator(response, body, watch, head))

    async def _write(self, data: bytes, watch: RateWatch) -> None:
        self.head_sent = True
        view = memoryview(data)
        try:
            if isinstance(self.stream, trio.SocketStream):
                # What the socket buffer takes at once costs no task switch; the next receive is a checkpoint.
                sent = _write_now(self.stream, view[:SEND_STEP_BYTES])
                watch.moved(sent)
                view = view[sent:]
            while view:
                step = view[:SEND_STEP_BYTES]
                with watch.wait():
                    await self.stream.send_all(step)
                watch.moved(len(step))
                view = view[len(step) :]
        except TooSlowError as exc:
            raise PeerGoneError("the peer took the answer below the minimum rate") from exc
        except _FAULTS as exc:
            raise PeerGoneError("the connection broke while answering") from exc

    async def _send_iterator(
        self, response: Response, body: AsyncIterator[bytes], watch: RateWatch, head: bytes
    ) -> None:
        declared = _declared_length(response)
        pending = head
        async for chunk in body:
            if not chunk:
                continue
            if declared is not None and self.sent_body_bytes + len(chunk) > declared:
                raise LocalError(f"answer body: expected {declared} bytes, got more")
            framed = chunk if declared is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk)
            await self._write(pending + framed, watch)
            pending = b""
            self.sent_body_bytes += len(chunk)
        if declared is not None and self.sent_body_bytes != declared:
            raise LocalError(f"answer body: expected {declared} bytes, got {self.sent_body_bytes}")
        await self._write(pending + (b"0\r\n\r\n" if declared is None else b""), watch)

    async def _send_file(self, body: FileBody, fd: int, watch: RateWatch, head: bytes) -> None:
        offset, left = body.offset, body.length_bytes
        sendfile = isinstance(self.stream, trio.SocketStream) and left > JOINED_FILE_BYTES_MAX
        first = 0 if sendfile else min(left, FILE_STEP_BYTES)
        await self._write(head + read_exactly(fd, first, offset), watch)
        offset, left = offset + first, left - first
        self.sent_body_bytes += first
        while left:
            step = min(left, FILE_STEP_BYTES)
            if sendfile:
                step = await self._sendfile(fd, offset, step, watch)
            else:
                await self._write(read_exactly(fd, step, offset), watch)
            offset, left = offset + step, left - step
            self.sent_body_bytes += step

    async def _sendfile(self, fd: int, offset: int, length: int, watch: RateWatch) -> int:
        assert isinstance(self.stream, trio.SocketStream)  # noqa: S101 - chosen by _send_file
        sock = self.stream.socket
        await trio.lowlevel.checkpoint()
        while True:
            try:
                sent = os.sendfile(sock.fileno(), fd, offset, length)
            except BlockingIOError:
                try:
                    with watch.wait():
                        await trio.lowlevel.wait_writable(sock)
                except TooSlowError as exc:
                    raise PeerGoneError("the peer took the answer below the minimum rate") from exc
                continue
            except OSError as exc:
                raise PeerGoneError("the connection broke while answering") from exc
            if sent == 0:
                raise OSError(f"file ended at byte {offset} while it was being sent")
            watch.moved(sent)
            return sent


def encode_head(response: Response, length: int | None, *, now_s: float, close: bool) -> bytes:
    """Encode status line and headers; `length` None means chunked unless the response declares a length.

    Raises:
        LocalError: a name or value is malformed, or a header that only the server sets.
    """
    headers = [f"{name}: {value}\r\n" for name, value in response.headers]
    names = {name.lower() for name, _ in response.headers}
    if names & _OWN_HEADERS or response.status < _FINAL_STATUS_MIN:
        raise LocalError(
            f"answer {response.status}: expected a final status and none of {sorted(_OWN_HEADERS)}"
        )
    if length is None:
        if "content-length" not in names:
            headers.append("transfer-encoding: chunked\r\n")
    elif response.status not in _BODILESS:
        if "content-length" in names:
            raise LocalError("answer: content-length is set by the server")
        headers.append(f"content-length: {length}\r\n")
    headers.append(_date_line(int(now_s)))
    if close:
        headers.append("connection: close\r\n")
    block = "".join(headers)
    # One line end per header: a value that carries its own cannot pass for two headers.
    if block.count("\n") != len(headers) or _HEADER_BLOCK.fullmatch(block) is None:
        raise LocalError(f"answer {response.status}: expected printable ASCII in header names and values")
    status_line = _STATUS_LINES.get(response.status) or f"HTTP/1.1 {response.status} \r\n"
    return f"{status_line}{block}\r\n".encode("ascii")


@functools.lru_cache(maxsize=2)
def _date_line(second: int) -> str:
    now = time.gmtime(second)  # names are fixed by RFC 9110, not by the locale
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    return (
        f"date: {day}, {now.tm_mday:02} {month} {now.tm_year:04} "
        f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT\r\n"
    )


def _declared_length(response: Response) -> int | None:
    values = [value for name, value in response.headers if name.lower() == "content-length"]
    return int(values[0]) if values else None


def _write_now(stream: trio.SocketStream, data: memoryview) -> int:
    try:
        return os.write(stream.socket.fileno(), data)
    except BlockingIOError:
        return 0
    except OSError as exc:
        raise PeerGoneError("the connection broke while answering") from exc


@contextlib.contextmanager
def open_range(body: FileBody) -> Iterator[int]:
    """Open the region's file for reading; raises OSError when it is not that long, or a symbolic link."""
    fd = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if body.offset < 0 or body.length_bytes < 0 or body.offset + body.length_bytes > size:
            raise OSError(f"file of {size} bytes: expected {body.length_bytes} bytes from {body.offset}")
        os.posix_fadvise(fd, body.offset, body.length_bytes, os.POSIX_FADV_SEQUENTIAL)
        yield fd
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def _closing(body: AsyncIterator[bytes]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await close_body(body)


async def close_body(body: ResponseBody) -> None:
    """Close an iterator body, sent or not, so that what feeds it ends; bounded, also when we are cancelled."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_BODY_S):
            await aclose()


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`; raises OSError when the file ends before."""
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            raise OSError(f"file ended at byte {offset} while it was being sent")
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)
