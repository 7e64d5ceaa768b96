"""What goes wrong on the NAS side, by what the caller can do about it.

`LocalError`, `RemoteError`, `Unavailable` (retry) and `CorruptDataError` (never retry) are those of `runtime.errors`;
here are the kinds that only the agent knows. Expected refusals of a store are returned (`ports.Refusal`), not raised.
"""

from __future__ import annotations

from runtime.errors import CorruptDataError, LocalError


class VaultRefusedError(CorruptDataError):
    """The store showed something that the keys contradict: swapped, planted, replayed or hidden.

    `reason` is one of the names in vault-format.md §9 (`root-signature`, `chain-broken`, `generation-hidden`, …).
    """

    code = "vault-refused"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class DamagedChunkError(CorruptDataError):
    """One chunk cannot be restored (missing, truncated or altered); other files may still be."""

    code = "damaged-chunk"

    def __init__(self, chunk: bytes, message: str) -> None:
        super().__init__(f"chunk {chunk.hex()[:16]}…: {message}")
        self.chunk = chunk


class SourceChangedError(LocalError):
    """A file is no longer the one that was listed (replaced, shrunk, or changed while it was read)."""

    code = "changed-while-reading"


class StoreRefusedError(LocalError):
    """The store answered with a final refusal; `refusal_code` is its code (protocols.md §2)."""

    code = "store-refused"

    def __init__(self, refusal_code: str, message: str) -> None:
        super().__init__(f"{refusal_code}: {message}")
        self.refusal_code = refusal_code
