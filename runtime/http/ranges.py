"""Range and conditional requests (RFC 9110 §13, §14): one range only, strong ETags.

Pure functions. A request with several ranges, another unit or a malformed range is answered as if it had no
Range header, as the RFC allows; that also ends the many-ranges attack (CVE-2025-62727) before it starts.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from runtime.http.types import FileBody, Headers, Request, Response

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@attrs.frozen
class ByteRange:
    """`length_bytes` (≥ 1) bytes from `offset` of a representation."""

    offset: int
    length_bytes: int


@attrs.frozen
class Unsatisfiable:
    """The range lies outside the representation: answer 416."""


def decide_range(header: str | None, size_bytes: int) -> ByteRange | Unsatisfiable | None:
    """Choose what a Range header asks of a representation of `size_bytes`.

    Returns:
        None to send everything (no header, several ranges, unknown unit, malformed, or last < first).
    """
    match = _RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None:
        return None
    first_text, last_text = match.groups()
    if not first_text:
        if not last_text:
            return None
        length = min(int(last_text), size_bytes)
        return ByteRange(size_bytes - length, length) if length else Unsatisfiable()
    first = int(first_text)
    last = min(int(last_text), size_bytes - 1) if last_text else size_bytes - 1
    if last_text and int(last_text) < first:
        return None
    return ByteRange(first, last - first + 1) if first < size_bytes else Unsatisfiable()


def etag_matches(header: str | None, etag: str) -> bool:
    """Tell whether an If-None-Match header names `etag` (quoted, strong); `*` names all; weak ones compare equal."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(part.strip().removeprefix("W/") == etag for part in header.split(","))


def not_modified(request: Request, etag: str, headers: Headers = ()) -> Response | None:
    """Return the 304 that answers a GET or HEAD whose If-None-Match names `etag`, else None."""
    if request.method in {"GET", "HEAD"} and etag_matches(request.headers.get("if-none-match"), etag):
        return Response(304, (("etag", etag), *headers))
    return None


def file_response(
    request: Request, path: Path | str, size_bytes: int, *, etag: str | None = None, headers: Headers = ()
) -> Response:
    """Answer a GET or HEAD with a file: 304 by ETag, 206 by one range, 416 outside, else 200.

    Args:
        request: its If-None-Match, If-Range and Range headers decide.
        path: a regular file, not a symbolic link, at least `size_bytes` long when the answer starts.
        size_bytes: the representation's size.
        etag: quoted, strong; without it no conditional answer is given.
        headers: further headers, such as content-type.
    """
    if etag is not None:
        unchanged = not_modified(request, etag, headers)
        if unchanged is not None:
            return unchanged
        headers = (("etag", etag), *headers)
    headers = (("accept-ranges", "bytes"), *headers)
    condition = request.headers.get("if-range")
    wanted = None
    if request.method == "GET" and (condition is None or condition == etag):
        wanted = decide_range(request.headers.get("range"), size_bytes)
    if wanted is None:
        return Response(200, headers, FileBody(path, 0, size_bytes))
    if isinstance(wanted, Unsatisfiable):
        return Response(416, (("content-range", f"bytes */{size_bytes}"), *headers))
    last = wanted.offset + wanted.length_bytes - 1
    span = ("content-range", f"bytes {wanted.offset}-{last}/{size_bytes}")
    return Response(206, (span, *headers), FileBody(path, wanted.offset, wanted.length_bytes))
