"""The errors that leave `runtime`.

Rules: four kinds under one root, so that a caller decides by class, never by text. Messages say what was
expected, what came and which peer or file; never a secret. Expected refusals of a business rule are not
errors: they are returned as outcome types by the layers above.
"""

from __future__ import annotations


class EdgeError(Exception):
    """Root of everything `runtime` raises."""

    code = "error"


class LocalError(EdgeError):
    """We used a function wrongly or this machine is set up wrongly; retrying cannot help."""

    code = "local"


class ConfigError(LocalError):
    """The configuration cannot be used; the message is one line naming the key and the allowed range."""

    code = "config"
    exit_code = 2


class RemoteError(EdgeError):
    """The peer broke the protocol.

    On a server this carries the answer the peer gets; an HTTP handler may raise it and the server replies with
    `status`, `code` and the message. On a client the default status 502 says "the far end is at fault".
    """

    def __init__(self, message: str, *, status: int = 502, code: str = "remote-error") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class PeerGoneError(RemoteError):
    """The peer closed or reset the connection in the middle of a message; nobody is left to answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400, code="peer-gone")


class CertificateRefusedError(RemoteError):
    """The TLS peer's certificate is not accepted; no application byte was sent.

    `dates_only` is true when the one fault is the validity period (not yet valid, or expired) judged by this
    machine's clock: the only case in which a gateway may ask for the time (design §5.6).
    """

    def __init__(self, message: str, *, dates_only: bool = False, code: str = "certificate-refused") -> None:
        super().__init__(message, code=code)
        self.dates_only = dates_only


class PinMismatchError(CertificateRefusedError):
    """The peer showed another certificate than the pinned one; no application byte was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="pin-mismatch")


class Unavailable(EdgeError):  # noqa: N818 - the name style.md §7 gives this kind
    """Not now: network down, peer too slow, disk full, database busy. Retry, after `retry_after_s` if given."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CorruptDataError(EdgeError):
    """Stored data are not what was written. Never retry; raise an alarm."""

    code = "corrupt-data"
