"""`init`, `pair`, `key show`, `key recover`, `status`: everything around keys and the gateway."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import attrs

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.adapters.open_store import gateway_http
from nas_agent.adapters.pairing import APPROVAL_S_MAX, PairingUi, enrol_device, pair
from nas_agent.adapters.state import Gateway, StateError
from nas_agent.commands.context import Context
from nas_agent.core.advice import explain_refusal
from nas_agent.core.targets import GatewayTarget
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.events import (
    DigitsEvent,
    DoneEvent,
    ExitCode,
    FailureEvent,
    GatewayEvent,
    KeysEvent,
    StatusEvent,
    WaitingEvent,
)
from nas_agent.keys.contract import PASSPHRASE_CHARS_MIN, KdfCost, generate_contract
from nas_agent.keys.device import certify_again, contract_public, device_fingerprint, make_device
from nas_agent.keys.sheet import parse_sheet, recovery_sheet
from nas_agent.ports import Refusal
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


@attrs.frozen
class PairRequest:
    """`enrolment_code` and `service_root` come from the opening notice; without them only the LAN part is done."""

    target: GatewayTarget
    name: str
    contract: ContractId | None
    enrolment_code: str | None
    service_root: str | None
    passphrase: str | None


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


async def run_pair(context: Context, request: PairRequest) -> ExitCode:
    """Pair with the gateway and, with a code, enrol at the service. The two can be done in two runs."""
    keys = _for_contract(context, context.state.load_device(), request)
    gateway = context.state.load_gateway()
    known = gateway is not None and (gateway.host, gateway.port) == (request.target.host, request.target.port)
    if gateway is None or not known or request.enrolment_code is None:
        gateway = await _pair_on_the_lan(context, request, keys)
        context.state.save_gateway(gateway)
    if request.enrolment_code is not None and request.service_root is not None:
        enrolled = await _enrol(context, request, keys, gateway)
        if enrolled is None:
            return 4
        gateway = enrolled
    context.terminal.emit(_gateway_event(gateway))
    todo = "" if gateway.device else "; next: `nas-agent pair` again with --enrolment-code and --service-root"
    context.terminal.emit(DoneEvent(exit_code=0, message=f"paired with {request.target}{todo}"))
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
        context.terminal.emit(_gateway_event(gateway))
    directories = sorted((context.state.path / "catalogues").glob("*@*"))
    for directory in directories:
        context.terminal.emit(_status_of(directory, keys))
    context.terminal.emit(DoneEvent(exit_code=0, message=f"{len(directories)} backup sets"))
    return 0


def _for_contract(context: Context, keys: DeviceKeys, request: PairRequest) -> DeviceKeys:
    """Certify the device for the contract's number if `init` did not know it yet."""
    if request.contract is None or request.contract.text == keys.contract:
        return keys
    if not keys.contract.startswith("local-"):
        raise StateError(
            f"this device belongs to {keys.contract}, not {request.contract}: use another --state directory"
        )
    if request.passphrase is None:
        raise LocalError("the contract number is new to this device: the passphrase is needed to certify it")
    contract = context.state.load_contract(request.passphrase)
    certified = certify_again(
        keys, contract, contract_id=request.contract.text, name=request.name, now_s=context.clock.now_s()
    )
    context.state.save_device(certified)
    return certified


async def _pair_on_the_lan(context: Context, request: PairRequest, keys: DeviceKeys) -> Gateway:
    def show_digits(digits: str) -> None:
        context.terminal.emit(DigitsEvent(digits=digits, valid_for_s=int(APPROVAL_S_MAX)))

    shown = 0.0

    def waiting(left_s: float) -> None:
        nonlocal shown
        if context.clock.monotonic_s() - shown >= 10:
            shown = context.clock.monotonic_s()
            message = f"for approval on the gateway's page, {int(left_s)} s left"
            context.terminal.emit(WaitingEvent(code="approval", message=message, wait_s=10))

    ui = PairingUi(show_digits=show_digits, waiting=waiting)
    return await pair(request.target, name=request.name, device_key=keys.device, ui=ui)


async def _enrol(
    context: Context, request: PairRequest, keys: DeviceKeys, gateway: Gateway
) -> Gateway | None:
    if request.service_root is None or _ROOT_KEY.fullmatch(request.service_root) is None:
        raise LocalError("--service-root: expected the 64 hex digits of the opening notice")
    http = gateway_http(gateway, context.store_options())
    try:
        answer = await enrol_device(
            http,
            keys,
            enrolment_code=request.enrolment_code or "",
            service_root=bytes.fromhex(request.service_root),
            clock=context.clock,
        )
    finally:
        await http.aclose()
    if isinstance(answer, Refusal):
        message = f"not enrolled: {explain_refusal(answer)}"
        context.terminal.emit(FailureEvent(exit_code=4, code=answer.code, message=message))
        return None
    enrolled = Gateway(
        host=gateway.host,
        port=gateway.port,
        certificate_sha256=gateway.certificate_sha256,
        lan_token=gateway.lan_token,
        service_root=request.service_root,
        receipt_key_cert=answer.receipt_key_cert,
        device=answer.device,
    )
    context.state.save_gateway(enrolled)
    return enrolled


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


def _gateway_event(gateway: Gateway) -> GatewayEvent:
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
        target=described.read_text() if described.exists() else "?",
        state="unfinished" if unfinished else "durable" if durable else "never",
        sequence=durable.sequence if durable else 0,
        generation=durable.generation if durable else None,
        root_sha256=durable.root_sha256 if durable else None,
        durable_at=None if receipt is None else unverified_receipt(from_base64(receipt)).received_at,
        spooled_packs=spooled,
    )
