"""Makes the update service from `hgwd.toml`: the one place that joins configuration and `update_service.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from hgwd.adapters.enrol import EnrolRequest
from hgwd.adapters.state import GatewayState
from hgwd.config import HgwdConfig
from hgwd.core.update_metadata import load_root
from hgwd.core.update_types import ROOT_BYTES_MAX, RefusedError
from hgwd.update_service import UpdateService, UpdateSettings
from runtime.client_types import ClientLimits
from runtime.clock import Clock
from runtime.errors import ConfigError
from runtime.files import load_secret
from runtime.http_client import HttpClient
from runtime.logs import Logger
from runtime.tls import client_context
from wire.ids import GatewaySerial

SECRET_BYTES_MIN: Final = 16
SECRET_BYTES_MAX: Final = 64
UPDATE_LIMITS: Final = ClientLimits(connections_max=2, idle_max=1, idle_s=50.0, total_s=6 * 3600.0)
"""A 25 MiB package at the minimum rate takes seven hours: what is slower is cut and resumed."""


def open_update_service(config: HgwdConfig, state: GatewayState, clock: Clock, log: Logger) -> UpdateService:
    """Return the service for `nursery.start(service.run)`. Blocking, reads small files.

    Raises ConfigError (one line, naming the key) for a root or secret that cannot be used.
    """
    settings = UpdateSettings(
        software_dir=Path(config.update.software_dir),
        launcher_socket=None
        if config.update.launcher_socket is None
        else Path(config.update.launcher_socket),
        image_root=_root("carrier.image_root_file", config.carrier.image_root_file),
        director_root=_root("carrier.director_root_file", config.carrier.director_root_file),
        claim=EnrolRequest(
            serial=GatewaySerial.parse(config.gateway.serial),
            model=config.gateway.model,
            maker=config.gateway.maker,
            secret=_secret(config.gateway.device_secret_file),
        ),
        poll_s=float(config.update.poll_s),
        month_bytes_max=config.update.download_bytes_month_max,
    )
    strict, dateless = _client(config, ignore_dates=False), _client(config, ignore_dates=True)
    return UpdateService(settings, state, strict, dateless, clock, log)


def _client(config: HgwdConfig, *, ignore_dates: bool) -> HttpClient:
    carrier = config.carrier
    return HttpClient(
        carrier.host,
        carrier.port,
        client_context(carrier.ca_file, ignore_dates=ignore_dates),
        server_name=carrier.server_name,
        timeouts=attrs.evolve(
            UPDATE_LIMITS, connect_s=carrier.connect_timeout_s, head_s=carrier.answer_timeout_s
        ),
    )


def _root(key: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(ROOT_BYTES_MAX)
        load_root(data, None, path)
    except OSError as error:
        raise ConfigError(f"{key}: expected a readable TUF root, got {error.strerror}: {path}") from error
    except RefusedError as error:
        raise ConfigError(f"{key}: expected a TUF root signed by its own keys: {error.message}") from error
    return data


def _secret(path: str) -> bytes:
    text = load_secret(path).strip()
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"gateway.device_secret_file: expected hex digits in {path}") from error
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ConfigError(
            f"gateway.device_secret_file: expected {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, got {len(secret)}"
        )
    return secret
