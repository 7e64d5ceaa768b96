"""Tables of the ledger. Rows are only ever added (X-10); SQLite enforces it by triggers from the migration.

`metadata` is the ledger's own; the program that hosts it migrates it together with its tables.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

ledger_event = sa.Table(
    "ledger_event",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("token", sa.String(160), nullable=False, unique=True),
    sa.Column("at_s", sa.BigInteger, nullable=False),
    sa.Column("payer", sa.String(64), nullable=False, index=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

ledger_invoice = sa.Table(
    "ledger_invoice",
    metadata,
    sa.Column("payer", sa.String(64), primary_key=True),
    sa.Column("month", sa.String(7), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("closed_at", sa.BigInteger, nullable=False),
)

ledger_posting = sa.Table(
    "ledger_posting",
    metadata,
    sa.Column("payer", sa.String(64), primary_key=True),
    sa.Column("month", sa.String(7), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", sa.String(96), nullable=False),
    sa.Column("debit_yen", sa.BigInteger, nullable=False),
    sa.Column("credit_yen", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["payer", "month"], ["ledger_invoice.payer", "ledger_invoice.month"]),
    sa.CheckConstraint("debit_yen >= 0 AND credit_yen >= 0", name="ck_ledger_posting_sign"),
    sa.CheckConstraint("debit_yen = 0 OR credit_yen = 0", name="ck_ledger_posting_side"),
)
