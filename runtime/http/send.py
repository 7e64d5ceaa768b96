"""Write one Response to the peer: bytes in one piece, files by sendfile or in steps, iterators chunked.

Rules: length and framing are checked by h11 before anything is sent; a source that ends early breaks the
connection instead of lying about the length; the peer must take bytes at a minimum rate.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus

import attrs
import h11
import trio

from runtime.errors import PeerGoneError
from runtime.http.limits import FILE_STEP_BYTES, HttpLimits
from runtime.http.rate import RateWatch, TooSlowError
from runtime.http.types import FileBody, Response

_BODILESS = frozenset({204, 304})
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_FAULTS = (trio.BrokenResourceError, trio.ClosedResourceError)
SEND_STEP_BYTES = 256 * 1024


@attrs.define
class Outgoing:
    """Sends answers over one connection; counts what the peer took."""

    conn: h11.Connection
    stream: trio.abc.Stream
    limits: HttpLimits
    sent_body_bytes: int = 0
    head_sent: bool = False
    _date: tuple[int, bytes] = (0, b"")

    async def send(self, response: Response, *, method: str, now_s: float, close: bool) -> None:
        """Send `response`; raises PeerGoneError when the peer left or was too slow, other errors before the head.

        After an error or cancellation with `head_sent` the connection must be dropped.
        """
        body = response.body
        bare = method == "HEAD" or response.status in _BODILESS
        watch = RateWatch(self.limits.rate_grace_s, self.limits.send_rate_bytes_per_s)
        if isinstance(body, bytes):
            head = self._head(response, now_s, close, len(body))
            await self._send_bytes(b"" if bare else body, watch, head)
        elif isinstance(body, FileBody):
            with open_range(body) as fd:
                head = self._head(response, now_s, close, body.length_bytes)
                await (self._send_bytes(b"", watch, head) if bare else self._send_file(body, fd, watch, head))
        else:
            async with _closing(body):
                head = self._head(response, now_s, close, None)
                await (self._send_bytes(b"", watch, head) if bare else self._send_iterator(body, watch, head))

    def _head(self, response: Response, now_s: float, close: bool, length: int | None) -> bytes:  # noqa: FBT001
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in response.headers]
        if length is not None and response.status not in _BODILESS and response.status >= 200:
            headers.append((b"content-length", b"%d" % length))
        headers.append((b"date", self._date_line(int(now_s))))
        if close:
            headers.append((b"connection", b"close"))
        reason = _REASONS.get(response.status, "").encode("ascii")
        event = h11.Response(status_code=response.status, headers=headers, reason=reason)
        return self.conn.send(event) or b""

    def _date_line(self, second: int) -> bytes:
        if self._date[0] != second:
            self._date = (second, email.utils.formatdate(second, usegmt=True).encode("ascii"))
        return self._date[1]

    async def _send_bytes(self, body: bytes, watch: RateWatch, head: bytes) -> None:
        content = self.conn.send(h11.Data(data=body)) if body else b""
        end = self.conn.send(h11.EndOfMessage()) or b""
        await self._write(head + (content or b"") + end, watch)
        self.sent_body_bytes += len(body)

    async def _write(self, data: bytes, watch: RateWatch) -> None:
        self.head_sent = True
        try:
            if len(data) <= SEND_STEP_BYTES:
                with watch.wait():
                    await self.stream.send_all(data)
                watch.moved(len(data))
                return
            view = memoryview(data)
            for start in range(0, len(data), SEND_STEP_BYTES):
                step = view[start : start + SEND_STEP_BYTES]
                with watch.wait():
                    await self.stream.send_all(step)
                watch.moved(len(step))
        except TooSlowError as exc:
            raise PeerGoneError("the peer took the answer below the minimum rate") from exc
        except _FAULTS as exc:
            raise PeerGoneError("the connection broke while answering") from exc

    async def _send_iterator(self, body: AsyncIterator[bytes], watch: RateWatch, head: bytes) -> None:
        pending = head
        async for chunk in body:
            if chunk:
                await self._write(pending + (self.conn.send(h11.Data(data=chunk)) or b""), watch)
                pending = b""
                self.sent_body_bytes += len(chunk)
        await self._write(pending + (self.conn.send(h11.EndOfMessage()) or b""), watch)

    async def _send_file(self, body: FileBody, fd: int, watch: RateWatch, head: bytes) -> None:
        offset, left = body.offset, body.length_bytes
        plain = isinstance(self.stream, trio.SocketStream)
        first = min(left, FILE_STEP_BYTES) if not plain or left <= FILE_STEP_BYTES // 4 else 0
        data = read_exactly(fd, first, offset)
        await self._write(head + data, watch)
        offset, left = offset + first, left - first
        self.sent_body_bytes += first
        while left:
            step = min(left, FILE_STEP_BYTES)
            if plain:
                step = await self._sendfile(fd, offset, step, watch)
            else:
                await self._write(read_exactly(fd, step, offset), watch)
            offset, left = offset + step, left - step
            self.sent_body_bytes += step
        self.conn.send_with_data_passthrough(
            h11.Data(data=_Counted(body.length_bytes))  # type: ignore[arg-type]
        )
        self.conn.send(h11.EndOfMessage())

    async def _sendfile(self, fd: int, offset: int, length: int, watch: RateWatch) -> int:
        assert isinstance(self.stream, trio.SocketStream)  # noqa: S101
        sock = self.stream.socket
        await trio.lowlevel.checkpoint_if_cancelled()
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
            await trio.lowlevel.cancel_shielded_checkpoint()
            return sent


class _Counted:
    """Stands for file bytes that the kernel sends: h11 only needs their length to check the framing."""

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes

    def __len__(self) -> int:
        return self._length_bytes


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
        aclose = getattr(body, "aclose", None)
        if aclose is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
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
