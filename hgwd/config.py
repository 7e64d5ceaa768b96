"""The gateway's configuration: one TOML file, `hgwd.toml` (style §10).

Rules
- Unknown key or value out of range: one line naming key and range, exit code 2 (`runtime.config`).
- Secrets stand in files named here, never in this file.
- What the flash and the memory of a profile allow is data: `spool.bytes_max`, `spool.pack_bytes_max`.
- `check_listeners` is what keeps hgwd off the WAN side; it needs the prefixes of the WAN interface, read by the caller.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from hgwd.core.addresses import Network, why_not_listen
from runtime.config import load_config
from runtime.errors import ConfigError
from wire.errors import FormatError
from wire.ids import GatewaySerial
from wire.storage import PACK_BYTES_MAX
from wire.units import KIB, MIB

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_ListenPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Prefixes = Annotated[tuple[str, ...], msgspec.Meta(max_length=16)]
_Series = Literal["PR-400", "RV-440", "RT-400", "PR-500", "RS-500", "RT-500"]

CONFIG_PATH_DEFAULT: Final = Path("/etc/hgwd/hgwd.toml")


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this gateway is. `device_secret_file`: the per-device secret from manufacture, used to enrol (design §4)."""

    serial: str
    model: _Series
    maker: Literal["KI", "MI", "NE"]
    device_secret_file: _Path
    state_dir: _Path = "/var/lib/hgwd"
    wan_interface: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,15}$")] | None = None


class CarrierConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the carrier is. `ca_file` pins its certificate authority; the root files are the anchors of both chains."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    port: _Port = 443
    ca_file: _Path
    server_name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)] | None = None
    image_root_file: _Path
    director_root_file: _Path
    connect_timeout_s: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 10.0
    answer_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=300)] = 30.0


class LanConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The backup listener. `prefixes`: global prefixes of the LAN, where its devices have such addresses."""

    host: str
    port: _ListenPort = 8443
    prefixes: _Prefixes = ()
    connections_max: Annotated[int, msgspec.Meta(ge=2, le=512)] = 32


class AdminConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local admin page. `password_file` holds a scrypt hash made by `hgwd password`.

    `tls`: serve it with the LAN certificate, whose fingerprint `hgwd status` shows. Off by default, as on the real
    gateways (security.md §3): browsers do not know the certificate.
    """

    host: str
    port: _ListenPort = 8444
    tls: bool = False
    password_file: _Path
    host_names: Annotated[tuple[str, ...], msgspec.Meta(max_length=8)] = ()
    idle_logout_s: Annotated[int, msgspec.Meta(ge=60, le=86400)] = 900


class SpoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The spool on flash. Admission stops at `high_water_percent`; no pack may exceed `pack_bytes_max`."""

    directory: _Path
    bytes_max: Annotated[int, msgspec.Meta(ge=256 * KIB, le=1 << 44)] = 24 * MIB
    pack_bytes_max: Annotated[int, msgspec.Meta(ge=64 * KIB, le=PACK_BYTES_MAX)] = PACK_BYTES_MAX
    high_water_percent: Annotated[int, msgspec.Meta(ge=10, le=95)] = 80
    uploads_max: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2


class UpdateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Software delivery. `poll_s` holds until the carrier's document says otherwise (JNT-33)."""

    enabled: bool = True
    poll_s: Annotated[int, msgspec.Meta(ge=5, le=7 * 24 * 3600)] = 3600
    software_dir: _Path = "/var/lib/hgwd/software"
    download_bytes_month_max: Annotated[int, msgspec.Meta(ge=1 * MIB, le=1 << 40)] = 1 << 30
    launcher_socket: _Path | None = None


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prometheus text on a listener of its own, without a password: loopback unless the owner opens it to the LAN."""

    host: str = "127.0.0.1"
    port: _ListenPort = 9464
    enabled: bool = True


class HgwdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of `hgwd.toml`."""

    gateway: GatewayConfig
    carrier: CarrierConfig
    lan: LanConfig
    admin: AdminConfig
    spool: SpoolConfig
    update: UpdateConfig = UpdateConfig()
    metrics: MetricsConfig = MetricsConfig()


def load_hgwd_config(path: Path) -> HgwdConfig:
    """Return the checked configuration; raise `ConfigError` with one line naming key and range."""
    config = load_config(path, HgwdConfig)
    try:
        GatewaySerial.parse(config.gateway.serial)
    except FormatError as error:
        raise ConfigError(f"{path}: gateway.serial: {error}") from error
    lan_prefixes(config)
    return config


def lan_prefixes(config: HgwdConfig) -> tuple[Network, ...]:
    """Return `lan.prefixes` parsed; raise `ConfigError` for one that is no prefix."""
    try:
        return tuple(ipaddress.ip_network(text) for text in config.lan.prefixes)
    except ValueError as error:
        raise ConfigError(f"lan.prefixes: expected prefixes such as 2001:db8:1::/64: {error}") from error


def check_files(config: HgwdConfig) -> None:
    """Raise `ConfigError` naming the key of the first file that is needed to run and cannot be read."""
    needed = [
        ("carrier.ca_file", config.carrier.ca_file),
        ("admin.password_file", config.admin.password_file),
    ]
    if config.update.enabled:
        needed += [
            ("gateway.device_secret_file", config.gateway.device_secret_file),
            ("carrier.image_root_file", config.carrier.image_root_file),
            ("carrier.director_root_file", config.carrier.director_root_file),
        ]
    for key, path in needed:
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(f"{key}: expected a readable file, got {error.strerror}: {path}") from error


def check_listeners(config: HgwdConfig, wan_prefixes: Sequence[Network]) -> None:
    """Raise `ConfigError` when a listener would stand on the WAN side (CVE-2024-47044 of like gateways)."""
    hosts = [("lan.host", config.lan.host), ("admin.host", config.admin.host)]
    if config.metrics.enabled:
        hosts.append(("metrics.host", config.metrics.host))
    for key, host in hosts:
        zone = host.partition("%")[2]
        if zone and zone == config.gateway.wan_interface:
            raise ConfigError(f"{key}: refused to listen: {host} is on the WAN interface")
        reason = why_not_listen(host, lan_prefixes=lan_prefixes(config), wan_prefixes=wan_prefixes)
        if reason is not None:
            raise ConfigError(f"{key}: refused to listen: {reason}")
