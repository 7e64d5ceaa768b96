"""The LAN listener: hello, pairing, and the storage protocol relayed or spooled (protocols §3, §5).

Rules
- Peers that are not on the LAN side get the strangers' answer, whichever address they reached.
- Without a live device token there is one answer for every path and cause; authentication comes before routing.
- A pack goes to the spool and is answered "spooled"; small requests pass as they are, through a white list; the service
  decides everything else. What the gateway adds (`Hgw-Gateway`) names this gateway, never a line (X-03, X-04).
- A revoked device is cut off at its next piece, also in the middle of a body (AZK-73).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hgwd.adapters.lan_devices import LanDevice, LanDevices
from hgwd.adapters.lan_pairing import PairingDesk
from hgwd.adapters.lan_storage import StorageRelay
from hgwd.core.addresses import Network, is_lan_address, parse_address
from hgwd.core.relay import LAN_PREFIX, STORAGE_PREFIX
from runtime.http import Request, Response, error_response, json_response

PRODUCT: Final = {"product": "hgwd", "v": 1}
_BEARER: Final = "Bearer "


class LanFront:
    """The handler of the LAN listener."""

    def __init__(
        self,
        devices: LanDevices,
        pairing: PairingDesk,
        storage: StorageRelay,
        lan_prefixes: Sequence[Network],
        count_refusal: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self._devices = devices
        self._pairing = pairing
        self._storage = storage
        self._lan_prefixes = tuple(lan_prefixes)
        self._count_refusal = count_refusal

    async def __call__(self, request: Request) -> Response:
        """See `runtime.http.Handler`."""
        if not self._is_lan_peer(request.peer.host):
            return stranger(close=True)
        if request.path == f"{LAN_PREFIX}/hello" and request.method in {"GET", "HEAD"}:
            return json_response(200, PRODUCT)
        if request.path == f"{LAN_PREFIX}/pair" or request.path.startswith(f"{LAN_PREFIX}/pair/"):
            return await self._pairing(request)
        device = self._authenticate(request)
        if device is None:
            self._count_refusal("refused")
            return stranger()
        request.trace.add(device=device.device)
        if not request.path.startswith(LAN_PREFIX + STORAGE_PREFIX + "/"):
            return error_response(404, "not-found", "expected a path of the storage protocol")
        return await self._storage.handle(request, device)

    def _authenticate(self, request: Request) -> LanDevice | None:
        text = request.headers.get("authorization", "")
        return self._devices.authenticate(text[len(_BEARER) :]) if text.startswith(_BEARER) else None

    def _is_lan_peer(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and is_lan_address(address, self._lan_prefixes)


def stranger(*, close: bool = False) -> Response:
    """Return the one answer to everybody without a live token."""
    answer = error_response(403, "refused", "expected the token of a paired device")
    return Response(answer.status, answer.headers, answer.body, close=close)
