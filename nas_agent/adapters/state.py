"""The agent's state directory: keys, pairing, lock. Secrets are files of mode 0600, replaced atomically.

```
device.json      device keys, certificate, epoch keys (writes backups, reads none)
contract.json    the owner's copy of the contract secret, wrapped by the passphrase
gateway.json     the paired gateway: address, pinned certificate, LAN token, service root, receipt key
nas-agent.toml   optional, written by a person
lock             held while a backup or restore runs; holds the pid
```
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.keys.contract import ContractSecret, KdfCost, unwrap_secret, wrap_secret
from nas_agent.keys.device import decode_device, encode_device
from runtime.errors import LocalError
from runtime.files import load_secret, make_dirs, write_atomic

SECRET_MODE: Final = 0o600
_GATEWAY_VERSION: Final = 1
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class StateError(LocalError):
    """The state directory cannot be used as asked; the text says what to do."""

    code = "state"


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What pairing and enrolment left: everything the agent needs to speak to its gateway.

    `device` and `receipt_key_cert` (base64 signed blob) are empty until the service has enrolled this device.
    """

    v: int = _GATEWAY_VERSION
    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    certificate_sha256: _Hex32
    lan_token: str
    service_root: str = ""
    receipt_key_cert: str = ""
    device: str = ""


class StateDirectory:
    """Reads and writes the files above; every method raises `StateError` or `KeyFileError` with what to do."""

    def __init__(self, path: Path) -> None:
        """Remember the place; nothing is touched."""
        self.path = path

    @property
    def device_path(self) -> Path:
        """The device key file; it exists exactly when `init` was completed."""
        return self.path / "device.json"

    @property
    def contract_path(self) -> Path:
        """The owner's wrapped copy of the contract secret."""
        return self.path / "contract.json"

    def create(self, keys: DeviceKeys, contract: ContractSecret, passphrase: str, *, cost: KdfCost) -> None:
        """Write the files of a new device, the device key last: a run cut short is simply done again."""
        if self.device_path.exists():
            raise StateError(
                f"{self.path} already holds a device; use it, or choose another --state directory"
            )
        make_dirs(self.path, mode=0o700)
        self.save_contract(contract, passphrase, cost=cost)
        self.save_device(keys)

    def save_contract(self, contract: ContractSecret, passphrase: str, *, cost: KdfCost) -> None:
        """Replace the owner's copy."""
        write_atomic(self.contract_path, wrap_secret(contract, passphrase, cost=cost), mode=SECRET_MODE)

    def save_device(self, keys: DeviceKeys) -> None:
        """Replace the device key file."""
        write_atomic(self.device_path, encode_device(keys), mode=SECRET_MODE)

    def load_device(self) -> DeviceKeys:
        """Read the device keys."""
        if not self.device_path.exists():
            raise StateError(f"no device in {self.path}: run `nas-agent init` first")
        return decode_device(load_secret(self.device_path))

    def load_contract(self, passphrase: str) -> ContractSecret:
        """Open the owner's copy with the passphrase."""
        if not self.contract_path.exists():
            raise StateError(f"no contract key copy in {self.path}: use `nas-agent key recover --sheet FILE`")
        return unwrap_secret(load_secret(self.contract_path), passphrase)

    def load_gateway(self) -> Gateway | None:
        """Read the pairing, None if there is none."""
        path = self.path / "gateway.json"
        if not path.exists():
            return None
        try:
            gateway = msgspec.json.decode(load_secret(path), type=Gateway)
        except msgspec.MsgspecError as error:
            raise StateError(f"{path} cannot be read ({error}): run `nas-agent pair` again") from error
        if gateway.v != _GATEWAY_VERSION:
            raise StateError(
                f"{path} has version {gateway.v}, expected {_GATEWAY_VERSION}: upgrade nas-agent"
            )
        return gateway

    def save_gateway(self, gateway: Gateway) -> None:
        """Replace the pairing."""
        data = msgspec.json.format(msgspec.json.encode(gateway), indent=1) + b"\n"
        write_atomic(self.path / "gateway.json", data, mode=SECRET_MODE)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this state directory; raises `StateError` naming the process that holds it."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise StateError(
                    f"another run (pid {holder}) holds the lock; wait for it to end, or stop that process"
                ) from error
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
            yield
        finally:
            os.close(fd)
