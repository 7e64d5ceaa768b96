"""Messages between gateways, operators and the distribution server (protocols.md §4).

Rules: statement bodies and request bodies refuse unknown fields; answers may grow. Sizes in bytes, money in yen.
It does not do: signatures (`wire.statement`, `wire.signing`), director documents (`wire.director`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from wire.director import SOFTWARE_PER_GATEWAY_MAX

TIME_NONCE_BYTES = 32
CUSTOMERS_PER_ROLLOUT_MAX = 10_000

_Hex64 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Short = Annotated[str, msgspec.Meta(max_length=64)]


class GatewayEnrol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `gateway-enrol`; `proof` = HMAC-SHA256(device secret, signer ‖ nonce), hex."""

    serial: str
    model: _Short
    maker: _Short
    proof: _Hex64


class GatewayEnrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to an enrolment: the gateway's ID and where its director document lies (`/director/<path>/…`)."""

    gateway: str
    director_path: str


class SoftwareReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """State of one software (`<operator>/<software>`) in USP's words; `fault` is a code such as `7226`."""

    software: Annotated[str, msgspec.Meta(max_length=65)]
    version: _Short
    release: _Count
    state: Annotated[str, msgspec.Meta(max_length=32)]
    fault: Annotated[str, msgspec.Meta(max_length=200)] | None = None


class GatewayReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `gateway-report`; `counter` rises with every report of a key."""

    counter: _Count
    director_version: _Count
    bytes_down: _Count
    attack: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    software: Annotated[tuple[SoftwareReport, ...], msgspec.Meta(max_length=SOFTWARE_PER_GATEWAY_MAX)] = ()


class SignedTime(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of the time answer (context `time/1`); `time` is unix seconds, `nonce` the request's in hex."""

    v: int
    nonce: _Hex64
    time: int


class OperatorSubmit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `operator-submit`: binds the request to the bytes sent with it."""

    operator: str
    software: str
    version: str
    change: Literal["new", "change", "other", "rollout"]
    body_sha256: _Hex64
    quote_id: str | None = None


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a package costs, before anything is registered (JNT-03…06, JNT-11…13). Yen include tax."""

    quote_id: str
    target_path: str
    stored_bytes: int
    footprint_bytes: int
    menu: str
    plan: str
    basic_fee_yen: int
    target_fee_yen: int
    one_off_yen: int
    change: str
    rule: str


class RolloutRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which lines get (or lose) the version that the statement names."""

    customers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=CUSTOMERS_PER_ROLLOUT_MAX)]
    action: Literal["install", "remove"] = "install"


class RolloutTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one line; a refusal names the rule and a sentence to pass on (JNT-31)."""

    customer: str
    state: str
    rule: str | None = None
    message: str | None = None


class RolloutAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per customer of the request, in its order."""

    targets: tuple[RolloutTarget, ...]
