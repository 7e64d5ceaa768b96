"""Who may be logged in to the admin page: tries per peer, sessions with idle time-out. Pure.

Rules
- `PEER_TRIES_MAX` wrong passwords of one address in `WINDOW_S`, `ALL_TRIES_MAX` of all together: then nobody is asked
  for a password until the window has passed (an attacker on the LAN can shut the page, never guess on).
- A session is 256 random bits, kept hashed, at most `SESSIONS_MAX`; the oldest gives way. It ends after `idle_s`
  without a request, at logout, and at every restart of hgwd.
- Each session has its own CSRF token.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import attrs

PEER_TRIES_MAX: Final = 5
ALL_TRIES_MAX: Final = 20
WINDOW_S: Final = 900.0
SESSIONS_MAX: Final = 8


@attrs.define
class AdminSession:
    """A logged-in browser; `last_s` on the caller's monotonic clock."""

    csrf: str
    last_s: float


class LoginGate:
    """Counts failures and keeps sessions; `now_s` is monotonic seconds."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._failures: list[tuple[float, str]] = []
        self._sessions: dict[bytes, AdminSession] = {}

    def wait_s(self, peer: str, now_s: float) -> float:
        """Return how long `peer` must wait before a password is looked at; 0 = now."""
        self._failures = [(at_s, who) for at_s, who in self._failures if now_s < at_s + WINDOW_S]
        own = [at_s for at_s, who in self._failures if who == peer]
        waits = [0.0]
        if len(own) >= PEER_TRIES_MAX:
            waits.append(own[-PEER_TRIES_MAX] + WINDOW_S - now_s)
        if len(self._failures) >= ALL_TRIES_MAX:
            waits.append(self._failures[-ALL_TRIES_MAX][0] + WINDOW_S - now_s)
        return max(waits)

    def note_try(self, peer: str, now_s: float) -> None:
        """Count a try before the password is looked at, so that tries at once count as well."""
        self._failures.append((now_s, peer))

    def log_in(self, peer: str, token: str, csrf: str, now_s: float) -> None:
        """The password was right: open a session and forget the peer's tries."""
        self._failures = [(at_s, who) for at_s, who in self._failures if who != peer]
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[min(self._sessions, key=lambda digest: self._sessions[digest].last_s)]
        self._sessions[_hash(token)] = AdminSession(csrf, now_s)

    def find(self, token: str, now_s: float) -> AdminSession | None:
        """Return the live session of `token` and keep it alive, or None."""
        digest = _hash(token)
        session = self._sessions.get(digest)
        if session is None:
            return None
        if now_s >= session.last_s + self._idle_s:
            del self._sessions[digest]
            return None
        session.last_s = now_s
        return session

    def log_out(self, token: str) -> None:
        """End the session of `token`, if there is one."""
        self._sessions.pop(_hash(token), None)


def csrf_matches(session: AdminSession, token: str) -> bool:
    """Say whether a form carried the session's CSRF token."""
    return hmac.compare_digest(session.csrf.encode(), token.encode("utf-8", "surrogatepass"))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
