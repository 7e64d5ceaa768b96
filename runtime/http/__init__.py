"""The strict HTTP/1.1 edge: trio, h11 and sendfile; no asyncio, no framework (design §5.5).

Import from here; the modules behind: `types` (what handlers see), `router`, `ranges`, `strict` (what is
refused), `limits`, `body`, `send`, `connection`, `server`.
"""

from runtime.http.limits import HttpLimits
from runtime.http.ranges import decide_range, etag_matches, file_response, not_modified
from runtime.http.router import Router
from runtime.http.server import Listener, open_listener, serve_http
from runtime.http.types import (
    Body,
    ErrorBody,
    FileBody,
    Handler,
    Headers,
    Peer,
    Request,
    Response,
    Trace,
    error_response,
    json_response,
    parse_json,
)

__all__ = [
    "Body",
    "ErrorBody",
    "FileBody",
    "Handler",
    "Headers",
    "HttpLimits",
    "Listener",
    "Peer",
    "Request",
    "Response",
    "Router",
    "Trace",
    "decide_range",
    "error_response",
    "etag_matches",
    "file_response",
    "json_response",
    "not_modified",
    "open_listener",
    "parse_json",
    "serve_http",
]
