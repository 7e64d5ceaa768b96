"""Pairing with a gateway, seen from the NAS (protocols §5, design §4), and enrolment of the device at the service.

The certificate that the first connection shows is pinned for all that follows; whether it is the gateway's own is what
the six digits tell: both screens compute them from the certificate each side sees, so a machine in the middle changes
them, and the human refuses. Nothing is trusted before that human approved.
"""

from __future__ import annotations

import hashlib
import secrets
import ssl
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import attrs
import msgspec
import trio

from nas_agent.adapters.state import Gateway
from nas_agent.adapters.storage_http import Denied, StorageHttp
from nas_agent.core.targets import GatewayTarget
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.ports import Refusal
from runtime.clock import Clock
from runtime.errors import LocalError, RemoteError, Unavailable
from runtime.http_client import ClientResponse, HttpClient
from runtime.tls import client_context
from wire.pairing import PAIR_FIELD_BYTES, pair_commitment, pair_digits
from wire.signing import SigningKey
from wire.statement import Audience, Kind, make_statement
from wire.storage import DeviceEnrol, DeviceEnrolled, from_base64, to_base64, verify_receipt_key

POLL_S: Final = 1.0
APPROVAL_S_MAX: Final = 300.0
CONNECT_S: Final = 10.0
_VERSION: Final = 1
_T = TypeVar("_T")
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class PairingRefusedError(LocalError):
    """The pairing did not come about; the text says why and what to do."""

    code = "pairing-refused"
    exit_code = 4


@attrs.frozen
class PairingUi:
    """What the human sees: the digits once, then the wait. Called from the pairing task; must return quickly."""

    show_digits: Callable[[str], None]
    waiting: Callable[[float], None]


class _Hello(msgspec.Struct, frozen=True):
    product: str
    v: int


class _Begun(msgspec.Struct, frozen=True):
    pair: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    nonce_g: _Hex32


class _Approved(msgspec.Struct, frozen=True):
    lan_token: Annotated[str, msgspec.Meta(min_length=16, max_length=256)]


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str = ""


async def fetch_certificate(target: GatewayTarget) -> bytes:
    """Return the certificate (DER) that the target shows; nothing is sent to it.

    Raises `Unavailable` when it cannot be reached or speaks no TLS.
    """
    try:
        with trio.fail_after(CONNECT_S):
            transport = await trio.open_tcp_stream(target.host, target.port)
            stream = trio.SSLStream(
                transport, client_context(), server_hostname=target.host.partition("%")[0]
            )
            try:
                await stream.do_handshake()
                certificate = stream.getpeercert(binary_form=True)
            finally:
                await trio.aclose_forcefully(stream)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, ssl.SSLError) as error:
        raise Unavailable(
            f"{target}: no TLS connection ({error or 'no answer'}); check the gateway's address and that it is on"
        ) from error
    if not isinstance(certificate, bytes):
        raise RemoteError(f"{target}: expected a TLS certificate, got none")
    return certificate


async def pair(target: GatewayTarget, *, name: str, device_key: SigningKey, ui: PairingUi) -> Gateway:
    """Pair with the gateway at `target`; returns once a human approved there.

    Args:
        target: the gateway's LAN address.
        name: this NAS as the gateway's page shows it.
        device_key: its public half is what the gateway comes to know.
        ui: shows the digits.

    Raises:
        PairingRefusedError: refused by the human, timed out, or another pairing is open.
        Unavailable, RemoteError: the gateway cannot be reached, or is none.
    """
    fingerprint = hashlib.sha256(await fetch_certificate(target)).digest()
    tls = client_context()
    async with HttpClient(target.host, target.port, tls, pin_sha256=fingerprint.hex()) as client:
        await _greet(client)
        nonce = secrets.token_bytes(PAIR_FIELD_BYTES)
        begun = await _begin(client, name, pair_commitment(device_key.public, nonce))
        shown = {"device_key": device_key.public.hex(), "nonce_n": nonce.hex()}
        _expect(await _post(client, f"/lan/v1/pair/{begun.pair}/reveal", shown), 200)
        ui.show_digits(pair_digits(fingerprint, device_key.public, bytes.fromhex(begun.nonce_g), nonce))
        token = await _await_approval(client, begun.pair, ui)
    return Gateway(host=target.host, port=target.port, certificate_sha256=fingerprint.hex(), lan_token=token)


async def enrol_device(
    http: StorageHttp, keys: DeviceKeys, *, enrolment_code: str, service_root: bytes, clock: Clock
) -> DeviceEnrolled | Refusal:
    """Enrol this device at the service with the code of the opening notice (AZK-18b).

    Returns the enrolment, its receipt key checked against `service_root` (32 bytes, from the notice), or the refusal.
    Raises `RemoteError` when the service shows another root than the notice.
    """
    body = DeviceEnrol(
        contract=keys.contract,
        enrolment_code=enrolment_code,
        device_cert=to_base64(keys.device_cert),
        contract_box_key=keys.box_public.hex(),
        contract_sign_key=keys.contract_sign_public.hex(),
    )
    answer = await _send_enrolment(http, keys.device, body, clock.now_s())
    if isinstance(answer, Denied) and answer.refusal.code == "clock" and answer.server_time is not None:
        answer = await _send_enrolment(http, keys.device, body, answer.server_time)
    if isinstance(answer, Denied):
        return answer.refusal
    enrolled = _decode(answer, DeviceEnrolled)
    if enrolled.service_root != service_root.hex():
        raise RemoteError(
            f"the service shows root key {enrolled.service_root[:16]}…, the opening notice says "
            f"{service_root.hex()[:16]}…: do not go on, ask the carrier"
        )
    verify_receipt_key(from_base64(enrolled.receipt_key_cert), service_root=service_root)
    return enrolled


async def _send_enrolment(
    http: StorageHttp, device: SigningKey, body: DeviceEnrol, now_s: float
) -> ClientResponse | Denied:
    started = trio.current_time()

    def statement() -> bytes:
        return make_statement(
            device,
            Kind.DEVICE_ENROL,
            Audience.STORAGE,
            now_s=now_s + trio.current_time() - started,
            nonce=secrets.token_bytes(16),
            body=body,
        )

    return await http.call("POST", "/devices", body=statement)


async def _greet(client: HttpClient) -> None:
    hello = _decode(await client.request("GET", "/lan/v1/hello"), _Hello)
    if hello.product != "hgwd":
        raise RemoteError(f"expected a gateway (product 'hgwd'), got {hello.product!r}; check HOST:PORT")
    if hello.v != _VERSION:
        raise PairingRefusedError(f"the gateway speaks pairing version {hello.v}: upgrade nas-agent")


async def _begin(client: HttpClient, name: str, commitment: bytes) -> _Begun:
    request = {"v": _VERSION, "name": name, "commitment": commitment.hex()}
    return _decode(_expect(await _post(client, "/lan/v1/pair", request), 201), _Begun)


async def _await_approval(client: HttpClient, pairing: str, ui: PairingUi) -> str:
    deadline = trio.current_time() + APPROVAL_S_MAX
    while (left := deadline - trio.current_time()) > 0:
        ui.waiting(left)
        await trio.sleep(POLL_S)
        try:
            answer = await client.request("GET", f"/lan/v1/pair/{pairing}")
        except Unavailable:
            continue  # the gateway may be busy for a moment; the deadline stands
        if answer.status != 202:
            return _decode(_expect(answer, 200), _Approved).lan_token
    raise PairingRefusedError("nobody approved within 5 minutes: start `nas-agent pair` again")


async def _post(client: HttpClient, path: str, body: dict[str, object] | dict[str, str]) -> ClientResponse:
    headers = {"content-type": "application/json"}
    return await client.request("POST", path, headers=headers, body=msgspec.json.encode(body))


_ADVICE: Final = {
    403: "refused at the gateway; if the digits differed, somebody is between the two: check the network",
    409: "another pairing is open; finish or refuse it on the gateway's page, then try again",
    410: "nobody approved within 5 minutes: start `nas-agent pair` again",
    429: "three pairings failed: wait 5 minutes, then try again",
}


def _expect(answer: ClientResponse, status: int) -> ClientResponse:
    if answer.status == status:
        return answer
    advice = _ADVICE.get(answer.status)
    if advice is not None:
        raise PairingRefusedError(f"pairing: {advice}")
    said = _decode(answer, _Error)
    raise RemoteError(f"pairing: expected status {status}, got {answer.status} {said.code}: {said.message}")


def _decode(answer: ClientResponse, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteError(f"the gateway's answer {answer.status} has another form: {error}") from error
