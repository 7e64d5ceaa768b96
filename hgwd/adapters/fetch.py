"""The carrier's repositories over HTTP: polls, metadata, packages (design §5.4, §5.10).

Rules
- A poll is one conditional GET. `Retry-After` of 429 and 503 goes up with the error.
- Metadata is bounded by what the core asked for; more is a refusal (endless data), never a truncation.
- A package goes straight to flash, in blocks of 64 KiB. Every `JOURNAL_BYTES` the file is fsynced and the journal
  names its length and hash; a download resumes there after a power cut or a lost line, once the hash of what lies
  on flash equals the journal's. Wrong bytes at the end throw the whole file away.
- Bytes are counted against the budget before they are kept; a rate asked for by the document is a token bucket.
- Too slow is an error of `runtime`'s client (minimum rate), reported as its own cause.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import attrs
import msgspec
import trio

from hgwd.adapters.metadata import MetadataStore
from hgwd.core.update import Installable
from hgwd.core.update_types import DIRECTOR_BYTES_MAX, Cause, Load, Need, RefusedError, Source, Steps, Store
from runtime.client_types import ClientResponse
from runtime.errors import CertificateRefusedError, RemoteError, Unavailable
from runtime.files import write_all, write_atomic
from runtime.http.rate import TooSlowError
from runtime.http_client import HttpClient, StreamedResponse

JOURNAL_BYTES: Final = 1 << 20
HASH_READ_BYTES: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 64 * 1024
_BASES: Final = {Source.IMAGE: "/image/metadata/", Source.DIRECTOR: "/director/"}
_TARGETS_BASE: Final = "/image/targets/"
_ResultT = TypeVar("_ResultT")


class Traffic(enum.Enum):
    """What bytes were for: the budget stops packages, never the carrier's voice."""

    CONTROL = "control"
    PACKAGE = "package"


@attrs.frozen
class FreshDocument:
    """The document changed, or was asked for without a condition."""

    data: bytes
    etag: str | None


class _Journal(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a download lies safely on flash: `length` bytes with this SHA-256; `target` is the whole's hash."""

    target: str
    length: int
    prefix: str


class CarrierFetch:
    """Fetches from one carrier. `spend` is told of every byte; it raises `RefusedError` for a package over budget."""

    def __init__(
        self, client: HttpClient, store: MetadataStore, spend: Callable[[int, Traffic], None]
    ) -> None:
        self.client = client
        self._store: Final = store
        self._spend: Final = spend

    async def poll(self, director_path: str, etag: str | None) -> FreshDocument | None:
        """Return the document, or None if it is the one we have (304).

        Raises: Unavailable, RemoteError; RefusedError (missing) for 403 and 404.
        """
        headers = {"if-none-match": etag} if etag else {}
        path = f"{_BASES[Source.DIRECTOR]}{director_path}/director.json"
        answer = await self._get(path, headers, DIRECTOR_BYTES_MAX)
        if answer is None:
            raise RefusedError(
                Cause.MISSING, "director document: not there; enrolled anew elsewhere, or ended"
            )
        if answer.status == 304:
            return None
        return FreshDocument(answer.body, answer.headers.get("etag"))

    async def drive(self, steps: Steps[_ResultT]) -> _ResultT:
        """Run one operation of the core: fetch, load and store what it asks for. Raises what the core and `poll` raise."""
        answer: bytes | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                result: _ResultT = stop.value
                return result
            match step:
                case Need():
                    answer = await self._need(step)
                case Load():
                    answer = self._store.load(step)
                case Store():
                    await trio.to_thread.run_sync(self._store.store, step)
                    answer = None

    async def download(self, wanted: Installable, part: Path) -> None:
        """Bring the package of `wanted` to `part`, whole and verified; resumes what an earlier call left.

        Raises:
            RefusedError: wrong bytes (part removed), too large, over budget, too slow; missing on the server or
                shorter there than signed.
            Unavailable, RemoteError: the line; the part stays for the next call.
        """
        offset, digest = await trio.to_thread.run_sync(_resume_point, part, wanted.sha256)
        if offset < wanted.length_bytes:
            digest = await self._transfer(wanted, part, offset, digest)
        if digest.hexdigest() != wanted.sha256:
            discard_part(part)
            raise RefusedError(Cause.BAD_HASH, f"{wanted.path.text}: not the bytes that were signed")

    async def _transfer(
        self, wanted: Installable, part: Path, offset: int, digest: hashlib._Hash
    ) -> hashlib._Hash:
        headers = {"range": f"bytes={offset}-"} if offset else {}
        path = _TARGETS_BASE + quote(wanted.url_path)
        left = wanted.length_bytes - offset
        try:
            async with self.client.stream("GET", path, headers=headers, max_response_bytes=left) as answer:
                _check_status(answer, 206 if offset else 200, path)
                return await self._receive(answer, wanted, part, offset, digest)
        except (Unavailable, RemoteError) as error:
            raise _sorted_error(error, path) from error

    async def _receive(
        self, answer: StreamedResponse, wanted: Installable, part: Path, offset: int, digest: hashlib._Hash
    ) -> hashlib._Hash:
        bucket = _Bucket(wanted.rate_bytes_per_s, trio.current_time())
        length = journalled = offset
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, offset)
            os.lseek(fd, offset, os.SEEK_SET)
            async for chunk in answer.chunks():
                self._spend(len(chunk), Traffic.PACKAGE)
                write_all(fd, chunk)
                digest.update(chunk)
                length += len(chunk)
                if length - journalled >= JOURNAL_BYTES:
                    await trio.to_thread.run_sync(_keep, fd, part, wanted.sha256, length, digest.hexdigest())
                    journalled = length
                await trio.sleep(bucket.delay_s(len(chunk), trio.current_time()))
        finally:
            # What arrived stays: a line that is cut again and again still gets there.
            _keep(fd, part, wanted.sha256, length, digest.hexdigest())
            os.close(fd)
        if length != wanted.length_bytes:
            raise RefusedError(
                Cause.TRUNCATED, f"{wanted.path.text}: ended after {length} of {wanted.length_bytes} bytes"
            )
        return digest

    async def _need(self, step: Need) -> bytes | None:
        answer = await self._get(_BASES[step.source] + step.path, {}, step.max_bytes)
        return None if answer is None else answer.body

    async def _get(self, path: str, headers: dict[str, str], max_bytes: int) -> ClientResponse | None:
        """Return the answer, None for 403 and 404; other failures raise."""
        try:
            answer = await self.client.request("GET", path, headers=headers, max_response_bytes=max_bytes)
        except (Unavailable, RemoteError) as error:
            raise _sorted_error(error, path) from error
        self._spend(len(answer.body), Traffic.CONTROL)
        if answer.status in {403, 404}:
            return None
        if answer.status not in {200, 304}:
            raise _status_error(answer.status, answer.headers.get("retry-after"), path)
        return answer


@attrs.define
class _Bucket:
    """A token bucket of one second's bytes."""

    rate_bytes_per_s: int | None
    filled_s: float
    tokens: float = 0.0

    def delay_s(self, size_bytes: int, now_s: float) -> float:
        """Return how long to wait after `size_bytes` came at `now_s`."""
        if self.rate_bytes_per_s is None:
            return 0.0
        gained = (now_s - self.filled_s) * self.rate_bytes_per_s
        self.tokens = min(float(self.rate_bytes_per_s), self.tokens + gained) - size_bytes
        self.filled_s = now_s
        return max(0.0, -self.tokens / self.rate_bytes_per_s)


def _sorted_error(error: Unavailable | RemoteError, path: str) -> Exception:
    """Turn runtime's errors into a cause where one is certain; certificates and the line stay what they are."""
    if isinstance(error, CertificateRefusedError):
        return error
    if isinstance(error, RemoteError) and error.code == "answer-too-large":
        return RefusedError(Cause.TOO_LARGE, f"{path}: {error}")
    if isinstance(error, Unavailable) and isinstance(error.__cause__, TooSlowError):
        return RefusedError(Cause.SLOW, f"{path}: {error}")
    return error


def _status_error(status: int, retry_after: str | None, path: str) -> Unavailable | RefusedError:
    if status in {403, 404, 410}:
        return RefusedError(Cause.MISSING, f"{path}: status {status}")
    seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    return Unavailable(f"{path}: status {status}", retry_after_s=seconds)


def _check_status(answer: StreamedResponse, expected: int, path: str) -> None:
    if answer.status == 200 and expected == 206:
        raise Unavailable(f"{path}: the server ignored the range asked for")
    if answer.status == 416:
        raise RefusedError(Cause.TRUNCATED, f"{path}: the server's file is shorter than what was signed")
    if answer.status != expected:
        raise _status_error(answer.status, answer.headers.get("retry-after"), path)


def discard_part(part: Path) -> None:
    """Remove a download and its journal. Idempotent."""
    part.unlink(missing_ok=True)
    _journal_path(part).unlink(missing_ok=True)


def _journal_path(part: Path) -> Path:
    return part.with_suffix(".journal")


def _keep(fd: int, part: Path, target: str, length: int, prefix: str) -> None:
    os.fsync(fd)
    journal = _Journal(target=target, length=length, prefix=prefix)
    write_atomic(_journal_path(part), msgspec.json.encode(journal), mode=0o600)


def _resume_point(part: Path, target: str) -> tuple[int, hashlib._Hash]:
    """Return from where to go on: the journalled length, once the bytes on flash have the journalled hash."""
    try:
        journal = msgspec.json.decode(_journal_path(part).read_bytes(), type=_Journal)
        with part.open("rb") as file:
            digest = _hash_prefix(file.fileno(), journal.length)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return 0, hashlib.sha256()
    if journal.target != target or digest is None or digest.hexdigest() != journal.prefix:
        return 0, hashlib.sha256()
    return journal.length, digest


def _hash_prefix(fd: int, length: int) -> hashlib._Hash | None:
    digest = hashlib.sha256()
    left = length
    while left:
        data = os.read(fd, min(HASH_READ_BYTES, left))
        if not data:
            return None
        digest.update(data)
        left -= len(data)
    return digest
