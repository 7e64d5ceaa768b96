"""Signed statements: short-lived, single-use claims of a device to one audience (protocols §1).

The signature proves who spoke and when; whether that signer may do the thing is the caller's decision.
Single use is the caller's too: it keeps the nonces it has seen for `LIFE_S + 2 × SKEW_S`.
"""

from __future__ import annotations

import base64
import enum
import re
from typing import Generic, TypeVar

import attrs
import msgspec

from wire.errors import FormatError, UpgradeNeededError, WireError
from wire.ids import RandomId
from wire.signing import PUBLIC_KEY_BYTES, Context, SigningKey, sign_blob, unverified_payload, verify_blob

VERSION = 1
LIFE_S = 60
SKEW_S = 30
STATEMENT_BYTES_MAX = 16 << 10
_HEX_DIGITS = frozenset("0123456789abcdef")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")

BodyT = TypeVar("BodyT", bound=msgspec.Struct)


class Kind(enum.StrEnum):
    """What a statement asks for."""

    GATEWAY_ENROL = "gateway-enrol"
    GATEWAY_REPORT = "gateway-report"
    GATEWAY_RELAY = "gateway-relay"
    DEVICE_ENROL = "device-enrol"
    SESSION_OPEN = "session-open"
    OPERATOR_SUBMIT = "operator-submit"


class Audience(enum.StrEnum):
    """Which service may act on a statement."""

    JOINT = "joint"
    STORAGE = "storage"


class StatementClockError(WireError):
    """The statement lies outside its time window; the signature itself was good."""


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    kind: str
    audience: str
    nonce: str
    issued_at: int
    signer: str
    body: msgspec.Raw


@attrs.frozen
class Statement(Generic[BodyT]):
    """A statement whose signature, kind, audience and time were checked."""

    signer: bytes
    nonce: RandomId
    issued_at: int
    body: BodyT


def make_statement(
    key: SigningKey, kind: Kind, audience: Audience, *, now_s: float, nonce: bytes, body: msgspec.Struct
) -> bytes:
    """Return a signed statement; `nonce` is 16 fresh random bytes, `now_s` unix seconds."""
    envelope = _Envelope(
        v=VERSION,
        kind=kind,
        audience=audience,
        nonce=RandomId.from_bytes(nonce).text,
        issued_at=int(now_s),
        signer=key.public.hex(),
        body=msgspec.Raw(msgspec.json.encode(body)),
    )
    return sign_blob(key, Context.STATEMENT, msgspec.json.encode(envelope))


def open_statement(
    blob: bytes, *, kind: Kind, audience: Audience, now_s: float, body_type: type[BodyT]
) -> Statement[BodyT]:
    """Verify and parse a statement.

    Raises:
        FormatError: not a statement, another kind or audience, or a body of another form.
        SignatureError: not signed by the key it names.
        UpgradeNeededError: a newer version.
        StatementClockError: `issued_at` outside `[now - LIFE_S - SKEW_S, now + SKEW_S]`.
    """
    envelope = _parse_envelope(blob)
    signer = _parse_signer(envelope.signer)
    verify_blob(blob, Context.STATEMENT, signer)
    if envelope.v != VERSION:
        message = f"statement version: expected {VERSION}, got {envelope.v}: upgrade needed"
        raise UpgradeNeededError(message)
    if (envelope.kind, envelope.audience) != (kind, audience):
        message = (
            f"statement: expected {kind} for {audience}, got {envelope.kind!r} for {envelope.audience!r}"
        )
        raise FormatError(message)
    if not now_s - LIFE_S - SKEW_S <= envelope.issued_at <= now_s + SKEW_S:
        message = f"statement issued at {envelope.issued_at}, now {int(now_s)}: outside its {LIFE_S} s"
        raise StatementClockError(message)
    return Statement(
        signer=signer,
        nonce=RandomId.parse(envelope.nonce),
        issued_at=envelope.issued_at,
        body=_decode(bytes(envelope.body), body_type),
    )


def to_header(blob: bytes) -> str:
    """Return the form a statement has in an HTTP header: unpadded base64url."""
    return base64.urlsafe_b64encode(blob).rstrip(b"=").decode()


def from_header(text: str) -> bytes:
    """Return the statement bytes of a header value, or raise `FormatError`."""
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        message = "statement header: expected unpadded base64url"
        raise FormatError(message)
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _parse_envelope(blob: bytes) -> _Envelope:
    if len(blob) > STATEMENT_BYTES_MAX:
        message = f"statement: expected at most {STATEMENT_BYTES_MAX} bytes, got {len(blob)}"
        raise FormatError(message)
    return _decode(unverified_payload(blob), _Envelope)


def _decode(data: bytes, body_type: type[BodyT]) -> BodyT:
    try:
        return msgspec.json.decode(data, type=body_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{body_type.__name__.lstrip('_')}: {error}"
        raise FormatError(message) from error


def _parse_signer(text: str) -> bytes:
    if len(text) != 2 * PUBLIC_KEY_BYTES or not set(text) <= _HEX_DIGITS:
        message = "statement signer: expected 64 hex digits, lower case"
        raise FormatError(message)
    return bytes.fromhex(text)
