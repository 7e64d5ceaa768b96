"""A mirror between gateway and carrier that holds the carrier's TLS key and may change every answer.

It terminates TLS, passes each request on to the real `deliver`, and hands the answer to the first rule whose pattern
is found in the path. A rule returns another answer, or takes the connection and drips, floods or cuts as it likes.
Threads and blocking sockets: it is no part of ours, and meets the gateway in bytes only.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

Wire = ssl.SSLSocket
_PASSED_ON = ("if-none-match", "range", "content-type", "hgw-session", "hgw-gateway")
_PASSED_BACK = ("etag", "content-type", "content-range", "retry-after")


@attrs.frozen
class Answer:
    """What the carrier said."""

    status: int
    headers: dict[str, str]
    body: bytes

    def sent(self, body: bytes | None = None) -> bytes:
        """Return the bytes of this answer, or of the same with another body."""
        data = self.body if body is None else body
        lines = [f"{name}: {value}" for name, value in self.headers.items()]
        head = [f"HTTP/1.1 {self.status} Mirrored", f"content-length: {len(data)}", *lines, "", ""]
        return "\r\n".join(head).encode() + (b"" if self.status in {204, 304} else data)


Rule = Callable[[Wire, Answer], bytes | None]
"""Gets the gateway's connection and the true answer; returns the bytes to send, or None to end the connection."""


class HostileMirror:
    """Listens on `port`; `rules` maps a pattern of the path to what happens there."""

    def __init__(self, carrier_port: int, tls_dir: Path, ca: Path) -> None:
        self.rules: dict[str, Rule] = {}
        self.seen: dict[str, Answer] = {}
        self._carrier_port = carrier_port
        self._upstream = ssl.create_default_context(cafile=ca)
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(tls_dir / "server.pem", tls_dir / "server.key")
        self._listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self._closing = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more; running connections end with the gateway's."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextmanager
    def lying(self, pattern: str, rule: Rule) -> Iterator[None]:
        """Answer by `rule` where `pattern` is found in the path."""
        self.rules[pattern] = rule
        try:
            yield
        finally:
            del self.rules[pattern]

    @property
    def closing(self) -> bool:
        """Whether the test is over: endless answers end then."""
        return self._closing.is_set()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException), connection:
            connection.settimeout(120)
            with self._server.wrap_socket(connection, server_side=True) as wire:
                file = wire.makefile("rb")
                while request := self._read(file):
                    method, path, headers, body = request
                    answer = self._ask_carrier(method, path, headers, body)
                    self.seen[path] = answer
                    rule = next((rule for text, rule in self.rules.items() if re.search(text, path)), None)
                    data = answer.sent() if rule is None else rule(wire, answer)
                    if data is None:
                        return
                    wire.sendall(data)

    def _read(self, file: socket.SocketIO) -> tuple[str, str, dict[str, str], bytes] | None:
        line = file.readline(8192).decode("ascii")
        if not line:
            return None
        method, path, _ = line.split(" ")
        headers = {}
        while field := file.readline(16384).decode("latin-1").strip():
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        return method, path, headers, file.read(int(headers.get("content-length", "0")))

    def _ask_carrier(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        passed = {name: value for name, value in headers.items() if name in _PASSED_ON}
        carrier = http.client.HTTPSConnection("::1", self._carrier_port, context=self._upstream, timeout=30)
        with contextlib.closing(carrier):
            carrier.request(method, path, body=body, headers=passed)
            answer = carrier.getresponse()
            back = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, {n: v for n, v in back.items() if n in _PASSED_BACK}, answer.read())
