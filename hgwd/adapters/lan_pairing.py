"""Pairing over HTTP, and the desk where a human decides (protocols §5): `core/pairing.py` with clock and randomness.

The admin page and `hgwd pair` ask the desk; the NAS polls it. A device exists, its token hashed on flash, before the
human sees "approved" and before the NAS can fetch the token.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Final, assert_never

import msgspec
import trio

from hgwd.adapters.lan_devices import LanDevices, new_token
from hgwd.core.pairing import (
    NAME_CHARS_MAX,
    Approved,
    Attempt,
    Begun,
    Busy,
    Expired,
    Mismatch,
    Pairing,
    Pending,
    Refused,
    Revealed,
    TooManyTries,
    Unknown,
)
from hgwd.core.relay import LAN_PREFIX
from runtime.clock import Clock
from runtime.http import Request, Response, Router, error_response, json_response
from wire.pairing import PAIR_FIELD_BYTES

_BODY_BYTES_MAX: Final = 4096
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
_GONE: Final = (410, "session-over", "expected a decision within 5 minutes: pair again")
_NOT_FOUND: Final = (404, "not-found", "expected the ID of the pairing that is open now")


class PairRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /lan/v1/pair`. The name is shown to the human; letters and signs only, nothing that hides."""

    v: int
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    commitment: _Hex32


class RevealRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /lan/v1/pair/{p}/reveal`."""

    device_key: _Hex32
    nonce_n: _Hex32


class PairingDesk:
    """One per daemon; also the handler of `/lan/v1/pair…`."""

    def __init__(self, certificate_sha256: bytes, devices: LanDevices, clock: Clock) -> None:
        self._pairing = Pairing(certificate_sha256)
        self._devices = devices
        self._clock = clock
        self._deciding = trio.Lock()
        self._router = Router()
        self._router.route("POST", f"{LAN_PREFIX}/pair", self._begin)
        self._router.route("POST", f"{LAN_PREFIX}/pair/{{pair}}/reveal", self._reveal)
        self._router.route("GET", f"{LAN_PREFIX}/pair/{{pair}}", self._poll)

    async def __call__(self, request: Request) -> Response:
        """Answer a request below `/lan/v1/pair`."""
        return await self._router(request)

    def waiting(self) -> Attempt | None:
        """Return the attempt a human can decide on now."""
        return self._pairing.waiting(self._clock.monotonic_s())

    async def approve(self, pair: str, digits: str) -> str | None:
        """A human saw the same `digits` on both sides; return the new device's ID, or None: too late, or no room for a device."""
        async with self._deciding:
            if self._devices.is_full():
                return None
            outcome = self._pairing.approve(
                pair=pair, digits=digits, token=new_token(), now_s=self._clock.monotonic_s()
            )
            if not isinstance(outcome, Approved):
                return None
            with trio.CancelScope(
                shield=True
            ):  # the page's visitor may leave; approved and stored go together
                device = await self._devices.add(
                    name=outcome.name, device_key=outcome.device_key, token=outcome.token
                )
            return device.device

    def refuse(self, pair: str) -> bool:
        """A human said no; return whether there was something to refuse."""
        return self._pairing.refuse(pair=pair, now_s=self._clock.monotonic_s())

    async def _begin(self, request: Request) -> Response:
        wanted = await request.read_json(PairRequest, limit_bytes=_BODY_BYTES_MAX)
        if wanted.v != 1:
            return error_response(426, "upgrade-needed", f"expected pairing version 1, got {wanted.v}")
        if not wanted.name.isprintable():
            return error_response(400, "bad-format", "name: expected printable characters only")
        outcome = self._pairing.begin(
            name=wanted.name,
            commitment=bytes.fromhex(wanted.commitment),
            pair=secrets.token_hex(16),
            nonce_g=secrets.token_bytes(PAIR_FIELD_BYTES),
            now_s=self._clock.monotonic_s(),
        )
        match outcome:
            case Begun(attempt):
                return json_response(201, {"pair": attempt.pair, "nonce_g": attempt.nonce_g.hex()})
            case Busy(retry_after_s):
                return error_response(409, "conflict", "another pairing is open", retry_after_s=retry_after_s)
            case TooManyTries(retry_after_s):
                return error_response(
                    429, "too-many-tries", "3 pairings failed in 5 minutes", retry_after_s=retry_after_s
                )
            case _:
                assert_never(outcome)

    async def _reveal(self, request: Request, pair: str) -> Response:
        shown = await request.read_json(RevealRequest, limit_bytes=_BODY_BYTES_MAX)
        outcome = self._pairing.reveal(
            pair=pair,
            device_key=bytes.fromhex(shown.device_key),
            nonce_n=bytes.fromhex(shown.nonce_n),
            now_s=self._clock.monotonic_s(),
        )
        match outcome:
            case Revealed():
                return json_response(200, {})
            case Mismatch():
                return error_response(403, "refused", "expected the key and nonce of the commitment")
            case Expired():
                return error_response(*_GONE)
            case Unknown():
                return error_response(*_NOT_FOUND)
            case _:
                assert_never(outcome)

    async def _poll(self, request: Request, pair: str) -> Response:
        async with self._deciding:  # a token is handed out only once its hash is on flash
            outcome = self._pairing.poll(pair=pair, now_s=self._clock.monotonic_s())
        match outcome:
            case Pending():
                return json_response(202, {})
            case Approved(token=token):
                return json_response(200, {"lan_token": token})
            case Refused():
                return error_response(403, "refused", "the pairing was refused at the gateway")
            case Expired():
                return error_response(*_GONE)
            case Unknown():
                return error_response(*_NOT_FOUND)
            case _:
                assert_never(outcome)
