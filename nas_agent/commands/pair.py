"""`nas-agent pair`: with the gateway by six digits, then at the service by the code of the opening notice (AZK-18b)."""

from __future__ import annotations

import re
from typing import Final

import attrs
import msgspec

from nas_agent.adapters.open_store import gateway_http
from nas_agent.adapters.pairing import APPROVAL_S_MAX, PairingUi, enrol_device, pair
from nas_agent.adapters.state import Gateway, StateError
from nas_agent.commands.context import Context
from nas_agent.commands.setup import gateway_event
from nas_agent.core.advice import explain_refusal
from nas_agent.core.targets import GatewayTarget
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.events import DigitsEvent, DoneEvent, ExitCode, FailureEvent, WaitingEvent
from nas_agent.keys.device import certify_again
from nas_agent.ports import Refusal
from runtime.errors import LocalError
from wire.ids import ContractId

_ROOT_KEY: Final = re.compile(r"[0-9a-f]{64}")
_REMIND_S: Final = 10.0


@attrs.frozen
class PairRequest:
    """`enrolment_code` and `service_root` come from the opening notice; without them only the LAN part is done."""

    target: GatewayTarget
    name: str
    contract: ContractId | None
    enrolment_code: str | None
    service_root: str | None
    passphrase: str | None


async def run_pair(context: Context, request: PairRequest) -> ExitCode:
    """Pair with the gateway and, with a code, enrol at the service. The two can be done in two runs."""
    keys = _for_contract(context, context.state.load_device(), request)
    gateway = context.state.load_gateway()
    known = gateway is not None and (gateway.host, gateway.port) == (request.target.host, request.target.port)
    if gateway is None or not known or request.enrolment_code is None:
        gateway = _keep_enrolment(gateway, await _pair_on_the_lan(context, request, keys))
        context.state.save_gateway(gateway)
    if request.enrolment_code is not None and request.service_root is not None:
        enrolled = await _enrol(context, request, keys, gateway)
        if enrolled is None:
            return 4
        gateway = enrolled
    context.terminal.emit(gateway_event(gateway))
    todo = "" if gateway.device else "; next: `nas-agent pair` again with --enrolment-code and --service-root"
    context.terminal.emit(DoneEvent(exit_code=0, message=f"paired with {request.target}{todo}"))
    return 0


def _keep_enrolment(old: Gateway | None, new: Gateway) -> Gateway:
    """Carry over what the service gave: it belongs to this device, whichever gateway it is paired with."""
    if old is None:
        return new
    return msgspec.structs.replace(
        new, service_root=old.service_root, receipt_key_cert=old.receipt_key_cert, device=old.device
    )


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
        if context.clock.monotonic_s() - shown >= _REMIND_S:
            shown = context.clock.monotonic_s()
            message = f"for approval on the gateway's page, {int(left_s)} s left"
            context.terminal.emit(WaitingEvent(code="approval", message=message, wait_s=_REMIND_S))

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
