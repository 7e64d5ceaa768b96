"""The service's receipt key: signs receipts online, delegated by the offline service root."""

from __future__ import annotations

import attrs
import msgspec

from carrier.errors import LocalCarrierError
from wire.errors import WireError
from wire.signing import SigningKey
from wire.storage import Receipt, sign_receipt, verify_receipt_key


@attrs.frozen
class ReceiptSigner:
    """Receipt key with its delegation. `service_root` is the public half (32 bytes) that NAS pin."""

    key: SigningKey
    cert: bytes
    service_root: bytes

    def check(self, now_s: float) -> None:
        """Raise `LocalCarrierError` unless the root delegated this key and the delegation is not over."""
        try:
            delegation = verify_receipt_key(self.cert, service_root=self.service_root)
        except WireError as error:
            raise LocalCarrierError(f"receipt key: its delegation does not hold: {error}") from error
        if delegation.receipt_key != self.key.public.hex():
            raise LocalCarrierError("receipt key: the delegation is for another key")
        if delegation.not_after < now_s:
            raise LocalCarrierError(f"receipt key: delegation ended at {delegation.not_after} (unix seconds)")

    def sign(self, receipt: Receipt) -> bytes:
        """Return the signed receipt, with this key named in it."""
        return sign_receipt(self.key, msgspec.structs.replace(receipt, receipt_key=self.key.public.hex()))
