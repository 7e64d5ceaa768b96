"""Make a carrier side from nothing: keys, repositories, TLS, database, configuration (`deliver init`).

Rules
- Runs once per directory: the configuration file is written last and marks it as made; a directory that is not empty
  is refused, so nothing is ever overwritten.
- `offline/` holds what a serving program must never see: move it to another machine after the ceremonies.
- It does not do: moving keys, starting anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import msgspec

from carrier.engines.sql.database import open_database
from carrier.engines.sql.migrate import migrate as migrate_carrier
from deliver.config import CONFIG_NAME, DeliverConfig, Home
from deliver.engines.migrate import migrate as migrate_joint
from deliver.services.operators import set_role
from deliver.signing.director import make_director_root
from deliver.signing.image_repository import ROOT_KEYS, ImageKeys, ImageRepository, create_repository
from deliver.signing.keystore import OFFLINE, KeyStore
from deliver.signing.tls_authority import make_tls
from deliver.signing.tuf import encode
from runtime.config import parse_config
from runtime.errors import LocalError
from runtime.files import make_dirs, write_atomic
from wire.signing import SigningKey
from wire.storage import sign_receipt_key

RECEIPT_KEY_LIFE_S: Final = 365 * 86_400
OFFLINE_ROLES: Final = (
    *(f"root-{number}" for number in range(1, ROOT_KEYS + 1)),
    "targets",
    "shards",
    *(f"director-root-{number}" for number in range(1, ROOT_KEYS + 1)),
    "time-2",
    "service-root",
)
ONLINE_ROLES: Final = ("snapshot", "timestamp", "director", "time", "receipt")


@attrs.frozen
class Made:
    """One thing `init` made, and where."""

    what: str
    where: Path


def make_carrier(
    directory: Path, config: DeliverConfig, names: Sequence[str], *, now_s: float
) -> tuple[Made, ...]:
    """Make everything below `directory`; `names` are the server certificate's DNS names and addresses.

    Raises `ConfigError` for a bad value, `LocalError` when the directory holds anything already.
    """
    parse_config(_config_text(config).encode(), DeliverConfig, source="deliver init")
    make_dirs(directory, mode=0o755)
    if any(directory.iterdir()):
        raise LocalError(f"{directory}: expected an empty directory: init runs once and overwrites nothing")
    home = Home(directory, config)
    offline = _make_keys(KeyStore(directory / OFFLINE), OFFLINE_ROLES)
    online = _make_keys(KeyStore(home.path(config.online_keys_dir)), ONLINE_ROLES)
    for folder in ("trust", "tls", config.staging_dir):
        make_dirs(home.path(folder), mode=0o700 if folder != "trust" else 0o755)
    make_dirs(home.blobs_dir, mode=0o700)
    make_tls(
        names,
        ca_cert=directory / "trust" / "tls-ca.pem",
        ca_key=directory / OFFLINE / "tls-ca.key",
        server_cert=home.path(config.tls_cert_file),
        server_key=home.path(config.tls_key_file),
        now_s=now_s,
    )
    _make_repositories(home, offline, online, now_s)
    _make_receipt_key(home, offline["service-root"], online["receipt"], now_s)
    _make_database(home)
    write_atomic(directory / CONFIG_NAME, _config_text(config).encode())
    return _made(home)


def _make_keys(store: KeyStore, roles: Sequence[str]) -> dict[str, SigningKey]:
    return {role: store.create(role) for role in roles}


def _make_repositories(
    home: Home, offline: dict[str, SigningKey], online: dict[str, SigningKey], now_s: float
) -> None:
    image = ImageRepository(home.image_dir)
    create_repository(image, offline, ImageKeys(online["snapshot"], online["timestamp"]), now_s=now_s)
    make_dirs(home.director_dir)
    root_keys = [offline[f"director-root-{number}"] for number in range(1, ROOT_KEYS + 1)]
    time_keys = [online["time"].public, offline["time-2"].public]
    root = encode(make_director_root(root_keys, online["director"].public, time_keys, now_s=now_s))
    write_atomic(home.director_dir / "1.root.json", root)
    trust = home.directory / "trust"
    write_atomic(trust / "director-root.json", root)
    write_atomic(trust / "image-root.json", (image.metadata_dir / "1.root.json").read_bytes())


def _make_receipt_key(home: Home, service_root: SigningKey, receipt: SigningKey, now_s: float) -> None:
    cert = sign_receipt_key(service_root, receipt.public, not_after=int(now_s) + RECEIPT_KEY_LIFE_S)
    write_atomic(home.path(home.config.receipt_cert_file), cert)
    write_atomic(home.path(home.config.service_root_file), service_root.public.hex().encode() + b"\n")


def _make_database(home: Home) -> None:
    database = open_database(home.database_url)
    try:
        migrate_carrier(database)
        migrate_joint(database)
        roles = ImageRepository(home.image_dir).published()
        with database.write() as connection:
            for role, version in roles.items():
                set_role(connection, role, version)
    finally:
        database.close()


def _config_text(config: DeliverConfig) -> str:
    lines = [
        "# Written by `deliver init`. Paths start from this file's directory; listeners are [IPv6]:port."
    ]
    for name, value in msgspec.to_builtins(config).items():
        lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"


def _made(home: Home) -> tuple[Made, ...]:
    directory = home.directory
    return (
        Made("configuration", directory / CONFIG_NAME),
        Made("offline keys: move them to another machine", directory / OFFLINE),
        Made("online keys", home.path(home.config.online_keys_dir)),
        Made("trust anchors for gateways and NAS", directory / "trust"),
        Made("image repository (root 2 of 3, 256 shards)", home.image_dir),
        Made("director documents", home.director_dir),
        Made("database", Path(home.database_url.removeprefix("sqlite:///"))),
        Made("packs", home.blobs_dir),
        Made("TLS server certificate", home.path(home.config.tls_cert_file)),
    )
