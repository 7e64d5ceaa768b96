"""From the bytes of a request header to a checked Head, or the 4xx/5xx that refuses it (sans-IO).

Rules (RFC 9112, taken at its strictest; what other servers accept here is how requests are smuggled):
- lines end in CR LF; no bare LF or CR, no folding, no blank line in front, no control or non-ASCII byte;
- HTTP/1.1 only; exactly one Host, at most one Content-Length (digits), Transfer-Encoding only `chunked`,
  never both; no list-valued Content-Length; at most 64 header lines and 16 KiB;
- the target is origin-form, or absolute-form whose scheme and authority equal the connection's and Host;
- the path is percent-decoded once and holds no empty, `.` or `..` segment, no encoded slash, backslash or
  control character, and is valid UTF-8.
Every refusal closes the connection. Does not read sockets and does not judge what Host means.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import attrs

from runtime.errors import RemoteError
from runtime.http.limits import HEADER_LINES_MAX

HEAD_END = b"\r\n\r\n"
QUERY_FIELDS_MAX = 32
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(\d\.\d)\r\n((?:" + _TOKEN + rb":[\t\x20-\x7e]*\r\n)*)\r\n"
)
_LINE = re.compile(rb"([^:\r\n]+):[\t ]*([^\r\n]*?)[\t ]*\r\n")
_FOREIGN_BYTE = re.compile(rb"[^\t\r\n\x20-\x7e]|(?<!\r)\n|\r(?=[^\n])|\A\r?\n")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})?)(?::\d{1,5})?", re.ASCII)
_ABSOLUTE = re.compile(r"(https?)://([^/?#]*)(/[^#]*)", re.ASCII)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\\]")
_ENCODED_SLASH = re.compile(r"%2f|%5c", re.IGNORECASE)
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9_~!$&'()*+,;=:@.-]*)+/?|/", re.ASCII)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_ONE_ONLY = frozenset(
    {"host", "content-length", "transfer-encoding", "expect", "range", "authorization", "content-type"}
)


@attrs.frozen
class Head:
    """A request header that passed every check. `content_length` is None without one; `raw` is what came."""

    raw: bytes
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    content_length: int | None
    chunked: bool
    expects_continue: bool


def refuse(message: str, status: int = 400, code: str = "bad-request") -> RemoteError:
    """Build the error that refuses a request."""
    return RemoteError(message, status=status, code=code)


def check_partial(data: bytes | bytearray, checked_bytes: int = 0) -> None:
    """Refuse at once a header beginning that can never become valid (so that nobody waits for its end).

    `checked_bytes` of it passed before and are not looked at again: a peer that sends single bytes must not
    make us read the whole beginning each time.
    """
    if _FOREIGN_BYTE.search(data, max(0, checked_bytes - 1)):
        raise refuse("header: expected printable ASCII in lines ended by CR LF")


def parse_head(raw: bytes, *, secure: bool) -> Head:
    """Check a whole request header, including its final blank line.

    Args:
        raw: ≤ 16 KiB, ends in the first CR LF CR LF.
        secure: whether the connection is TLS; an absolute-form target must agree.

    Raises:
        RemoteError: with the status to answer; the connection must then be closed.
    """
    match = _HEAD.fullmatch(raw)
    if match is None:
        check_partial(raw)
        raise refuse("header: expected a request line and `name: value` lines without folding")
    if match[3] != b"1.1":
        raise refuse("expected HTTP/1.1", 505, "http-version")
    headers = _parse_headers(match[4])
    host = headers.get("host")
    if host is None or _HOST.fullmatch(host) is None:
        raise refuse("expected exactly one well-formed Host header")
    path, query = _parse_target(match[2].decode("ascii"), host, secure=secure)
    length, chunked = _parse_framing(headers)
    expect = headers.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise refuse("expected no Expect header but 100-continue", 417, "expectation-failed")
    has_body = chunked or bool(length)
    return Head(
        raw, match[1].decode("ascii"), path, query, headers, length, chunked, expect is not None and has_body
    )


def _parse_headers(block: bytes) -> dict[str, str]:
    lines = _LINE.findall(block)
    if len(lines) > HEADER_LINES_MAX:
        raise refuse(f"expected at most {HEADER_LINES_MAX} header lines", 431, "header-too-large")
    headers: dict[str, str] = {}
    for raw_name, raw_value in lines:
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("ascii")
        if name in headers:
            if name in _ONE_ONLY:
                raise refuse(f"expected one {name} header, got several")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _parse_framing(headers: dict[str, str]) -> tuple[int | None, bool]:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and coding is not None:
        raise refuse("expected Content-Length or Transfer-Encoding, got both")
    if coding is not None:
        if coding.lower() != "chunked":
            raise refuse("expected no transfer coding but chunked", 501, "not-implemented")
        return None, True
    if length is None:
        return None, False
    if _DIGITS.fullmatch(length) is None:
        raise refuse("Content-Length: expected 1 to 18 digits")
    return int(length), False


def _parse_target(target: str, host: str, *, secure: bool) -> tuple[str, dict[str, str]]:
    if not target.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise refuse("expected a target that starts with a slash")
        if absolute[1] != ("https" if secure else "http") or absolute[2].lower() != host.lower():
            raise refuse("expected an absolute target that agrees with Host and the connection")
        target = absolute[3]
    path, mark, query = target.partition("?")
    if not _PLAIN_PATH.fullmatch(path):
        path = _decode_path(path)
    return path, parse_query(query) if mark else {}


def _decode_path(path: str) -> str:
    if _ENCODED_SLASH.search(path):
        raise refuse("path: expected no encoded slash or backslash")
    decoded = _decode(path, "path")
    segments = decoded[1:].split("/")
    if _PATH_FORBIDDEN.search(decoded) or "#" in path:
        raise refuse("path: expected no control character, backslash or fragment")
    if "." in segments or ".." in segments or "" in segments[:-1]:
        raise refuse("path: expected no empty, `.` or `..` segment")
    return decoded


def _decode(text: str, what: str) -> str:
    if _ESCAPE.search(text):
        raise refuse(f"{what}: expected two hex digits after each percent sign")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise refuse(f"{what}: expected UTF-8") from exc


def parse_query(text: str) -> dict[str, str]:
    """Decode `a=1&b=2` (plus means space); each name at most once, at most 32 names, no control characters."""
    if "#" in text:
        raise refuse("query: expected no fragment")
    fields: dict[str, str] = {}
    for part in text.split("&"):
        if not part:
            continue
        name, _, value = (_decode(piece.replace("+", " "), "query") for piece in part.partition("="))
        if name in fields:
            raise refuse("query: expected each name once")
        if _PATH_FORBIDDEN.search(name) or "\x00" in value:
            raise refuse("query: expected no control character")
        fields[name] = value
        if len(fields) > QUERY_FIELDS_MAX:
            raise refuse(f"query: expected at most {QUERY_FIELDS_MAX} names")
    return fields
