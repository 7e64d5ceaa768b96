"""The NAS devices paired with this gateway: tokens hashed at rest, revocation effective at the next byte (AZK-73).

The set is small (`DEVICES_MAX`) and kept in memory beside its table, so that `is_live` costs nothing per piece of a
body. A token is 256 random bits: its SHA-256 is enough, a slow hash would protect nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from typing import Final

import attrs

from hgwd.errors import LocalUseError
from runtime.clock import Clock
from runtime.sqlite import Database

DEVICES_MAX: Final = 64
TOKEN_BYTES: Final = 32


@attrs.frozen
class LanDevice:
    """A paired device. Times are unix seconds; `last_durable_at_s`: its last receipt seen here."""

    device: str
    name: str
    device_key: bytes
    paired_at_s: int
    revoked_at_s: int | None
    last_stored_at_s: int | None
    last_durable_at_s: int | None


class LanDevices:
    """`load` first. Lookups are from memory; changes are committed before they are visible."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._live: dict[bytes, LanDevice] = {}

    async def load(self) -> None:
        """Read the live devices."""
        self._live = await self._db.read(_load_live)

    def authenticate(self, token: str) -> LanDevice | None:
        """Return the live device that holds `token`, or None for every other text."""
        return self._live.get(_hash(token))

    def is_live(self, device: str) -> bool:
        """Say whether the device is still paired and not revoked."""
        return any(live.device == device for live in self._live.values())

    def is_full(self) -> bool:
        """Say whether `DEVICES_MAX` devices are paired."""
        return len(self._live) >= DEVICES_MAX

    async def add(self, *, name: str, device_key: bytes, token: str) -> LanDevice:
        """Add a device; an older pairing of the same device key is replaced, its token dies.

        Raises `LocalUseError` when `DEVICES_MAX` devices are paired.
        """
        replaced = {live.device for live in self._live.values() if live.device_key == device_key}
        if len(self._live) - len(replaced) >= DEVICES_MAX:
            raise LocalUseError(f"expected at most {DEVICES_MAX} paired devices: revoke one first")
        device = LanDevice(
            secrets.token_hex(16), name, device_key, int(self._clock.now_s()), None, None, None
        )
        self._live = await self._db.run(_insert, device, _hash(token), sorted(replaced))
        return device

    async def revoke(self, device: str) -> bool:
        """Revoke a device; return whether it was live. On return no request and no running body of it is accepted."""
        known = self.is_live(device)
        self._live = {token: live for token, live in self._live.items() if live.device != device}
        await self._db.run(_revoke, device, int(self._clock.now_s()))
        return known

    async def note_durable(self, device: str) -> None:
        """A commit of the device was answered with a receipt."""
        await self._db.run(_note_durable, device, int(self._clock.now_s()))

    async def list_all(self) -> list[LanDevice]:
        """Return all devices, revoked ones included, newest first."""
        return await self._db.read(_load_all)


def new_token() -> str:
    """Return a fresh LAN token: 64 hex digits."""
    return secrets.token_hex(TOKEN_BYTES)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


_COLUMNS = "device, name, device_key, paired_at_s, revoked_at_s, last_stored_at_s, last_durable_at_s"


def _load_live(db: sqlite3.Connection) -> dict[bytes, LanDevice]:
    query = f"SELECT token_sha256, {_COLUMNS} FROM lan_device WHERE revoked_at_s IS NULL"  # noqa: S608 - constant text
    return {row[0]: LanDevice(*row[1:]) for row in db.execute(query)}


def _load_all(db: sqlite3.Connection) -> list[LanDevice]:
    query = f"SELECT {_COLUMNS} FROM lan_device ORDER BY paired_at_s DESC, device"  # noqa: S608 - constant text
    return [LanDevice(*row) for row in db.execute(query)]


def _insert(
    db: sqlite3.Connection, device: LanDevice, token_sha256: bytes, replaced: list[str]
) -> dict[bytes, LanDevice]:
    for old in replaced:
        db.execute("UPDATE lan_device SET revoked_at_s = ? WHERE device = ?", (device.paired_at_s, old))
    db.execute(
        "INSERT INTO lan_device (device, name, token_sha256, device_key, paired_at_s) VALUES (?, ?, ?, ?, ?)",
        (device.device, device.name, token_sha256, device.device_key, device.paired_at_s),
    )
    return _load_live(db)


def _revoke(db: sqlite3.Connection, device: str, now_s: int) -> None:
    db.execute(
        "UPDATE lan_device SET revoked_at_s = ? WHERE device = ? AND revoked_at_s IS NULL", (now_s, device)
    )


def _note_durable(db: sqlite3.Connection, device: str, now_s: int) -> None:
    db.execute("UPDATE lan_device SET last_durable_at_s = ? WHERE device = ?", (now_s, device))
