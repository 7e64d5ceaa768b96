"""From a target to a `VaultStore` that speaks to it, and the local directory where its catalogue lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from nas_agent.adapters.directory_files import VAULT_FILE, create_vault
from nas_agent.adapters.directory_store import DirectoryStore
from nas_agent.adapters.state import Gateway, StateDirectory, StateError
from nas_agent.core.retry import Patience
from nas_agent.core.targets import DirectoryTarget, GatewayTarget, Target
from nas_agent.core.vault_keys import DeviceKeys, ReceiptTrust
from nas_agent.ports import VaultStore
from runtime.clock import Clock
from runtime.errors import LocalError
from runtime.files import load_secret, make_dirs, write_atomic
from wire.storage import from_base64

if TYPE_CHECKING:
    from nas_agent.adapters.storage_http import StorageHttp

LAN_STORAGE_PREFIX: Final = "/lan/v1/storage/v1"


@attrs.frozen
class StoreOptions:
    """How to reach a store: how long to go on trying (seconds), who is told of waits, and the clock."""

    keep_trying_s: float
    waiting: Callable[[str, str, float], None]
    clock: Clock


def choose_target(text: Target | None, state: StateDirectory) -> Target:
    """Return the given target, else the paired gateway; raises `StateError` when there is neither."""
    if text is not None:
        return text
    gateway = state.load_gateway()
    if gateway is None:
        raise StateError("no target: say --to file:///directory, or pair with a gateway (`nas-agent pair`)")
    return GatewayTarget(gateway.host, gateway.port)


def open_store(target: Target, state: StateDirectory, keys: DeviceKeys, options: StoreOptions) -> VaultStore:
    """Return the store at `target`; no connection is made yet. Raises `StateError` when it is not paired."""
    if isinstance(target, DirectoryTarget):
        return DirectoryStore(
            Path(target.path),
            contract=keys.contract,
            contract_sign_key=keys.contract_sign_public,
            clock=options.clock,
        )
    from nas_agent.adapters.https_store import HttpsStore  # a run to a directory needs no HTTP in memory

    gateway = enrolled_gateway(target, state)
    http = gateway_http(gateway, options)
    return HttpsStore(http, contract=keys.contract, device=keys.device, clock=options.clock)


def gateway_http(gateway: Gateway, options: StoreOptions) -> StorageHttp:
    """Return the storage protocol through a paired gateway, its certificate pinned."""
    from nas_agent.adapters.storage_http import StorageHttp
    from runtime.http_client import HttpClient
    from runtime.tls import client_context

    client = HttpClient(gateway.host, gateway.port, client_context(), pin_sha256=gateway.certificate_sha256)
    return StorageHttp(
        client,
        LAN_STORAGE_PREFIX,
        headers={"authorization": f"Bearer {gateway.lan_token}"},
        clock=options.clock,
        patience=Patience(options.keep_trying_s),
        waiting=options.waiting,
    )


def enrolled_gateway(target: GatewayTarget, state: StateDirectory) -> Gateway:
    """Return the pairing for `target`; raises `StateError` when it is another gateway or not enrolled."""
    gateway = state.load_gateway()
    if gateway is None or (gateway.host, gateway.port) != (target.host, target.port):
        raise StateError(f"{target} is not the paired gateway: run `nas-agent pair --gateway HOST:PORT`")
    if not gateway.device:
        raise StateError(
            "paired, but not enrolled at the service: run `nas-agent pair` with --enrolment-code"
        )
    return gateway


def with_receipt_trust(keys: DeviceKeys, target: Target, state: StateDirectory) -> DeviceKeys:
    """Return the keys with the receipt trust of the target's service; a directory signs none."""
    if isinstance(target, DirectoryTarget):
        return keys
    gateway = enrolled_gateway(target, state)
    trust = ReceiptTrust(bytes.fromhex(gateway.service_root), from_base64(gateway.receipt_key_cert))
    return attrs.evolve(keys, receipt_trust=trust)


def prepare_directory(target: Target, state: StateDirectory, keys: DeviceKeys) -> None:
    """Make a vault in a new or empty target directory; leaves an existing one and a gateway alone.

    Raises `LocalError` for a directory that holds something else, or when the disk is not there.
    """
    if not isinstance(target, DirectoryTarget):
        return
    root = Path(target.path)
    try:
        if (root / VAULT_FILE).exists():
            return
        if not root.parent.is_dir():
            raise LocalError(f"{target}: {root.parent} does not exist; is the disk mounted?")
        create_vault(root, contract=keys.contract, owner_copy=load_secret(state.contract_path))
    except OSError as error:
        raise LocalError(f"{target}: cannot make a vault there: {error.strerror}") from error


def existing_catalogue(state: StateDirectory, target: Target, backup_set: str) -> Path | None:
    """Return the directory of the catalogue for a set at a target, None if there was no backup yet."""
    path = _catalogue_path(state, target, backup_set)
    return path if path.is_dir() else None


def catalogue_directory(state: StateDirectory, target: Target, backup_set: str) -> Path:
    """Return (and make) the directory of the catalogue for a set at a target."""
    path = _catalogue_path(state, target, backup_set)
    make_dirs(path, mode=0o700)
    described, text = path / "target", str(target).encode("utf-8", "surrogateescape")
    if not described.exists() or described.read_bytes() != text:
        write_atomic(described, text)
    return path


def _catalogue_path(state: StateDirectory, target: Target, backup_set: str) -> Path:
    key = str(target)
    if isinstance(target, GatewayTarget) and (gateway := state.load_gateway()) is not None:
        key = f"service {gateway.service_root}"  # the vault is at the service, whatever the gateway's address is today
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return state.path / "catalogues" / f"{backup_set}@{digest}"
