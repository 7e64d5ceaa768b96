"""Pairing of a NAS with the gateway, as a state machine without I/O (design §4, protocols §5).

Rules
- One pairing at a time. The NAS commits first; the gateway's nonce is given out only after the commitment.
- The six digits bind the certificate that *this* gateway uses: a man in the middle on the LAN shows other digits to
  the two humans (or the one human who looks at both), and is refused.
- An attempt that ends in anything but approval counts as a try; `TRIES_MAX` tries in `WINDOW_S`, then 429. An attempt
  that was opened and never revealed counts too, or an attacker could draw nonces until the digits suit him.
- A stranger on the LAN can therefore delay a pairing, never forge one.
- Secrets (nonce, pairing ID, token) are made by the caller and passed in. A token is handed out for `WINDOW_S` at most.
- It does not do: checking the admin password, storing devices (adapters), the page.
"""

from __future__ import annotations

import enum
import hmac

import attrs

from wire.pairing import pair_commitment, pair_digits

TRIES_MAX = 3
WINDOW_S = 300.0
REVEAL_S = 30.0
NAME_CHARS_MAX = 64


class Ended(enum.Enum):
    """Why an attempt is over; `APPROVED` alone is not a failed try."""

    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    MISMATCH = "mismatch"


@attrs.frozen
class Attempt:
    """One attempt. `digits` is None until the NAS has revealed; `token` is set by approval only."""

    pair: str
    name: str
    commitment: bytes
    nonce_g: bytes = attrs.field(repr=False)
    started_s: float
    device_key: bytes | None = None
    digits: str | None = None
    ended: Ended | None = None
    token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Begun:
    """Answer 201: the attempt is open; `nonce_g` goes to the NAS."""

    attempt: Attempt


@attrs.frozen
class Busy:
    """Answer 409: another attempt is pending for at most `retry_after_s`."""

    retry_after_s: float


@attrs.frozen
class TooManyTries:
    """Answer 429: `TRIES_MAX` failed tries within `WINDOW_S`."""

    retry_after_s: float


@attrs.frozen
class Revealed:
    """Both sides can show the digits now."""

    attempt: Attempt


@attrs.frozen
class Mismatch:
    """The revealed values are not the committed ones: the attempt is over."""


@attrs.frozen
class Unknown:
    """No such attempt, or it is in a state that does not allow the step."""


@attrs.frozen
class Pending:
    """Poll: a human has not decided yet."""


@attrs.frozen
class Approved:
    """Poll or approval: `token` is the LAN token of the device."""

    name: str
    device_key: bytes
    token: str = attrs.field(repr=False)


@attrs.frozen
class Refused:
    """Poll: a human said no, or the reveal did not match."""


@attrs.frozen
class Expired:
    """Poll: `WINDOW_S` went by."""


class Pairing:
    """The state machine; `now_s` is a monotonic clock in seconds, never going back."""

    def __init__(self, certificate_sha256: bytes) -> None:
        self._certificate_sha256 = certificate_sha256
        self._attempt: Attempt | None = None
        self._failures_s: list[float] = []

    def begin(
        self, *, name: str, commitment: bytes, pair: str, nonce_g: bytes, now_s: float
    ) -> Begun | Busy | TooManyTries:
        """Open an attempt; `pair` is a fresh 128-bit ID and `nonce_g` 32 fresh random bytes."""
        self._advance(now_s)
        open_attempt = self._open_attempt()
        if open_attempt is not None:
            return Busy(_deadline_s(open_attempt) - now_s)
        if len(self._failures_s) >= TRIES_MAX:
            return TooManyTries(self._failures_s[0] + WINDOW_S - now_s)
        self._attempt = Attempt(pair=pair, name=name, commitment=commitment, nonce_g=nonce_g, started_s=now_s)
        return Begun(self._attempt)

    def reveal(
        self, *, pair: str, device_key: bytes, nonce_n: bytes, now_s: float
    ) -> Revealed | Mismatch | Unknown | Expired:
        """Take the committed values; the same values again give the same answer."""
        self._advance(now_s)
        attempt = self._find(pair)
        if attempt is None:
            return Unknown()
        if attempt.ended is Ended.EXPIRED:
            return Expired()
        if not hmac.compare_digest(pair_commitment(device_key, nonce_n), attempt.commitment):
            if attempt.ended is None:
                self._end(attempt, Ended.MISMATCH, now_s)
            return Mismatch()
        if attempt.ended is not None:
            return Unknown()
        digits = pair_digits(self._certificate_sha256, device_key, attempt.nonce_g, nonce_n)
        self._attempt = attrs.evolve(attempt, device_key=device_key, digits=digits)
        return Revealed(self._attempt)

    def waiting(self, now_s: float) -> Attempt | None:
        """Return the revealed attempt a human can decide on now, or None."""
        self._advance(now_s)
        attempt = self._open_attempt()
        return attempt if attempt is not None and attempt.digits is not None else None

    def approve(self, *, pair: str, digits: str, token: str, now_s: float) -> Approved | Unknown | Expired:
        """A human agreed to `digits`: exactly those of the revealed attempt `pair`, or nothing happens.

        `token` is the fresh LAN token; the caller stores its hash before it answers the human.
        """
        self._advance(now_s)
        attempt = self._find(pair)
        if attempt is None or attempt.device_key is None or attempt.digits != digits:
            return Unknown()
        if attempt.ended is Ended.EXPIRED:
            return Expired()
        if attempt.ended is not None:
            return Unknown()
        self._attempt = attrs.evolve(attempt, ended=Ended.APPROVED, token=token)
        return Approved(name=attempt.name, device_key=attempt.device_key, token=token)

    def refuse(self, *, pair: str, now_s: float) -> bool:
        """A human said no; return whether there was an open attempt `pair`."""
        self._advance(now_s)
        attempt = self._find(pair)
        if attempt is None or attempt.ended is not None:
            return False
        self._end(attempt, Ended.REFUSED, now_s)
        return True

    def poll(self, *, pair: str, now_s: float) -> Pending | Approved | Refused | Expired | Unknown:
        """Answer the NAS. An approved attempt gives the same token until `WINDOW_S` after its start."""
        self._advance(now_s)
        attempt = self._find(pair)
        if attempt is None:
            return Unknown()
        match attempt.ended:
            case None:
                return Pending()
            case Ended.APPROVED if attempt.token is not None and attempt.device_key is not None:
                return Approved(name=attempt.name, device_key=attempt.device_key, token=attempt.token)
            case Ended.EXPIRED | Ended.APPROVED:
                return Expired()
            case Ended.REFUSED | Ended.MISMATCH:
                return Refused()

    def _find(self, pair: str) -> Attempt | None:
        attempt = self._attempt
        return (
            attempt
            if attempt is not None and hmac.compare_digest(attempt.pair.encode(), pair.encode())
            else None
        )

    def _open_attempt(self) -> Attempt | None:
        attempt = self._attempt
        return attempt if attempt is not None and attempt.ended is None else None

    def _advance(self, now_s: float) -> None:
        """Let time pass: end what is overdue, forget tokens and failures that left the window."""
        attempt = self._attempt
        if attempt is not None and attempt.ended is None and now_s >= _deadline_s(attempt):
            self._end(attempt, Ended.EXPIRED, _deadline_s(attempt))
        elif attempt is not None and attempt.token is not None and now_s >= attempt.started_s + WINDOW_S:
            self._attempt = attrs.evolve(attempt, token=None)
        self._failures_s = [failed_s for failed_s in self._failures_s if now_s < failed_s + WINDOW_S]

    def _end(self, attempt: Attempt, how: Ended, at_s: float) -> None:
        self._attempt = attrs.evolve(attempt, ended=how)
        self._failures_s.append(at_s)


def _deadline_s(attempt: Attempt) -> float:
    return attempt.started_s + (WINDOW_S if attempt.digits is not None else REVEAL_S)
