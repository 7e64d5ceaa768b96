"""Make the files of a first boot: a configuration for hgwd, and the trust anchors of a real, newly made carrier.

The carrier is made as `deliver init` makes one, and nothing of it is kept but what a gateway is given in the factory:
the anchors of both repositories, the certificate authority, the device secret. It is not running, so the line is down:
the boot shows that hgwd starts and serves its LAN all the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from firmware_sim.profile import Profile

ADMIN_PASSWORD_BYTES = 12
SECRET_BYTES = 32
DATA = "/data"
_ANCHORS = ("tls-ca.pem", "image-root.json", "director-root.json")
_CONFIG = """\
[gateway]
serial = "{serial}"
model = "{series}"
maker = "KI"
device_secret_file = "{data}/device-secret"
state_dir = "{data}/hgwd"
wan_interface = "eth0"
[carrier]
host = "{carrier}"
port = 443
ca_file = "{data}/trust/tls-ca.pem"
image_root_file = "{data}/trust/image-root.json"
director_root_file = "{data}/trust/director-root.json"
[lan]
host = "192.168.1.1"
[admin]
host = "192.168.1.1"
password_file = "{data}/admin-password"
[spool]
directory = "{data}/spool"
bytes_max = {spool_bytes}
pack_bytes_max = {pack_bytes}
[update]
software_dir = "{data}/software"
"""


def first_boot_files(profile: Profile, scratch: Path, *, carrier: str, serial: str) -> Mapping[str, bytes]:
    """Return what the data flash holds when the machine leaves the factory, by name relative to /data.

    Args:
        profile: gives the series and the room of the spool.
        scratch: an empty directory; the carrier is made below it.
        carrier: IPv6 address that the configuration names as the carrier.
        serial: the gateway's serial number, in the form of `wire.ids.GatewaySerial`.
    """
    from deliver.config import DeliverConfig
    from deliver.services.setup import make_carrier
    from hgwd.passwords import hash_password

    home = scratch / "carrier"
    make_carrier(home, DeliverConfig(), [carrier], now_s=time.time())
    trust = {f"trust/{name}": (home / "trust" / name).read_bytes() for name in _ANCHORS}
    config = _CONFIG.format(
        serial=serial,
        series=profile.series,
        data=DATA,
        carrier=carrier,
        spool_bytes=profile.spool_limit_bytes,
        pack_bytes=profile.pack_limit_mib.value << 20,
    )
    return {
        "hgwd.toml": config.encode(),
        "device-secret": secrets.token_hex(SECRET_BYTES).encode(),
        "admin-password": hash_password(secrets.token_urlsafe(ADMIN_PASSWORD_BYTES)).encode(),
        **trust,
    }
