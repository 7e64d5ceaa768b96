"""What time it is, for a machine that may have no clock of its own (design §5.6).

Rules
- now = max(build time, last signed time) + what the monotonic clock counted since. Never backwards.
- A signed time counts only for the nonce of our own request, under a time key of the director's root.
- One time key moves the clock forward by at most `STEP_S_MAX`. More needs a second witness: another time key's
  answer for the same nonce, or this machine's own clock within `WITNESS_S` of it. A thief of the online time key
  alone can so neither freeze nor jump the clock.
- An answer behind our clock changes nothing.

Pure: the caller asks, measures and persists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs
import msgspec

from hgwd.core.update_types import Cause, RefusedError
from wire.errors import SignatureError
from wire.joint import TIME_NONCE_BYTES, SignedTime
from wire.signing import Context, verify_blob

STEP_S_MAX: Final = 30 * 24 * 3600.0
WITNESS_S: Final = 24 * 3600.0
TIME_ANSWER_BYTES_MAX: Final = 1024
TIME_ROLE: Final = "timestamp"
"""TUF role in the director's root whose keys sign times."""


@attrs.frozen
class TrustedTime:
    """A clock as a value: `anchor_s` (unix) was true at `anchor_monotonic_s`."""

    anchor_s: float
    anchor_monotonic_s: float

    def now_s(self, monotonic_s: float) -> float:
        """Return unix seconds at a reading of the same monotonic clock."""
        return self.anchor_s + max(0.0, monotonic_s - self.anchor_monotonic_s)

    def advanced_to(self, signed_s: float, monotonic_s: float) -> TrustedTime:
        """Return the clock after an accepted signed time; one that lies behind changes nothing."""
        if signed_s <= self.now_s(monotonic_s):
            return self
        return TrustedTime(signed_s, monotonic_s)


def start_clock(build_s: float, persisted_s: float | None, monotonic_s: float) -> TrustedTime:
    """Return the clock at start: the later of firmware build time and last persisted signed time."""
    return TrustedTime(max(build_s, persisted_s or 0.0), monotonic_s)


def verify_time(
    answers: Sequence[bytes],
    nonce: bytes,
    time_keys: Iterable[bytes],
    *,
    now_s: float,
    machine_s: float,
) -> float:
    """Return the signed time to advance to, or raise `RefusedError`.

    Args:
        answers: signed blobs received for one request; more than one only for a large step.
        nonce: the 32 bytes we sent.
        time_keys: raw public keys of the time role.
        now_s: our clock, unix seconds.
        machine_s: the machine's own clock, unix seconds; a witness for large steps, never a source.
    """
    if len(nonce) != TIME_NONCE_BYTES:
        raise ValueError(f"nonce: expected {TIME_NONCE_BYTES} bytes, got {len(nonce)}")
    keys = tuple(time_keys)
    vouched: dict[bytes, float] = {}
    for blob in answers:
        key, signed = _open(blob, nonce, keys)
        vouched[key] = float(signed.time)
    if not vouched:
        raise RefusedError(Cause.MISSING, "time: no answer")
    # The earliest of several answers: two keys vouch for it, the later one only for itself.
    signed_s = min(vouched.values())
    step_s = signed_s - now_s
    witnessed = len(vouched) >= 2 or abs(signed_s - machine_s) <= WITNESS_S
    if step_s > STEP_S_MAX and not witnessed:
        raise RefusedError(
            Cause.UNSIGNED, f"time: one key asks for a step of {step_s / 86400:.0f} days; a second must agree"
        )
    return signed_s


def _open(blob: bytes, nonce: bytes, keys: Sequence[bytes]) -> tuple[bytes, SignedTime]:
    for key in keys:
        try:
            payload = verify_blob(blob, Context.TIME, key)
        except SignatureError:
            continue
        try:
            signed = msgspec.json.decode(payload, type=SignedTime)
        except msgspec.MsgspecError as error:
            raise RefusedError(Cause.BAD_FORMAT, f"time: {error}") from error
        if signed.v != 1 or signed.nonce != nonce.hex():
            raise RefusedError(Cause.ROLLBACK, "time: an answer to another request")
        return key, signed
    raise RefusedError(Cause.UNSIGNED, "time: signed by no time key of the director's root")
