"""Pure decisions of the relay: which LAN request may pass upstream, and what an upstream answer means for a pack.

Rules
- Only the requests of protocols §3 pass; everything else is refused here, so the gateway is no open proxy of the line.
- Only named headers pass. Whatever a LAN device writes about addresses or gateways (`X-Forwarded-For`, `Forwarded`,
  `Hgw-Gateway`, …) stops here: the service decides the line from the socket alone (X-03, X-04).
- A pack leaves the spool on *stored* only. A refusal for good makes it *rejected*, with the reason; anything that time,
  the owner or a new session can cure keeps it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Final

import attrs
import msgspec

from wire.storage import COMMIT_BYTES_MAX, HEADER_SESSION, ID_BYTES, IDS_PER_REQUEST_MAX, PACK_BYTES_MAX
from wire.units import KIB

LAN_PREFIX: Final = "/lan/v1"
STORAGE_PREFIX: Final = "/storage/v1"
_STATEMENT_BYTES_MAX: Final = 64 * KIB
_IDS_BYTES_MAX: Final = IDS_PER_REQUEST_MAX * ID_BYTES

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
HOLD_S: Final = 60.0
LINE_HOLD_S: Final = 15.0
"""As `HOLD_S`, but for a line that the service does not take: its registry follows a renumbered line in minutes."""
LINE_RETRY_MIN_S: Final = 1.0
LINE_RETRY_MAX_S: Final = 15.0
OUTAGE_GAP_S: Final = 60.0
"""After so long without a failed request the next one begins another outage: nobody looked in between."""
RETRY_AFTER_MAX_S: Final = 600.0
_PASSED_HEADERS: Final = (HEADER_SESSION, "range", "content-type", "accept")
_RETURNED_HEADERS: Final = ("content-type", "content-range", "etag", "retry-after", "accept-ranges")


class Route(enum.Enum):
    """What the gateway does with a LAN storage request."""

    SIGNED = "signed"  # relay with the gateway's statement added
    OPEN_SESSION = "open-session"  # the same, and remember session and token
    RELAY = "relay"  # relay as it is
    READ_PACK = "read-pack"  # relay, streamed
    PUT_PACK = "put-pack"  # spool
    STATE = "state"  # merge the spool's knowledge with the service's
    COMMIT = "commit"  # only when nothing of the session is still here
    CLOSE = "close"  # only when nothing accepted would be lost


@attrs.frozen
class Matched:
    """A request that may pass; `session` and `pack` are set where the path names them."""

    route: Route
    body_bytes_max: int
    session: str | None = None
    pack: str | None = None


_SESSION = r"(?P<session>[0-9a-f]{32})"
_TABLE: Final = tuple(
    (method, re.compile(pattern), route, body_bytes_max)
    for method, pattern, route, body_bytes_max in (
        ("POST", r"/devices", Route.SIGNED, _STATEMENT_BYTES_MAX),
        ("POST", r"/sessions", Route.OPEN_SESSION, _STATEMENT_BYTES_MAX),
        ("POST", rf"/sessions/{_SESSION}/have", Route.RELAY, _IDS_BYTES_MAX),
        ("PUT", rf"/sessions/{_SESSION}/packs/(?P<pack>[0-9a-f]{{64}})", Route.PUT_PACK, PACK_BYTES_MAX),
        ("GET", rf"/sessions/{_SESSION}/packs/(?P<pack>[0-9a-f]{{64}})", Route.READ_PACK, 0),
        ("POST", rf"/sessions/{_SESSION}/state", Route.STATE, _IDS_BYTES_MAX),
        ("POST", rf"/sessions/{_SESSION}/commit", Route.COMMIT, COMMIT_BYTES_MAX),
        ("GET", rf"/sessions/{_SESSION}/generations", Route.RELAY, 0),
        ("GET", rf"/sessions/{_SESSION}/generations/[0-9a-f]{{32}}/(root|receipt)", Route.RELAY, 0),
        ("POST", rf"/sessions/{_SESSION}/generations/[0-9a-f]{{32}}/locate", Route.RELAY, _IDS_BYTES_MAX),
        ("GET", rf"/sessions/{_SESSION}/header/[0-9a-f]{{32}}", Route.RELAY, 0),
        ("DELETE", rf"/sessions/{_SESSION}", Route.CLOSE, 0),
    )
)


def match_storage_request(method: str, path: str) -> Matched | None:
    """Return what to do with a storage request; `path` is the part after `/storage/v1`. None: it does not pass."""
    for table_method, pattern, route, body_bytes_max in _TABLE:
        found = pattern.fullmatch(path)
        if found is not None and method == table_method:
            groups = found.groupdict()
            return Matched(route, body_bytes_max, groups.get("session"), groups.get("pack"))
    return None


def headers_to_pass(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a LAN request that travel upstream; keys are lower case."""
    return {name: headers[name] for name in _PASSED_HEADERS if name in headers}


def headers_to_return(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the headers of a service answer that travel to the LAN."""
    return tuple((name, headers[name]) for name in _RETURNED_HEADERS if name in headers)


class ServiceError(msgspec.Struct, frozen=True, kw_only=True):
    """An error body of the service (protocols §2); the numbers come with `quota-full`."""

    code: str
    message: str = ""
    needed_bytes: int | None = None
    limit_bytes: int | None = None
    used_bytes: int | None = None


@attrs.frozen
class Stored:
    """The service has the pack: it may leave the spool."""


@attrs.frozen
class Retry:
    """The line or the service is not well: try the same pack again after a pause of at least `after_s`."""

    reason: str
    after_s: float = 0.0


@attrs.frozen
class Hold:
    """The service refuses now and may accept later (quota, line assignment): keep all, ask again after `hold_s`."""

    reason: str
    error: ServiceError


@attrs.frozen
class SessionOver:
    """The session is gone: its packs wait here until the NAS opens a new one and asks for them."""

    reason: str


@attrs.frozen
class Reject:
    """The service refuses this pack for good."""

    reason: str


@attrs.frozen
class CheckLocal:
    """The service says the bytes do not hash to the name: look at the flash before anything else."""


Verdict = Stored | Retry | Hold | SessionOver | Reject | CheckLocal

_HOLD_CODES: Final = frozenset({"line-unknown", "line-not-contract", "quota-full", "upgrade-needed", "clock"})
_LINE_CODES: Final = frozenset({"line-unknown", "line-not-contract"})
_OVER_CODES: Final = frozenset({"session-over", "not-found", "refused"})
"""`refused` to a session token: the service does not know it, whatever the line (protocols §2)."""


def judge_upload(status: int, error: ServiceError | None, retry_after_s: float | None) -> Verdict:
    """Return what the service's answer to `PUT pack` means. `error` is None when the body was no error of ours.

    Args:
        status: HTTP status of the final answer.
        error: decoded error body, or None.
        retry_after_s: seconds of a `Retry-After` header, or None.
    """
    if status in {200, 201}:
        return Stored()
    if error is None or status == 429 or (status >= 500 and status != 507):
        reason = error.code if error is not None else f"status-{status}"
        return Retry(reason, after_s=min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))
    if error.code in _HOLD_CODES:
        return Hold(error.code, error)
    if error.code in _OVER_CODES:
        return SessionOver(error.code)
    return CheckLocal() if error.code == "bad-hash" else Reject(error.code)


def hold_s(reason: str) -> float:
    """Return how long a session waits that the service refuses for now."""
    return LINE_HOLD_S if reason in _LINE_CODES else HOLD_S


def backoff_s(attempt: int, jitter: float) -> float:
    """Return the pause before try number `attempt` (from 1): doubling from 1 s to 60 s, spread by `jitter` in [0, 1).

    Half of the pause is fixed and half is spread, so that gateways of one outage do not come back together.
    """
    ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 10))
    return ceiling_s * (0.5 + 0.5 * jitter)


@attrs.frozen
class Outage:
    """Requests of the LAN that could not reach the service, from the first in a row to the last (monotonic seconds)."""

    began_s: float
    last_s: float

    def retry_after_s(self) -> float:
        """Return when to come back: after as long again as the outage has lasted, 1 to 15 s. So short ones cost little."""
        return min(max(self.last_s - self.began_s, LINE_RETRY_MIN_S), LINE_RETRY_MAX_S)


def advance_outage(outage: Outage | None, now_s: float) -> Outage:
    """Return the outage that one more failure belongs to."""
    if outage is None or now_s - outage.last_s > OUTAGE_GAP_S:
        return Outage(now_s, now_s)
    return Outage(outage.began_s, now_s)


def parse_service_error(body: bytes) -> ServiceError | None:
    """Return the error of an answer, or None when its body is no error of ours."""
    try:
        return msgspec.json.decode(body, type=ServiceError)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def parse_retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After` header; the date form is not used between our programs."""
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None
