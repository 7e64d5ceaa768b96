"""Where a backup goes: a directory, or the paired gateway. Parsed once from what a person wrote."""

from __future__ import annotations

import posixpath
import re
from typing import Final
from urllib.parse import unquote

import attrs

from runtime.errors import LocalError

_HTTPS: Final = re.compile(
    r"https://(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[A-Za-z0-9.-]+)):(?P<port>\d{1,5})/?"
)


@attrs.frozen
class DirectoryTarget:
    """A directory or USB disk on this machine; absolute path."""

    path: str

    def __str__(self) -> str:
        return f"file://{self.path}"


@attrs.frozen
class GatewayTarget:
    """The gateway on the LAN; `host` without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


Target = DirectoryTarget | GatewayTarget


def parse_target(text: str) -> Target:
    """Return the target; raises `LocalError` naming the two accepted forms."""
    if text.startswith("file:///") and "\0" not in text:
        return DirectoryTarget(posixpath.normpath(unquote(text.removeprefix("file://"))))
    match = _HTTPS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise LocalError(
            f"target {text!r}: expected file:///directory or https://host:port (IPv6 as https://[host]:port)"
        )
    return GatewayTarget(match["v6"] or match["name"], int(match["port"]))


def parse_host_port(text: str) -> GatewayTarget:
    """Return the gateway of `HOST:PORT` (IPv6 in brackets); raises `LocalError`."""
    target = parse_target(f"https://{text}")
    if not isinstance(target, GatewayTarget):  # pragma: no cover - an https text is never a directory
        raise LocalError(f"gateway {text!r}: expected HOST:PORT")
    return target
