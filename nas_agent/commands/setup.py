"""`init`, `key show`, `key sheet`, `key recover`, `status`: the keys, and what this NAS knows of its backups."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import attrs

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.adapters.state import Gateway, StateError
from nas_agent.commands.context import Context
from nas_agent.core.targets import GatewayTarget
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.events import (
    DoneEvent,
    ExitCode,
    GatewayEvent,
    KeysEvent,
    StatusEvent,
)
from nas_agent.keys.contract import PASSPHRASE_CHARS_MIN, KdfCost, generate_contract
from nas_agent.keys.device import contract_public, device_fingerprint, make_device
from nas_agent.keys.sheet import parse_sheet, recovery_sheet
from runtime.errors import LocalError
from runtime.files import write_atomic
from wire.ids import ContractId
from wire.storage import from_base64, unverified_receipt

_ROOT_KEY = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class InitRequest:
    """`contract` is None while there is none: a directory needs no number."""

    contract: ContractId | None
    name: str
    passphrase: str
    sheet: Path | None
    cost: KdfCost = attrs.field(factory=KdfCost)


def run_init(context: Context, request: InitRequest) -> ExitCode:
    """Make the contract's and the device's keys; prints their fingerprints."""
    if len(request.passphrase) < PASSPHRASE_CHARS_MIN:
        raise LocalError(f"passphrase: expected at least {PASSPHRASE_CHARS_MIN} characters")
    contract = generate_contract()
    contract_id = request.contract.text if request.contract else f"local-{secrets.token_hex(8)}"
    keys = make_device(contract, contract_id=contract_id, name=request.name, now_s=context.clock.now_s())
    if request.sheet is not None:
        if request.sheet.exists():
            raise LocalError(f"{request.sheet} exists already; name a new file for the recovery sheet")
        write_atomic(request.sheet, recovery_sheet(contract).encode(), mode=0o600)
    context.state.create(keys, contract, request.passphrase, cost=request.cost)
    _show_keys(context, keys)
    sheet = (
        f"print {request.sheet}, keep it in a safe place, then delete the file"
        if request.sheet
        else "no recovery sheet was made: without passphrase nobody can restore (`nas-agent key sheet` makes one)"
    )
    context.terminal.emit(DoneEvent(exit_code=0, message=f"ready; {sheet}"))
    return 0


def run_key_show(context: Context) -> ExitCode:
    """Print fingerprints; nothing secret."""
    _show_keys(context, context.state.load_device())
    context.terminal.emit(
        DoneEvent(exit_code=0, message="compare the fingerprints with those of the first set-up")
    )
    return 0


def run_key_sheet(context: Context, passphrase: str, path: Path) -> ExitCode:
    """Write a recovery sheet."""
    if path.exists():
        raise LocalError(f"{path} exists already; name a new file for the recovery sheet")
    write_atomic(path, recovery_sheet(context.state.load_contract(passphrase)).encode(), mode=0o600)
    context.terminal.emit(DoneEvent(exit_code=0, message=f"print {path}, keep it safe, then delete the file"))
    return 0


def run_key_recover(context: Context, sheet: Path, passphrase: str, *, cost: KdfCost) -> ExitCode:
    """Make the owner's copy anew from a recovery sheet, under a new passphrase."""
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise LocalError(f"passphrase: expected at least {PASSPHRASE_CHARS_MIN} characters")
    try:
        text = sheet.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise LocalError(f"recovery sheet {sheet}: {error.strerror}") from error
    contract = parse_sheet(text)
    keys = context.state.load_device()
    if contract.public != contract_public(keys):
        raise StateError(
            f"the sheet is of contract key {contract.public.fingerprint}, this device belongs to "
            f"{contract_public(keys).fingerprint}: take the sheet of this contract"
        )
    context.state.save_contract(contract, passphrase, cost=cost)
    context.terminal.emit(
        DoneEvent(exit_code=0, message="the new passphrase opens this contract's backups now")
    )
    return 0


def run_status(context: Context) -> ExitCode:
    """Say what this NAS knows of its keys, gateway and last generations; asks nobody."""
    keys = context.state.load_device()
    _show_keys(context, keys)
    gateway = context.state.load_gateway()
    if gateway is not None:
        context.terminal.emit(gateway_event(gateway))
    directories = sorted((context.state.path / "catalogues").glob("*@*"))
    for directory in directories:
        context.terminal.emit(_status_of(directory, keys))
    context.terminal.emit(DoneEvent(exit_code=0, message=f"{len(directories)} backup sets"))
    return 0


def _show_keys(context: Context, keys: DeviceKeys) -> None:
    context.terminal.emit(
        KeysEvent(
            contract=keys.contract,
            contract_fingerprint=contract_public(keys).fingerprint,
            device_fingerprint=device_fingerprint(keys),
            device_key=keys.device.public.hex(),
            epoch=keys.epoch.epoch,
            state_directory=str(context.state.path),
        )
    )


def gateway_event(gateway: Gateway) -> GatewayEvent:
    """Return what may be shown of a pairing: no token."""
    return GatewayEvent(
        address=str(GatewayTarget(gateway.host, gateway.port)),
        certificate_sha256=gateway.certificate_sha256,
        enrolled=bool(gateway.device),
        service_root=gateway.service_root or None,
    )


def _status_of(directory: Path, keys: DeviceKeys) -> StatusEvent:
    catalogue = Catalogue.open(directory, epoch=keys.epoch.epoch)
    try:
        durable = catalogue.durable
        unfinished = catalogue.unfinished or catalogue.pending is not None
        spooled = len(catalogue.spooled_packs(1_000_000))
    finally:
        catalogue.close()
    described = directory / "target"
    receipt = durable.receipt if durable else None
    return StatusEvent(
        backup_set=directory.name.partition("@")[0],
        target=described.read_bytes().decode("utf-8", "replace") if described.exists() else "?",
        state="unfinished" if unfinished else "durable" if durable else "never",
        sequence=durable.sequence if durable else 0,
        generation=durable.generation if durable else None,
        root_sha256=durable.root_sha256 if durable else None,
        durable_at=None if receipt is None else unverified_receipt(from_base64(receipt)).received_at,
        spooled_packs=spooled,
    )
