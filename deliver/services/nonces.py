"""Single use of statements: a nonce is kept until its statement could no longer be accepted."""

from __future__ import annotations

from typing import Final

import attrs
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from carrier.engines.sql.database import Database
from deliver.engines.schema import joint_nonce
from wire.ids import RandomId
from wire.statement import LIFE_S, SKEW_S

KEEP_S: Final = LIFE_S + 2 * SKEW_S


@attrs.frozen
class NonceBook:
    """Seen (signer, nonce) pairs. Synchronous; in a server run it in a worker thread."""

    database: Database

    def spend(self, signer: bytes, nonce: RandomId, now_s: float) -> bool:
        """Record a pair; False when it was recorded before."""
        row = {"signer": signer.hex(), "nonce": nonce.text, "drop_at": int(now_s) + KEEP_S + 1}
        try:
            with self.database.write() as connection:
                connection.execute(sa.delete(joint_nonce).where(joint_nonce.c.drop_at < int(now_s)))
                connection.execute(sa.insert(joint_nonce), row)
        except IntegrityError:
            return False
        return True
