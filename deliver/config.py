"""Configuration of `deliver serve`: one TOML file written by `deliver init`, paths relative to its directory.

Rules: unknown key = error; secrets are files named here; roles of one process are chosen on the command line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import attrs
import msgspec

from runtime.config import load_config
from runtime.errors import ConfigError
from wire.director import POLL_S_MAX, POLL_S_MIN

CONFIG_NAME: Final = "deliver.toml"
PORT_MAX: Final = 65_535
_LISTEN: Final = r"^\[[0-9a-fA-F:.]*\]:[0-9]{1,5}$"
_DATABASE: Final = r"^(sqlite:///|postgresql(\+[a-z0-9]+)?://)."
_Listen = Annotated[str, msgspec.Meta(pattern=_LISTEN)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class DeliverConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of `deliver.toml`. Listeners are IPv6, written `[address]:port`; port 0 lets the kernel choose."""

    database: Annotated[str, msgspec.Meta(pattern=_DATABASE)] = "sqlite:///state/carrier.db"
    blobs: Annotated[str, msgspec.Meta(pattern="^file://.+")] = "file://state/blobs"
    public_dir: _Path = "public"
    staging_dir: _Path = "state/staging"
    online_keys_dir: _Path = "online"
    receipt_cert_file: _Path = "trust/receipt-key.cert"
    service_root_file: _Path = "trust/service-root.pub"
    tls_cert_file: _Path = "tls/server.pem"
    tls_key_file: _Path = "tls/server.key"
    gateway_listen: _Listen = "[::]:8443"
    operator_listen: _Listen = "[::1]:8444"
    metrics_listen: _Listen = "[::1]:9465"
    poll_s: Annotated[int, msgspec.Meta(ge=POLL_S_MIN, le=POLL_S_MAX, extra={"unit": "seconds"})] = 3600
    upkeep_s: Annotated[int, msgspec.Meta(ge=1, le=3600, extra={"unit": "seconds"})] = 60


@attrs.frozen
class Home:
    """A configuration with the directory its paths start from."""

    directory: Path
    config: DeliverConfig

    def path(self, value: str) -> Path:
        """Return a configured path, absolute or below the home directory."""
        return self.directory / value

    @property
    def database_url(self) -> str:
        """The database URL; a relative SQLite path starts from the home directory."""
        prefix = "sqlite:///"
        url = self.config.database
        return prefix + str(self.path(url.removeprefix(prefix))) if url.startswith(prefix) else url

    @property
    def blobs_dir(self) -> Path:
        """Where packs lie."""
        return self.path(self.config.blobs.removeprefix("file://"))

    @property
    def image_dir(self) -> Path:
        """The image repository."""
        return self.path(self.config.public_dir) / "image"

    @property
    def director_dir(self) -> Path:
        """Director documents and the director's root chain."""
        return self.path(self.config.public_dir) / "director"


def load_home(path: Path) -> Home:
    """Read a configuration file, or `deliver.toml` of a directory; raises `ConfigError`."""
    file = path / CONFIG_NAME if path.is_dir() else path
    config = load_config(file, DeliverConfig)
    for key in ("gateway_listen", "operator_listen", "metrics_listen"):
        try:
            parse_listen(getattr(config, key), key)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    return Home(file.resolve().parent, config)


def check_files(home: Home) -> None:
    """Raise `ConfigError` naming the key of the first file or directory that serving needs and that is not there."""
    for key in ("tls_cert_file", "tls_key_file", "receipt_cert_file", "service_root_file"):
        path = home.path(getattr(home.config, key))
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{key}: expected a readable file, got {error.strerror}: {path}") from error
    for key in ("online_keys_dir", "public_dir"):
        path = home.path(getattr(home.config, key))
        if not path.is_dir():
            raise ConfigError(f"{key}: expected a directory, got {path}")


def parse_listen(value: str, key: str = "listen address") -> tuple[str, int]:
    """Return (host, port) of `[address]:port`, port 0 to 65535; raises `ConfigError` naming `key`."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]*)\]:([0-9]{1,5})", value)
    if match is None or int(match[2]) > PORT_MAX:
        raise ConfigError(
            f"{key}: expected [IPv6 address]:port with a port of 0 to {PORT_MAX}, got {value[:80]!r}"
        )
    return match[1] or "::", int(match[2])
