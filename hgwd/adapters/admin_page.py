"""The local admin page: its own listener on the LAN, behind the admin password (X-34; CVE-2024-47044, CVE-2016-1227/1228).

Rules
- Peers and listeners are on the LAN side only; Host must be one of ours (DNS rebinding); a POST must come from our own
  page (Origin) and carry the session's CSRF token. No shell, no file name, no script.
- Nothing but the log-in form is shown without a session.
"""

from __future__ import annotations

import secrets
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Final

import trio

from hgwd.adapters import admin_html as html
from hgwd.adapters.lan_devices import LanDevices
from hgwd.adapters.lan_pairing import PairingDesk
from hgwd.core.addresses import Network, is_lan_address, parse_address
from hgwd.core.admin_login import AdminSession, LoginGate, csrf_matches
from hgwd.core.status import GatewayStatus
from hgwd.passwords import PASSWORD_CHARS_MAX, PasswordHash
from runtime.clock import Clock
from runtime.http import Request, Response, Router, error_response

COOKIE: Final = "hgw-admin"
_FORM_BYTES_MAX: Final = 4096
_FIELDS_MAX: Final = 8
_Page = Callable[..., Awaitable[Response]]


class AdminPage:
    """The handler of the admin listener. `authorities`: the `host[:port]` forms that are ours; `scheme` of the listener."""

    def __init__(
        self,
        *,
        password: PasswordHash,
        gate: LoginGate,
        desk: PairingDesk,
        devices: LanDevices,
        collect: Callable[[], Awaitable[GatewayStatus]],
        clock: Clock,
        authorities: frozenset[str],
        scheme: str,
        lan_prefixes: Sequence[Network],
    ) -> None:
        self._password = password
        self._gate = gate
        self._desk = desk
        self._devices = devices
        self._collect = collect
        self._clock = clock
        self._authorities = authorities
        self._origins = frozenset(f"{scheme}://{authority}" for authority in authorities)
        self._cookie_end = "; Secure" if scheme == "https" else ""
        self._lan_prefixes = tuple(lan_prefixes)
        self._hashing = trio.CapacityLimiter(1)  # scrypt takes 8 MiB: one at a time
        self._router = Router()
        self._router.route("GET", "/login", self._login_form)
        self._router.route("POST", "/login", self._log_in)
        self._router.route("GET", "/", self._inside(self._status))
        self._router.route("GET", "/devices/{device}/revoke", self._inside(self._revoke_form))
        self._router.route("POST", "/devices/revoke", self._inside(self._revoke))
        self._router.route("POST", "/pair/approve", self._inside(self._approve))
        self._router.route("POST", "/pair/refuse", self._inside(self._refuse))
        self._router.route("POST", "/logout", self._inside(self._log_out))

    async def __call__(self, request: Request) -> Response:
        """See `runtime.http.Handler`."""
        peer = parse_address(request.peer.host)
        if peer is None or not is_lan_address(peer, self._lan_prefixes):
            return Response(403, close=True)
        if request.host.lower() not in self._authorities:
            return error_response(421, "refused", "expected this gateway's own name or address as Host")
        if request.method not in {"GET", "HEAD"} and request.headers.get("origin") not in self._origins:
            return error_response(403, "refused", "expected a form of this page (Origin)")
        return await self._router(request)

    async def _login_form(self, request: Request) -> Response:
        return _page(200, html.login_page())

    async def _log_in(self, request: Request) -> Response:
        fields = await _read_form(request)
        now_s = self._clock.monotonic_s()
        wait_s = self._gate.wait_s(request.peer.host, now_s)
        if wait_s > 0:
            return _page(429, html.login_page(wait_s=wait_s), ("retry-after", str(int(wait_s) + 1)))
        self._gate.note_try(request.peer.host, now_s)
        password = fields.get("password", "")[:PASSWORD_CHARS_MAX]
        if not await trio.to_thread.run_sync(self._password.matches, password, limiter=self._hashing):
            return _page(403, html.login_page(wrong=True))
        token = secrets.token_hex(32)
        self._gate.log_in(request.peer.host, token, secrets.token_hex(16), self._clock.monotonic_s())
        cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{self._cookie_end}"
        return Response(303, (("location", "/"), ("set-cookie", cookie), ("cache-control", "no-store")))

    def _inside(self, handler: _Page) -> _Page:
        """Wrap a handler: it gets the live session, and of a POST the form, whose CSRF token was checked."""

        async def wrapped(request: Request, **parameters: str) -> Response:
            session = self._gate.find(_cookie_of(request), self._clock.monotonic_s())
            if session is None:
                return _see("/login")
            if request.method in {"GET", "HEAD"}:
                return await handler(request, session, **parameters)
            fields = await _read_form(request)
            if not csrf_matches(session, fields.get("csrf", "")):
                return error_response(403, "refused", "expected the token of this page's own form")
            return await handler(request, fields, **parameters)

        return wrapped

    async def _status(self, request: Request, session: AdminSession) -> Response:
        return _page(200, html.status_page(await self._collect(), self._desk.waiting(), session.csrf))

    async def _revoke_form(self, request: Request, session: AdminSession, device: str) -> Response:
        status = await self._collect()
        found = [item for item in status.devices if item.device == device and item.revoked_at_s is None]
        if not found:
            return _page(404, html.message_page("このNASは接続されていません", "this NAS is not paired"))
        return _page(200, html.revoke_page(found[0], session.csrf))

    async def _revoke(self, request: Request, fields: dict[str, str]) -> Response:
        await self._devices.revoke(fields.get("device", ""))
        return _see("/")

    async def _approve(self, request: Request, fields: dict[str, str]) -> Response:
        device = await self._desk.approve(fields.get("pair", ""), fields.get("digits", ""))
        if device is None:
            text = html.message_page(
                "間に合いませんでした。NASでもう一度接続してください",
                "too late, or too many NAS are paired: start again on the NAS",
                severity="warning",
            )
            return _page(409, text)
        return _see("/")

    async def _refuse(self, request: Request, fields: dict[str, str]) -> Response:
        self._desk.refuse(fields.get("pair", ""))
        return _see("/")

    async def _log_out(self, request: Request, fields: dict[str, str]) -> Response:
        self._gate.log_out(_cookie_of(request))
        return _see("/login")


def own_authorities(host: str, port: int, names: Sequence[str], *, default_port: int) -> frozenset[str]:
    """Return the Host values that mean this page: address and configured names, with and without a default port."""
    literal = f"[{host.partition('%')[0]}]" if ":" in host else host
    names = [literal, *names]
    if host in {"127.0.0.1", "::1"}:
        names.append("localhost")
    with_port = {f"{name}:{port}".lower() for name in names}
    return frozenset(with_port | ({name.lower() for name in names} if port == default_port else set()))


def _page(status: int, body: bytes, *headers: tuple[str, str]) -> Response:
    return Response(status, (*html.HEADERS, *headers), body)


def _see(path: str) -> Response:
    return Response(303, (("location", path), ("cache-control", "no-store")))


def _cookie_of(request: Request) -> str:
    try:
        cookies = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, the last of a name; `RemoteError` 413 above `_FORM_BYTES_MAX`, {} for other bodies."""
    body = await request.body.read(_FORM_BYTES_MAX)
    if (
        request.headers.get("content-type", "").partition(";")[0].strip()
        != "application/x-www-form-urlencoded"
    ):
        return {}
    try:
        return dict(
            urllib.parse.parse_qsl(
                body.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict"
            )
        )
    except ValueError:
        return {}
