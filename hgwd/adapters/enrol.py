"""Requests of a gateway that need the daemon and the line: enrol, report, ask the time (protocols.md §4, design §4).

Each is one POST; statements carry a fresh nonce and are never sent twice: a repetition is a new statement.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import attrs
import msgspec

from hgwd.core.trusted_time import TIME_ANSWER_BYTES_MAX
from hgwd.core.update_director import GatewayIdentity
from runtime.errors import RemoteError, Unavailable
from runtime.http_client import HttpClient
from wire.errors import FormatError
from wire.ids import GatewaySerial, RandomId
from wire.joint import TIME_NONCE_BYTES, GatewayEnrol, GatewayEnrolled, GatewayReport
from wire.signing import SigningKey
from wire.statement import Audience, Kind, make_statement

NONCE_BYTES: Final = 16
ANSWER_BYTES_MAX: Final = 16 * 1024


@attrs.frozen
class EnrolRequest:
    """Who we claim to be; `secret` is the per-device secret from manufacture."""

    serial: GatewaySerial
    model: str
    maker: str
    secret: bytes = attrs.field(repr=False)


@attrs.frozen
class Declined:
    """The carrier's refusal, by status and stable code."""

    status: int
    code: str
    message: str


async def enrol(
    client: HttpClient, key: SigningKey, request: EnrolRequest, now_s: float
) -> GatewayEnrolled | Declined:
    """Enrol `key`; the same key again gets the same answer. Raises Unavailable, RemoteError."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    proof = hmac.digest(request.secret, key.public + nonce, hashlib.sha256)
    body = GatewayEnrol(
        serial=request.serial.text, model=request.model, maker=request.maker, proof=proof.hex()
    )
    blob = make_statement(key, Kind.GATEWAY_ENROL, Audience.JOINT, now_s=now_s, nonce=nonce, body=body)
    answer = await client.request("POST", "/joint/v1/enrol", body=blob, max_response_bytes=ANSWER_BYTES_MAX)
    if answer.status != 201:
        return _declined(answer.status, answer.headers.get("retry-after"), answer.body)
    try:
        enrolled = msgspec.json.decode(answer.body, type=GatewayEnrolled)
        RandomId.parse(enrolled.gateway)
        RandomId.parse(enrolled.director_path)
    except (msgspec.MsgspecError, FormatError) as error:
        raise RemoteError(f"enrolment: expected gateway and director_path: {error}") from error
    return enrolled


async def report(client: HttpClient, key: SigningKey, body: GatewayReport, now_s: float) -> Declined | None:
    """Send a signed report; None when it counts. Raises Unavailable, RemoteError."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    blob = make_statement(key, Kind.GATEWAY_REPORT, Audience.JOINT, now_s=now_s, nonce=nonce, body=body)
    answer = await client.request("POST", "/joint/v1/reports", body=blob, max_response_bytes=ANSWER_BYTES_MAX)
    if answer.status == 204:
        return None
    return _declined(answer.status, answer.headers.get("retry-after"), answer.body)


async def ask_time(client: HttpClient) -> tuple[bytes, bytes]:
    """Return (nonce sent, signed blob received); unverified. Raises Unavailable, RemoteError."""
    nonce = secrets.token_bytes(TIME_NONCE_BYTES)
    answer = await client.request(
        "POST", "/joint/v1/time", body=nonce, max_response_bytes=TIME_ANSWER_BYTES_MAX
    )
    if answer.status != 200:
        raise Unavailable(f"time: status {answer.status}")
    return nonce, answer.body


def identity_of(enrolled: RandomId, request: EnrolRequest) -> GatewayIdentity:
    """Return what director documents are checked against."""
    return GatewayIdentity(enrolled, request.serial, request.model, request.maker)


def _declined(status: int, retry_after: str | None, body: bytes) -> Declined:
    if status in {429, 503}:
        seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
        raise Unavailable(f"carrier: status {status}", retry_after_s=seconds)
    try:
        error = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.MsgspecError:
        error = {}
    return Declined(status, str(error.get("code", "unknown"))[:40], str(error.get("message", ""))[:200])
